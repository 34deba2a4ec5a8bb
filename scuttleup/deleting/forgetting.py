"""Forget the whole log of another peer, and remember that log again.

Theory of operation
-------------------

First, in one step, LevelDB writes down that the log is not wanted, and the store drops the head of
the log and its place in our handshake. From then on the log is not there: not in `heads`, for no
reader, and the door leaves the log out. Then the entries are deleted, in steps that let others in.
If that ends early, an opening leaves out the head of the entries that are left. A second `forget`
deletes those, and so does `remember` before the log is taken again, because there would be gaps.
"""

from __future__ import annotations

from ..keys import DELETED_HASHES, DELETED_HEADS, FORGOTTEN, log_prefix
from ..limits import MAX_SEQ
from ..store import Store
from .deletion import delete


def forget(store: Store, peer: str) -> int:
    """Delete the log of `peer`, take none of it from now on; return how many entries went."""
    if peer == store.id:
        raise ValueError(f"{peer!r} is our own log, which cannot be forgotten")
    _want(store, peer, False)
    gone = delete(store, peer, 1, MAX_SEQ)
    if gone:
        store.database.compact(log_prefix(peer), log_prefix(peer) + b"\xff")
    return gone


def remember(store: Store, peer: str) -> None:
    """Take the log of `peer` again, if it was forgotten."""
    if peer in store.marks.forgotten:
        delete(store, peer, 1, MAX_SEQ)
        _want(store, peer, True)


def forgotten(store: Store) -> list[str]:
    """The logs that are not wanted here."""
    return sorted(store.marks.forgotten)


def _want(store: Store, peer: str, wanted: bool) -> None:
    """Write down whether the log of `peer` is wanted."""
    store.refuse_nested()
    with store.database.writes, store.database as db:
        store.settle()
        name, batch = peer.encode(), db.write_batch(sync=store.sync)
        forgotten = store.marks.forgotten
        if wanted:
            batch.delete(FORGOTTEN + name)
            forgotten -= {peer}
        else:
            batch.put(FORGOTTEN + name, b"")
            batch.delete(DELETED_HEADS + name)
            batch.delete(DELETED_HASHES + name)
            forgotten |= {peer}
        store.commit_batch(batch, store.sync, {}, store.marks._replace(forgotten=forgotten))
