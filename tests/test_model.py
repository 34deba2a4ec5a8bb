"""The log against a model of it: a plain dict, and whatever order Hypothesis thinks of."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import use_shared
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from waiting import until

import scuttleup
from scuttleup import Change, EntryNotFound, ReadStream

OTHERS = ["a", "a!", "us!", "z"]
peers = st.sampled_from(["us", *OTHERS])
entries = st.binary(max_size=20)
# Around a run's length too: see RUN_ENTRIES.
counts = st.integers(0, 5) | st.sampled_from([255, 256, 257, 600])


def by_peer(changes: list[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.peer, []).append(change)
    return found


class LogMachine(RuleBasedStateMachine):
    """`entries` and `heads` are the model; `had` is how far the live stream was read."""

    earlier_heads: Bundle[dict[str, int]] = Bundle("earlier_heads")

    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.entries: dict[tuple[str, int], bytes] = {}
        self.heads: dict[str, int] = {}
        self.open()

    shared = False

    def open(self) -> None:
        id = "us" if not self.heads else None
        self.logs = self.owner = scuttleup.open(self.folder.name, id=id, share=self.shared)
        if self.shared:
            self.logs = use_shared(Path(self.folder.name), "binary")
        self.stream: ReadStream = self.logs.create_read_stream(tail=True)
        self.had = dict(self.heads)

    def close(self) -> None:
        self.logs.close()
        self.owner.close()
        assert list(self.stream) == []
        del self.stream

    def teardown(self) -> None:
        self.close()
        self.loop.close()
        self.folder.cleanup()

    def store(self, change: Change) -> None:
        self.entries[change.peer, change.seq] = change.entry
        self.heads[change.peer] = change.seq

    def changes_after(self, since: dict[str, int]) -> list[Change]:
        return [
            Change(peer, seq, entry)
            for (peer, seq), entry in sorted(self.entries.items())
            if seq > since.get(peer, 0)
        ]

    # --- Writes ---

    @rule(entry=entries)
    def append(self, entry: bytes) -> None:
        expected = Change("us", self.heads.get("us", 0) + 1, entry)
        assert self.logs.append(entry) == expected
        self.store(expected)

    @rule(entry=entries, count=counts)
    def extend(self, entry: bytes, count: int) -> None:
        first = self.heads.get("us", 0) + 1
        changes = self.logs.extend([entry] * count)
        assert changes == [("us", seq, entry) for seq in range(first, first + count)]
        for change in changes:
            self.store(change)

    @rule(entry=entries, count=counts, bad=st.integers(0, 600))
    def extend_with_a_bad_entry(self, entry: bytes, count: int, bad: int) -> None:
        """It raises, and the invariants see that nothing has changed."""
        batch: list[Any] = [entry] * count
        batch.insert(bad, None)
        try:
            self.logs.extend(batch)
        except TypeError:
            return
        raise AssertionError("a bad entry was stored")

    @rule(
        entry=entries,
        steps=st.lists(st.tuples(st.sampled_from(OTHERS), st.integers(-3, 3), counts), max_size=4),
    )
    def write(self, entry: bytes, steps: list[tuple[str, int, int]]) -> None:
        """Runs of others' entries: some of them known, some after a gap."""
        changes = []
        heads = dict(self.heads)
        for peer, step, count in steps:
            first = max(1, heads.get(peer, 0) + 1 + step)
            changes += [Change(peer, seq, entry) for seq in range(first, first + count)]
            heads[peer] = max(heads.get(peer, 0), first + count - 1)
        new = 0
        stored = self.logs.write(iter(changes))
        for change in changes:
            if change.seq > self.heads.get(change.peer, 0):
                self.store(change)
                new += 1
        assert stored == new

    @rule(entry=entries, step=st.integers(-3, 3))
    def write_to_our_own_log(self, entry: bytes, step: int) -> None:
        head = self.heads.get("us", 0)
        change = Change("us", max(1, head + 1 + step), entry)
        try:
            stored = self.logs.write([Change("a", self.heads.get("a", 0) + 1, entry), change])
        except ValueError:
            assert change.seq > head + 1
            return
        assert change.seq <= head + 1
        self.store(Change("a", self.heads.get("a", 0) + 1, entry))
        assert stored == 1 + (change.seq > head)
        if change.seq > head:
            self.store(change)

    @rule(peer=peers, back=st.integers(-1, 300))
    def delete(self, peer: str, back: int) -> None:
        seq = max(1, self.heads.get(peer, 0) - back)
        self.logs.delete(peer, seq)
        self.entries.pop((peer, seq), None)

    @rule(peer=peers, back=st.integers(0, 300), count=counts)
    def delete_many(self, peer: str, back: int, count: int) -> None:
        head = self.heads.get(peer, 0)
        for seq in range(max(1, head - back), head + 1)[:count]:
            self.logs.delete(peer, seq)
            self.entries.pop((peer, seq), None)

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()

    # --- Reads ---

    @rule()
    def read(self) -> None:
        assert list(self.logs.create_read_stream()) == self.changes_after({})

    @rule(target=earlier_heads)
    def remember_head(self) -> dict[str, int]:
        return self.logs.head

    @rule(since=earlier_heads)
    def read_since_an_earlier_head(self, since: dict[str, int]) -> None:
        assert list(self.logs.create_read_stream(since=since)) == self.changes_after(since)

    @rule(since=st.dictionaries(st.sampled_from(["us", "nobody", *OTHERS]), st.integers(0, 2000)))
    def read_since(self, since: dict[str, int]) -> None:
        ahead = [peer for peer, seq in since.items() if seq > self.heads.get(peer, 0)]
        if ahead:
            with pytest.raises(ValueError, match=repr(ahead[0])):
                self.logs.create_read_stream(since=since)
        else:
            assert list(self.logs.create_read_stream(since=since)) == self.changes_after(since)

    @rule(peer=peers, back=st.integers(-2, 300))
    def entry(self, peer: str, back: int) -> None:
        seq = max(1, self.heads.get(peer, 0) - back)
        try:
            assert self.logs.entry(peer, seq) == self.entries[peer, seq]
        except EntryNotFound:
            assert (peer, seq) not in self.entries

    @rule()
    def catch_up_live(self) -> None:
        """The stream gives each log in order, and the logs in any order. Then it waits."""
        expected = self.changes_after(self.had)
        self.had = dict(self.heads)
        seen = self.loop.run_until_complete(self.take(expected))
        if self.shared:  # an entry that was on its way may have been deleted since
            seen = [change for change in seen if change[:2] in self.entries]
        assert by_peer(seen) == by_peer(expected)

    async def take(self, expected: list[Change]) -> list[Change]:
        """What the stream gives until it waits, which should be what is `expected`."""
        seen: list[Change] = []
        reading = asyncio.ensure_future(read(self.stream, seen))
        if self.shared:  # what comes over a link comes when it comes
            await until(lambda: set(expected) <= set(seen))
        for _ in range(len(expected) + 100):  # a turn gives it one change at least
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        return seen

    @invariant()
    def heads_are_those_of_the_model(self) -> None:
        assert self.logs.head == self.heads
        assert self.logs.id == "us"


async def read(stream: ReadStream, seen: list[Change]) -> None:
    async for change in stream:
        seen.append(change)


LogMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLog = LogMachine.TestCase


class SharedMachine(LogMachine):
    """The same through a link to the owner of the database."""

    shared = True


SharedMachine.TestCase.settings = settings(LogMachine.TestCase.settings, max_examples=15)
TestSharedLog = SharedMachine.TestCase
