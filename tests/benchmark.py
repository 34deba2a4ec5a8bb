"""What this package costs, as a Markdown table: `python tests/benchmark.py [row ...]`.

Ratios say more than seconds: machines differ, and are busy with other things as well. So raw
plyvel, which is the limit, this package and, where `npm ci` in tests/interop installed it, the
original take turns at the same work, each time in a fresh database. A ratio is the median of those
of all turns, a figure the median of ours. Entries are 100 random bytes.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import psutil
from benchmark_peer import huge_handshakes, idle_connections, longest_rounds

import scuttleup
from scuttleup import Change, Scuttleup, ScuttleupError
from scuttleup.database import binding
from scuttleup.keys import change_keys, log_prefix
from scuttleup.messages import encode_handshake

TESTS = Path(__file__).parent
SPAWN = multiprocessing.get_context("spawn")
NOISE = os.urandom(2**20)
ENTRY = NOISE[:100]


class Row(NamedTuple):
    work: str
    figure: str
    goal: str = "–"
    of_raw: str = "–"
    times_original: str = "–"


# ---------------------------------------------------------------------------------- the log


def append() -> Iterator[Row]:
    def ours(folder: Path) -> float:
        with opened(folder) as logs:
            start = perf_counter()
            for _ in range(20_000):
                logs.append(ENTRY)
            return (perf_counter() - start) / 20_000

    def raw(folder: Path) -> float:
        keys = list(change_keys(log_prefix("x" * 32), 1, 20_000))
        with opened_raw(folder) as db:
            put = db.put
            start = perf_counter()
            for key in keys:
                put(key, ENTRY)
            return (perf_counter() - start) / 20_000

    def original(folder: Path) -> float:
        return ask_original("append", folder, 5_000) / 5_000

    seconds, of_raw, times = compare(9, ours, raw, original)
    goal = "≥ 0.55 of raw, ≥ 12 times"
    yield Row("`append`, one at a time", per_second(seconds), goal, show(of_raw), show(times))


def extend() -> Iterator[Row]:
    batches = [make_entries(1_000)] * 50

    def ours(folder: Path) -> float:
        with opened(folder) as logs:
            start = perf_counter()
            for batch in batches:
                changes = logs.extend(batch)
            seconds = perf_counter() - start
        assert changes[-1].seq == 50_000
        return seconds / 50_000

    def raw(folder: Path) -> float:
        all_keys = change_keys(log_prefix("x" * 32), 1, 50_000)
        keys_by_batch = [[next(all_keys) for _ in batch] for batch in batches]
        with opened_raw(folder) as db:
            start = perf_counter()
            for keys, batch in zip(keys_by_batch, batches, strict=True):
                with db.write_batch() as write_batch:
                    for key, entry in zip(keys, batch, strict=True):
                        write_batch.put(key, entry)
            return (perf_counter() - start) / 50_000

    def original(folder: Path) -> float:
        return ask_original("extend", folder, 50_000) / 50_000

    seconds, of_raw, times = compare(9, ours, raw, original)
    goal = "≥ 0.70 of raw, ≥ 4 times"
    yield Row("`extend`, 1,000 at a time", per_second(seconds), goal, show(of_raw), show(times))


def read() -> Iterator[Row]:
    def ours(_: Path) -> float:
        with opened(filled) as logs:
            start = perf_counter()
            for change in logs.create_read_stream():
                pass
            seconds = perf_counter() - start
        assert change.seq == 100_000
        return seconds / 100_000

    def raw(_: Path) -> float:
        with opened_raw(filled) as db:
            start = perf_counter()
            for key, value in db.iterator(prefix=b"c"):
                pass
            return (perf_counter() - start) / 100_000

    def original(_: Path) -> float:
        return ask_original("read", filled) / 100_000

    with new_folder() as filled:
        fill(filled, 100_000)
        seconds, of_raw, times = compare(9, ours, raw, original)
    goal = "≥ 0.50 of raw, ≥ 4 times"
    yield Row("reading a snapshot", per_second(seconds), goal, show(of_raw), show(times))


def open_logs() -> Iterator[Row]:
    def ours(_: Path) -> float:
        with opened_raw(filled) as db:
            start = perf_counter()
            Scuttleup(db)
            return perf_counter() - start

    def scan_keys(_: Path) -> float:
        with opened_raw(filled) as db:
            start = perf_counter()
            for key in db.iterator(include_value=False):
                pass
            return perf_counter() - start

    def original(_: Path) -> float:
        return ask_original("open", filled)

    for count, length, goal in (
        (100_000, 1, "≤ 8 key scans"),
        (100_000, 10, "≤ 8 key scans"),
        (10_000, 1, "≥ 70 times"),
    ):
        with new_folder() as filled:
            fill_logs(filled, "us", count, length)
            node = original if count == 10_000 else None  # with 100,000 it takes a minute
            seconds, of_raw, times = compare(5, ours, scan_keys, node)
        work = f"opening {count:,} logs, {length} in each"
        scans = f"{1 / of_raw:.1f} key scans"
        yield Row(work, f"{seconds:.3f} s", goal, scans, show(times))


def live_entry() -> Iterator[Row]:
    def turn(logs: Scuttleup, stream: Iterator[Change]) -> float:
        start = perf_counter()
        for _ in range(500):
            logs.append(ENTRY)
            next(stream)
        return (perf_counter() - start) / 500

    with new_folder() as folder, new_folder() as other_folder:
        fill_logs(other_folder, "us", 100_000, 1)
        with opened(folder) as one, opened(other_folder) as many:
            streams = [
                (logs, logs.create_read_stream(since=logs.head, live=True)) for logs in (one, many)
            ]
            turns = [[turn(*stream) for stream in streams] for _ in range(21)]
    seconds = median(with_many for _, with_many in turns)
    ratio = median(with_many / with_one for with_one, with_many in turns)
    yield Row(
        "one live entry, append to read, with 100,000 logs",
        f"{seconds * 1e6:.1f} µs, {ratio:.2f} times that with one log",
        "≤ 1.5 times",
    )


def followers() -> Iterator[Row]:
    """What a write costs when others follow: the figure is an append's, the ratio to none."""

    def appends(logs: Scuttleup, count: int) -> float:
        start = perf_counter()
        for _ in range(count):
            logs.append(ENTRY)
        return (perf_counter() - start) / count

    for work, read_first, count in (
        ("`append` with 1,000 followers that never read", False, 20_000),
        ("`append` with 1,000 followers that read all and wait, each time", True, 1),
    ):
        seconds, alone = [], []
        for _ in range(15):
            with new_folder() as folder, opened(folder) as logs:
                alone.append(appends(logs, 20_000))
                streams = [logs.create_read_stream(tail=True) for _ in range(1_000)]
                for stream in streams if read_first else []:
                    assert not stream._read()
                seconds.append(appends(logs, count))
        ratio = median(many / one for many, one in zip(seconds, alone, strict=True))
        figure = f"{median(seconds) * 1e6:.1f} µs, {ratio:.2f} times that with none"
        yield Row(work, figure)


def mixed_sync() -> Iterator[Row]:
    """A synced append after 20 that are not, beside what LevelDB alone needs for the same."""

    def ours(folder: Path) -> float:
        with opened(folder) as logs:
            return turns(logs.append, lambda: logs.append(ENTRY, sync=True))

    def raw(folder: Path) -> float:
        keys = change_keys(log_prefix("x" * 32), 1, 10_000)
        with opened_raw(folder) as db:
            return turns(
                lambda entry: db.put(next(keys), entry),
                lambda: db.put(next(keys), ENTRY, sync=True),
            )

    def turns(append: Callable[[bytes], object], append_synced: Callable[[], object]) -> float:
        start = perf_counter()
        for _ in range(50):
            for _ in range(20):
                append(ENTRY)
            append_synced()
        return (perf_counter() - start) / 50

    seconds, of_raw, _ = compare(9, ours, raw, None)
    yield Row("20 `append` and one with `sync=True`", f"{seconds * 1e3:.2f} ms", "–", show(of_raw))


def signed() -> Iterator[Row]:
    def append(folder: Path) -> float:
        with scuttleup.open(folder, signed=True) as logs:
            start = perf_counter()
            for _ in range(5_000):
                logs.append(ENTRY)
            return (perf_counter() - start) / 5_000

    def replicate(folder: Path) -> float:
        with scuttleup.open(source) as ours, opened(folder) as copy:
            seconds = asyncio.run(replicate_once(ours, copy))
            assert list(copy.head.values()) == [100_000]
        return seconds / 100_000

    def append_original(folder: Path) -> float:
        return ask_original("append", folder, 5_000) / 5_000

    def replicate_original(folder: Path) -> float:
        return ask_original("replicate", few, folder, 20_000) / 20_000

    seconds, _, times = compare(5, append, None, append_original)
    yield Row("signed `append`", per_second(seconds), "≥ 1.5 times", times_original=show(times))
    with new_folder() as source, new_folder() as few:
        with scuttleup.open(source, signed=True) as logs:
            for _ in range(100):
                logs.extend(make_entries(1_000))
        fill(few, 20_000)
        seconds, _, times = compare(5, replicate, None, replicate_original)
    yield Row(
        "replicating 100,000 signed entries, checked on arrival, in one process",
        per_second(seconds),
        "≥ 20 times",
        times_original=show(times),
    )
    yield Row("64 KiB of hostile signed entries", f"{_hostile() * 1e3:.0f} ms", "< 100 ms")


def _hostile() -> float:
    """Seconds for the worst that can come at once: linked entries of which none is signed."""
    with new_folder() as folder, new_folder() as copy_folder:
        with scuttleup.open(folder, signed=True) as logs:
            logs.extend([b""] * 420)
            peer = logs.id
            sealed = [logs._store.get(peer, seq) for seq in range(1, 421)]
        sealed[-1] = sealed[-1][:-1] + bytes([sealed[-1][-1] ^ 1])
        with scuttleup.open(copy_folder) as copy:
            start = perf_counter()
            with suppress(ValueError):
                copy.write((peer, seq, entry) for seq, entry in enumerate(sealed, 1))
            return perf_counter() - start


BARE = {
    "append": """
import BINDING
db = BINDING.DB("logs.db", create_if_missing=True)
db.put(b"key", b"hello world")
""",
    "read": """
import BINDING
db = BINDING.DB("logs.db", create_if_missing=True)
for key, value in db: print(key, value)
""",
}
ON_NODE = {
    "append": """
var logs = require('scuttleup')(require('level')('logs.db'))
logs.append('hello world')
""",
    "read": """
var logs = require('scuttleup')(require('level')('logs.db'))
logs.createReadStream({valueEncoding: 'utf-8'}).on('data', function (data) { console.log(data) })
""",
}


def scripts() -> Iterator[Row]:
    def run(folder: Path, *command: str | Path) -> Callable[[Path], float]:
        def measure(_: Path) -> float:
            start = perf_counter()
            subprocess.run(
                command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
            )
            return perf_counter() - start

        measure(folder)  # the first run makes the database, and Python's compiled modules
        return measure

    environment = {**os.environ, "NODE_PATH": str(TESTS / "interop" / "node_modules")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, it is compiled
    with new_folder() as a, new_folder() as b, new_folder() as c:
        for script in "append", "read":
            (b / "bare.py").write_text(BARE[script].replace("BINDING", binding.__name__))
            (c / "on_node.js").write_text(ON_NODE[script])
            ours = run(a, sys.executable, TESTS.parent / f"{script}.py")
            raw = run(b, sys.executable, "bare.py")
            original = run(c, "node", "on_node.js") if original_process() else None
            seconds, of_raw, times = compare(15, ours, raw, original)
            work = f"`python {script}.py`, the whole process"
            goal = "≤ 2 times the bare script's time, ≥ 3.5 times"
            its_time = f"{1 / of_raw:.2f} times its time"
            yield Row(work, f"{seconds * 1e3:.0f} ms", goal, its_time, show(times))


def read_memory() -> Iterator[Row]:
    with new_folder() as folder:
        fill(folder, 1_000_000)
        added = in_new_process(_read_all, folder)
    yield Row("memory that reading 1,000,000 entries adds", f"{added:.1f} MiB", "< 32 MiB")


def _read_all(folder: Path) -> float:
    with opened(folder) as logs, added_memory() as mib:
        for _ in logs.create_read_stream():
            pass
    return max(mib)


# ------------------------------------------------------------- replication, over TCP


def replicate() -> Iterator[Row]:
    def in_one(folder: Path) -> float:
        with opened(source) as ours, opened(folder) as copy:
            seconds = asyncio.run(replicate_once(ours, copy))
            assert list(copy.head.values()) == [100_000]
        return seconds / 100_000

    def in_two(folder: Path) -> float:
        with served(source) as port, opened(folder) as copy:
            start = perf_counter()
            asyncio.run(fetch(copy, port, live=False))
            seconds = perf_counter() - start
            assert list(copy.head.values()) == [100_000]
        return seconds / 100_000

    def original(folder: Path) -> float:
        return ask_original("replicate", few, folder, 20_000) / 20_000

    def original_in_two(folder: Path) -> float:
        return ask_original("replicateInTwo", few, folder, 20_000) / 20_000

    with new_folder() as source, new_folder() as few:
        fill(source, 100_000)
        fill(few, 20_000)  # for the original, which does not get faster with more
        for ours, theirs, work, goal in (
            (in_one, original, "both peers in one process", "≥ 20 times"),
            (in_two, original_in_two, "each peer in its own", "≥ 30 times"),
        ):
            seconds, _, times = compare(5, ours, None, theirs)
            work = f"replicating 100,000 entries, {work}"
            yield Row(work, per_second(seconds), goal, times_original=show(times))


def replicate_memory() -> Iterator[Row]:
    with new_folder() as folder:
        fill(folder, 400_000)
        added = in_new_process(_replicate_all, folder)
        work = "memory that replicating 400,000 entries adds, both sides together"
        yield Row(work, f"{added:.1f} MiB", "< 32 MiB")
        held, busy = zip(*(in_new_process(_longest_turns, folder) for _ in range(5)), strict=True)
    figure = f"{median(held) * 1e3:.1f} ms, {median(busy) * 1e3:.1f} ms of processor time"
    yield Row("longest hold of the event loop meanwhile", figure, "≤ 20 ms")


def _replicate_all(folder: Path) -> float:
    with new_folder() as empty, opened(folder) as ours, opened(empty) as copy:
        with added_memory() as mib:
            asyncio.run(replicate_once(ours, copy))
        return max(mib)


def _longest_turns(folder: Path) -> tuple[float, float]:
    """The longest turn of the event loop by the clock, and the longest by processor time.

    What the disk and the machine's other processes hold up is in the first alone.
    """
    clock: list[float] = []
    processor: list[float] = []

    async def tick() -> None:
        while True:
            clock.append(perf_counter())
            processor.append(thread_time())
            await asyncio.sleep(0)

    async def run(ours: Scuttleup, copy: Scuttleup) -> None:
        ticking = asyncio.create_task(tick())
        await replicate_once(ours, copy)
        ticking.cancel()

    with new_folder() as empty, opened(folder) as ours, opened(empty) as copy:
        asyncio.run(run(ours, copy))
    return longest_step(clock), longest_step(processor)


def longest_step(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


def live_peers() -> Iterator[Row]:
    async def turns(hub: Scuttleup, others: list[Scuttleup]) -> AsyncIterator[float]:
        async with serving(hub, live=True) as port:
            streams = [logs.create_read_stream(tail=True) for logs in others]
            tasks = [asyncio.create_task(fetch(logs, port, live=True)) for logs in others]
            for _ in range(50):
                start = perf_counter()
                hub.append(ENTRY)
                for stream in streams:
                    await stream.__anext__()
                yield perf_counter() - start
            hub.close()
            await asyncio.gather(*tasks)

    async def run(hub: Scuttleup, *others: Scuttleup) -> float:
        return median([seconds async for seconds in turns(hub, list(others))])

    with new_folder() as folder:
        databases = [open_database(folder / str(number)) for number in range(101)]
        seconds = asyncio.run(run(*map(Scuttleup, databases)))
        for db in databases:
            db.close()
    work = "100 live peers, one appends, until each has read it there"
    yield Row(work, f"{seconds / 100 * 1e6:.0f} µs an entry and peer")


def silent_peers() -> Iterator[Row]:
    added = in_new_process(_append_to_silent_peers)
    work = "memory that 20 peers that never read add to 200,000 appends"
    yield Row(work, f"{added:.1f} MiB", "< 32 MiB")


def _append_to_silent_peers() -> float:
    async def run(logs: Scuttleup) -> float:
        loop = asyncio.get_running_loop()
        async with serving(logs, live=True) as port:
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
            for number, sock in enumerate(silent):
                sock.setblocking(False)
                sock.sendall(encode_handshake(f"silent {number}", {}, "sync"))
                await loop.sock_recv(sock, 1)
            with added_memory() as mib:
                for _ in range(200):
                    logs.extend(entries)
                    for _ in range(50):  # time to send all that it can
                        await asyncio.sleep(0)
            for sock in silent:
                sock.close()
        return max(mib)

    entries = make_entries(1_000)
    with new_folder() as folder, opened(folder) as logs:
        return asyncio.run(run(logs))


def nothing_to_send() -> Iterator[Row]:
    for count, goal in (1_000, "–"), (10_000, "–"), (100_000, "< 1 s"):
        with new_folder() as a, new_folder() as b:
            fill_logs(a, "a", count, 1)
            fill_logs(b, "b", count, 1)
            with opened(a) as ours, opened(b) as theirs:
                seconds = median(asyncio.run(replicate_once(ours, theirs)) for _ in range(5))
        work = f"two peers with the same {count:,} logs, connecting to end"
        yield Row(work, f"{seconds:.3f} s", goal)


def strangers() -> Iterator[Row]:
    for measure in longest_rounds, huge_handshakes, idle_connections:
        for work, figure, goal in measure():
            yield Row(work, figure, goal)


# --------------------------------------------------------------------- what they share


@contextmanager
def new_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def open_database(folder: Path) -> Any:
    return binding.DB(str(folder), create_if_missing=True, paranoid_checks=True)


@contextmanager
def opened_raw(folder: Path) -> Iterator[Any]:
    db = open_database(folder)
    yield db
    db.close()


@contextmanager
def opened(folder: Path) -> Iterator[Scuttleup]:
    with opened_raw(folder) as db:
        logs = Scuttleup(db)
        yield logs
        logs.close()


def make_entries(count: int) -> list[bytes]:
    starts = (number * 101 % (len(NOISE) - 100) for number in range(count))
    return [NOISE[start : start + 100] for start in starts]


def fill(folder: Path, count: int) -> None:
    entries = make_entries(10_000)
    with opened(folder) as logs:
        for _ in range(0, count, len(entries)):
            logs.extend(entries)


def fill_logs(folder: Path, id: str, count: int, length: int) -> None:
    with opened_raw(folder) as db:
        Scuttleup(db, id=id)
        for number in range(count):
            peer = f"{number * 2654435761 % 2**32:032x}"  # as different as random ids
            for key in change_keys(log_prefix(peer), 1, length):
                db.put(key, ENTRY)


Measure = Callable[[Path], float]


def compare(
    turns: int, ours: Measure, raw: Measure | None, original: Measure | None
) -> tuple[float, float, float]:
    """Our seconds; and the raw ones and those of the original divided by ours, NaN without.

    Each gets a fresh folder at each turn and returns the seconds that one entry took it.
    """
    if original_process() is None:
        original = None
    results: list[list[float]] = []
    for _ in range(turns):
        results.append([])
        for measure in ours, raw, original:
            with new_folder() as folder:
                results[-1].append(measure(folder) if measure else math.nan)
    return (
        median(ours for ours, _, _ in results),
        median(raw / ours for ours, raw, _ in results),
        median(original / ours for ours, _, original in results),
    )


def per_second(seconds: float) -> str:
    return f"{1 / seconds:,.0f}/s"


def show(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 3 else f"{ratio:.1f}"


@cache
def original_process() -> subprocess.Popen[bytes] | None:
    interop = TESTS / "interop"
    if not shutil.which("node") or not (interop / "node_modules" / "scuttleup").exists():
        return None
    return subprocess.Popen(
        ["node", str(interop / "benchmark.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask_original(work: str, *arguments: Path | int) -> float:
    """The seconds that it took the original, by its own clock."""
    process = original_process()
    assert process
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps([work, *arguments], default=str).encode() + b"\n")
    process.stdin.flush()
    seconds: float = json.loads(process.stdout.readline())
    return seconds


@asynccontextmanager
async def serving(logs: Scuttleup, *, live: bool) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.Event()
        all_ended.append(ended)
        with suppress(ScuttleupError):
            await logs.replicate(reader, writer, live=live)
        ended.set()

    all_ended: list[asyncio.Event] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for ended in all_ended:
        await ended.wait()


async def fetch(logs: Scuttleup, port: int, *, live: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await logs.replicate(reader, writer, live=live)


async def replicate_once(ours: Scuttleup, theirs: Scuttleup) -> float:
    """Seconds from connecting until both have everything and are done."""
    async with serving(ours, live=False) as port:
        start = perf_counter()
        await fetch(theirs, port, live=False)
        return perf_counter() - start


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port at which another process replicates the logs in `folder`, one-shot."""
    pipe, its_pipe = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(folder, its_pipe))
    process.start()
    yield pipe.recv()
    pipe.send("enough")
    process.join()


def _serve(folder: Path, pipe: Any) -> None:
    async def run(logs: Scuttleup) -> None:
        async with serving(logs, live=False) as port:
            pipe.send(port)
            await asyncio.to_thread(pipe.recv)

    with opened(folder) as logs:
        asyncio.run(run(logs))


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with SPAWN.Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def added_memory() -> Iterator[list[float]]:
    """How many MiB the process grows by, sample after sample, while `with` runs.

    Without the pages of the database's files that LevelDB maps: they are the system's cache.
    """

    def used() -> float:
        memory = process.memory_info()
        return float(memory.rss - getattr(memory, "shared", 0)) / 2**20

    def sample() -> None:
        while not stop.wait(0.002):
            samples.append(used() - before)

    process = psutil.Process()
    samples: list[float] = [0]
    stop = threading.Event()
    before = used()
    thread = threading.Thread(target=sample)
    thread.start()
    yield samples
    stop.set()
    thread.join()


ROWS = {
    row.__name__: row
    for row in (
        append,
        extend,
        read,
        open_logs,
        live_entry,
        followers,
        mixed_sync,
        signed,
        scripts,
        read_memory,
        replicate,
        replicate_memory,
        live_peers,
        silent_peers,
        nothing_to_send,
        strangers,
    )
}


def main() -> None:
    names = sys.argv[1:] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"no row {unknown[0]!r}: there are {', '.join(ROWS)}")
    print("| work | figure | of raw plyvel | times the original | goal |")
    print("|---|---|---|---|---|")
    for name in names:
        for work, figure, goal, of_raw, times_original in ROWS[name]():
            print(f"| {work} | {figure} | {of_raw} | {times_original} | {goal} |", flush=True)
    if process := original_process():
        process.communicate()


if __name__ == "__main__":
    main()
