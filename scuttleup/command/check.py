"""Read a whole database, and tell log by log whether all is there and right.

This package checks every entry before the entry is stored. But a program on Node, or a peer without
PyNaCl, may have put entries of signed logs into a database that nobody has checked, and a disk may
have damaged them. So this reads every key and every entry.

A *fault* is an entry that its author has not signed, a key that is not an entry's, and anything
that cannot be read. A *gap* is not a fault, because entries can be deleted. Gaps are told all the
same, because whoever copies the log from here gets the gap, too.

The database stays in use meanwhile. Its lock is given back after each run of entries and after each
KEYS keys, so others wait for some milliseconds at most. Entries that are stored after the start are
not looked at. Nothing is changed, but a fork of our own log that is found here is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ..errors import DatabaseError
from ..identity import note_fork
from ..keys import CHANGES, SEPARATOR, check_peer, unpack_seq
from ..leveldb import Database
from ..log import Scuttleup
from ..scan import read_runs
from ..signed import FIRST_LINK, check, is_odd, is_signed

# How many keys are read before others may use the database.
KEYS = 10_000


class CheckedLog(NamedTuple):
    """The finding in the log of `peer`.

    `last` is its last number, and `entries` is how many entries are there. `proven` is how many of
    them are known to be their author's, None if the log is not signed. `fault` says what is wrong,
    or is "".
    """

    peer: str
    last: int
    entries: int
    proven: int | None
    fault: str


def check_logs(logs: Scuttleup) -> Iterator[CheckedLog]:
    """Check one log after the other, by peer id, and tell the finding in each.

    An error of the database is told as the fault of the log that it was met in. Raises
    ScuttleupError if a log is signed and PyNaCl is not installed.

    >>> for log in check_logs(logs):
    ...     print(log.peer, log.fault or "is right")
    """
    store = logs._own_store("check")
    for peer, last in sorted(logs.head.items()):
        log = _check_log(store.database, peer, last)
        if peer == store.id and log.fault.startswith("fork at "):
            note_fork(store, int(log.fault.rpartition(" ")[2]), "by check")
        elif peer == store.id and store.marks.fork:
            log = log._replace(fault="has forked at {}, as was seen {}".format(*store.marks.fork))
        yield log


def _check_log(database: Database, peer: str, last: int) -> CheckedLog:
    """The finding in the log of `peer`, up to number `last`, which is its head."""
    proven = 0 if is_signed(peer) else None
    fault = "the id begins like a public key and is none" if is_odd(peer) else ""
    # `end` is the number of the last entry before the run, and `link` is the link after that entry.
    entries = after = end = 0
    link: bytes | None = FIRST_LINK
    try:
        while after < last:
            with database.reads, database as db:
                runs, after = read_runs(db, peer, after, last)
            for run in runs:
                if proven is not None and not fault:
                    checked = check(run, link if run.first == end + 1 else None)
                    proven, link, fault = proven + checked.proven, checked.link, checked.fault or ""
                end = run.first + len(run.entries) - 1
                entries += len(run.entries)
    except DatabaseError as error:
        fault = str(error)
    return CheckedLog(peer, last, entries, proven, fault)


def stray_keys(logs: Scuttleup) -> Iterator[bytes]:
    """The keys, among those of entries, whose peer id or number is not valid.

    The original can store such entries, but cannot find them again. Raises DatabaseError if a part
    of the database cannot be read.
    """
    database = logs._own_store("check").database
    start = CHANGES
    while start.startswith(CHANGES):
        with (
            database.reads,
            database as db,
            db.iterator(start=start, include_value=False, verify_checksums=True) as keys,
        ):
            found = list(islice(keys, KEYS))
        yield from (key for key in found if key.startswith(CHANGES) and not _is_entry(key))
        start = found[-1] + b"\0" if found else b""


def _is_entry(key: bytes) -> bool:
    """Whether `key` is the key of an entry that can be found."""
    name, _, number = key[len(CHANGES) :].partition(SEPARATOR)
    try:
        return bool(check_peer(name.decode()) and unpack_seq(number))
    except ValueError:
        return False
