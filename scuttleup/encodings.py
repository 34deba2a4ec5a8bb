"""How the user's entries become bytes, and bytes the user's entries.

The names are those of the original's `valueEncoding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Encoding(NamedTuple):
    """A pair of functions; `encode_all` does for a list what `encode` does for one entry."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def encode_all(self, entries: list[Any]) -> list[bytes]:
        if self.decode is bytes and set(map(type, entries)) == {bytes}:
            return entries  # as they are, seen in a third of the time
        return list(map(self.encode, entries))


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
    # As JSON.stringify writes it: no blanks, lone surrogates escaped, numbers as JavaScript shows
    # them. NaN and the infinities, of which it makes null, are a ValueError: nothing gets lost.
    import json  # only here: a program without JSON entries need not load it

    try:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"a 'json' entry cannot be {entry!r}: {error}") from None
    if "." in text or "e" in text:
        text = _floats_as_in_javascript(text)
    return text.encode(errors="backslashreplace")


def _floats_as_in_javascript(text: str) -> str:
    import re
    from decimal import Decimal

    def rewrite(match: re.Match[str]) -> str:
        token = match[0]
        if token[0] == '"':
            return token
        number = float(token)
        # https://tc39.es/ecma262/#sec-numeric-types-number-tostring
        if number == 0:
            return "0"
        if 1e-6 <= abs(number) < 1e21:
            return f"{Decimal(token):f}".removesuffix(".0")
        return token.replace("e-0", "e-")

    return re.sub(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+(?:e[-+]\d+)?|e[-+]\d+)', rewrite, text)


def _decode_json(entry: bytes) -> Any:
    import json

    try:
        return json.loads(_decode_utf8(entry), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"too deep for JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_ENCODINGS = {
    "binary": Encoding(_encode_binary, bytes),
    "utf-8": Encoding(_encode_utf8, _decode_utf8),
    "json": Encoding(_encode_json, _decode_json),
}
