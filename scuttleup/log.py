"""`Scuttleup`: the append-only logs of this peer and of all whose entries it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .changes import Change, Run, expand
from .encodings import Encoding, find_encoding
from .keys import check_peer, check_seq
from .read_stream import ReadStream
from .replication import Replicated, ReplicationStream
from .store import Store

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

MAX_FRAME = 16 * 1024 * 1024  # bytes


class Scuttleup:
    """Append-only logs in a LevelDB: this peer's own and copies of other peers'.

    `db` is a `plyvel.DB`, best opened with `paranoid_checks=True`, or what its `prefixed_db`
    returns; one `Scuttleup` to one of these. `id` becomes this peer's id and is stored; without
    it the stored id is used, or a random one is made. `value_encoding` is how entries become
    bytes: "binary" (bytes; str is stored as UTF-8), "utf-8" (str) or "json". `sync` is whether a
    write is on the disk, not only with the operating system, when the call returns.
    `verify(change) -> bool` is asked about every change that replication receives, before it is
    stored: what it says no to ends that connection.

    Every method may be called from any thread. A write that fails changes nothing; LevelDB's own
    errors are `plyvel.Error`.

    >>> logs = Scuttleup(plyvel.DB("logs.db", create_if_missing=True), value_encoding="utf-8")
    >>> logs.append("hello world")
    Change(peer='0dd9…', seq=1, entry='hello world')
    """

    def __init__(
        self,
        db: Any,
        *,
        id: str | None = None,
        value_encoding: str = "binary",
        sync: bool = False,
        verify: Callable[[Change], bool] | None = None,
    ) -> None:
        if isinstance(db, (str, bytes)):
            raise TypeError(f"db is an open plyvel.DB, not {db!r}")
        self._encoding = find_encoding(value_encoding)
        self._encode: Callable[[Any], bytes] = self._encoding.encode
        if verify is not None and not callable(verify):
            raise TypeError(f"verify is a function or None, not {verify!r}")
        decode = self._encoding.decode
        self._verify = verify and (
            lambda change: verify(change._replace(entry=decode(change.entry)))
        )
        self._store = Store(db, id=id, sync=sync)

    @property
    def id(self) -> str:
        """This peer's id."""
        return self._store.id

    @property
    def head(self) -> dict[str, int]:
        """Every peer's last number, in a dict of your own. It is what `since` takes."""
        return self._store.heads.copy()

    def append(self, entry: Any, *, sync: bool | None = None) -> Change:
        """Append one entry to this peer's log.

        Raises TypeError or ValueError for what the encoding does not take, OverflowError after
        2**32 - 1 entries.
        """
        seq = self._store.append(self._encode(entry), sync)
        return tuple.__new__(Change, (self._store.id, seq, entry))  # as in `expand`

    def extend(self, entries: Iterable[Any], *, sync: bool | None = None) -> list[Change]:
        """Append many entries in one atomic step: all are stored or, if this raises, none."""
        if isinstance(entries, (str, bytes)):
            raise TypeError(f"entries is an iterable of entries, not the one entry {entries!r}")
        entries = list(entries)
        first = self._store.extend(self._encoding.encode_all(entries), sync)
        return list(expand(self._store.id, first, entries))

    def entry(self, peer: str, seq: int, *, value_encoding: str | None = None) -> Any:
        """The entry number `seq` of `peer`; raises EntryNotFound, a KeyError, if it is not here."""
        encoding = self._find_encoding(value_encoding)
        return encoding.decode(self._store.get(check_peer(peer), check_seq(seq)))

    def delete(self, peer: str, seq: int) -> None:
        """Delete one entry here, if it is here; other peers keep theirs.

        No entry gets its number again.
        """
        self._store.delete(check_peer(peer), check_seq(seq))

    def write(self, changes: Iterable[tuple[str, int, Any]], *, sync: bool | None = None) -> int:
        """Store changes made elsewhere in one atomic step and return how many were new.

        Each log's changes come in order; what is at or below its head is known and skipped.
        A change to this peer's own log that leaves a gap is a ValueError.
        """
        runs: list[Run] = []
        entries: list[bytes] = []  # of the last run
        for change in changes:
            try:
                peer, seq, entry = change
            except (TypeError, ValueError):
                raise TypeError(f"a change is (peer, seq, entry), not {change!r}") from None
            if not runs or (peer, seq) != (runs[-1].peer, runs[-1].first + len(entries)):
                entries = []
                runs.append(Run(check_peer(peer), seq, entries))
            check_seq(seq)
            entries.append(self._encode(entry))
        return self._store.write(runs, sync)

    def create_read_stream(
        self,
        *,
        since: Mapping[str, int] | None = None,
        live: bool = False,
        tail: bool = False,
        value_encoding: str | None = None,
    ) -> ReadStream:
        """Iterate over all changes that are here now, by peer id and number.

        `since`, an earlier `head`, leaves out what it had. `live` goes on with what is stored
        later, and never ends by itself; `tail` does only that.

        >>> for change in logs.create_read_stream():
        ...     print(change)
        """
        if since is not None and not isinstance(since, Mapping):
            raise TypeError(f"since maps peer ids to numbers, as head does, not {since!r}")
        since = dict(since or {})
        for peer, seq in since.items():
            check_peer(peer)
            if seq != 0:  # nothing of that log
                check_seq(seq)
        decode = self._find_encoding(value_encoding).decode
        return ReadStream(self._store, decode, since=since, live=live, tail=tail)

    def create_replication_stream(
        self,
        *,
        mode: str = "sync",
        live: bool = True,
        max_frame: int = MAX_FRAME,
        wake: Callable[[], None] = lambda: None,
    ) -> ReplicationStream:
        """One end of a replication, without a connection; for that see `replicate`.

        `mode` "push" receives no changes, "pull" sends none. Without `live` it is finished when
        both sides have what was there. A remote's frame of more than `max_frame` bytes is an
        error. `wake` is called when there is something to send again: from any thread and in the
        middle of a write, so it must not use the log, only tell your thread or loop.
        """
        return ReplicationStream(
            self._store,
            mode=mode,
            live=live,
            verify=self._verify,
            max_frame=max_frame,
            wake=wake,
        )

    async def replicate(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        *,
        mode: str = "sync",
        live: bool = True,
        max_frame: int = MAX_FRAME,
    ) -> Replicated:
        """Replicate with the peer at the other end, until it leaves or, not `live`, all is done.

        Closes `writer` and returns how many changes were sent and received; raises ProtocolError
        when the remote is in error or the connection breaks. For the other arguments see
        `create_replication_stream`.

        >>> server = await asyncio.start_server(logs.replicate, "127.0.0.1", 2014)
        """
        from .connection import replicate  # only here: asyncio takes longer to load than all else

        make_stream = partial(
            self.create_replication_stream, mode=mode, live=live, max_frame=max_frame
        )
        return await replicate(make_stream, reader, writer)

    def close(self) -> None:
        """End all live streams and replications, refuse new ones and writes.

        `db` stays open: close it next. This is the one method that a signal handler may call.
        """
        self._store.close()

    def _find_encoding(self, name: str | None) -> Encoding:
        return self._encoding if name is None else find_encoding(name)
