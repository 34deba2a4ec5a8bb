"""The output of a running peer, and the lines that are typed, while the event loop does not wait.

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

**A fault of an output** ends nothing but that output. If the disk is full, a printer tries again
once a second, so nothing is lost when there is room again. If nobody will ever read, the printer
stops. Messages that cannot be written are dropped.

**The end of stdin** is not always its end. A FIFO is at its end whenever a writer leaves, and a
terminal at each Ctrl-D. The typist looks again five times a second, and takes lines that come
later. Of a file, and of a pipe that has no name, the typist says once that nothing more is taken.

**A terminal that somebody else uses** is not read. A job in the background that reads from the
terminal is stopped by the signal SIGTTIN. We ignore that signal, and then the read is an error
(EIO) instead. A terminal that does not hand out whole lines is in use by a program such as a pager,
which would miss the keys that we take. In both cases the typist looks again five times a second.
The terminal tells nobody when it changes hands.

**How it ends.** Each of the three is a context manager, which is left after the peer has gone. The
typist takes all that lies ready in stdin, but at most 1 MiB, because `yes` never ends. The printer
prints all that was stored until then. Neither can keep the program from ending: the threads are
daemons, they hold no lock of Python's own file objects, and a printer that makes no progress is not
waited for.

On Windows stdin cannot be asked whether there is something to read. There the typist just reads,
and takes nothing more at the end.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import signal
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import Any, Self

from ..errors import DatabaseError, ScuttleupError
from ..log import Scuttleup
from ..read_stream import ReadStream
from .ending import Ending
from .files import Lines, Patient

# Bytes that are read from stdin at once.
READ_BYTES = 64 * 1024
# Bytes that are taken of stdin at the end: the most that a pipe can hold on Linux, see pipe(7).
LAST_BYTES = 1024 * 1024
# How many messages may wait to be written.
MAX_MESSAGES = 1000
# Seconds between two looks at a terminal that belongs to somebody else, and between two figures of
# the progress.
LOOK = 0.2
# Seconds between two tries to write to a disk that is full.
RETRY = 1.0
# At the end, an output that takes nothing for so many seconds is given up, and so is an output that
# needs more than four times as long in all.
PATIENCE = 0.5

logger = logging.getLogger("scuttleup")


class _Output:
    """A file that may be slow, stdout or stderr, and the thread that writes to it.

    A subclass says in `_run` what the thread writes, and in `_end` how that ends.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self._name, self._out, self._file = name, stream, None
        with suppress(OSError, AttributeError):  # it is no file, but a text in memory, for instance
            # There is no buffer, so no lock that a blocked thread would hold at the end.
            self._file = Patient(stream.fileno(), "wb", closefd=False)
        # Whether something could not be written, at the first try at least.
        self.failed = False
        # This goes up with each write.
        self._progress = 0
        # Set when the peer has gone.
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _write(self, text: str) -> None:
        """Write `text`. Try again as long as that may help: see "A fault of an output" above."""
        if self._file is None:
            print(text, end="", file=self._out, flush=True)
            return
        data = text.encode(self._out.encoding, "backslashreplace")
        while data:
            try:
                data = data[self._file.write(data) :]
                self._progress += 1
            except OSError as error:
                if not self.failed:
                    logger.warning("%s: %s", self._name, error.strerror)
                self.failed = True
                # A pipe without a reader gets none later. Windows calls that EINVAL.
                if self._gone.is_set() or error.errno in (errno.EPIPE, errno.EINVAL):
                    return
                self._gone.wait(RETRY)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._gone.set()
        self._end()
        for _ in range(4):
            before = self._progress
            self._thread.join(PATIENCE)
            if before == self._progress:
                return


class Printer(_Output):
    """Prints the entries that are stored from now on, but for those that were typed here.

    It fails the `ending` if the database cannot be read. Leaving the `with` prints all that was
    stored until then. A `patient` printer waits for a slow reader of stdout until a signal comes.
    After that, and if not `patient`, it waits only while there is progress, and for two seconds at
    most.
    """

    def __init__(self, logs: Scuttleup, ending: Ending, *, patient: bool) -> None:
        super().__init__("stdout", sys.stdout)
        self._logs, self._ending, self._patient = logs, ending, patient
        # How far each log is printed.
        self._printed = logs.head
        self._stream = self._follow(live=True)
        # How many changes have come.
        self.received = 0

    def _follow(self, *, live: bool) -> ReadStream:
        return self._logs.create_read_stream(since=self._printed, live=live, value_encoding="utf-8")

    def _run(self) -> None:
        """Print entries as they come until the stream is closed, and then those that are left."""
        try:
            self._print(self._stream)
            # The stream was closed. Entries that it had not come to yet are in the database.
            self._print(self._follow(live=False))
        except ScuttleupError as error:
            self._ending.fail(error)

    def _print(self, stream: ReadStream) -> None:
        for change in stream:
            self._printed[change.peer] = change.seq
            self.received += 1
            if change.peer != self._logs.id:
                self._write(f"{change}{os.linesep}")

    def _end(self) -> None:
        self._stream.close()
        while self._patient and not self._ending.came and self._thread.is_alive():
            self._thread.join(LOOK)


class Typist:
    """Appends the lines that are typed, or that come from stdin in another way.

    It fails the `ending` if the database fails. Any other error is told, and then nothing more is
    taken. The end of stdin is told, too, unless a signal has come.
    """

    def __init__(self, logs: Scuttleup, ending: Ending) -> None:
        self._take = Lines(logs).take
        self._ending = ending
        # On Windows, a console that is opened like this gives UTF-8.
        self._stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
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
        """Append until stdin or the peer has ended. Runs in a thread."""
        try:
            while (data := self._read()) is not None:
                self._take(data)
                if data:
                    continue
                if sys.platform != "win32":
                    # A writer that ends, and a Ctrl-D, are the end of a line or a message there.
                    if self._ends(LOOK):
                        return
                    if self._goes_on():
                        continue
                if not self._ending.came:
                    logger.info("stdin has ended: nothing more is taken from it")
                return
        except DatabaseError as error:
            self._ending.fail(error)
        except (ScuttleupError, ValueError, OverflowError) as error:
            # A line is too long, or our log takes no more. The peer still serves others.
            logger.warning("stdin: %s: nothing more is taken", error)
        except OSError:  # there is no stdin
            pass

    def _read(self) -> bytes | None:
        """The next bytes; b"" at the end of stdin, None when there is no more before we end."""
        if sys.platform == "win32":
            return self._stdin.read(READ_BYTES)
        # Imported here, because on Windows `select` knows nothing but sockets.
        from select import select

        while True:
            ready = select([0, self._end], [], [])[0]
            # Everything that was ready when the end came is taken first.
            if 0 not in ready or self._last <= 0:
                return None
            if (data := _read_now(self._stdin)) is not None:
                if self._end in ready:
                    self._last -= len(data)
                return data
            # The terminal is not ours at present, so look again later, unless the end comes.
            if self._ends(LOOK):
                return None

    def _ends(self, seconds: float) -> bool:
        """Whether the end comes within `seconds`."""
        from select import select

        return bool(select([self._end], [], [], seconds)[0])

    def _goes_on(self) -> bool:
        """Whether more can come of a stdin that is at its end: of a terminal, and of a FIFO.

        A FIFO has a name, by which somebody may open that again. Pipes without names lie on a
        device of their own.
        """
        stdin = os.fstat(0)
        is_fifo = stat.S_ISFIFO(stdin.st_mode) and stdin.st_dev != os.fstat(self._end).st_dev
        return is_fifo or self._stdin.isatty()

    def __enter__(self) -> Typist:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._ender)
        if sys.platform != "win32":
            # A Ctrl-C drops what was typed before it, and a read of that may have begun.
            self._thread.join(PATIENCE if self._stdin.isatty() else None)


class Messages(_Output):
    """Writes messages of the logger "scuttleup", whose level it sets to INFO, to stderr.

    Leaving the `with` writes those that came until then.
    """

    def __init__(self) -> None:
        super().__init__("stderr", sys.stderr)
        # Returns the text that `show` repeats, if there is any.
        self._figure: Callable[[], str] | None = None
        # The texts that wait to be written; None says that nothing more comes.
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_MESSAGES)
        self._handler = logging.Handler()
        # The logger calls this, from any thread.
        self._handler.emit = lambda record: self._put(  # type: ignore[method-assign]
            f"scuttleup: {record.getMessage()}{os.linesep}"
        )
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)

    def show(self, figure: Callable[[], str]) -> None:
        """Show the text of `figure` again and again. The next text is written over that."""
        self._figure = figure
        self._put(figure() + "\r")

    def _put(self, text: str | None) -> None:
        """Queue a text, or drop it if too many wait."""
        with suppress(queue.Full):
            self._queue.put_nowait(text)

    def _run(self) -> None:
        """Write the texts that are queued, and the figure while there is none."""
        while True:
            try:
                text = self._queue.get(timeout=LOOK if self._figure else None)
            except queue.Empty:
                text = self._figure() + "\r" if self._figure else ""
            if text is None:
                return
            self._write(text)

    def _end(self) -> None:
        logger.removeHandler(self._handler)
        self._put(None)


def _read_now(stdin: FileIO) -> bytes | None:
    """All that is there to read; None if another program was faster or uses the terminal now."""
    if sys.platform != "win32" and stdin.isatty():
        # Imported here, because Windows does not have it.
        import termios

        with suppress(OSError):  # it does not control this process: no front and no background
            if os.tcgetpgrp(stdin.fileno()) != os.getpgrp():
                return None
        if not termios.tcgetattr(stdin)[3] & termios.ICANON:
            return None
    try:
        return stdin.read(READ_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
