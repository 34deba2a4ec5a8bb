"""Bytes as any encoder may put them on the wire, right or wrong, and in any pieces."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Literal

from scuttleup.replication.messages import handshake_pieces

MAX = 2**32 - 1
Mode = Literal["sync", "push", "pull"]
MODES: list[Mode] = ["sync", "push", "pull"]

# What a browser says to a port that is not for it, and to https on that port.
HTTP = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:2014\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.b")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def varint(value: int, width: int = 1) -> bytes:
    """`value` in at least `width` bytes: more than it takes is allowed, and read alike."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * (width - len(groups))
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def frame(message: bytes) -> bytes:
    return varint(len(message)) + message


def string(number: int, text: bytes) -> bytes:
    """A field with a length."""
    return bytes([number << 3 | 2]) + frame(text)


def encode_handshake(id: str, head: Mapping[str, int], mode: str, reports: bool = False) -> bytes:
    """The frame of a Handshake, as a whole."""
    return b"".join(handshake_pieces(id, head, mode, reports))


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """`data` in pieces of `sizes`, over and over."""
    sizes = list(sizes)
    while data:
        for size in sizes:
            if data:
                yield data[:size]
                data = data[size:]


def sends(mode: str, remote_mode: str) -> bool:
    """Whether a side in `mode` sends changes to one in `remote_mode`."""
    return mode != "pull" and remote_mode != "push"
