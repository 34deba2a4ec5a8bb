"""Many followers of one store, each read whenever it likes, against a model that is a dict."""

from __future__ import annotations

import random
import tempfile
from itertools import chain
from threading import Event
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from leveldb import FakeDB, binding, open_leveldb

import scuttleup.follower
import scuttleup.limits
from scuttleup import DatabaseError
from scuttleup.changes import Run, expand
from scuttleup.deleting import delete
from scuttleup.follower import Had
from scuttleup.leveldb import Database
from scuttleup.limits import MAX_ENTRY
from scuttleup.replication import write
from scuttleup.replication.had import RemoteHad
from scuttleup.store import Store

numbers = st.integers(0, 100)
PEERS = ["us", "a", "a!", "z"]
NEWS = 4  # remembered instead of thousands, so that followers fall behind

Key = tuple[str, int]  # a peer and a number


def entries_by_key(*runs: Run) -> dict[Key, bytes]:
    return {change[:2]: change.entry for run in runs for change in expand(*run)}


class Reader:
    """A follower, and what it should give: everything above `start` up to `end`."""

    def __init__(
        self, store: Store, had: Had, start: dict[str, int], *, snapshot: bool, live: bool
    ) -> None:
        self.rung = rung = Event()
        self.given: dict[Key, bytes] = {}
        past = {} if snapshot else store.heads
        self.start = {peer: max(start.get(peer, 0), past.get(peer, 0)) for peer in PEERS}
        self.end = None if live else store.heads.copy()
        self.follower = store.follow(had, snapshot=snapshot, live=live, wake=rung.set)

    def wants(self, key: Key) -> bool:
        peer, seq = key
        within = self.end is None or seq <= self.end.get(peer, 0)
        return within and seq > self.start.get(peer, 0)

    def take(self, run: Run) -> None:
        before = max((seq for peer, seq in self.given if peer == run.peer), default=0)
        assert run.first > before, "out of order, or twice"
        self.given |= entries_by_key(run)


class Followers(RuleBasedStateMachine):
    """`ever` is all that was ever stored, `here` what is not deleted, `doubt` what may be there."""

    @initialize()
    def create(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(scuttleup.limits, "NEWS", NEWS)
        self.folder = tempfile.TemporaryDirectory()
        self.db = open_leveldb(self.folder.name)  # type: ignore[arg-type]
        self.fake = FakeDB(self.db)
        self.store = Store(Database(self.fake), id="us", sync=False, max_entry=MAX_ENTRY)
        self.ever: dict[Key, bytes] = {}
        self.here: set[Key] = set()
        self.doubt: dict[Key, bytes] = {}
        self.readers: list[Reader] = []

    def teardown(self) -> None:
        for reader in self.readers:
            self.read_all(reader)
        self.store.close()
        for reader in self.readers:
            assert reader.follower.read() is None or reader.end is not None
        self.db.close()
        self.folder.cleanup()
        self.patch.undo()

    @rule(
        runs=st.lists(
            st.tuples(st.sampled_from(PEERS), st.integers(0, 3), st.integers(1, 3)),
            min_size=1,
            max_size=6,
        ),
        entry=st.binary(max_size=2),
        fault=st.sampled_from([None, None, None, "before", "after"]),
    )
    def write(self, runs: list[tuple[str, int, int]], entry: bytes, fault: str | None) -> None:
        """Write runs, each of a peer, after a gap, of a length; a `fault` of LevelDB stops it."""
        self.settle()
        heads = {peer: self.head(peer) for peer in PEERS}
        batch = []
        for peer, gap, count in runs:
            first = heads[peer] + 1 + (gap if peer != "us" else 0)
            heads[peer] = first + count - 1
            batch.append(Run(peer, first, [entry + bytes([i]) for i in range(count)]))
        new = entries_by_key(*batch)
        if fault:
            setattr(self.fake, fault, binding.IOError(b"IO error: refused"))
            with pytest.raises(DatabaseError, match="refused"):
                write(self.store, batch)
            setattr(self.fake, fault, None)
            if fault == "after":
                self.doubt = new
        else:
            assert write(self.store, batch) == len(new)
            self.stored(new)

    def settle(self) -> None:
        """The next write finds out that LevelDB has what was in doubt."""
        self.stored(self.doubt)
        self.doubt = {}

    def head(self, peer: str) -> int:
        return max((seq for name, seq in self.ever if name == peer), default=0)

    def stored(self, new: dict[Key, bytes]) -> None:
        self.ever |= new
        self.here |= new.keys()

    @rule(peer=st.sampled_from(PEERS), back=st.integers(0, 5))
    def delete(self, peer: str, back: int) -> None:
        self.settle()
        seq = max(1, self.head(peer) - back)
        delete(self.store, peer, seq, seq)
        self.here.discard((peer, seq))

    @rule(
        since=st.dictionaries(st.sampled_from(PEERS), st.integers(1, 12)),
        snapshot=st.booleans(),
        live=st.booleans(),
        remote=st.booleans(),
    )
    def follow(self, since: dict[str, int], snapshot: bool, live: bool, remote: bool) -> None:
        """Follow as a stream does, or as a connection does for a `remote`."""
        had = Had(since)
        if remote:
            had = RemoteHad(self.store)
            for peer, seq in since.items():
                if peer in self.store.heads:
                    had[peer] = seq
                else:
                    had.others[peer] = seq
        live = live or not snapshot
        self.readers.append(Reader(self.store, had, since, snapshot=snapshot, live=live))

    @precondition(lambda self: self.readers)
    @rule(number=numbers, runs=st.integers(1, 4))
    def read_some(self, number: int, runs: int) -> None:
        reader = self.readers[number % len(self.readers)]
        for _ in range(runs):
            if run := reader.follower.read():
                reader.take(run)

    @precondition(lambda self: self.readers)
    @rule(number=numbers)
    def read_everything(self, number: int) -> None:
        self.read_all(self.readers[number % len(self.readers)])

    def read_all(self, reader: Reader) -> None:
        while run := reader.follower.read():
            reader.take(run)
        assert reader.given.items() <= self.ever.items()
        assert all(map(reader.wants, reader.given))
        acknowledged = {key for key in self.here if key[1] <= self.store.heads.get(key[0], 0)}
        assert set(filter(reader.wants, acknowledged)) <= reader.given.keys(), "missed"
        assert reader.follower.idle
        # Who has had everything is rung by the next write, if it follows.
        reader.rung.clear()
        self.settle()
        self.store.append(b"ring")
        self.stored({("us", self.head("us") + 1): b"ring"})
        assert reader.rung.is_set() or reader.end is not None

    @precondition(lambda self: self.readers)
    @rule(number=numbers)
    def drop(self, number: int) -> None:
        del self.readers[number % len(self.readers)]
        assert len(self.store._news.followers) == len(self.readers)


Followers.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestFollowers = Followers.TestCase


def test_who_does_not_read_holds_nothing_and_200_000_logs_are_read_once(db: Any) -> None:
    store = Store(Database(db), id="us", sync=False, max_entry=MAX_ENTRY)
    hads = chain((Had() for _ in range(25)), (RemoteHad(store) for _ in range(25)))
    readers = [Reader(store, had, {}, snapshot=True, live=True) for had in hads]
    names = [f"{number:06}" for number in range(200_000)]
    random.Random(1).shuffle(names)
    for first in range(0, len(names), 1000):
        write(store, [Run(name, 1, [b""]) for name in names[first : first + 1000]])
    for reader in readers:
        follower = reader.follower
        assert (follower._runs, len(follower._had), list(follower._spans or [])) == ([], 0, [])
    follower = readers[-1].follower
    runs = list(iter(follower.read, None))
    assert sorted(run.peer for run in runs) == sorted(names)
    assert len(list(chain.from_iterable(run.entries for run in runs))) == len(names)
    store.append(b"x")
    assert follower.read() == Run("us", 1, [b"x"])
    assert follower.read() is None


def test_a_log_in_any_place_is_found_by_who_has_fallen_behind(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.limits, "NEWS", NEWS)
    store = Store(Database(db), id="us", sync=False, max_entry=MAX_ENTRY)
    reader = Reader(store, Had(), {}, snapshot=False, live=True)
    store.append(b"")
    assert reader.follower.read() == Run("us", 1, [b""])
    write(store, [Run(peer, 1, [b""]) for peer in "abcdefgh"])
    store.heads["us"] = store.heads.pop("us")  # the log that was there first stands last
    assert sorted(run.peer for run in iter(reader.follower.read, None)) == [*"abcdefgh"]
