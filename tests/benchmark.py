"""What this package costs, as a Markdown table: `python tests/benchmark.py [row ...]`.

Ratios say more than seconds: machines differ, and are busy with other things as well. So raw
plyvel, which is the limit, this package and, where `npm ci` in tests/interop installed it, the
original take turns at the same work, each time in a fresh database. A ratio is the median of the
ratios of all turns, and a figure is the median of our own. Entries are 100 random bytes.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep, thread_time
from typing import Any

import psutil
from leveldb import binding, open_leveldb
from wire import frame

import scuttleup
from scuttleup import Change, Peer, Scuttleup, ScuttleupError
from scuttleup.keys import change_keys, log_prefix
from scuttleup.replication.messages import encode_changes, encode_handshake

TESTS = Path(__file__).parent
NODE_MODULES = TESTS / "interop" / "node_modules"
SPAWN = multiprocessing.get_context("spawn")
HOST = "127.0.0.1"
MIB = 2**20
NOISE = os.urandom(MIB)
ENTRY = NOISE[:100]


# ---------------------------------------------------------------------------------- the log


def append() -> None:
    @timed(scuttleup.open, 20_000)
    def ours(logs: Scuttleup) -> None:
        for _ in range(20_000):
            logs.append(ENTRY)

    @timed(open_leveldb, 20_000)
    def raw(db: Any) -> None:
        put = db.put
        for key in keys:
            put(key, ENTRY)

    keys = make_keys(20_000)
    figures = compare(9, ours, raw, original("append", 5_000))
    row("`append`, one at a time", *figures, "≥ 0.55 of raw, ≥ 12 times")


def extend() -> None:
    @timed(scuttleup.open, 50_000)
    def ours(logs: Scuttleup) -> None:
        for batch in batches:
            changes = logs.extend(batch)
        assert changes[-1].seq == 50_000

    @timed(open_leveldb, 50_000)
    def raw(db: Any) -> None:
        for keys, batch in zip(keys_by_batch, batches, strict=True):
            with db.write_batch() as write_batch:
                for key, entry in zip(keys, batch, strict=True):
                    write_batch.put(key, entry)

    batches = [make_entries(1_000)] * 50
    all_keys = iter(make_keys(50_000))
    keys_by_batch = [[next(all_keys) for _ in batch] for batch in batches]
    figures = compare(9, ours, raw, original("extend", 50_000))
    row("`extend`, 1,000 at a time", *figures, "≥ 0.70 of raw, ≥ 4 times")


def read() -> None:
    @timed(scuttleup.open, 100_000)
    def ours(logs: Scuttleup) -> None:
        for change in logs.create_read_stream():
            pass
        assert change.seq == 100_000

    @timed(open_leveldb, 100_000)
    def raw(db: Any) -> None:
        for key, value in db.iterator(prefix=b"c"):
            pass

    with new_folder() as filled:
        fill(filled, 100_000)
        figures = compare(9, ours, raw, original("read", 100_000), folder=filled)
    row("reading a snapshot", *figures, "≥ 0.50 of raw, ≥ 4 times")


def open_logs() -> None:
    ours = timed(open_leveldb)(Scuttleup)

    @timed(open_leveldb)
    def scan(db: Any) -> None:
        for key in db.iterator(include_value=False):
            pass

    for count, length, goal, node in (
        (100_000, 1, "≤ 8 key scans", None),  # it takes the original a minute
        (100_000, 10, "≤ 8 key scans", None),
        (10_000, 1, "≥ 70 times", original("open")),
    ):
        with new_folder() as filled:
            fill_logs(filled, "us", count, length)
            seconds, scans, times = compare(5, ours, scan, node, folder=filled)
        work = f"opening {count:,} logs, {length} in each"
        row(work, f"{seconds:.3f} s", f"{1 / scans:.1f} key scans", times, goal)


def live_entry() -> None:
    def turn(logs: Scuttleup, stream: Iterator[Change]) -> float:
        start = perf_counter()
        for _ in range(500):
            logs.append(ENTRY)
            next(stream)
        return (perf_counter() - start) / 500

    def live(logs: Scuttleup) -> Callable[[], float]:
        return partial(turn, logs, logs.create_read_stream(since=logs.head, live=True))

    with new_folder() as folder, new_folder() as other_folder:
        fill_logs(other_folder, "us", 100_000, 1)
        with scuttleup.open(folder) as one, scuttleup.open(other_folder) as many:
            with_one, with_many = live(one), live(many)
            turns = [(with_one(), with_many()) for _ in range(21)]
    work = "one live entry, append to read, with 100,000 logs"
    row(work, beside(turns, "one log"), goal="≤ 1.5 times")


def followers() -> None:
    """What a write costs when others follow: the figure is an append's, the ratio to none."""

    def appends(logs: Scuttleup, count: int) -> float:
        start = perf_counter()
        for _ in range(count):
            logs.append(ENTRY)
        return (perf_counter() - start) / count

    for do_what, read_first, count in (
        ("never read", False, 20_000),
        ("read all and wait, each time", True, 1),
    ):
        turns = []
        for _ in range(15):
            with new_folder() as folder, scuttleup.open(folder) as logs:
                alone = appends(logs, 20_000)
                streams = [logs.create_read_stream(tail=True) for _ in range(1_000)]
                for stream in streams if read_first else []:
                    assert not stream._read()
                turns.append((alone, appends(logs, count)))
        row(f"`append` with 1,000 followers that {do_what}", beside(turns, "none"))


def mixed_sync() -> None:
    """A synced append after 20 that are not, beside what LevelDB alone needs for the same."""

    def turns(append: Callable[[bytes], object], append_synced: Callable[[], object]) -> None:
        for _ in range(50):
            for _ in range(20):
                append(ENTRY)
            append_synced()

    @timed(scuttleup.open, 50)
    def ours(logs: Scuttleup) -> None:
        turns(logs.append, lambda: logs.append(ENTRY, sync=True))

    @timed(open_leveldb, 50)
    def raw(db: Any) -> None:
        turns(lambda entry: db.put(next(keys), entry), lambda: db.put(next(keys), ENTRY, sync=True))

    keys = iter(make_keys(10_000))
    seconds, of_raw, _ = compare(9, ours, raw, None)
    row("20 `append` and one with `sync=True`", f"{seconds * 1e3:.2f} ms", of_raw)


def signed() -> None:
    @timed(partial(scuttleup.open, signed=True), 5_000)
    def append(logs: Scuttleup) -> None:
        for _ in range(5_000):
            logs.append(ENTRY)

    figures = compare(5, append, None, original("append", 5_000))
    row("signed `append`", *figures, "≥ 1.5 times")
    with new_folder() as source, new_folder() as few:
        fill(source, 100_000, signed=True)
        fill(few, 20_000)
        ours = partial(replicate_in_one, source)
        figures = compare(5, ours, None, original("replicate", 20_000, few))
    work = "replicating 100,000 signed entries, checked on arrival, in one process"
    row(work, *figures, "≥ 20 times")


def hostile_entries() -> None:
    """The worst that can come at once: linked entries of which none is signed."""
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
            seconds = perf_counter() - start
    row("64 KiB of hostile signed entries", milliseconds(seconds), goal="< 100 ms")


# What append.py and read.py do, for raw plyvel and for the original on Node.
RAW = {"append": 'db.put(b"key", b"hello world")', "read": "for pair in db: print(*pair)"}
ON_NODE = {
    "append": "logs.append('hello world')",
    "read": "logs.createReadStream({valueEncoding: 'utf-8'}).on('data', console.log)",
}


def scripts() -> None:
    def run(*command: str | Path) -> Measure:
        def measure(folder: Path) -> float:
            start = perf_counter()
            subprocess.check_call(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            return perf_counter() - start

        measure(folder)  # the first run makes the database, and Python's compiled modules
        return measure

    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, it is compiled
    open_raw = f"import {binding.__name__} as b; db = b.DB('raw.db', create_if_missing=True)\n"
    open_on_node = "var logs = require('scuttleup')(require('level')('node.db'))\n"
    with new_folder() as folder:
        for script in "append", "read":
            (folder / "raw.py").write_text(open_raw + RAW[script])
            (folder / "on_node.js").write_text(open_on_node + ON_NODE[script])
            ours = run(sys.executable, TESTS.parent / f"{script}.py")
            node = run("node", "on_node.js") if original_process() else None
            raw = run(sys.executable, "raw.py")
            seconds, ratio, times = compare(15, ours, raw, node, folder=folder)
            work = f"`python {script}.py`, the whole process"
            goal = "≤ 2 times the bare script's time, ≥ 3.5 times"
            row(work, milliseconds(seconds), f"{1 / ratio:.2f} times its time", times, goal)


# ------------------------------------------------------------- replication, over TCP


def replicate() -> None:
    with new_folder() as source, new_folder() as few:
        fill(source, 100_000)
        fill(few, 20_000)  # for the original, which does not get faster with more
        for ours, its_work, where, goal in (
            (replicate_in_one, "replicate", "both peers in one process", "≥ 20 times"),
            (replicate_in_two, "replicateInTwo", "each peer in its own", "≥ 30 times"),
        ):
            figures = compare(5, partial(ours, source), None, original(its_work, 20_000, few))
            row(f"replicating 100,000 entries, {where}", *figures, goal)


def replicate_in_one(source: Path, folder: Path) -> float:
    with scuttleup.open(source) as ours, scuttleup.open(folder) as copy:
        seconds = asyncio.run(replicate_once(ours, copy))
        assert list(copy.head.values()) == [100_000]
    return seconds / 100_000


def replicate_in_two(source: Path, folder: Path) -> float:
    with running_peer(source, "--once") as (_, port), scuttleup.open(folder) as copy:
        start = perf_counter()
        asyncio.run(fetch(copy, port, live=False))
        seconds = perf_counter() - start
        assert list(copy.head.values()) == [100_000]
    return seconds / 100_000


def replicate_memory() -> None:
    with new_folder() as folder:
        fill(folder, 400_000)
        work = "memory that replicating 400,000 entries adds, both sides together"
        row(work, f"{in_new_process(_replicate_all, folder):.1f} MiB", goal="< 32 MiB")
        held, busy = zip(*(in_new_process(_longest_turns, folder) for _ in range(5)), strict=True)
    figure = f"{median(held) * 1e3:.1f} ms, {median(busy) * 1e3:.1f} ms of processor time"
    row("longest hold of the event loop meanwhile", figure, goal="≤ 20 ms")


def _replicate_all(folder: Path) -> float:
    with new_folder() as empty, scuttleup.open(folder) as ours, scuttleup.open(empty) as copy:
        return added_memory(lambda: asyncio.run(replicate_once(ours, copy)))


def _longest_turns(folder: Path) -> tuple[float, float]:
    with new_folder() as empty, scuttleup.open(folder) as ours, scuttleup.open(empty) as copy:
        return asyncio.run(longest_turns(replicate_once(ours, copy)))


def live_peers() -> None:
    async def run(hub: Scuttleup, *others: Scuttleup) -> float:
        seconds = []
        async with serving(hub, live=True) as port:
            streams = [logs.create_read_stream(tail=True) for logs in others]
            tasks = [asyncio.create_task(fetch(logs, port, live=True)) for logs in others]
            for _ in range(50):
                start = perf_counter()
                hub.append(ENTRY)
                for stream in streams:
                    await anext(stream)
                seconds.append(perf_counter() - start)
            hub.close()
            await asyncio.gather(*tasks)
        return median(seconds)

    with new_folder() as folder, ExitStack() as opened:
        all_logs = [opened.enter_context(scuttleup.open(folder / str(n))) for n in range(101)]
        seconds = asyncio.run(run(*all_logs))
    work = "100 live peers, one appends, until each has read it there"
    row(work, f"{seconds / 100 * 1e6:.0f} µs an entry and peer")


def nothing_to_send() -> None:
    with new_folder() as a, new_folder() as b:
        fill_logs(a, "a", 100_000, 1)
        fill_logs(b, "b", 100_000, 1)
        with scuttleup.open(a) as ours, scuttleup.open(b) as theirs:
            seconds = median(asyncio.run(replicate_once(ours, theirs)) for _ in range(5))
    work = "two peers with the same 100,000 logs, connecting to end"
    row(work, f"{seconds:.3f} s", goal="< 1 s")


# ----------------------------------------------------- what strangers can cost a peer


def longest_rounds() -> None:
    """The longest round of the event loop, in processor time, for what a stranger may send."""

    async def longest_round(data: bytes, followers: int) -> float:
        with new_folder() as folder, scuttleup.open(folder, id="us") as logs:
            async with Peer(logs, listen=(HOST, 0)) as peer:
                port = peer.addresses[0][1]
                sent = asyncio.to_thread(in_new_process, _send_and_follow, port, data, followers)
                return (await longest_turns(sent))[1]

    def tiny_logs(seq: int) -> bytes:
        return b"".join(encode_changes(f"{n:06x}", seq, [b"x"]) for n in range(100_000))

    hello = encode_handshake("remote", {}, "sync")
    turns = (encode_changes(peer, seq, [b"x"]) for seq in range(1, 50_001) for peer in "ab")
    digests = {f"{n:032x}": 5 for n in range(300_000)}
    for name, data in {
        "100,000 logs of one entry": hello + tiny_logs(1),
        "100,000 logs whose only entry is number 1000": hello + tiny_logs(1000),
        "two logs by turns, 100,000 entries": hello + b"".join(turns),
        "a handshake of 300,000 digests": encode_handshake("remote", digests, "sync"),
    }.items():
        alone, followed = (asyncio.run(longest_round(data, count)) for count in (0, 50))
        figure = f"{milliseconds(alone)}, with 50 followers {milliseconds(followed)}"
        row(f"longest round: {name}", figure, goal="< 100 ms")


def _send_and_follow(port: int, data: bytes, followers: int) -> None:
    """Send `data`, and read what `followers` others get of it, until there is no more."""
    with selectors.DefaultSelector() as selector:
        for follower in range(followers):
            sock = socket.create_connection((HOST, port))
            sock.sendall(encode_handshake(f"follower {follower}", {}, "sync"))
            selector.register(sock, selectors.EVENT_READ)
        sender = threading.Thread(target=send, args=(port, data))
        sender.start()
        while sender.is_alive() or selector.select(0.5):
            for key, _ in selector.select(0.1):
                key.fileobj.recv(MIB)  # type: ignore[union-attr]


def huge_handshakes() -> None:
    """Memory and time that six handshakes of 16 MiB cost, one after another."""
    # 1.86 million digests of three letters; there are no more than 830,584 such ids.
    ids = (bytes((33 + n % 94, 33 + n // 94 % 94, 33 + n // 8836 % 94)) for n in range(1_860_000))
    digests = b"".join(b"\x12\x07\x0a\x03%b\x10\x05" % id for id in ids)
    handshake = frame(b"\x0a\x06remote" + digests)
    with new_folder() as folder, running_peer(folder) as (process, port):
        before = process.memory_info().rss
        most = waits = 0.0
        for _ in range(6):
            sender = threading.Thread(target=send, args=(port, handshake))
            sender.start()
            while sender.is_alive():
                start = perf_counter()
                with socket.create_connection((HOST, port)) as probe:
                    probe.recv(1)
                waits = max(waits, perf_counter() - start)
                most = max(most, process.memory_info().rss - before)
                sleep(0.01)
        left = process.memory_info().rss - before
    work = "memory after six handshakes of 16 MiB, one after another"
    row(work, f"{left / MIB:.0f} MiB", goal="< 100 MiB")
    row("memory meanwhile, at the most", f"{most / MIB:.0f} MiB", goal="< 400 MiB")
    row("longest wait of another connection meanwhile", f"{waits:.2f} s", goal="< 1 s")


def idle_connections() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with new_folder() as folder, running_peer(folder) as (process, port), ExitStack() as opened:
        before = process.memory_info().rss
        for n in range(1_000):
            remote = opened.enter_context(socket.create_connection((HOST, port)))
            remote.sendall(encode_handshake(f"remote {n}", {}, "sync"))
            assert remote.recv(1024)  # the peer has accepted it and said its own handshake
        kib = (process.memory_info().rss - before) / 1_000 / 1024
        used = sum(process.cpu_times()[:2])
        sleep(5)
        used = (sum(process.cpu_times()[:2]) - used) / 5
    row("1,000 idle connections", f"{kib:.0f} KiB each, {used:.1%} of a processor")


# --------------------------------------------------------------------- what they share

Cell = float | str


def row(work: str, figure: Cell, of_raw: Cell = "–", times: Cell = "–", goal: str = "–") -> None:
    """Print what one work costs. A figure that is a number is the seconds of an entry."""
    if isinstance(figure, float):
        figure = f"{1 / figure:,.0f}/s"
    print(f"| {work} | {figure} | {show(of_raw)} | {show(times)} | {goal} |", flush=True)


def show(ratio: Cell) -> str:
    if isinstance(ratio, str):
        return ratio
    return "–" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 3 else f"{ratio:.1f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


Work = Callable[[Any], object]
Measure = Callable[[Path], float]  # works in a folder, and returns the seconds that an entry took


def timed(open_it: Callable[[Path], Any], count: int = 1) -> Callable[[Work], Measure]:
    """Makes a `Measure` of what works on `count` entries of what `open_it` opens."""

    def measure(work: Work, folder: Path) -> float:
        with open_it(folder) as opened:
            start = perf_counter()
            work(opened)
            return (perf_counter() - start) / count

    return lambda work: partial(measure, work)


def original(work: str, count: int = 1, *source: Path) -> Measure | None:
    """The original, if it is there, at `work` in benchmark.js; it takes its own time."""

    def measure(folder: Path) -> float:
        request = json.dumps([work, folder, count, *source], default=str)
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        return float(process.stdout.readline()) / count

    process = original_process()
    return measure if process else None


@cache
def original_process() -> Any:
    if not shutil.which("node") or not (NODE_MODULES / "scuttleup").exists():
        return None
    command = ["node", str(TESTS / "interop" / "benchmark.js")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def beside(turns: list[tuple[float, float]], few: str) -> str:
    """The seconds with many, which are the second ones of each turn, beside those with `few`."""
    seconds = median(many for _, many in turns)
    ratio = median(many / one for one, many in turns)
    return f"{seconds * 1e6:.1f} µs, {ratio:.2f} times that with {few}"


def compare(
    turns: int, *measures: Measure | None, folder: Path | None = None
) -> tuple[float, float, float]:
    """Our seconds; then those of raw LevelDB and of the original, each divided by ours.

    Each of these three `measures` works in `folder`, or else in a fresh one; NaN where one is None.
    """
    results: list[list[float]] = [[] for _ in range(turns)]
    for seconds in results:
        for measure in measures:
            with nullcontext(folder) if folder else new_folder() as where:
                seconds.append(measure(where) if measure else math.nan)
    return (
        median(ours for ours, _, _ in results),
        median(raw / ours for ours, raw, _ in results),
        median(original / ours for ours, _, original in results),
    )


@contextmanager
def new_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def make_keys(count: int) -> list[bytes]:
    return list(change_keys(log_prefix("x" * 32), 1, count))


def make_entries(count: int) -> list[bytes]:
    starts = (number * 101 % (len(NOISE) - 100) for number in range(count))
    return [NOISE[start : start + 100] for start in starts]


def fill(folder: Path, count: int, *, signed: bool = False) -> None:
    entries = make_entries(10_000)
    with scuttleup.open(folder, signed=signed) as logs:
        for _ in range(0, count, len(entries)):
            logs.extend(entries)


def fill_logs(folder: Path, id: str, count: int, length: int) -> None:
    with open_leveldb(folder) as db:
        Scuttleup(db, id=id)
        for number in range(count):
            peer = f"{number * 2654435761 % 2**32:032x}"  # as different as random ids
            for key in change_keys(log_prefix(peer), 1, length):
                db.put(key, ENTRY)


@asynccontextmanager
async def serving(logs: Scuttleup, *, live: bool) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(ScuttleupError):
            await logs.replicate(reader, writer, live=live)

    tasks: list[Any] = []
    server = await asyncio.start_server(serve, HOST, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*tasks)


async def fetch(logs: Scuttleup, port: int, *, live: bool) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    await logs.replicate(reader, writer, live=live)


async def replicate_once(ours: Scuttleup, theirs: Scuttleup) -> float:
    """Seconds from connecting until both have everything and are done."""
    async with serving(ours, live=False) as port:
        start = perf_counter()
        await fetch(theirs, port, live=False)
        return perf_counter() - start


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with SPAWN.Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def running_peer(folder: Path, *options: str) -> Iterator[tuple[psutil.Popen, int]]:
    """`scuttleup replicate` in a process of its own, and its port."""
    command = [sys.executable, "-m", "scuttleup", "replicate", "--db", ".", "--listen", "0"]
    pipes: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with psutil.Popen([*command, *options], cwd=folder, **pipes) as peer:
        port = int(peer.stderr.readline().rpartition(b":")[2])
        threading.Thread(target=peer.stderr.read, daemon=True).start()
        yield peer, port
        peer.terminate()


def send(port: int, data: bytes) -> None:
    """Send it, and wait until the peer has had it."""
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MIB):
            pass


async def longest_turns(work: Awaitable[object]) -> tuple[float, float]:
    """The longest turn of the event loop by the clock, and the longest by processor time.

    What the disk and the machine's other processes hold up is in the first alone.
    """
    clock, processor = [], []
    task = asyncio.ensure_future(work)
    while not task.done():
        clock.append(perf_counter())
        processor.append(thread_time())
        await asyncio.sleep(0)
    return max(b - a for a, b in pairwise(clock)), max(b - a for a, b in pairwise(processor))


def added_memory(work: Callable[[], object]) -> float:
    """How many MiB the process grows by at the most during `work`.

    Without the pages of the database's files that LevelDB maps: they are the system's cache.
    """

    def used() -> float:
        memory = process.memory_info()
        return float(memory.rss - getattr(memory, "shared", 0)) / MIB

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(used())

    process = psutil.Process()
    samples = [used()]
    done = threading.Event()
    thread = threading.Thread(target=sample)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(samples) - samples[0]


ROWS = [append, extend, read, open_logs, live_entry, followers, mixed_sync, signed]
ROWS += [hostile_entries, scripts, replicate, replicate_memory, live_peers]
ROWS += [nothing_to_send, longest_rounds, huge_handshakes, idle_connections]


def main() -> None:
    rows = {measure.__name__: measure for measure in ROWS}
    names = sys.argv[1:] or list(rows)
    if unknown := [name for name in names if name not in rows]:
        sys.exit(f"no row {unknown[0]!r}: there are {', '.join(rows)}")
    print("| work | figure | of raw plyvel | times the original | goal |")
    print("|---|---|---|---|---|")
    for name in names:
        rows[name]()
    if process := original_process():
        process.communicate()


if __name__ == "__main__":
    main()
