"""A connection between two processes of one user, which have proven to each other that they are.

Theory of operation
-------------------

The process that has a database open, its *owner*, listens on the loopback interface. The file
`share` in the database's folder, which only this user can read, names the port and a secret. The
file also names the device and the inode of the folder, so a copy of the folder does not lead to the
original. Every system has TCP, and no socket lies in a folder that is copied or cleaned.

*Proof.* Other users of the machine can connect, too. So each side first proves that it knows the
secret, by an HMAC of bytes that the other side has just made up. Neither side tells the secret. A
port that belongs to another program by now learns nothing, and is not believed.

*A message* is a value of JSON and some entries: two lengths of 4 bytes, the JSON, and the entries
one after the other. The last part of the JSON is a list of the entries' lengths.

*After a fork* the child closes its descriptors of all links, without a word to the other side. If
they stayed open, nobody would see that the parent has ended.

`multiprocessing.connection` would do much of this. But it waits without limit for the proof of a
silent client, and a write to a process that has gone ends the program where SIGPIPE does, as in
`scuttleup read | head`.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import weakref
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader, BytesIO
from time import monotonic
from typing import Any

from .. import limits
from ..leveldb import FORKED, files, ident

# The name of the file in the database's folder.
FILE = "share"
# The roles of the two sides. Each is a part of its own proof, so no proof can be sent back as one.
OWNER, USER = b"owner", b"user"

_LENGTHS = struct.Struct(">II")
_SECRET_BYTES = 32
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
# Every link and every listening socket, for a child process to close.
OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


class Link:
    """One side of a connection over `sock`.

    One thread at a time may use a link, but any thread may `end` it. An OSError says that the other
    side has gone or takes too long, and a ValueError that something is no message.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        # Why the link cannot be used any more; None as long as it can.
        self.refusal: str | None = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Also when the garbage collector finds the link: it would finalize the socket first.
        weakref.finalize(self, _close, self._file, sock).atexit = False
        OPEN.add(self)

    def prove(self, secret: bytes, mine: bytes, other: bytes, seconds: float) -> None:
        """Prove that we, in the role `mine`, know `secret`, and see that the other side does.

        All of it may take so many seconds, and so may each message that comes next.
        """
        end = monotonic() + seconds
        nonce = os.urandom(_SECRET_BYTES)
        self.send(nonce)
        theirs = self._read_until(end)
        self.send(hmac.digest(secret, mine + theirs, "sha256"))
        proof = hmac.digest(secret, other + nonce, "sha256")
        if not hmac.compare_digest(self._read_until(end), proof):
            raise OSError("the other side does not know the secret")
        self.sock.settimeout(seconds)

    @staticmethod
    def pack(value: Any, entries: Iterable[bytes] = ()) -> bytes:
        """The bytes of a message. Raises ValueError if they are too many."""
        entries = list(entries)
        text = json.dumps([value, list(map(len, entries))]).encode()
        size = sum(map(len, entries))
        if len(text) + size > limits.MAX_MESSAGE:
            raise ValueError(f"{len(text) + size} bytes at once: {limits.MAX_MESSAGE} is the most")
        return b"".join([_LENGTHS.pack(len(text), size), text, *entries])

    def send(self, message: bytes) -> None:
        """Send a message that `pack` has made."""
        self.sock.sendall(message, _NO_SIGNAL)

    def receive(self) -> tuple[Any, list[bytes]]:
        """Wait for one message."""
        length, size = _LENGTHS.unpack(self._read(_LENGTHS.size))
        if length + size > limits.MAX_MESSAGE:
            raise ValueError(f"a message of {length + size} bytes")
        value, sizes = json.loads(self._read(length))
        data = BytesIO(self._read(size))
        return value, list(map(data.read, sizes))

    def hears(self, seconds: float) -> bool:
        """Wait for a word of the other side, or its end; return False after so many seconds."""
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        return True

    def _read_until(self, end: float) -> bytes:
        """A half of a proof. A byte now and then does not hold the place for longer."""
        data = b""
        while len(data) < _SECRET_BYTES:
            self.sock.settimeout(max(end - monotonic(), 0.001))
            if not (piece := self.sock.recv(_SECRET_BYTES - len(data))):
                raise ConnectionResetError("the other side has ended")
            data += piece
        return data

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionResetError("the other side has ended")
        return data

    def end(self, how: int = socket.SHUT_RDWR) -> None:
        """Wake the thread that waits here. The descriptor is closed when nobody holds the link."""
        with suppress(OSError):
            self.sock.shutdown(how)


def _close(file: BufferedReader, sock: socket.socket) -> None:
    with suppress(OSError):
        file.close()
        sock.close()


def _after_fork() -> None:
    for each in list(OPEN):
        each.refusal = FORKED
        with suppress(OSError):
            os.close(each.sock.detach())


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


def write_down(folder: str, port: int) -> bytes:
    """Write into `folder` the port of its owner; return the secret. Raises OSError."""
    secret = os.urandom(_SECRET_BYTES)
    there = [port, secret.hex(), ident(folder)]
    files.write_file(os.path.join(folder, FILE), json.dumps(there).encode())
    return secret


def rub_out(folder: str, secret: bytes) -> None:
    """Remove what `write_down` wrote, but not that of another owner, if the folder was moved."""
    path = os.path.join(folder, FILE)
    with suppress(OSError):
        if secret.hex().encode() in (files.read_file(path) or b""):
            os.unlink(path)


def connect(folder: str, seconds: float) -> Link:
    """A link to the owner of `folder`, on which both have proven themselves within `seconds`.

    Raises OSError or ValueError if nobody is there.
    """
    port, secret, number = json.loads(files.read_file(os.path.join(folder, FILE)) or b"")
    if tuple(number) != ident(folder):
        raise ValueError("the folder is a copy")
    link = Link(socket.create_connection(("127.0.0.1", port), seconds))
    try:
        link.prove(bytes.fromhex(secret), USER, OWNER, seconds)
    except BaseException:
        link.end()  # the error may be kept, and keeps the link
        raise
    return link
