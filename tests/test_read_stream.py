"""Reading and following: in order, nothing twice, nothing missed, from threads and asyncio."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from scuttleup import Change, ReadStream, Scuttleup, ScuttleupError
from scuttleup.changes import Run
from scuttleup.keys import change_keys, log_prefix
from scuttleup.read_stream import _Alarm
from scuttleup.store import RUN_BYTES, RUN_ENTRIES, Store

T = TypeVar("T")

LIMIT = 30  # seconds, for what takes a moment


def start(work: Callable[[], T]) -> Future[T]:
    """Do `work` in a thread that a failing test does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, LIMIT))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


class Reader:
    """A thread that reads a stream to its end."""

    def __init__(self, stream: ReadStream) -> None:
        self.seen: list[Change] = []
        self.ident = 0
        self._end = start(lambda: self._read(stream))

    def _read(self, stream: ReadStream) -> None:
        self.ident = threading.get_ident()
        for change in stream:
            self.seen.append(change)

    def waits(self) -> bool:
        frame = sys._current_frames().get(self.ident)
        return frame is not None and frame.f_code is _Alarm.wait.__code__

    def join(self) -> list[Change]:
        self._end.result(LIMIT)
        return self.seen


async def read_async(stream: ReadStream, seen: list[Change]) -> None:
    async for change in stream:
        seen.append(change)


async def take_async(stream: ReadStream, count: int) -> list[Change]:
    return [await stream.__anext__() for _ in range(count)]


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


def test_an_empty_log_has_nothing_to_read(logs: Scuttleup) -> None:
    assert list(logs.create_read_stream()) == []


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


@pytest.mark.parametrize("count", [1, RUN_ENTRIES - 1, RUN_ENTRIES, RUN_ENTRIES + 1, 1000])
def test_a_snapshot_of_any_length_is_whole(logs: Scuttleup, count: int) -> None:
    changes = logs.extend(map(str, range(count)))
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


@pytest.mark.parametrize("wait", ["thread", "task"])
def test_what_comes_between_the_last_look_and_the_sleep_is_not_slept_through(
    logs: Scuttleup, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    stream = logs.create_read_stream(tail=True)
    read = stream._follower.read
    appended: list[Change] = []

    def read_then_append() -> Run | None:
        run = read()
        if not appended:
            appended.append(logs.append("just now"))
        return run

    monkeypatch.setattr(stream._follower, "read", read_then_append)
    if wait == "thread":
        assert start(lambda: next(stream)).result(LIMIT) == appended[0]
    else:
        assert asyncio.run(asyncio.wait_for(anext(stream), LIMIT)) == appended[0]


def test_little_is_read_ahead(db: Any) -> None:
    """A run of many large entries would take their memory and the event loop's time."""
    store = Store(db, id="us", sync=False)
    store.extend([bytes(10_000)] * 20 + [b""] * 1000)
    follower = store.follow({}, snapshot=True, live=False, wake=lambda: None)
    lengths = []
    while run := follower.read():
        lengths.append(len(run.entries))
    assert sum(lengths) == 1020
    assert lengths[:4] == [4, 4, 4, 4]
    assert max(lengths) == RUN_ENTRIES


def test_what_is_read_is_changes(logs: Scuttleup) -> None:
    logs.append("a")
    (change,) = logs.create_read_stream()
    assert type(change) is Change


def test_next_and_for_share_one_position(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(600)))
    stream = logs.create_read_stream()
    seen = take(stream, 3)
    for change in stream:
        seen.append(change)
        if change.seq == 300:
            break
    seen += take(stream, 2)
    seen += list(stream)
    assert seen == changes


def test_a_read_stream_at_its_end_stays_there(logs: Scuttleup) -> None:
    logs.append("a")
    stream = logs.create_read_stream()
    next(stream)
    logs.append("b")
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    assert list(stream) == []


def test_two_streams_do_not_disturb_each_other(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(600)))
    both = zip(logs.create_read_stream(), logs.create_read_stream(), strict=True)
    assert list(both) == [(change, change) for change in changes]


# --- since ---


def test_since_leaves_out_what_an_earlier_head_had(logs: Scuttleup) -> None:
    logs.extend(["a", "b"])
    logs.write([Change("other", 1, "x")])
    head = logs.head
    later = [logs.append("c")]
    logs.write([Change("other", 2, "y"), Change("third", 1, "z")])
    stream = logs.create_read_stream(since=head)
    assert list(stream) == [Change("other", 2, "y"), Change("third", 1, "z"), *later]


def test_since_now_is_nothing(logs: Scuttleup) -> None:
    logs.extend(["a", "b"])
    assert list(logs.create_read_stream(since=logs.head)) == []


def test_since_may_name_unknown_peers_and_numbers_ahead(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])
    logs.write([Change("other", 1, "x")])
    since = {"unknown": 5, "other": 2**32 - 1, "us": 0}
    assert list(logs.create_read_stream(since=since)) == changes


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


def test_a_live_stream_skips_what_since_is_ahead_of(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(since={"us": 3}, live=True)
    changes = [logs.append(entry) for entry in "abcde"]
    assert take(stream, 2) == changes[3:]


# --- Deleted entries ---


@pytest.mark.parametrize(
    "deleted",
    [
        [1],
        [1000],
        [500],
        [1, 2, 3, 998, 999, 1000],
        range(1, 501),
        range(501, 1001),
        range(1, 1000),
        range(2, 1001),
        range(1, 1001),
        range(1, 1001, 2),
        range(2, 1001, 2),
        range(1, RUN_ENTRIES + 1),
        range(RUN_ENTRIES, 2 * RUN_ENTRIES),
        range(RUN_ENTRIES + 1, 2 * RUN_ENTRIES + 1),
        range(100, 100 + 3 * RUN_ENTRIES),
        [RUN_ENTRIES, RUN_ENTRIES + 1, 3 * RUN_ENTRIES],
    ],
    ids=str,
)
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


def test_every_log_may_have_lost_all_entries(logs: Scuttleup) -> None:
    for peer in ("a", "b", "us"):
        logs.write([Change(peer, seq, "x") for seq in range(1, 4)])
        for seq in range(1, 4):
            logs.delete(peer, seq)
    assert list(logs.create_read_stream()) == []


def test_what_was_deleted_before_a_live_stream_came_to_it_is_skipped(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(live=True)
    logs.extend(map(str, range(1, 601)))
    for seq in [1, *range(200, 500), 600]:
        logs.delete("us", seq)
    last = logs.append("last")
    expected = [*range(2, 200), *range(500, 600), last.seq]
    assert [change.seq for change in take(stream, len(expected))] == expected


def test_a_live_stream_goes_on_when_all_that_was_new_is_deleted(logs: Scuttleup) -> None:
    reader = Reader(logs.create_read_stream(tail=True))
    wait_until(reader.waits)
    logs.append("a")
    logs.delete("us", 1)
    last = logs.append("b")
    wait_until(lambda: last in reader.seen)
    logs.close()
    assert reader.join()[-1:] == [last]


# --- live and tail ---


def test_live_goes_on_with_what_is_stored_later(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])
    stream = logs.create_read_stream(live=True)
    changes.append(logs.append("c"))
    assert take(stream, 3) == changes
    changes = logs.extend(["d", "e"])
    assert take(stream, 2) == changes


def test_tail_gives_only_what_is_stored_later(logs: Scuttleup) -> None:
    logs.extend(["a", "b"])
    stream = logs.create_read_stream(tail=True)
    later = [logs.append("c"), *logs.extend(["d"])]
    assert take(stream, 2) == later


def test_live_gives_what_is_written_for_other_peers(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(tail=True)
    changes = [Change(peer, seq, "x") for peer in ("a", "b") for seq in (1, 2, 5)]
    logs.write(changes)
    assert sorted(take(stream, 6)) == changes


def test_live_does_not_give_what_a_failed_write_would_have_stored(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(tail=True)
    with pytest.raises(ValueError, match="'us'"):
        logs.write([Change("a", 1, "x"), Change("us", 5, "y")])
    with pytest.raises(TypeError, match="5"):
        logs.extend(["a", 5])
    last = logs.append("last")
    assert take(stream, 1) == [last]


def test_a_blocked_reader_gets_what_another_thread_appends(logs: Scuttleup) -> None:
    reader = Reader(logs.create_read_stream(live=True))
    changes = []
    for number in range(20):
        wait_until(reader.waits)
        changes.append(logs.append(str(number)))
        wait_until(lambda: len(reader.seen) == len(changes))
    logs.close()
    assert reader.join() == changes


def test_a_waiting_task_gets_what_another_thread_appends(logs: Scuttleup) -> None:
    async def main() -> list[Change]:
        stream = logs.create_read_stream(live=True)
        seen = []
        for number in range(20):
            waiting = asyncio.ensure_future(take_async(stream, 1))
            await settle()
            assert not waiting.done()
            await asyncio.to_thread(logs.append, str(number))
            seen += await waiting
        return seen

    assert run(main()) == [Change("us", number + 1, str(number)) for number in range(20)]


def append_when_it_is_about_to_wait(stream: ReadStream, logs: Scuttleup) -> None:
    look = stream._nothing_new
    done = False

    def look_and_append() -> bool:
        nonlocal done
        found_nothing = look()
        if found_nothing and not done:
            done = True
            logs.append("a")
        return found_nothing

    stream._nothing_new = look_and_append  # type: ignore[method-assign]


def test_a_thread_does_not_miss_what_comes_after_its_last_look(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(tail=True)
    append_when_it_is_about_to_wait(stream, logs)
    assert take(stream, 1) == [Change("us", 1, "a")]


def test_a_task_does_not_miss_what_comes_after_its_last_look(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(tail=True)
    append_when_it_is_about_to_wait(stream, logs)
    assert run(take_async(stream, 1)) == [Change("us", 1, "a")]


def test_a_live_stream_reads_many_logs_at_once(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(live=True)
    changes = [Change(f"peer {number:04}", 1, "x") for number in range(2000)]
    logs.write(changes)
    assert sorted(take(stream, 2000)) == changes


def test_for_and_async_for_share_one_position(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(1000)))
    stream = logs.create_read_stream()
    seen = take(stream, 10)
    seen += run(take_async(stream, 500))
    assert [*seen, *stream] == changes


# --- Closing ---


@pytest.mark.parametrize("live", [False, True])
def test_a_stream_can_be_closed_inside_its_own_loop(logs: Scuttleup, live: bool) -> None:
    changes = logs.extend(map(str, range(600)))
    stream = logs.create_read_stream(live=live)
    seen = []
    for change in stream:
        seen.append(change)
        if change.seq == 2:
            stream.close()
    assert seen == changes[:2]
    assert list(stream) == []


@pytest.mark.parametrize("live", [False, True])
def test_a_stream_can_be_closed_inside_its_own_async_loop(logs: Scuttleup, live: bool) -> None:
    changes = logs.extend(map(str, range(600)))
    stream = logs.create_read_stream(live=live)

    async def main() -> list[Change]:
        seen = []
        async for change in stream:
            seen.append(change)
            if change.seq == 2:
                stream.close()
        return seen

    assert run(main()) == changes[:2]


@pytest.mark.parametrize("whose", ["stream", "logs"])
def test_close_wakes_a_blocked_thread(logs: Scuttleup, whose: str) -> None:
    changes = logs.extend(["a", "b"])
    stream = logs.create_read_stream(live=True)
    reader = Reader(stream)
    wait_until(lambda: len(reader.seen) == 2 and reader.waits())
    (stream if whose == "stream" else logs).close()
    assert reader.join() == changes
    assert list(stream) == []


@pytest.mark.parametrize("whose", ["stream", "logs"])
@pytest.mark.parametrize("place", ["task", "thread"])
def test_close_wakes_a_waiting_task(logs: Scuttleup, whose: str, place: str) -> None:
    changes = logs.extend(["a", "b"])

    async def main() -> list[Change]:
        stream = logs.create_read_stream(live=True)
        seen: list[Change] = []
        reader = asyncio.ensure_future(read_async(stream, seen))
        while len(seen) < 2:
            await asyncio.sleep(0)
        await settle()
        assert not reader.done()
        close = (stream if whose == "stream" else logs).close
        if place == "task":
            close()
        else:
            await asyncio.to_thread(close)
        await reader
        return seen

    assert run(main()) == changes


def test_a_thread_and_a_task_both_end_when_the_log_is_closed(logs: Scuttleup) -> None:
    async def main() -> None:
        reader = Reader(logs.create_read_stream(live=True))
        seen: list[Change] = []
        task = asyncio.ensure_future(read_async(logs.create_read_stream(tail=True), seen))
        await settle()
        change = logs.append("a")
        while not (seen and reader.seen):
            await asyncio.sleep(0.001)
        logs.close()
        await task
        assert await asyncio.to_thread(reader.join) == seen == [change]

    run(main())


def test_close_comes_through_however_it_meets_the_reader(logs: Scuttleup) -> None:
    """A close just as the reader is about to wait must not be missed."""
    for _ in range(300):
        stream = logs.create_read_stream(tail=True)
        reader = Reader(stream)
        stream.close()
        assert reader.join() == []


def test_leaving_the_with_block_closes_the_stream(logs: Scuttleup) -> None:
    logs.extend(["a", "b"])
    with logs.create_read_stream(live=True) as stream:
        assert isinstance(stream, ReadStream)
        next(stream)
    assert list(stream) == []
    assert stream_is_at_its_end(stream)


def stream_is_at_its_end(stream: ReadStream) -> bool:
    seen: list[Change] = []
    run(read_async(stream, seen))
    return not seen


def test_a_closed_stream_can_be_closed_again(logs: Scuttleup) -> None:
    stream = logs.create_read_stream(live=True)
    stream.close()
    stream.close()
    logs.append("a")
    assert list(stream) == []


def test_a_closed_stream_leaves_the_log_and_other_streams_open(logs: Scuttleup) -> None:
    other = logs.create_read_stream(live=True)
    logs.create_read_stream(live=True).close()
    change = logs.append("a")
    assert next(other) == change


def test_a_closed_log_has_no_new_streams(logs: Scuttleup) -> None:
    logs.close()
    with pytest.raises(ScuttleupError, match="closed"):
        logs.create_read_stream()


# --- What cannot be decoded ---


@pytest.fixture
def one_bad(logs: Scuttleup) -> Scuttleup:
    logs.extend(["1", "{", "3"])
    logs.write([Change("vera", 1, "'"), Change("vera", 2, "5")])
    return logs


GOOD = [Change("us", 1, 1), Change("us", 3, 3), Change("vera", 2, 5)]


def test_an_entry_that_cannot_be_decoded_is_an_error_in_its_place(one_bad: Scuttleup) -> None:
    stream = one_bad.create_read_stream(value_encoding="json")
    seen: list[Change] = []
    places = []
    while len(seen) < len(GOOD):
        try:
            seen += [next(stream)]
        except ValueError:
            places.append(len(seen))
    assert seen == GOOD
    assert places == [1, 2]
    assert list(stream) == []


def test_a_loop_goes_on_after_an_entry_that_cannot_be_decoded(one_bad: Scuttleup) -> None:
    stream = one_bad.create_read_stream(value_encoding="json")
    seen: list[Change] = []
    for _ in range(2):
        with pytest.raises(ValueError, match="Expecting"):
            seen.extend(stream)
    seen += list(stream)
    assert seen == GOOD


def test_a_task_goes_on_after_an_entry_that_cannot_be_decoded(one_bad: Scuttleup) -> None:
    async def main() -> list[Change]:
        stream = one_bad.create_read_stream(value_encoding="json")
        seen: list[Change] = []
        for _ in range(2):
            with pytest.raises(ValueError, match="Expecting"):
                await read_async(stream, seen)
        await read_async(stream, seen)
        return seen

    assert run(main()) == GOOD


def test_an_entry_too_deep_to_decode_is_a_value_error(logs: Scuttleup) -> None:
    logs.extend(["[" * 200_000, "2"])
    stream = logs.create_read_stream(value_encoding="json")
    with pytest.raises(ValueError):  # noqa: PT011
        next(stream)
    assert list(stream) == [Change("us", 2, 2)]


# --- Many threads ---

ENDS = {"us": 1501, "a": 401, "a!": 401}


def write_from_many_threads(logs: Scuttleup) -> None:
    """Up to the numbers in `ENDS`, the last of each alone."""

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
def test_threads_and_tasks_get_all_that_many_threads_write(logs: Scuttleup) -> None:
    async def main() -> None:
        seen: list[Change] = []
        task = asyncio.ensure_future(read_async(logs.create_read_stream(live=True), seen))
        readers = [Reader(logs.create_read_stream(live=True)) for _ in range(2)]
        readers += [Reader(logs.create_read_stream(tail=True))]
        await asyncio.wrap_future(start(lambda: write_from_many_threads(logs)))
        while not all(at_ends(changes) for changes in (seen, *(r.seen for r in readers))):
            await asyncio.sleep(0.01)
        logs.close()
        await task
        for changes in (seen, *[await asyncio.to_thread(reader.join) for reader in readers]):
            assert numbers(changes) == everything_after({})

    run(main())


@pytest.mark.usefixtures("_often")
def test_streams_that_are_made_while_many_threads_write_get_all(logs: Scuttleup) -> None:
    writers = start(lambda: write_from_many_threads(logs))
    live: list[Reader] = []
    tails: list[tuple[dict[str, int], Reader, dict[str, int]]] = []
    while not writers.done():
        if len(tails) < 8:
            before = logs.head
            tail = logs.create_read_stream(tail=True)
            tails.append((before, Reader(tail), logs.head))
            live.append(Reader(logs.create_read_stream(live=True)))
        time.sleep(0.01)  # spreads them over the writing
    writers.result()
    readers = live + [tail for _, tail, _ in tails]
    wait_until(lambda: all(at_ends(reader.seen) for reader in readers))
    logs.close()
    for reader in live:
        assert numbers(reader.join()) == everything_after({})
    for before, tail_reader, after in tails:
        for peer, seqs in numbers(tail_reader.join()).items():
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
    assert seen == everything_after({})


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


def test_reading_a_large_log_never_holds_the_event_loop(logs: Scuttleup) -> None:
    logs.extend(["x" * 100] * 200_000)
    count, longest, turns = run(longest_turn(count_async(logs.create_read_stream())))
    assert count == 200_000
    assert turns > 100
    assert longest < 0.05


def test_reading_what_deleting_has_left_never_holds_the_event_loop(
    logs: Scuttleup, db: Any
) -> None:
    logs.extend(["x" * 100] * 100_000)
    with db.write_batch() as batch:
        for first in range(1, 100_000, 2_000):
            for key in change_keys(log_prefix("us"), first, 1_000):
                batch.delete(key)
    count, longest, turns = run(longest_turn(count_async(logs.create_read_stream())))
    assert count == 50_000
    assert turns > 100
    assert longest < 0.05


def test_reading_many_logs_never_holds_the_event_loop(db: Any) -> None:
    with db.write_batch() as batch:
        for number in range(50_000):
            batch.put(log_prefix(f"peer {number}") + b"01", b"x")
    stream = Scuttleup(db, id="us").create_read_stream()
    count, longest, turns = run(longest_turn(count_async(stream)))
    assert count == 50_000
    assert turns > 100
    assert longest < 0.05


def test_other_tasks_have_their_turn_while_a_task_catches_up(logs: Scuttleup) -> None:
    logs.extend(["x"] * 10_000)
    turns: list[int] = []

    async def main() -> None:
        async def tick() -> None:
            while True:
                turns.append(len(seen))
                await asyncio.sleep(0)

        seen: list[Change] = []
        ticking = asyncio.ensure_future(tick())
        await read_async(logs.create_read_stream(), seen)
        ticking.cancel()

    run(main())
    assert max(after - before for before, after in zip(turns, turns[1:])) <= RUN_ENTRIES  # noqa: B905, RUF007


def test_a_cancelled_reader_can_read_on(logs: Scuttleup) -> None:
    changes = logs.extend(["a", "b"])

    async def main() -> None:
        stream = logs.create_read_stream(live=True)
        assert await take_async(stream, 2) == changes
        for entry in "cde":
            waiting = asyncio.ensure_future(take_async(stream, 1))
            await settle()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            change = logs.append(entry)
            assert await take_async(stream, 1) == [change]

    run(main())


def test_a_reader_that_is_cancelled_again_and_again_misses_nothing(logs: Scuttleup) -> None:
    changes = logs.extend(map(str, range(2000)))

    async def main() -> list[Change]:
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
        return seen

    assert run(main()) == changes


def test_a_change_that_comes_as_its_reader_is_cancelled_is_not_lost(logs: Scuttleup) -> None:
    async def main() -> None:
        stream = logs.create_read_stream(live=True)
        waiting = asyncio.ensure_future(take_async(stream, 1))
        await settle()
        change = logs.append("a")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await take_async(stream, 1) == [change]

    run(main())


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
    assert run(take_async(logs.create_read_stream(live=True), 4))[1:] == changes
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
    assert len(logs._store._followers) == 1
    gone = weakref.ref(stream)
    del stream
    assert gone() is None
    assert not logs._store._followers
    logs.append("x")


def test_a_live_stream_that_a_task_has_read_is_gone_when_it_is_dropped(logs: Scuttleup) -> None:
    async def main() -> None:
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
        assert not logs._store._followers

    run(main())


def test_a_thousand_dropped_streams_leave_nothing_behind(logs: Scuttleup) -> None:
    streams = [logs.create_read_stream(live=True) for _ in range(1000)]
    assert len(logs._store._followers) == 1000
    del streams[::2]
    assert len(logs._store._followers) == 500
    change = logs.append("a")
    assert {next(stream) for stream in streams} == {change}
    del streams
    assert not logs._store._followers


def test_dropping_a_log_and_its_streams_frees_the_store(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    stream = logs.create_read_stream(live=True)
    logs.append(b"a")
    next(stream)
    gone = weakref.ref(logs._store)
    del logs, stream
    assert gone() is None
