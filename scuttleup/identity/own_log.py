"""Backups, forks and new ids of our own log.

Theory of operation
-------------------

A log that goes on in two places gives one number to two entries, which is a fork, and peers take no
more of it. Two keys of the database keep that from happening unseen, and from going on:

- `backup`, with the day when it was made, stands in every backup. While it is there, nothing is
  appended. It goes when a peer that knows this log has sent all that the peer has, or when the
  user says with `resume` that there is no other copy.
- `fork`, with the number and where it was seen, is written when somebody shows another entry of
  ours with our signature. Only the owner of the key can have made it, so no stranger can stop us.
  From then on nothing is appended.

A new id ends both: the old log stays as another's log.
"""

from __future__ import annotations

from time import strftime

from ..keys import BACKUP, FORK, ID
from ..leveldb import copy
from ..notes import Fork
from ..signed import KEY_FILE, find_id, new_key
from ..store import Store


def back_up(store: Store, path: str) -> None:
    """Make a backup at `path`: a whole copy as of now, with the secret key if that lies here."""
    database = store.database
    day = strftime("%Y-%m-%d").encode()
    beside = [KEY_FILE] if store.is_signed else []
    copy(database, path, last=ID, more={BACKUP: day}, beside=beside)


def resume(store: Store) -> None:
    """Go on in a backup. Nothing happens in any other database."""
    store.refuse_nested()
    with store.database.writes, store.database as db:
        db.delete(BACKUP, sync=True)
        store.go_on(store.marks._replace(backup=""))


def note_fork(store: Store, seq: int, where: str) -> None:
    """Remember that another entry `seq` than ours bears our signature, as was seen `where`.

    Where our log is not signed, that is only told: a stranger may have made the entry.
    """
    with store.database.writes, store.database as db:
        if store.marks.fork is None:
            if store.is_signed:
                db.put(FORK, f"{seq} {where}".encode(), sync=True)
                store.go_on(store.marks._replace(fork=Fork(seq, where)))
            text = f"your own log {store.id!r} has forked at {seq}, as was seen {where}"
            store.events.tell("error", "own fork", text)


def begin_anew(store: Store, key: bytes | None) -> None:
    """Begin a new log: that of the secret `key`, or an unsigned one with a random id."""
    id = find_id(None, None, key, False)
    store.refuse_nested()
    with store.database.writes, store.database as db:
        store.settle()
        # In this order each moment leaves a database that opens.
        new_key(store.database, None)
        with db.write_batch(sync=True) as batch:
            batch.put(ID, id.encode())
            batch.delete(FORK)
            batch.delete(BACKUP)
        new_key(store.database, key)
        store.take_id(id, key)
        store.go_on(store.marks._replace(fork=None, backup=""))
