"""`Scuttleup`: the append-only logs of this peer and of all whose entries it has.

A user holds a `Scuttleup`, and here is the border between the user's world and the package's. On
the user's side there are entries in a value encoding, single changes, and arguments that may be
wrong. On the other side there are bytes and runs that were checked. So each method here checks its
arguments, encodes or decodes, strips the signature from an entry of a signed log, and calls the
store.

Nothing is remembered here beside the options. The state of the logs lies in the `Store`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from os import PathLike, fsdecode, urandom
from os.path import exists

from .changes import Change, expand
from .encodings import Encoding, find_encoding
from .errors import DatabaseLocked, ScuttleupError, shown
from .follower import Had
from .keys import check_peer, check_seq
from .leveldb import Database, open_database
from .limits import MAX_ENTRY
from .notes import Fork
from .signed import KEY_BYTES, find_id, is_signed, load_key, strip
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from typing import Any, TypeVar

    from .encodings import ValueEncoding
    from .read_stream import ReadStream
    from .replication import Accept, Mode, Replicated, ReplicationStream, Verify
    from .sharing import Share, SharedStore

    T = TypeVar("T")


def open(
    path: str | bytes | PathLike[Any],
    *,
    id: str | None = None,
    value_encoding: ValueEncoding = "binary",
    sync: bool = False,
    verify: Callable[[Change], bool] | None = None,
    accept: Callable[[str], bool] | Container[str] | None = None,
    signed: bool = False,
    only_signed: bool = False,
    key: bytes | None = None,
    max_entry: int = MAX_ENTRY,
    create: bool = True,
    share: bool = False,
    wait: float = 0.0,
) -> Scuttleup:
    """Open the logs in the LevelDB at `path`, a folder, which is made if there is nothing.

    A database is made where there is nothing, in an empty folder, and where a first run was killed
    before it had made one. A database that is there is opened with every check that LevelDB has.
    Anything else is a DatabaseError that says why, and then nothing was changed. Examples are a
    database that another process has open, one that lacks a part, and a folder that holds other
    files.

    `signed` makes the log of a new database a signed one. Its secret key then lies in the folder as
    `signing.key`. A database with a key needs no option from then on. For a database whose log is
    not signed, `signed` is a ValueError. Signing needs PyNaCl: `pip install 'scuttleup[signed]'`.

    Without `create`, nothing is made: where no database is, this is a DatabaseError.

    `share` lets other processes of this user on this machine use the same logs, as long as these
    are open. `open` finds and uses a database that is shared like this: signatures, numbers and
    limits are then those of the process that has the database open, and only that process can
    replicate. `wait` is for how many seconds a database that is held otherwise is tried again; then
    DatabaseLocked is raised.

    The other options are those of `Scuttleup`. Unlike that, the logs own their LevelDB: `close`, or
    the end of a `with` block, closes the LevelDB.

    >>> with scuttleup.open("logs.db", value_encoding="utf-8") as logs:
    ...     logs.append("hello world")
    """
    if signed and id is not None:
        raise ValueError(f"the id of a signed log is its public key, it cannot be {id!r}")
    # Nothing is made for options that are wrong.
    encoding = _check_options(value_encoding, verify, accept, max_entry)
    if create and not exists(fsdecode(path)):
        # The key of a log that is to be signed is made later; any other stands in for it here.
        find_id(None, id, bytes(KEY_BYTES) if signed and key is None else key, only_signed)
    logs = object.__new__(Scuttleup)
    try:
        database = open_database(path, create=create)
    except DatabaseLocked as locked:
        from .sharing import wait_for

        given = {
            "id": id, "sync": sync, "verify": verify, "accept": accept, "signed": signed,
            "only_signed": only_signed, "key": key, "max_entry": max_entry,
        }  # fmt: skip
        found = wait_for(fsdecode(path), locked, given, create=create, share=share, wait=wait)
        if not isinstance(found, Database):
            logs._use(found, encoding, None, None)
            return logs
        database = found
    try:
        if key is None:  # a key that is handed in lies elsewhere
            key = load_key(database, make=signed)
        store = Store(
            database, id=id, key=key, sync=sync, only_signed=only_signed, max_entry=max_entry
        )
        logs._use(store, encoding, verify, accept)
        if share:
            from .sharing import Share

            with database:
                logs._share = Share(store)
        return logs
    except BaseException:
        database.close()
        raise


class Scuttleup:
    """Append-only logs in a LevelDB: this peer's own and copies of other peers'.

    `db` is a LevelDB that the caller has opened, and closes after these logs: a `plyvel.DB` (or
    `plyvel_next.DB`), best opened with `paranoid_checks=True`, or what its `prefixed_db` returns.
    Make only one `Scuttleup` for each of these at a time. To have a LevelDB opened and closed for
    you, call `scuttleup.open`, which takes the same options:

    - `id` becomes this peer's id and is stored. Without an `id` the stored id is used, or a random
      id is made.
    - `value_encoding` is how entries become bytes: "binary" (bytes; str is stored as UTF-8),
      "utf-8" (str) or "json".
    - `sync` is whether a write returns only when that write, and everything written before, would
      survive a power failure. Without `sync` a write survives the end of the process, however that
      comes.
    - `verify(change) -> bool` is asked about every change that replication receives, before that is
      stored. If `verify` returns false, or raises, that log is left out from there on, on that
      connection.
    - `accept` says which logs of others replication takes: a set of ids, or a function of an id,
      which is asked once for a log and connection, and not for logs that are here already.
    - `only_signed` leaves out every log of others that is not signed.
    - `key`, the secret key of a signed log (32 bytes), makes the log of a new database a signed
      log, and lets an existing signed log be appended to. Nobody else may read the key. `open`
      takes care of that by itself.
    - `max_entry` is the most bytes that a stored entry may have. Peers with the default take no
      larger entries.

    Every method may be called from any thread. A write that fails changes nothing. Wrong arguments
    are a TypeError or ValueError, trouble with the database is a DatabaseError, and the use of logs
    that are closed, or were opened before a fork, is a ScuttleupError.
    """

    def __init__(
        self,
        db: Any,
        *,
        id: str | None = None,
        value_encoding: ValueEncoding = "binary",
        sync: bool = False,
        verify: Callable[[Change], bool] | None = None,
        accept: Callable[[str], bool] | Container[str] | None = None,
        only_signed: bool = False,
        key: bytes | None = None,
        max_entry: int = MAX_ENTRY,
    ) -> None:
        encoding = _check_options(value_encoding, verify, accept, max_entry)
        if not hasattr(db, "write_batch"):
            raise TypeError(f"db is an open plyvel.DB, not {db!r}: scuttleup.open takes a path")
        store = Store(
            Database(db), id=id, key=key, sync=sync, only_signed=only_signed, max_entry=max_entry
        )
        self._use(store, encoding, verify, accept)

    def _use(
        self, store: Store | SharedStore, encoding: Encoding, verify: Verify, accept: Accept
    ) -> None:
        """Be the logs in `store`. `open` calls this, too."""
        # For a user of a shared database this stands in for the store of another process.
        self._store: Store = store  # type: ignore[assignment]
        self._encoding = encoding
        # The same as `self._encoding.encode`, which `append` would look up at every call.
        self._encode: Callable[[Any], bytes] = encoding.encode
        self._verify = verify
        self._accept = accept
        # Lets other processes use these logs.
        self._share: Share | None = None

    @property
    def id(self) -> str:
        """This peer's id."""
        return self._store.id

    @property
    def head(self) -> dict[str, int]:
        """Every peer's last number, in a dict of your own, which `since` takes.

        >>> logs.head
        {'foobar': 2}
        """
        return self._store.heads.copy()

    def append(self, entry: Any, *, sync: bool | None = None) -> Change:
        """Append one entry to this peer's log, and return the change, with its number.

        `sync` is that of the constructor unless given. Raises TypeError or ValueError for an entry
        that the encoding does not take or that is larger than `max_entry`, OverflowError after
        2**32 - 1 entries, and ScuttleupError if a signed log cannot be signed: its key or PyNaCl is
        missing.
        """
        seq = self._store.append(self._encode(entry), sync)
        # A call of `Change` would take twice as long; see `expand`.
        return tuple.__new__(Change, (self._store.id, seq, entry))

    def extend(self, entries: Iterable[Any], *, sync: bool | None = None) -> list[Change]:
        """Append many entries in one atomic step: all are stored or, if this raises, none.

        Returns their changes. Raises as `append` does. This is two to four times as fast as single
        appends.

        >>> logs.extend(["a", "b"])[-1].seq
        2
        """
        if isinstance(entries, (str, bytes)):
            raise TypeError(f"entries are an iterable, not the one entry {shown(entries)}")
        entries = list(entries)
        first = self._store.extend(self._encoding.encode_all(entries), sync)
        return list(expand(self._store.id, first, entries))

    def entry(self, peer: str, seq: int, *, value_encoding: ValueEncoding | None = None) -> Any:
        """The entry number `seq` of `peer`.

        Raises EntryNotFound, which is a KeyError, if there is no such entry here, and ValueError if
        the entry cannot be decoded. `value_encoding` is that of the constructor unless given.
        """
        encoding = self._encoding if value_encoding is None else find_encoding(value_encoding)
        entry = self._store.get(check_peer(peer), check_seq(seq))
        return encoding.decode_entry(peer, seq, strip(entry) if is_signed(peer) else entry)

    def delete(self, peer: str, seq: int, last: int | None = None) -> int:
        """Delete one entry here, or all from number `seq` to `last`; return how many went.

        Other peers keep theirs. No entry gets such a number again. A range is deleted in steps that
        let others read and write, and blocks only its caller: in an event loop, use
        `asyncio.to_thread`. If this ends early, because the logs are closed for instance, the
        oldest entries are gone.
        """
        from .deleting import delete  # here and below, as most programs delete nothing

        last = check_seq(seq if last is None else last)
        return self._do(delete, check_peer(peer), check_seq(seq), last)

    @property
    def forgotten(self) -> frozenset[str]:
        """The logs that are not wanted here."""
        from .deleting import forgotten

        return frozenset(self._do(forgotten))

    def forget(self, peer: str) -> int:
        """Delete the whole log of another peer, and take none of it until `remember`.

        Its entries, its number, its place and its disk are given back. Returns how many entries
        went. This blocks its caller, as `delete` does. If this ends early, the log is gone all the
        same, and a second `forget` deletes the rest. Raises ValueError for our own log.
        """
        from .deleting import forget

        return self._do(forget, check_peer(peer))

    def remember(self, peer: str) -> None:
        """Take a forgotten log again. Its entries come at the next meeting with who has them."""
        from .deleting import remember

        self._do(remember, check_peer(peer))

    def compact(self) -> None:
        """Give back the disk that deleted entries take: for seconds, and blocking the caller.

        Others may read and write meanwhile. Raises DatabaseError if the disk has no room for that.
        """
        from .deleting import compact

        self._do(compact)

    def write(self, changes: Iterable[tuple[str, int, Any]], *, sync: bool | None = None) -> int:
        """Store changes made elsewhere in one atomic step and return how many were new.

        Each log's changes come in order; changes at or below its head are known and skipped.
        Entries of a signed log are handed in as they are stored, with their signatures. A
        ValueError, and nothing is stored, if a change leaves a gap in this peer's own log, is of a
        log that was forgotten, is larger than `max_entry`, is not signed by its author, or begins a
        log for which there is no room.
        """
        # Imported here, as most programs get no changes, or get them by replication.
        from .replication import runs_of, write

        return self._do(write, runs_of(changes, self._encode), sync)

    def create_read_stream(
        self,
        *,
        since: Mapping[str, int] | None = None,
        live: bool = False,
        tail: bool = False,
        value_encoding: ValueEncoding | None = None,
        raw: bool = False,
    ) -> ReadStream:
        """Iterate over all changes that are here now, by peer id and number.

        `since`, an earlier `head`, leaves out all that was there then. `live` goes on with the
        changes that are stored later, and never ends by itself; `tail` gives only those.
        `value_encoding` is that of the constructor unless given. `raw` gives each entry as stored,
        which `write` of logs with the encoding "binary" takes: an entry of a signed log with its
        signature.

        Raises TypeError or ValueError for a `since` that maps anything but peer ids to numbers, and
        ValueError for a `since` that is ahead of a log here: the entries that are stored next would
        be left out.

        >>> for change in logs.create_read_stream(since={"foobar": 1}):
        ...     print(change)
        {peer: 'foobar', seq: 2, entry: 'hello world'}
        """
        if since is not None and not isinstance(since, Mapping):
            raise TypeError(f"since maps peer ids to numbers, as head does, not {shown(since)}")
        since = Had(since or {})
        heads = self._store.heads if since else {}
        for peer, seq in since.items():
            check_peer(peer)
            # A head of 0 says that nothing of that log is there, which is no mistake.
            if seq != 0:
                check_seq(seq)
            if seq > heads.get(peer, 0):
                raise ValueError(
                    f"since has {seq} of {peer!r}, whose log ends at {heads.get(peer, 0)} here: "
                    "this database is older than that"
                )
        if raw and value_encoding is not None:
            raise ValueError(f"raw entries have no encoding, so not {value_encoding!r}")
        encoding = self._encoding if value_encoding is None else find_encoding(value_encoding)
        # Imported here, because many a program only appends.
        from .read_stream import ReadStream

        return ReadStream(self._store, encoding, had=since, live=live, tail=tail, raw=raw)

    def create_replication_stream(
        self, *, mode: Mode = "sync", live: bool = True, wake: Callable[[], None] = lambda: None
    ) -> ReplicationStream:
        """One end of a replication, without a connection; `replicate` is one with a connection.

        - `mode` "sync" sends and receives changes, "push" only sends, and "pull" only receives.
        - `live`: if false, the replication is finished when both sides have all that was there.
        - `wake` is called when there is something to send again, from any thread and in the middle
          of a write. So it must not use the logs, but only tell your thread or loop.

        See `ReplicationStream` for how to use the stream.
        """
        if not callable(wake):
            raise TypeError(f"wake is a function, not {wake!r}")
        store = self._own_store("replicate")
        from .replication import ReplicationStream

        # `verify` gets the change decoded, not as stored.
        verify = self._verify and partial(self._ask, self._verify)
        return ReplicationStream(
            store, mode=mode, live=live, verify=verify, accept=self._accept, wake=wake
        )

    @property
    def fork(self) -> Fork | None:
        """Where our own signed log has forked: (seq, where that was seen); or None.

        After a fork, `append` and `extend` raise ForkedLog, and `new_id` begins a new log.
        """
        return self._own_store("look at `fork`").marks.fork

    def new_id(self, *, signed: bool = False) -> str:
        """Begin a new log of our own, and return its id. The old one stays as another's log.

        The secret key of a signed log is renamed to `signing.key.old1` and not deleted. Connections
        that are open go on under the old id, so open the logs again before you replicate.
        """
        from .identity import begin_anew

        begin_anew(self._own_store("begin a new log"), urandom(KEY_BYTES) if signed else None)
        return self.id

    def backup(self, path: str | bytes | PathLike[Any]) -> None:
        """Make a whole copy at `path` while others read and write. This blocks its caller.

        The copy knows that it is a backup. Where the copy is opened, it reads and replicates, but
        does not append until a peer that knows this log has sent all of it, or `resume` is called:
        a log that goes on in two places forks. A secret key in the folder is copied. Raises
        DatabaseError if something is at `path` already.
        """
        from .identity import back_up

        back_up(self._own_store("back it up"), fsdecode(path))

    def resume(self) -> None:
        """Go on in a backup, because there is no other copy that was appended to since."""
        from .identity import resume

        resume(self._own_store("resume"))

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do `work`, a function of one of the rooms, in the process that has the store."""
        if isinstance(self._store, Store):
            return work(self._store, *arguments)
        return self._store.do(work.__name__, *arguments)

    def _own_store(self, work: str) -> Store:
        """The store, in this process. Raises ScuttleupError if another process has the store."""
        if isinstance(self._store, Store):
            return self._store
        raise ScuttleupError(
            f"{self._store.path} is open in another process, which shares it: {work} there"
        )

    def _ask(self, verify: Callable[[Change], bool], change: Change) -> bool:
        """Ask `verify` about a change as the user reads it; False where that is impossible."""
        peer, seq, entry = change
        if is_signed(peer):
            entry = strip(entry)
        try:
            entry = self._encoding.decode_entry(peer, seq, entry)
        except ValueError:
            return False
        return verify(Change(peer, seq, entry))

    async def replicate(
        self, reader: StreamReader, writer: StreamWriter, *, mode: Mode = "sync", live: bool = True
    ) -> Replicated:
        """Replicate until the remote leaves; if not `live`, until all is exchanged.

        Closes `writer` and returns how many changes were sent and received, and which logs were
        left out because something was wrong with them. `reader` and `writer` may be of any
        transport of asyncio: TCP, TLS, Unix sockets, or pipes, such as `process.stdout` and
        `process.stdin` of a subprocess. For the other arguments see `create_replication_stream`.

        The changes that came before an error are stored. This raises

        - ProtocolError when the remote is in error, and to come back is of little use: its bytes
          cannot be read, it has our own id, or it sent changes though the modes forbid that.
        - ConnectionLost when coming back is worth a try: the connection broke, or ended before the
          remote's handshake or in the middle of a frame; or the remote sent no handshake, sent half
          a frame and no more, or took nothing that we send, for 60 seconds.
        - DatabaseError when our own database is in trouble.

        >>> server = await asyncio.start_server(logs.replicate, "127.0.0.1", 2014)
        """
        # Imported here, because asyncio takes longer to load than all the rest.
        from .replication import replicate

        make_stream = partial(self.create_replication_stream, mode=mode, live=live)
        return await replicate(make_stream, reader, writer)

    def close(self) -> None:
        """Close the logs: end live streams and replications, wait for reads and writes under way.

        Every later use is a ScuttleupError. A LevelDB that `open` opened is closed; one of your own
        stays open, and may be closed after this. Closing again does nothing. Any thread may call
        this, and a signal handler, too.
        """
        if self._share:
            self._share.close()
        self._store.close()

    def __enter__(self) -> Scuttleup:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _check_options(value_encoding: str, verify: Verify, accept: Accept, max_entry: int) -> Encoding:
    """Return the encoding, if all of these options can be had: else TypeError or ValueError."""
    encoding = find_encoding(value_encoding)
    if verify is not None or accept is not None:
        from .replication import check_wishes

        check_wishes(verify, accept)
    if not isinstance(max_entry, int) or not 0 < max_entry <= MAX_ENTRY:
        raise ValueError(f"max_entry is a number of bytes up to {MAX_ENTRY}, not {max_entry!r}")
    return encoding
