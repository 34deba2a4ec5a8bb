"""How the user's entries become bytes, and bytes the user's entries.

The names are those of the original's `valueEncoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any, NamedTuple


class Encoding(NamedTuple):
    """How one entry becomes bytes, and bytes an entry; the two methods do it for many entries."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def encode_all(self, entries: list[Any]) -> list[bytes]:
        if self.decode is bytes and set(map(type, entries)) == {bytes}:
            return entries  # as they are, seen in a third of the time
        return list(map(self.encode, entries))

    def decode_all(self, peer: str, first: int, entries: Iterable[bytes]) -> Iterable[Any]:
        """The entries of `peer` from number `first` on, decoded when they are asked for."""
        if self.decode is bytes:
            return entries
        if self.decode is not _decode_json:  # only that one can fail
            return map(self.decode, entries)
        # Not a generator: that would be over after one entry that is not JSON.
        return map(partial(self.decode_entry, peer), count(first), entries)

    def decode_entry(self, peer: str, seq: int, entry: bytes) -> Any:
        """Entry number `seq` of `peer`, decoded; ValueError with both if it cannot be."""
        try:
            return self.decode(entry)
        except ValueError as error:
            raise ValueError(f"entry {seq} of {peer!r} is not {self.name!r}: {error}") from error


def find_encoding(name: str) -> Encoding:
    """The encoding called `name`; ValueError if there is none."""
    if isinstance(name, str) and name in _ENCODINGS:
        return _ENCODINGS[name]
    raise ValueError(f"value_encoding is one of {', '.join(map(repr, _ENCODINGS))}, not {name!r}")


def _encode_binary(entry: bytes | str) -> bytes:
    if isinstance(entry, bytes):
        return entry
    if isinstance(entry, str):
        return entry.encode()
    raise TypeError(f"a 'binary' entry is bytes or str, not {entry!r}")


def _encode_utf8(entry: str) -> bytes:
    if isinstance(entry, str):
        return entry.encode()
    raise TypeError(f"a 'utf-8' entry is a str, not {entry!r}")


def _decode_utf8(entry: bytes) -> str:
    return entry.decode(errors="replace")


def _encode_json(entry: Any) -> bytes:
    # As JSON.stringify writes it: no blanks, lone surrogates escaped. NaN and the infinities, of
    # which it makes null, are a ValueError, so that nothing gets lost.
    import json  # only here: a program without JSON entries need not load it

    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"a 'json' entry cannot be {entry!r}: {error}") from None
    return text.encode(errors="backslashreplace")


def _decode_json(entry: bytes) -> Any:
    import json

    try:
        return json.loads(_decode_utf8(entry), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"too deep for JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_ENCODINGS = {
    "binary": Encoding("binary", _encode_binary, bytes),
    "utf-8": Encoding("utf-8", _encode_utf8, _decode_utf8),
    "json": Encoding("json", _encode_json, _decode_json),
}
