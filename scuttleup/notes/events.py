"""Tells the logger "scuttleup" of events, in so few lines that nobody can fill a log file.

Strangers can connect, fail and send bad logs as often as they like. So the same event is told once
in TELL_SECONDS. Repetitions within that time are counted. After that time, the next event of any
kind brings their number, and the text of the last repetition.
"""

from __future__ import annotations

import threading
import time

from .. import limits


class Events:
    """The events of the logs of a store and of their connections. Any thread may tell of them.

    Two events are the same if they are of the same kind and happened to the same remote or log.
    Their text does not matter, because a stranger chooses much of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By kind and `who`, the oldest first: when it was told, how many were not told since then,
        # and the level and the text of the last event.
        self._told: dict[tuple[str, str], tuple[float, int, str, str]] = {}

    def tell(self, level: str, kind: str, text: str, who: str = "") -> None:
        """Tell, or count, an event of this kind. `level` is "info" or "warning".

        `who` is the remote or the log, or "" where that does not matter. While MAX_TOLD events are
        remembered, all further events of a kind count as the same.
        """
        now = time.monotonic()
        lines = []
        with self._lock:
            while key := next(iter(self._told), None):
                when, count, *last = self._told[key]
                if now - when < limits.TELL_SECONDS:
                    break
                del self._told[key]
                if count:
                    counted = f" ({count} of this kind in {now - when:.0f} seconds)"
                    lines.append((last[0], last[1] + counted))
            key = kind, who
            if key not in self._told and len(self._told) >= limits.MAX_TOLD:
                key = kind, ""
            if key not in self._told:
                lines.append((level, text))
            when, count, *_ = self._told.get(key, (now, -1))
            self._told[key] = (when, count + 1, level, text)
        if lines:
            import logging  # only here: it takes longer to load than all the rest

            for level, text in lines:
                getattr(logging.getLogger("scuttleup"), level)("%s", text)
