"""Read a whole database, and tell log by log whether it holds what it should.

Whatever this package receives is checked before it is stored. But a program on Node, or a peer
without PyNaCl, may have put entries of signed logs into a database that nobody has checked, and a
disk may have damaged what was right once. So this reads every key and every entry.

A gap is not a fault, as entries can be deleted. It is told all the same, because whoever copies the
log from here gets it with the gap. A fault is an entry that its author has not signed, a key that
is not an entry's, and anything that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from .database import Database
from .errors import DatabaseError
from .keys import CHANGES, SEPARATOR, check_peer, unpack_seq
from .log import Scuttleup
from .scan import read_runs
from .signing import FIRST_LINK, check, is_odd, is_signed

KEYS = 10_000  # that are read before others may use the database


class CheckedLog(NamedTuple):
    """What was found in the log of `peer`.

    `last` is its last number, and `entries` is how many entries are there. `proven` is how many of
    them are known to be their author's, None if the log is not signed. `fault` says what is wrong;
    it is "" if nothing is.
    """

    peer: str
    last: int
    entries: int
    proven: int | None
    fault: str


def check_logs(logs: Scuttleup) -> Iterator[CheckedLog]:
    """What is in each log, by peer id.

    Raises ScuttleupError if a log is signed and PyNaCl is not installed.
    """
    for peer, last in sorted(logs.head.items()):
        yield _check_log(logs._store.database, peer, last)


def _check_log(database: Database, peer: str, last: int) -> CheckedLog:
    proven = 0 if is_signed(peer) else None
    fault = "the id begins like a public key and is none" if is_odd(peer) else ""
    entries = after = end = 0  # `end` is the number of the entry before the run
    link: bytes | None = FIRST_LINK  # the link after that one
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
    """The keys, among those of entries, whose peer id or number is none."""
    database = logs._store.database
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
    name, _, number = key[len(CHANGES) :].partition(SEPARATOR)
    try:
        return bool(check_peer(name.decode()) and unpack_seq(number))
    except ValueError:
        return False
