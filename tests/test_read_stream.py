"""Reading and following: in order, nothing twice, nothing missed, from threads and asyncio.

What a stream has to give, whatever is written, deleted and asked for, is tried against models in
test_model.py and test_followers.py. Here is what they cannot see.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import pytest
from waiting import LIMIT, start, until

from scuttleup import Change, ReadStream, Scuttleup
from scuttleup.database import Database
from scuttleup.keys import change_keys, log_prefix
from scuttleup.limits import MAX_ENTRY, RUN_BYTES, RUN_ENTRIES
from scuttleup.read_stream import _Alarm
from scuttleup.scan import FEW
from scuttleup.store import Store

T = TypeVar("T")


class Reader:
    """Reads a stream to its end, in a thread or in a task, and keeps what it has seen."""

    def __init__(self, stream: ReadStream, kind: str) -> None:
        self.seen: list[Change] = []
        self._stream = stream
        self._ident = 0
        if kind == "thread":
            self._end = asyncio.wrap_future(start(self._read))
        else:
            self._end = asyncio.ensure_future(self._read_async())

    def _read(self) -> None:
        self._ident = threading.get_ident()
        for change in self._stream:
            self.seen.append(change)

    async def _read_async(self) -> None:
        await read_async(self._stream, self.seen)

    def waits(self) -> bool:
        frame = sys._current_frames().get(self._ident)
        in_thread = frame is not None and frame.f_code is _Alarm.wait.__code__
        return in_thread or self._stream._alarm._wake_task is not None

    async def sees(self, last: Change) -> None:
        await until(lambda: last in self.seen[-1:])

    async def join(self) -> list[Change]:
        await self._end
        return self.seen


MakeReader = Callable[[ReadStream], Reader]


@pytest.fixture(params=["thread", "task"])
def read(request: pytest.FixtureRequest) -> MakeReader:
    """Makes readers in threads, and in a second run of the test in tasks."""
    return lambda stream: Reader(stream, request.param)


async def read_async(stream: ReadStream, seen: list[Change]) -> None:
    async for change in stream:
        seen.append(change)


async def take_async(stream: ReadStream, count: int) -> list[Change]:
    return [await anext(stream) for _ in range(count)]


async def settle() -> None:
    """Let every other task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def take(stream: ReadStream, count: int) -> list[Change]:
    """In a thread, so that a change that never comes is a failure and no endless wait."""
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
    assert [peer.encode() for peer in peers] == sorted(peer.encode() for peer in peers)
    changes = [Change(peer, seq, f"{peer} {seq}") for peer in peers for seq in range(1, 301)]
    logs.write(sorted(changes, key=lambda change: (change[1], change[0])))
    assert list(logs.create_read_stream()) == changes


def test_a_snapshot_runs_over_every_border_of_numbers(logs: Scuttleup) -> None:
    changes = [
        Change("p", seq, "x")
        for border in (251, 507, 65787, 16777467, 2**32)
        for seq in range(border - 5, min(border + 5, 2**32))
    ]
    logs.write(changes)
    assert list(logs.create_read_stream()) == changes


def test_big_and_small_entries_are_read_alike(logs: Scuttleup) -> None:
    sizes = [0, 1, RUN_BYTES - 1, RUN_BYTES, RUN_BYTES + 1, 2**20, 0, 3, 2**20, 2**20, 5]
    changes = logs.extend("x" * size for size in sizes)
    changes += logs.extend("y" * 1000 for _ in range(200))
    assert list(logs.create_read_stream()) == changes


def test_a_snapshot_ends_with_what_was_there_when_it_was_made(logs: Scuttleup) -> None:
    before = logs.extend(["a", "b"])
    stream = logs.create_read_stream()
    logs.append("c")
    logs.write([Change("new", 1, "x")])
    first = next(stream)
    logs.append("d")
    assert [first, *stream] == before


def test_little_is_read_ahead(db: Any) -> None:
    """A run of many large entries would take their memory and the event loop's time."""
    store = Store(Database(db), id="us", sync=False, max_entry=MAX_ENTRY)
    store.extend([bytes(10_000)] * 20 + [b""] * 1000)
    follower = store.follow({}, snapshot=True, live=False, wake=lambda: None)
    lengths = []
    while run := follower.read():
        lengths.append(len(run.entries))
    assert sum(lengths) == 1020
    assert lengths[:4] == [4, 4, 4, 4]
    assert max(lengths) == RUN_ENTRIES


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


def test_a_read_stream_at_its_end_stays_there(logs: Scuttleup) -> None:
    logs.append("a")
    stream = logs.create_read_stream()
    next(stream)
    logs.append("b")
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    assert list(stream) == []


# --- since ---


def test_since_takes_any_mapping_and_keeps_none_of_it(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])
    since = defaultdict(int, {"us": 1})
    stream = logs.create_read_stream(since=since)
    since["us"] = 2
    assert list(stream) == changes[1:]


@pytest.mark.parametrize("after", [1, 255, 256, 257, 511, 999, 1000])
def test_since_begins_anywhere_in_a_log(logs: Scuttleup, after: int) -> None:
    changes = logs.extend(map(str, range(1000)))
    assert list(logs.create_read_stream(since={"us": after})) == changes[after:]


# --- Deleted entries ---


R = RUN_ENTRIES
GONE: list[Iterable[int]] = [
    *([1], [1000], [500], [1, 2, 3, 998, 999, 1000], [R, R + 1, 3 * R]),
    *(range(1, 501), range(501, 1001), range(1, 1000), range(2, 1001), range(1, 1001)),
    *(range(1, 1001, 2), range(2, 1001, 2), range(1, R + 1), range(R, 2 * R)),
    *(range(R + 1, 2 * R + 1), range(100, 100 + 3 * R)),
]


@pytest.mark.parametrize("deleted", GONE, ids=str)
@pytest.mark.parametrize("peers", [["us"], ["before", "us", "vafter"]], ids=["alone", "between"])
def test_deleted_entries_are_skipped(
    logs: Scuttleup, peers: list[str], deleted: Iterable[int]
) -> None:
    changes = [Change(peer, seq, str(seq)) for peer in peers for seq in range(1, 1001)]
    logs.write(changes)
    gone = set(deleted)
    for seq in gone:
        logs.delete("us", seq)
    left = [change for change in changes if change.peer != "us" or change.seq not in gone]
    assert list(logs.create_read_stream()) == left


def test_any_entries_of_a_short_log_may_be_deleted(logs: Scuttleup) -> None:
    left: list[Change] = []
    for number, kept in enumerate(itertools.product([False, True], repeat=FEW)):
        changes = [Change(f"peer {number:02}", seq, "x") for seq in range(1, FEW + 1)]
        logs.write(changes)
        left += itertools.compress(changes, kept)
        for change in set(changes) - set(left):
            logs.delete(change.peer, change.seq)
    assert list(logs.create_read_stream()) == left


async def test_a_live_stream_goes_on_when_all_that_was_new_is_deleted(
    logs: Scuttleup, read: MakeReader
) -> None:
    reader = read(logs.create_read_stream(tail=True))
    await until(reader.waits)
    logs.append("a")
    logs.delete("us", 1)
    await reader.sees(logs.append("b"))
    logs.close()
    await reader.join()


# --- live and tail ---


async def test_a_reader_that_waits_gets_what_another_thread_appends(
    logs: Scuttleup, read: MakeReader
) -> None:
    reader = read(logs.create_read_stream(live=True))
    changes: list[Change] = []
    for number in range(20):
        await until(reader.waits)
        changes.append(await asyncio.to_thread(logs.append, str(number)))
        await reader.sees(changes[-1])
    logs.close()
    assert await reader.join() == changes


@pytest.mark.parametrize("look", ["_read", "_nothing_new"])
async def test_what_comes_between_a_look_and_the_sleep_is_not_slept_through(
    logs: Scuttleup, read: MakeReader, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    stream = logs.create_read_stream(tail=True)
    looked = getattr(stream, look)
    appended: list[Change] = []

    def look_and_append() -> bool:
        found: bool = looked()
        if not appended and not stream._follower._runs:
            appended.append(logs.append("just now"))
        return found

    monkeypatch.setattr(stream, look, look_and_append)
    reader = read(stream)
    await until(lambda: reader.seen == appended != [])
    logs.close()
    await reader.join()


# --- Closing ---


@pytest.mark.parametrize("live", [False, True])
async def test_a_stream_can_be_closed_inside_its_own_loop(logs: Scuttleup, live: bool) -> None:
    changes = logs.extend(map(str, range(600)))
    stream = logs.create_read_stream(live=live)
    seen = []
    for change in stream:
        seen.append(change)
        if change.seq == 2:
            stream.close()
    assert seen == changes[:2]
    assert list(stream) == []

    stream = logs.create_read_stream(live=live)
    async for change in stream:
        seen.append(change)
        if change.seq == 2:
            stream.close()
    assert seen == changes[:2] * 2


@pytest.mark.parametrize("whose", ["stream", "logs"])
@pytest.mark.parametrize("place", ["here", "thread"])
async def test_close_wakes_a_reader_that_waits(
    logs: Scuttleup, read: MakeReader, whose: str, place: str
) -> None:
    changes = logs.extend(["a", "b"])
    stream = logs.create_read_stream(live=True)
    reader = read(stream)
    await reader.sees(changes[-1])
    await until(reader.waits)
    close = (stream if whose == "stream" else logs).close
    if place == "here":
        close()
    else:
        await asyncio.to_thread(close)
    assert await reader.join() == changes
    assert list(stream) == []


async def test_close_comes_through_however_it_meets_the_reader(
    logs: Scuttleup, read: MakeReader
) -> None:
    """A close just as the reader is about to wait must not be missed."""
    for _ in range(200):
        stream = logs.create_read_stream(tail=True)
        reader = read(stream)
        stream.close()
        assert await reader.join() == []


async def test_leaving_the_with_block_closes_the_stream_and_it_can_be_closed_again(
    logs: Scuttleup,
) -> None:
    logs.extend(["a", "b"])
    with logs.create_read_stream(live=True) as stream:
        assert isinstance(stream, ReadStream)
        next(stream)
    stream.close()
    logs.append("c")
    assert list(stream) == []
    assert [change async for change in stream] == []


def test_a_closed_stream_leaves_the_log_and_other_streams_open(logs: Scuttleup) -> None:
    other = logs.create_read_stream(live=True)
    logs.create_read_stream(live=True).close()
    change = logs.append("a")
    assert next(other) == change


# --- What cannot be decoded ---


async def test_an_entry_that_is_no_json_is_an_error_in_its_place_and_the_stream_goes_on(
    logs: Scuttleup, read: MakeReader
) -> None:
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

ENDS = {"us": 1501, "a": 401, "a!": 401}


def write_from_many_threads(logs: Scuttleup) -> None:
    """All but the last of each log."""

    def append() -> None:
        for _ in range(400):
            logs.append("x")

    def extend() -> None:
        for count in range(25):
            logs.extend(["x"] * count)

    def write() -> None:
        for seq in range(1, 401):
            logs.write([Change("a", seq, "y"), Change("a!", seq, "z")])

    for writer in [start(work) for work in (append, append, append, extend, write)]:
        writer.result(LIMIT)


def write_ends(logs: Scuttleup) -> None:
    logs.append("end")
    logs.write([Change("a", 401, "end"), Change("a!", 401, "end")])


def at_ends(seen: list[Change]) -> bool:
    return {change[:2] for change in seen[:]} >= set(ENDS.items())


def everything_after(head: dict[str, int]) -> dict[str, list[int]]:
    return {peer: list(range(head.get(peer, 0) + 1, end + 1)) for peer, end in ENDS.items()}


@pytest.fixture
def _often() -> Iterator[None]:
    """Threads that take turns so often that whatever can meet does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often")
async def test_readers_get_all_that_many_threads_write_whenever_they_begin(
    logs: Scuttleup, read: MakeReader
) -> None:
    live = [read(logs.create_read_stream(live=True)) for _ in range(2)]
    tails: list[tuple[dict[str, int], Reader, dict[str, int]]] = []
    writers = start(lambda: write_from_many_threads(logs))
    while not writers.done():
        if len(tails) < 8:
            before = logs.head
            tail = logs.create_read_stream(tail=True)
            tails.append((before, read(tail), logs.head))
            live.append(read(logs.create_read_stream(live=True)))
        await asyncio.sleep(0.01)  # spreads them over the writing
    writers.result()
    write_ends(logs)
    readers = live + [tail for _, tail, _ in tails]
    await until(lambda: all(at_ends(reader.seen) for reader in readers))
    logs.close()
    for reader in live:
        assert numbers(await reader.join()) == everything_after({})
    for before, reader, after in tails:
        for peer, seqs in numbers(await reader.join()).items():
            assert before.get(peer, 0) < seqs[0] <= after.get(peer, 0) + 1
            assert seqs == list(range(seqs[0], ENDS[peer] + 1))


@pytest.mark.usefixtures("_often")
def test_snapshots_are_whole_while_many_threads_write(logs: Scuttleup) -> None:
    writers = start(lambda: write_from_many_threads(logs))
    finished = False
    while not finished:
        finished = writers.done()
        before = logs.head
        stream = logs.create_read_stream()
        after = logs.head
        seen = numbers(stream)
        for peer, seqs in seen.items():
            assert seqs == list(range(1, len(seqs) + 1))
            assert before.get(peer, 0) <= len(seqs) <= after[peer]
        assert list(seen) == sorted(seen)
    writers.result()
    assert seen == {peer: list(range(1, end)) for peer, end in ENDS.items()}


# --- The event loop ---


async def longest_turn(work: Coroutine[Any, Any, T]) -> tuple[T, float, int]:
    """What `work` returns, the longest that it held the event loop, and how often it let go.

    In processor time of this thread: on a busy machine a clock would count others' work as well.
    """
    turns = []

    async def tick() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before)

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    result = await work
    ticking.cancel()
    return result, max(turns), len(turns)


async def count_async(stream: ReadStream) -> int:
    # It keeps none: the garbage collector's looks through all that is kept would be timed too.
    count = 0
    async for _ in stream:
        count += 1
    return count


def large_log(db: Any) -> int:
    Scuttleup(db, id="us").extend([b"x" * 100] * 200_000)
    return 200_000


def log_with_large_gaps(db: Any) -> int:
    Scuttleup(db, id="us").extend([b"x" * 100] * 100_000)
    with db.write_batch() as batch:
        for first in range(1, 100_000, 2_000):
            for key in change_keys(log_prefix("us"), first, 1_000):
                batch.delete(key)
    return 50_000


def many_logs(db: Any) -> int:
    with db.write_batch() as batch:
        for number in range(50_000):
            batch.put(log_prefix(f"peer {number}") + b"01", b"x")
    return 50_000


@pytest.mark.parametrize("make", [large_log, log_with_large_gaps, many_logs])
async def test_reading_never_holds_the_event_loop(db: Any, make: Callable[[Any], int]) -> None:
    expected = make(db)
    stream = Scuttleup(db, id="us").create_read_stream()
    count, longest, turns = await longest_turn(count_async(stream))
    assert count == expected
    assert turns > 100
    assert longest < 0.05


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
    for turns in itertools.cycle(range(4)):
        if len(seen) >= 2000:
            break
        reading = asyncio.ensure_future(read_async(stream, seen))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    assert seen == changes


@pytest.mark.parametrize("first", ["append", "cancel"])
async def test_a_change_that_comes_as_its_reader_is_cancelled_is_not_lost(
    logs: Scuttleup, first: str
) -> None:
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
    changes = [logs.append("a")]
    changes += logs.extend(["b", "c"])
    logs.write([Change("other", 1, "x")])
    assert logs.head == {"us": 3, "other": 1}
    assert asyncio.run(take_async(logs.create_read_stream(live=True), 4))[1:] == changes
    stream.close()
    # It can never be finished; say nothing about it.
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


# --- Nothing leaks ---


@pytest.mark.parametrize("live", [{"live": True}, {"tail": True}], ids=str)
def test_a_live_stream_that_is_dropped_is_gone_at_once(
    logs: Scuttleup, live: dict[str, bool]
) -> None:
    stream = logs.create_read_stream(**live)  # type: ignore[arg-type]
    logs.extend(map(str, range(1000)))
    next(stream)
    for _ in stream:
        break
    assert len(logs._store._news.followers) == 1
    gone = weakref.ref(stream)
    del stream
    assert gone() is None
    assert not logs._store._news.followers
    logs.append("x")


async def test_a_live_stream_that_a_task_has_read_is_gone_when_it_is_dropped(
    logs: Scuttleup,
) -> None:
    stream = logs.create_read_stream(live=True)
    logs.extend(["a", "b"])
    async for change in stream:
        if change.seq == 2:
            break
    waiting = asyncio.ensure_future(take_async(stream, 1))
    await settle()
    logs.append("c")
    await waiting
    gone = weakref.ref(stream)
    del stream, waiting
    await settle()
    assert gone() is None
    assert not logs._store._news.followers


def test_dropping_a_log_and_its_streams_frees_the_store(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    stream = logs.create_read_stream(live=True)
    logs.append(b"a")
    next(stream)
    gone = weakref.ref(logs._store)
    del logs, stream
    assert gone() is None
