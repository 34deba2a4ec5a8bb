"""The replication protocol without any I/O: bytes in, bytes out, as h11 does it for HTTP.

Each side sends its handshake at once: who it is and the last number of every log that it has.
When it has the other's, it sends every change that the other lacks, log by log, and then, live,
whatever is stored later from anywhere but this connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .changes import Change, Run, expand
from .errors import ProtocolError
from .keys import check_peer, check_seq
from .messages import (
    MODES,
    Decoder,
    Handshake,
    decode_handshake,
    encode_changes,
    encode_handshake,
)
from .store import Store

SEND_BYTES = 64 * 1024


class Replicated(NamedTuple):
    """How many changes a replication handed to the connection, and how many new ones it stored."""

    sent: int
    received: int


class ReplicationStream:
    """One end of one replication.

    Whoever has the connection passes on what comes in with `receive_data`, and what
    `data_to_send` returns. There may be more of that after each call of `receive_data`, and
    whenever `wake` is called, from any thread. It is over when `finished` says so, or after an
    error; then call `close`.

    >>> stream.receive_data(sock.recv(65536))
    >>> while data := stream.data_to_send():
    ...     sock.sendall(data)
    """

    def __init__(
        self,
        store: Store,
        *,
        mode: str,
        live: bool,
        verify: Callable[[Change], bool] | None,
        max_frame: int,
        wake: Callable[[], None],
    ) -> None:
        if not isinstance(max_frame, int) or max_frame < 1:
            raise ValueError(f"max_frame is a number of bytes, not {max_frame!r}")
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        self._store = store
        self._mode = mode
        self._live = live
        self._verify = verify
        self._wake = wake
        self._remote: Handshake | None = None
        # By the two modes, once both are known: whether we send changes, and whether the remote.
        self._sends = self._receives = False
        self._since: dict[str, int] = {}  # what the remote has, as far as we know
        # The follower is what we have to send. The sentinel tells whether the log was closed; it is
        # one of its own until there is a live follower.
        self._follower = self._sentinel = store.follow({}, snapshot=False, live=True, wake=wake)
        # What the remote has above our heads, (peer, seq), and so is going to send.
        self._promised: list[tuple[str, int]] = []
        self._decoder = Decoder(max_frame)
        self._failed = False
        self._sent = self._received = 0
        # Goes up with every run that was promised and, as a large entry comes, every 64 KiB of it.
        self.progress = 0
        self._handshake = encode_handshake(store.id, store.heads.copy(), mode)

    @property
    def remote_id(self) -> str | None:
        """The id of the remote, once it has said it."""
        return self._remote.id if self._remote else None

    @property
    def replicated(self) -> Replicated:
        """What was sent and received by now."""
        return Replicated(self._sent, self._received)

    @property
    def closed(self) -> bool:
        """Whether the log was closed, or this."""
        return self._sentinel.closed

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to send or to wait for.

        A live stream is finished only when the remote has ended, or the log was closed.
        """
        if self.closed:
            return True
        if self._remote is None or self._live:
            return False
        return not self.waiting and not (self._sends and not self._follower.idle)

    @property
    def waiting(self) -> bool:
        """Whether a stream that is not live still expects something that the remote promised."""
        heads = self._store.heads
        while self._promised and heads.get(self._promised[-1][0], 0) >= self._promised[-1][1]:
            self._promised.pop()
        return bool(self._promised) and not self._live

    def stop_waiting(self) -> None:
        """Do without what the remote promised: it was deleted there, or the remote is stuck."""
        self._promised = []

    def close(self) -> None:
        """Give up the place in the store. What `data_to_send` had is gone."""
        self._sentinel.close()
        self._follower.close()

    def data_to_send(self) -> bytes:
        """The next 64 KiB or so for the remote; b"" when there is nothing now."""
        if self.closed:
            return b""
        if self._handshake:
            data, self._handshake = self._handshake, b""
            return data
        frames: list[bytes] = []
        size = 0
        while self._sends and size < SEND_BYTES and (run := self._follower.read()):
            frames.append(encode_changes(*run))
            size += len(frames[-1])
            self._sent += len(run.entries)
        return b"".join(frames)

    def receive_data(self, data: bytes) -> None:
        """Take what the remote sent, b"" for its end, and store what is in it.

        Raises ProtocolError when the remote is in error; what came before that is stored. Raises
        `plyvel.Error` when the disk is.
        """
        if self._failed:
            raise ProtocolError("this replication ended with an error")
        self._failed = True  # until all went well
        try:
            if not data:
                self._receive_eof()
            self._decoder.feed(data)
            if self._remote is None and (message := self._decoder.message()):
                self._receive_handshake(decode_handshake(message))
            if self._remote is not None:
                self._receive_changes(self._remote)
            self.progress += self._decoder.pending >> 16
        except ValueError as error:
            # Short, for a remote chooses some of it, and it goes to somebody's log.
            raise ProtocolError(f"{error!s:.300}") from error
        self._failed = False

    def _receive_handshake(self, remote: Handshake) -> None:
        check_peer(remote.id)
        for peer, seq in remote.head.items():
            check_peer(peer)
            check_seq(seq)
        if remote.id == self._store.id:
            raise ValueError(f"the remote has our own id, {remote.id!r}: one of us is a copy")
        self._remote = remote
        self._sends = self._mode != "pull" and remote.mode != "push"
        self._receives = self._mode != "push" and remote.mode != "pull"
        if self._receives:
            self._promised = [
                (peer, seq)
                for peer, seq in remote.head.items()
                if seq > self._store.heads.get(peer, 0)
            ]
        if self._sends:
            self._since.update(remote.head)
            self._follower = self._store.follow(
                self._since, snapshot=True, live=self._live, wake=self._wake
            )
            if self._live:
                self._sentinel = self._follower

    def _receive_changes(self, remote: Handshake) -> None:
        own_id = self._store.id
        own_head = self._store.heads.get(own_id, 0)
        runs: list[Run] = []
        try:
            for peer, first, entries in self._decoder.changes():
                check_peer(peer)
                check_seq(first)
                if not self._receives:
                    raise ValueError(f"a change, though the modes allow none: {first} of {peer!r}")
                last = first + len(entries) - 1
                if peer == own_id:
                    if first > own_head + 1:
                        raise ValueError(f"a leap in our own log from {own_head} to {first}")
                    own_head = max(own_head, last)
                if self._verify:
                    runs.append(Run(peer, first, accepted := []))
                    for change in expand(peer, first, entries):
                        _ask(self._verify, change)
                        accepted.append(change.entry)
                else:
                    runs.append(Run(peer, first, entries))
                if first <= remote.head.get(peer, 0):
                    self.progress += 1
                # Before the store tells our follower of it, which is not to send it back.
                self._since[peer] = max(self._since.get(peer, 0), last)
        finally:
            # What one read brought, in one batch.
            self._received += self._store.write(runs) if runs else 0

    def _receive_eof(self) -> None:
        if self._decoder.pending:
            raise ProtocolError("the connection ended in the middle of a frame")
        if self._remote is None:
            raise ProtocolError("the connection ended before the handshake")
        self._promised = []
        # A remote that never sends changes may end its side at once and go on listening: the
        # original does. Any other is about to leave; what it lacks is still sent.
        if self._receives or not self._sends:
            self._live = False


def _ask(verify: Callable[[Change], bool], change: Change) -> None:
    where = f"{change.seq} of {change.peer!r}"
    try:
        accepted = verify(change)
    except Exception as error:
        raise ValueError(f"verify failed at {where}: {error!r}") from error
    if not accepted:
        raise ValueError(f"verify refused {where}")
