"""Forget the whole log of another peer, and remember it again.

Theory of operation
-------------------

In one step, LevelDB writes down that the log is not wanted, and the store drops its head and its
place in our handshake. So the log is not there any more, whatever comes after: not in `heads`, for
no reader, and the door leaves it out. Then its entries are deleted, in steps that let others in. If
that ends early, an opening leaves out the head of what is left, forgetting it again deletes the
rest, and so does `remember` before it takes the log again: else there would be gaps.
"""

from __future__ import annotations

from ..keys import DELETED_HASHES, DELETED_HEADS, FORGOTTEN, log_prefix
from ..limits import MAX_SEQ
from ..store import Store


def forget(store: Store, peer: str) -> int:
    """Delete the log of `peer`, take none of it from now on; return how many entries went."""
    if peer == store.id:
        raise ValueError(f"{peer!r} is our own log, which cannot be forgotten")
    _want(store, peer, False)
    gone = store.delete(peer, 1, MAX_SEQ)
    if gone:
        store.database.compact(log_prefix(peer), log_prefix(peer) + b"\xff")
    return gone


def remember(store: Store, peer: str) -> None:
    """Take the log of `peer` again, if it was forgotten."""
    if peer in store.forgotten:
        store.delete(peer, 1, MAX_SEQ)
        _want(store, peer, True)


def _want(store: Store, peer: str, wanted: bool) -> None:
    """Write down whether the log of `peer` is wanted."""
    store.refuse_nested()
    with store.database.writes, store.database as db:
        store.settle()
        name, batch = peer.encode(), db.write_batch(sync=store.sync)
        if wanted:
            batch.delete(FORGOTTEN + name)
            return store.set_forgotten(store.forgotten - {peer}, batch)
        batch.put(FORGOTTEN + name, b"")
        batch.delete(DELETED_HEADS + name)
        batch.delete(DELETED_HASHES + name)
        return store.set_forgotten(store.forgotten | {peer}, batch)
