"""How entries of the user become bytes, and how bytes become entries.

The names are those of the original's `valueEncoding`. An encoding is not stored with an entry: the
database holds bytes, and each reader chooses an encoding. So one program may read a log as text,
and another as bytes.

| name     | takes           | gives                                  | fails on reading      |
|----------|-----------------|----------------------------------------|-----------------------|
| `binary` | bytes, or a str | bytes                                  | never                 |
| `utf-8`  | str             | str; bytes that are no UTF-8 as U+FFFD | never                 |
| `json`   | what JSON knows | the same                               | if it is not JSON     |

Only `Scuttleup` and `ReadStream` know of encodings. Everything below them handles bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count

from .errors import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    ValueEncoding = Literal["binary", "utf-8", "json"]


class Encoding:
    """One way to make bytes of an entry, and an entry of bytes.

    `encode` raises TypeError or ValueError for a wrong entry. `decode` raises ValueError for bytes
    that cannot be read. The methods do the same for many entries.
    """

    def __init__(
        self, name: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
    ) -> None:
        self.name = name
        self.encode = encode
        self.decode = decode

    def encode_all(self, entries: list[Any]) -> list[bytes]:
        """The bytes of each of `entries`. Raises as `encode` does."""
        if self.decode is bytes and set(map(type, entries)) == {bytes}:
            # These are the bytes already. To look at all types takes a third of the time that a
            # call of `encode` for each entry takes.
            return entries
        return list(map(self.encode, entries))

    def decode_all(self, peer: str, first: int, entries: Iterable[bytes]) -> Iterable[Any]:
        """The entries of `peer` from number `first` on, decoded when they are asked for.

        An entry that cannot be decoded raises ValueError in its place; the later entries can still
        be had.
        """
        if self.decode is bytes:
            return entries
        # Of all encodings only JSON can fail, so only there the numbers are needed for an error.
        if self.decode is not _decode_json:
            return map(self.decode, entries)
        # A `map` goes on after an error; a generator would end for good.
        return map(partial(self.decode_entry, peer), count(first), entries)

    def decode_entry(self, peer: str, seq: int, entry: bytes) -> Any:
        """Entry number `seq` of `peer`, decoded.

        Raises ValueError, which names both, if the entry cannot be decoded.
        """
        try:
            return self.decode(entry)
        except ValueError as error:
            raise ValueError(f"entry {seq} of {peer!r} is not {self.name!r}: {error}") from error


def find_encoding(name: str) -> Encoding:
    """The encoding called `name`.

    Raises ValueError unless that is "binary", "utf-8" or "json".

    >>> find_encoding("json").encode({"a": 1})
    b'{"a":1}'
    """
    if isinstance(name, str) and name in _ENCODINGS:
        return _ENCODINGS[name]
    raise ValueError(f"value_encoding is one of {', '.join(map(repr, _ENCODINGS))}, not {name!r}")


def _encode_binary(entry: bytes | str) -> bytes:
    """The bytes of `entry`. A str becomes UTF-8, as the original stores a string."""
    if isinstance(entry, bytes):
        return entry
    if isinstance(entry, str):
        return entry.encode()
    raise TypeError(f"a 'binary' entry is bytes or str, not {shown(entry)}")


def _encode_utf8(entry: str) -> bytes:
    if isinstance(entry, str):
        return entry.encode()
    raise TypeError(f"a 'utf-8' entry is a str, not {shown(entry)}")


def _decode_utf8(entry: bytes) -> str:
    """The text in `entry`. As in the original, U+FFFD stands for what is not UTF-8."""
    return entry.decode(errors="replace")


def _encode_json(entry: Any) -> bytes:
    """The JSON of `entry`, as JSON.stringify writes it: no blanks, and lone surrogates escaped.

    JSON.stringify writes NaN and the infinities as null. Here they are a ValueError, so that
    nothing gets lost.
    """
    # Imported here and below, as a program without JSON entries does not need this module.
    import json

    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"a 'json' entry cannot be {shown(entry)}: {error}") from None
    return text.encode(errors="backslashreplace")


def _decode_json(entry: bytes) -> Any:
    """The value in the JSON `entry`. Raises ValueError if it is not JSON."""
    import json

    try:
        # Python would read NaN and Infinity, which are not JSON, so they are refused.
        return json.loads(_decode_utf8(entry), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"too deep for JSON: {error}") from None


def _refuse(constant: str) -> None:
    """Refuse NaN, Infinity or -Infinity, which JSON does not know."""
    raise ValueError(f"{constant} is not JSON")


# By name. `binary` decodes with `bytes`, which returns the very same object.
_ENCODINGS = {
    "binary": Encoding("binary", _encode_binary, bytes),
    "utf-8": Encoding("utf-8", _encode_utf8, _decode_utf8),
    "json": Encoding("json", _encode_json, _decode_json),
}
