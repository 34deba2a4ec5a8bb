"""What a running peer prints and what is typed into it, while the event loop does not wait.

Theory of operation
===================

A write to stdout can take for ever: the terminal is stopped with Ctrl-S, a pager shows its first
page, nobody reads the pipe. A read from stdin usually takes long. The event loop must wait for
neither, or no other peer gets a byte meanwhile. So each of the three files has a thread of its own:

    `Printer`   a read stream that follows the logs → stdout
    `Messages`  the logger "scuttleup" → a queue → stderr
    `Typist`    stdin → lines → `append`

A printer needs no queue, because the database is one: a stream that is read slowly costs nothing.
The queue of `Messages` is short, and a message that does not fit is dropped.

**What can be wrong with an output** ends nothing but that output. If the disk is full, a printer
tries again once a second, so nothing is lost when there is room again. If nobody will ever read, it
stops printing. Messages that cannot be written are dropped.

**What belongs to somebody else** is not read. A job in the background that reads from the terminal
is stopped by the signal SIGTTIN. We ignore that signal, and then the read is an error (EIO)
instead. A terminal that does not hand out whole lines is in use by a program such as a pager, which
would miss the keys that we take. In both cases the typist looks again five times a second. The
terminal tells nobody when it changes hands.

**How it ends.** Each of the three is a context manager, which is left after the peer has gone. The
typist takes what lies ready in stdin, at most 1 MiB, because `yes` never ends. The printer prints
what was stored until then. Neither can keep the program from ending: the threads are daemons, they
hold no lock of Python's own file objects, and a printer that makes no progress is not waited for.

On Windows stdin cannot be asked whether there is something to read. There the typist just reads,
and takes nothing more at the end.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import Literal

from .changes import Change
from .errors import DatabaseError, ScuttleupError
from .log import Scuttleup

# Bytes that are read from stdin at once.
READ_BYTES = 64 * 1024
# Bytes that are taken of stdin at the end. It is the most that a pipe can hold on Linux, see
# pipe(7).
LAST_BYTES = 1024 * 1024
# How many messages may wait to be written.
MAX_MESSAGES = 1000
# Seconds between two looks at a terminal that belongs to somebody else, and between two figures of
# the progress.
LOOK = 0.2
# Seconds between two tries to write to a disk that is full.
RETRY = 1.0
# At the end, an output that takes nothing for so many seconds is given up, and so is one that needs
# more than four times as long in all.
PATIENCE = 0.5

logger = logging.getLogger("scuttleup")


class Printer:
    """Prints what is stored from now on, except what this peer appends: that was typed here.

    `fail` is called, from the thread of the printer, if the database cannot be read. Leaving the
    `with` prints what was stored until then. A slow reader of stdout is waited for as long as
    `may_wait` returns true. After that it is waited for only while there is progress, and for two
    seconds at most.
    """

    def __init__(
        self, logs: Scuttleup, fail: Callable[[Exception], None], may_wait: Callable[[], bool]
    ) -> None:
        self._logs = logs
        self._fail = fail
        self._may_wait = may_wait
        self._stdout = _unbuffered(1, "wb")
        self._encoding = sys.stdout.encoding
        # How far each log is printed.
        self._printed = logs.head
        self._stream = logs.create_read_stream(
            since=self._printed, live=True, value_encoding="utf-8"
        )
        # How many changes have come.
        self.received = 0
        # Whether a change could not be printed, at the first try at least.
        self.failed = False
        # This goes up with each write.
        self._progress = 0
        # Set when the peer has gone.
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        """Print what comes until the stream is closed, and then what is left. Runs in a thread."""
        try:
            for change in self._stream:
                self._print(change)
            # The stream was closed. The entries that it had not come to yet are in the database.
            for change in self._logs.create_read_stream(
                since=self._printed, value_encoding="utf-8"
            ):
                self._print(change)
        except ScuttleupError as error:
            self._fail(error)

    def _print(self, change: Change) -> None:
        """Print one change. Try again as long as that may help: see "What can be wrong" above."""
        self._printed[change.peer] = change.seq
        self.received += 1
        if change.peer == self._logs.id:
            return
        data = f"{change}{os.linesep}".encode(self._encoding, "backslashreplace")
        while data:
            try:
                data = data[_write(self._stdout, data) :]
                self._progress += 1
            except OSError as error:
                if not self.failed:
                    logger.warning("stdout: %s", error.strerror)
                self.failed = True
                # A pipe without a reader gets none later. Windows calls that EINVAL.
                if self._ending.is_set() or error.errno in (errno.EPIPE, errno.EINVAL):
                    return
                self._ending.wait(RETRY)

    def __enter__(self) -> Printer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()
        self._ending.set()
        while self._thread.is_alive() and self._may_wait():
            self._thread.join(LOOK)
        for _ in range(4):
            before = self._progress
            self._thread.join(PATIENCE)
            if before == self._progress:
                return


class Typist:
    """Hands over what is typed, or what else comes from stdin.

    `take` is called with some bytes and, at the end of stdin, with b"". If it raises a
    DatabaseError, `fail` gets that. Any other error of it is told, and means that nothing more is
    taken. Both are called from the thread of the typist.
    """

    def __init__(self, take: Callable[[bytes], object], fail: Callable[[Exception], None]) -> None:
        self._take = take
        self._fail = fail
        self._stdin = _unbuffered(0, "rb")
        # How many bytes may still be taken once the end has come.
        self._last = LAST_BYTES
        # The reading end of this pipe becomes readable when the other end is closed, which says
        # that it is time to end. Nothing else can wake a thread that sleeps in `select`.
        self._end, self._ender = os.pipe()
        if sys.platform != "win32":
            # Reading in the background is to be an error, and not to stop the whole process.
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        """Hand over what comes, until stdin or the peer has ended. Runs in a thread."""
        try:
            while (data := self._read()) is not None:
                self._take(data)
                if not data:
                    return
        except DatabaseError as error:
            self._fail(error)
        except (ScuttleupError, ValueError, OverflowError) as error:
            # A line is too long, or our log takes no more. The peer still serves others.
            logger.warning("stdin: %s: nothing more is taken", error)
        except OSError:  # there is no stdin
            pass

    def _read(self) -> bytes | None:
        """What comes next; b"" at the end of stdin, None when there is no more before we end."""
        if sys.platform == "win32":
            return self._stdin.read(READ_BYTES)
        # Imported here, because on Windows it knows nothing but sockets.
        from select import select

        while True:
            ready = select([0, self._end], [], [])[0]
            # Everything that was ready when the end came is taken first.
            if 0 not in ready or self._last <= 0:
                return None
            if _may_read(self._stdin) and (data := _read_now(self._stdin)) is not None:
                if self._end in ready:
                    self._last -= len(data)
                return data
            # The terminal is not ours at present, so look again later, unless the end comes.
            if select([self._end], [], [], LOOK)[0]:
                return None

    def __enter__(self) -> Typist:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._ender)
        if sys.platform != "win32":
            self._thread.join()


class Messages(logging.Handler):
    """Writes to stderr what is logged. Leaving the `with` writes what was logged until then.

    It is a handler of the logger "scuttleup", which it sets to the level INFO.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stderr = _unbuffered(2, "wb")
        self._encoding = sys.stderr.encoding
        # What returns the text that `show` repeats, if there is any.
        self._figure: Callable[[], str] | None = None
        # What waits to be written; None says that nothing more comes.
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_MESSAGES)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def show(self, figure: Callable[[], str]) -> None:
        """Show what `figure` returns, again and again. What comes next is written over it."""
        self._figure = figure
        self._put(figure() + "\r")

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record. The logger calls this, from any thread."""
        self._put(f"scuttleup: {self.format(record)}{os.linesep}")

    def _put(self, text: str | None) -> None:
        """Queue a text, or drop it if too many wait."""
        with suppress(queue.Full):
            self._queue.put_nowait(text)

    def _run(self) -> None:
        """Write what is queued, and the figure while nothing is. Runs in a thread."""
        while True:
            try:
                text = self._queue.get(timeout=LOOK if self._figure else None)
            except queue.Empty:
                text = self._figure() + "\r" if self._figure else ""
            if text is None:
                return
            data = text.encode(self._encoding, "backslashreplace")
            with suppress(OSError):
                while data:
                    data = data[_write(self._stderr, data) :]

    def __enter__(self) -> Messages:
        self._thread.start()
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logger.removeHandler(self)
        self._put(None)
        self._thread.join(PATIENCE)


def _unbuffered(fd: int, mode: Literal["rb", "wb"]) -> FileIO:
    """A file without a buffer, so without a lock that a blocked thread would hold at the end.

    On Windows, a console that is opened like this takes and gives UTF-8.
    """
    return open(fd, mode, buffering=0, closefd=False)


def _may_read(stdin: FileIO) -> bool:
    """Whether stdin is not a terminal that somebody else uses now."""
    if sys.platform == "win32" or not stdin.isatty():
        return True
    # Imported here, because Windows does not have it.
    import termios

    try:
        # A terminal that does not control this process has no front and no background: an OSError.
        in_front = os.tcgetpgrp(stdin.fileno()) == os.getpgrp()
    except OSError:
        in_front = True
    return in_front and bool(termios.tcgetattr(stdin)[3] & termios.ICANON)


def _read_now(stdin: FileIO) -> bytes | None:
    """What is there to read; None if somebody else was faster or the terminal is not ours now."""
    try:
        return stdin.read(READ_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _write(file: FileIO, data: bytes) -> int:
    """Write some of `data` and return how much."""
    written = file.write(data)
    if written is None:
        # Another program that has this file open has made it non-blocking.
        time.sleep(0.05)
    return written or 0
