"""How a Ctrl-C, a SIGTERM and a failing database end a command.

Until the arguments are read, nobody knows which exit status is right, so a signal is only
remembered. Until a peer runs, a signal ends the command at once, by a KeyboardInterrupt. Something
that Python calls may swallow that. So the signal is remembered, and the peer ends as soon as it
runs. Later a signal only wakes the event loop, which then ends the peer in order.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Event
    from collections.abc import Callable


class Ending:
    """Handles Ctrl-C and SIGTERM from the start, and has a peer end after either, or after `fail`.

    A second signal then ends the process at once.
    """

    def __init__(self) -> None:
        # None where a signal raises KeyboardInterrupt.
        self._wake: Callable[[], object] | None = lambda: None
        # Whether a signal came, and the error of our own database that a thread has met. Any thread
        # may ask.
        self.came = False
        self.error: Exception | None = None
        # A job that a script starts with `&` ignores Ctrl-C, and goes on to do so.
        self._signals = [
            signum
            for signum in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(signum) is not signal.SIG_IGN
        ]
        for signum in self._signals:
            signal.signal(signum, self)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt for each signal from now on, and if a signal came before."""
        self._wake = None
        if self.came:
            raise KeyboardInterrupt

    def begin(self) -> Event:
        """The event that the end sets, in the event loop that runs."""
        import asyncio  # here, because most commands do without it

        loop, over = asyncio.get_running_loop(), asyncio.Event()
        self._wake = partial(loop.call_soon_threadsafe, over.set)
        # Python handles a signal in the main thread alone, while the system may hand the signal to
        # another thread. With a handler of its own the event loop is woken by each signal. On
        # Windows every loop is. Ours takes the place of that handler, because it also runs while
        # the loop is kept waiting.
        for signum in self._signals:
            with suppress(NotImplementedError):
                loop.add_signal_handler(signum, self, signum, None)
            signal.signal(signum, self)
        if self.came:
            over.set()
        return over

    def __call__(self, signum: int, frame: object) -> None:
        self.came = True
        if self._wake is None:
            raise KeyboardInterrupt
        # A write of ours may hang.
        signal.signal(signum, signal.SIG_DFL)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End because of `error`, which a thread has met while the peer runs."""
        self.error = error
        if self._wake:
            self._wake()
