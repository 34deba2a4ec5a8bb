"""stdin and stdout as a shell hands them over: whole, or an error.

Theory of operation
===================

Each of the two may be shared with a neighbour, as in `{ node server.js & scuttleup read; } | less`.
If the neighbour makes it non-blocking, it is so for all who have it, at any moment. Python then
takes a pause on stdin for its end, and drops what stdout does not take at once. A `_Patient` file
waits in `select` instead, and leaves it to the neighbour how the file is set.

stdout may also be no file at all: a window of IDLE, a cell of Jupyter, a text in memory, or None
where it is closed. Those are used as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Patient(FileIO):
    """A file that waits until there is something to read, or room to write, however it is set."""

    # Whether what is still to be written is dropped.
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
    return BufferedReader(_Patient(0, "rb", closefd=False))


@contextmanager
def printing() -> Iterator[None]:
    """In this `with`, all that is printed comes to stdout, or there is an OSError.

    What the encoding of stdout lacks is escaped.

    >>> with printing():
    ...     print(change)
    """
    before: Any = sys.stdout
    raw = None
    is_file = before is not None and before is sys.__stdout__ and sys.platform != "win32"
    if is_file:
        before.flush()
        raw = _Patient(1, "wb", closefd=False)
        lines = before.isatty()
        sys.stdout = TextIOWrapper(
            BufferedWriter(raw), before.encoding, "backslashreplace", line_buffering=lines
        )
    elif hasattr(before, "reconfigure"):
        before.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except Exception:
            with suppress(OSError):
                _flush()
            raise
        _flush()
    finally:
        if raw:
            # Python tries once more when it drops the file, and says so with two lines of its own.
            raw.given_up = True
        sys.stdout = before


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
