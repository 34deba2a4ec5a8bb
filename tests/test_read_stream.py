"""Reading and following: in order, nothing twice, nothing missed, from threads and asyncio.

What a stream has to give, whatever is written, deleted and asked for, is tried against models in
test_model.py and test_followers.py. Here is what they cannot see.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from waiting import LIMIT, arrival, settle, start, until

from scuttleup import Change, ReadStream, Scuttleup
from scuttleup.follower import Had
from scuttleup.keys import change_keys, log_prefix
from scuttleup.leveldb import Database
from scuttleup.limits import MAX_ENTRY, RUN_BYTES, RUN_ENTRIES
from scuttleup.read_stream import _Alarm
from scuttleup.store import Store


class Reader:
    """Reads a stream to its end, in a thread or in a task, and keeps what it has seen.

    It closes the stream itself when it sees `last`.
    """

    def __init__(self, stream: ReadStream, kind: str, last: Change | None = None) -> None:
        self.seen: list[Change] = []
        self._stream = stream
        self._last = last
        self._ident = 0
        self._end: asyncio.Future[None]
        if kind == "thread":
            self._end = asyncio.wrap_future(start(self._read))
        else:
            self._end = asyncio.ensure_future(read_async(stream, self._see))

    def _read(self) -> None:
        self._ident = threading.get_ident()
        for change in self._stream:
            self._see(change)

    def _see(self, change: Change) -> None:
        self.seen.append(change)
        if change == self._last:
            self._stream.close()

    def waits(self) -> bool:
        frame = sys._current_frames().get(self._ident)
        in_thread = frame is not None and frame.f_code is _Alarm.wait.__code__
        return in_thread or self._stream._alarm._wake_task is not None

    async def sees(self, last: Change) -> None:
        await until(lambda: last in self.seen[-1:])

    async def join(self) -> list[Change]:
        await self._end
        return self.seen


Read = Callable[..., Reader]


@pytest.fixture(params=["thread", "task"])
def read(request: pytest.FixtureRequest) -> Read:
    """Makes readers in threads, and in a second run of the test in tasks."""
    return lambda stream, **options: Reader(stream, request.param, **options)


async def read_async(stream: ReadStream, see: Callable[[Change], None]) -> None:
    async for change in stream:
        see(change)


async def take_async(stream: ReadStream, count: int) -> list[Change]:
    return [await anext(stream) for _ in range(count)]


def take(stream: ReadStream, count: int) -> list[Change]:
    """Wait in a thread, so that a change that never comes is a failure and no endless wait."""
    return start(lambda: [next(stream) for _ in range(count)]).result(LIMIT)


def numbers(changes: Iterable[Change]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for peer, seq, _ in changes:
        found[peer].append(seq)
    return dict(found)


# --- A snapshot ---


def test_a_snapshot_goes_by_the_bytes_of_the_peer_id_and_then_by_number(logs: Scuttleup) -> None:
    """In LevelDB the log of "a!" comes before that of "a", and 10 must not come before 2."""
    peers = ["\x01", "A", "a", "a!", "aa", "a\x80", "a\xfe", "b", "\x7f", "\x80", "\xe9", "\xfe"]
    peers.sort(key=str.encode)
    borders = [507, 65787, 16777467, 2**32 - 1]  # of the width of a number in its key
    seqs = [*range(1, 301), *(border + step for border in borders for step in (-1, 0))]
    changes = [Change(peer, seq, f"{peer} {seq}") for peer in peers for seq in seqs]
    logs.write(sorted(changes, key=lambda change: (change[1], change[0])))
    assert list(logs.create_read_stream()) == changes


def test_big_and_small_entries_are_read_alike(logs: Scuttleup) -> None:
    sizes = [0, 1, RUN_BYTES - 1, RUN_BYTES, RUN_BYTES + 1, 2**20, 0, 3, 2**20, 2**20, 5]
    changes = logs.extend("x" * size for size in sizes)
    changes += logs.extend("y" * 1000 for _ in range(200))
    assert list(logs.create_read_stream()) == changes


def test_a_snapshot_ends_for_good_with_what_was_there_when_it_was_made(logs: Scuttleup) -> None:
    before = logs.extend(["a", "b"])
    stream = logs.create_read_stream()
    logs.append("c")
    logs.write([Change("new", 1, "x")])
    first = next(stream)
    logs.append("d")
    assert [first, *stream] == before
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([10_000] * 20 + [0] * RUN_ENTRIES, [4] * 5 + [RUN_ENTRIES]),
        ([RUN_BYTES] * 10, [1] * 10),
        ([RUN_BYTES] * 3, [1] * 3),
    ],
    ids=["many", "large", "few"],
)
def test_little_is_read_ahead(db: Any, sizes: list[int], lengths: list[int]) -> None:
    """A run of many large entries would take their memory and the event loop's time."""
    store = Store(Database(db), id="us", sync=False, max_entry=MAX_ENTRY)
    store.extend(list(map(bytes, sizes)))
    follower = store.follow(Had(), snapshot=True, live=False, wake=lambda: None)
    assert [len(run.entries) for run in iter(follower.read, None)] == lengths


def test_next_and_for_and_async_for_share_one_position(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(1200)))
    stream = logs.create_read_stream()
    seen = take(stream, 3)
    for change in stream:
        seen.append(change)
        if change.seq == 300:
            break
    seen += take(stream, 2)
    seen += asyncio.run(take_async(stream, 500))
    seen += stream
    assert seen == changes
    assert {type(change) for change in seen} == {Change}


def test_since_takes_any_mapping_and_keeps_none_of_it(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])
    since = defaultdict(int, {"us": 1})
    stream = logs.create_read_stream(since=since)
    since["us"] = 2
    assert list(stream) == changes[1:]


# --- Deleted entries ---

R = RUN_ENTRIES
GONE: list[Iterable[int]] = [
    *([1], [1000], [500], [1, 2, 3, 998, 999, 1000], [R, R + 1, 3 * R]),
    *(range(1, 501), range(501, 1001), range(1, 1000), range(2, 1001), range(1, 1001)),
    *(range(1, 1001, 2), range(2, 1001, 2), range(1, R + 1), range(R, 2 * R)),
    *(range(R + 1, 2 * R + 1), range(100, 100 + 3 * R)),
]


@pytest.mark.parametrize("deleted", GONE, ids=str)
def test_deleted_entries_are_skipped(logs: Scuttleup, deleted: Iterable[int]) -> None:
    for peer in "before", "us", "vafter":
        logs.write([Change(peer, seq, str(seq)) for seq in range(1, 1001)])
    left = list(logs.create_read_stream())
    for seq in deleted:
        logs.delete("us", seq)
        left.remove(Change("us", seq, str(seq)))
    assert list(logs.create_read_stream()) == left


async def test_a_live_stream_goes_on_when_the_news_is_deleted(logs: Scuttleup, read: Read) -> None:
    reader = read(logs.create_read_stream(tail=True))
    await until(reader.waits)
    logs.append("a")
    logs.delete("us", 1)
    await reader.sees(logs.append("b"))
    logs.close()
    await reader.join()


# --- live and tail ---


async def test_a_reader_that_waits_gets_what_a_thread_appends(logs: Scuttleup, read: Read) -> None:
    reader = read(logs.create_read_stream(live=True))
    changes: list[Change] = []
    for number in range(20):
        await until(reader.waits)
        changes.append(await asyncio.to_thread(logs.append, str(number)))
        await reader.sees(changes[-1])
    logs.close()
    assert await reader.join() == changes


@pytest.mark.parametrize("look", ["_read", "_nothing_new"])
async def test_what_comes_before_the_sleep_is_seen(logs: Scuttleup, read: Read, look: str) -> None:
    stream = logs.create_read_stream(tail=True)
    looked = getattr(stream, look)
    appended: list[Change] = []

    def look_and_append() -> bool:
        found: bool = looked()
        if not appended:
            appended.append(logs.append("just now"))
        return found

    setattr(stream, look, look_and_append)
    reader = read(stream)
    await until(lambda: reader.seen == appended != [])
    logs.close()
    await reader.join()


# --- Closing ---


@pytest.mark.parametrize("live", [False, True])
async def test_its_own_loop_can_close_a_stream(logs: Scuttleup, read: Read, live: bool) -> None:
    changes = logs.extend(map(str, range(600)))
    stream = logs.create_read_stream(live=live)
    assert await read(stream, last=changes[1]).join() == changes[:2]
    assert list(stream) == []


@pytest.mark.parametrize("whose", ["stream", "logs"])
async def test_close_wakes_a_reader_that_waits(logs: Scuttleup, read: Read, whose: str) -> None:
    changes = logs.extend(["a", "b"])
    stream = logs.create_read_stream(live=True)
    reader = read(stream)
    await reader.sees(changes[-1])
    await until(reader.waits)
    await asyncio.to_thread((stream if whose == "stream" else logs).close)
    assert await reader.join() == changes
    assert list(stream) == []


async def test_close_comes_through_however_it_meets_a_reader(logs: Scuttleup, read: Read) -> None:
    """A close just as the reader is about to wait must not be missed."""
    for _ in range(200):
        stream = logs.create_read_stream(tail=True)
        reader = read(stream)
        stream.close()
        assert await reader.join() == []


async def test_leaving_the_with_block_closes_this_stream_alone(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])
    other = logs.create_read_stream(live=True)
    with logs.create_read_stream(live=True) as stream:
        assert next(stream) == changes[0]
    changes.append(logs.append("c"))
    assert [change async for change in stream] == []
    stream.close()  # once more
    assert list(stream) == []
    assert take(other, 3) == changes


# --- What cannot be decoded ---


async def test_what_is_no_json_is_an_error_in_its_place_only(logs: Scuttleup, read: Read) -> None:
    logs.extend(["1", "{", "3"])
    logs.write([Change("vera", 1, "'"), Change("vera", 2, "[" * 200_000), Change("vera", 3, "5")])
    stream = logs.create_read_stream(value_encoding="json")
    seen: list[Change] = []
    for where, before in ("2 of 'us'", 1), ("1 of 'vera'", 2), ("2 of 'vera'", 2):
        reader = read(stream)
        with pytest.raises(ValueError, match=f"^entry {where} is not 'json': "):
            await reader.join()
        seen += reader.seen
        assert len(seen) == before
    seen += await read(stream).join()
    assert seen == [Change("us", 1, 1), Change("us", 3, 3), Change("vera", 3, 5)]
    with pytest.raises(ValueError, match="entry 2 of 'us' is not 'json'"):
        logs.entry("us", 2, value_encoding="json")


# --- Many threads ---

ENDS = {"us": 1501, "a": 401, "a!": 401}  # the last number of each log
Writers = list[Future[None]]


@pytest.fixture
def writers(logs: Scuttleup) -> Iterator[Writers]:
    """Threads that write all but the last of each log.

    They take turns so often that whatever can meet does.
    """

    def append() -> None:
        for _ in range(400):
            logs.append("x")

    def extend() -> None:
        for count in range(25):
            logs.extend(["x"] * count)

    def write() -> None:
        for seq in range(1, 401):
            logs.write([Change("a", seq, "y"), Change("a!", seq, "z")])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield [start(work) for work in (append, append, append, extend, write)]
    sys.setswitchinterval(before)


async def test_every_reader_gets_everything(logs: Scuttleup, read: Read, writers: Writers) -> None:
    """It does not matter when a reader begins, while many threads write."""
    # Each reader, with the heads just before it began and just after.
    begun: list[tuple[dict[str, int], Reader, dict[str, int]]] = []
    for number in range(0, 1500, 200):
        await arrival(logs, {"us": number})
        begun.append(({}, read(logs.create_read_stream(live=True)), {}))
        before, stream, after = logs.head, logs.create_read_stream(tail=True), logs.head
        begun.append((before, read(stream), after))
    await asyncio.gather(*map(asyncio.wrap_future, writers))
    logs.append("end")
    logs.write([Change("a", 401, "end"), Change("a!", 401, "end")])
    ends = set(ENDS.items())
    await until(lambda: all(ends <= {c[:2] for c in reader.seen[:]} for _, reader, _ in begun))
    logs.close()
    for before, reader, after in begun:
        seen = numbers(await reader.join())
        for peer, end in ENDS.items():
            assert before.get(peer, 0) < seen[peer][0] <= after.get(peer, 0) + 1
            assert seen[peer] == list(range(seen[peer][0], end + 1))


def test_snapshots_are_whole_while_many_threads_write(logs: Scuttleup, writers: Writers) -> None:
    finished = False
    while not finished:
        finished = all(writer.done() for writer in writers)
        before, stream, after = logs.head, logs.create_read_stream(), logs.head
        seen = numbers(stream)
        assert list(seen) == sorted(seen)
        for peer, seqs in seen.items():
            assert seqs == list(range(1, len(seqs) + 1))
            assert before.get(peer, 0) <= len(seqs) <= after[peer]
    for writer in writers:
        writer.result()
    assert seen == {peer: list(range(1, end)) for peer, end in ENDS.items()}


# --- The event loop ---


# One log with large gaps, and many logs.
@pytest.mark.parametrize(("peers", "length", "gap"), [(1, 100_000, 1000), (50_000, 1, 0)])
async def test_reads_never_hold_the_event_loop(db: Any, peers: int, length: int, gap: int) -> None:
    """This is processor time of this thread. A clock would count what others do as well."""
    with db.write_batch() as batch:
        for number in range(peers):
            for key in change_keys(log_prefix(f"peer {number}"), 1, length):
                batch.put(key, b"x" * 100)
        for first in range(1, length, 2000):
            for key in change_keys(log_prefix("peer 0"), first, gap):
                batch.delete(key)
    turns = []

    async def tick() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before)

    stream = Scuttleup(db, id="us").create_read_stream()
    gc.collect()  # so that it does not begin just now to look through all that the tests hold
    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    # The changes are counted and not kept, because the garbage collector would look through them.
    count = 0
    async for _ in stream:
        count += 1
    ticking.cancel()
    assert count == peers * length - 50 * gap
    assert len(turns) > 100
    assert max(turns) < 0.05


async def test_other_tasks_have_their_turn_while_a_task_catches_up(logs: Scuttleup) -> None:
    logs.extend(["x"] * 10_000)
    reader = Reader(logs.create_read_stream(), "task")
    turns = [0]
    while turns[-1] < 10_000:
        await asyncio.sleep(0)
        turns.append(len(reader.seen))
    assert max(after - before for before, after in itertools.pairwise(turns)) <= RUN_ENTRIES
    await reader.join()


async def test_a_reader_that_is_cancelled_again_and_again_misses_nothing(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(2000)))
    stream = logs.create_read_stream(live=True)
    seen: list[Change] = []
    turns = itertools.cycle(range(4))
    while len(seen) < 2000:
        reading = asyncio.ensure_future(read_async(stream, seen.append))
        for _ in range(next(turns)):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    assert seen == changes


@pytest.mark.parametrize("first", ["append", "cancel"])
async def test_a_change_that_meets_a_cancellation_is_not_lost(logs: Scuttleup, first: str) -> None:
    stream = logs.create_read_stream(live=True)
    for entry in "abc":
        waiting = asyncio.ensure_future(take_async(stream, 1))
        await settle()
        if first == "append":
            logs.append(entry)
        waiting.cancel()
        if first == "cancel":
            logs.append(entry)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [change.entry for change in await take_async(stream, 1)] == [entry]


def test_an_event_loop_that_is_gone_does_not_break_append(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(live=True)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(take_async(stream, 1))
    loop.run_until_complete(settle())
    assert not waiting.done()
    loop.close()
    changes = [logs.append("a"), *logs.extend(["b", "c"])]
    logs.write([Change("other", 1, "x")])
    assert list(logs.create_read_stream()) == [Change("other", 1, "x"), *changes]
    stream.close()
    # This task can never finish, and asyncio is not to warn of that.
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


# --- Nothing leaks ---


@pytest.mark.of_the_owner
async def test_a_live_stream_that_is_dropped_is_gone_whoever_has_read_it(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(live=True)
    logs.extend(map(str, range(1000)))
    next(stream)
    for _ in stream:
        break
    async for change in stream:
        if change.seq == 1000:
            break
    waiting = asyncio.ensure_future(take_async(stream, 1))
    await settle()
    logs.append("c")
    await waiting
    assert len(logs._store._news.followers) == 1
    gone = weakref.ref(stream)
    del stream, waiting
    assert gone() is None
    assert not logs._store._news.followers
    logs.append("x")


def test_dropping_logs_and_their_streams_frees_the_store(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    stream = logs.create_read_stream(live=True)
    logs.append(b"a")
    next(stream)
    gone = weakref.ref(logs._store)
    del logs, stream
    assert gone() is None
