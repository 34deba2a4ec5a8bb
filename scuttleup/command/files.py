"""stdin and stdout as a shell hands them over: whole, or an error.

Theory of operation
===================

Each of the two may be shared with a neighbour, as in `{ node server.js & scuttleup read; } | less`.
If the neighbour makes a file non-blocking, that counts for all who have the file, at any moment.
Python then takes a pause on stdin for its end, and drops bytes that stdout does not take at once. A
`Patient` file waits in `select` instead, and leaves the setting to the neighbour.

stdout may also be no file at all: a window of IDLE, a cell of Jupyter, a text in memory, or None
where it is closed. Those are used as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper

from .. import limits
from ..log import Scuttleup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Patient(FileIO):
    """A file that waits until there is something to read, or room to write, blocking or not."""

    # Whether bytes that are still to be written are dropped.
    given_up = False

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            self._wait([self], [])
        return count

    def write(self, data: Any) -> int:
        if self.given_up:
            return len(data)
        while (count := super().write(data)) is None:
            self._wait([], [self])
        return count

    @staticmethod
    def _wait(readers: list[FileIO], writers: list[FileIO]) -> None:
        from select import select  # here, as it is seldom needed

        select(readers, writers, [])


def open_stdin() -> BufferedReader:
    """stdin as bytes: use `read1`, or its lines. Without a size, `read` does not wait."""
    if sys.platform == "win32":  # it has no such files, and its console gives UTF-8 only like this
        return open(0, "rb", closefd=False)
    return BufferedReader(Patient(0, "rb", closefd=False))


class Lines:
    """Appends lines as they come: those of one read in one atomic step.

    >>> lines = Lines(logs)
    >>> lines.take(b"one\\ntwo\\nthr"), lines.take(b"ee\\n"), lines.take(b"")
    (True, True, False)
    """

    def __init__(self, logs: Scuttleup) -> None:
        self._logs = logs
        # A line that has not ended yet.
        self._rest = bytearray()

    def take(self, data: bytes) -> bool:
        """Append the lines that end in `data`, and return whether there can be more.

        b"" is the end of the input, which also ends the last line. Raises ValueError if a line is
        too long for an entry.
        """
        ends = data or (b"\n" if self._rest else b"")
        self._rest += ends
        if b"\n" in ends:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            if sys.platform == "win32":
                lines = [line.removesuffix(b"\r") for line in lines]
            self._logs.extend(lines)
        if len(self._rest) > limits.MAX_ENTRY:
            raise ValueError(f"a line is longer than {limits.MAX_ENTRY} bytes")
        return bool(data)


@contextmanager
def printing() -> Iterator[None]:
    """In this `with`, all that is printed comes to stdout, or there is an OSError.

    Characters that the encoding of stdout lacks are escaped.

    >>> with printing():
    ...     print(change)
    """
    out: Any = sys.stdout
    raw = None
    if sys.__stdout__ and out is sys.__stdout__ and sys.platform != "win32":
        out.flush()
        raw, style = Patient(1, "wb", closefd=False), (out.encoding, "backslashreplace")
        out = TextIOWrapper(BufferedWriter(raw), *style, line_buffering=out.isatty())
    elif hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")
    with redirect_stdout(out):
        try:
            yield
            print(end="", flush=True)
        except Exception:
            with suppress(OSError):
                print(end="", flush=True)
            raise
        finally:
            if raw:
                # Python tries once more when it drops the file, and says so with two lines.
                raw.given_up = True
