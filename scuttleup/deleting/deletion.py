"""Delete entries, and give the disk back that they took.

Theory of operation
-------------------

*The number of a deleted entry is not given out again.* The key of the newest entry tells the head
of a log at the next opening. So the batch that deletes that entry writes the head under a key of
its own. Of a signed log the batch also keeps the hash that the next entry is linked to.

*A range goes in steps*, the oldest entries first, and others read and write in between. The head is
written down in the first step. So if the range is not deleted to its end, all is right, and a
second call deletes the rest.

*LevelDB drops deleted entries late*, and until then each reader walks over them. So LevelDB is made
to drop them when a log has many.
"""

from __future__ import annotations

from collections import deque
from weakref import WeakKeyDictionary

from .. import limits
from ..keys import DELETED_HASHES, DELETED_HEADS, log_prefix, pack_seq
from ..scan import keys_between
from ..signed import is_signed
from ..store import Store

# How many entries of each log were deleted since LevelDB last dropped some, and the first and the
# last key of those.
_DELETED: WeakKeyDictionary[Store, dict[str, tuple[int, bytes, bytes]]] = WeakKeyDictionary()


def delete(store: Store, peer: str, first: int, last: int) -> int:
    """Delete the entries of `peer` from number `first` to `last`; return how many went."""
    name, prefix = peer.encode(), log_prefix(peer)
    start, stop = prefix + pack_seq(first), prefix + pack_seq(last)
    keys: list[bytes] = []
    gone = 0
    while not gone or len(keys) == limits.DELETE_STEP:
        store.refuse_nested()
        with store.database.writes, store.database as db:
            store.settle()
            keys = keys_between(db, start, stop, limits.DELETE_STEP)
            if not keys:
                break
            batch = db.write_batch(sync=store.sync)
            deque(map(batch.delete, keys), maxlen=0)
            head = store.heads.get(peer, 0)
            if first <= head <= last:
                batch.put(DELETED_HEADS + name, pack_seq(head))
                if is_signed(peer) and (link := store.authors.link_to_keep(peer, head)):
                    batch.put(DELETED_HASHES + name, link)
            store.commit_batch(batch, store.sync, {})
            deleted = _DELETED.setdefault(store, {})
            count, low, high = deleted.pop(peer, (0, keys[0], keys[-1]))
            count, low, high = count + len(keys), min(low, keys[0]), max(high, keys[-1])
            if count < limits.DELETED:
                deleted[peer] = count, low, high
        gone += len(keys)
        start = keys[-1] + b"\0"
        if count >= limits.DELETED:
            # Who deletes single entries does not expect to wait.
            (store.database.compact if first < last else store.database.compact_soon)(low, high)
    return gone


def compact(store: Store) -> None:
    """Give the disk back what deleted entries take, while others read and write."""
    store.database.compact(b"\0", b"\xff")
