"""What this package costs, as a Markdown table: `python tests/benchmark.py [row ...]`.

Ratios say more than seconds: machines differ, and are busy with other things as well. So raw
plyvel, which is the limit, this package and, where `npm ci` in tests/interop installed it, the
original take turns at the same work, each time in a fresh database, and what counts is the time of
the processor. A ratio is the median of the ratios of all turns, and a figure is the median of our
own. Entries are 100 random bytes. Where two processes replicate, it is the receiver that is timed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from itertools import pairwise
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory as new_folder
from time import perf_counter, process_time, thread_time
from typing import Any

import psutil
from leveldb import binding, open_leveldb
from wire import encode_handshake

import scuttleup
from scuttleup import Peer, Scuttleup
from scuttleup.keys import change_keys, log_prefix
from scuttleup.replication.messages import encode_changes
from scuttleup.signed.signing import FIRST_LINK, Signer

TESTS = Path(__file__).parent
NODE_MODULES = TESTS / "interop" / "node_modules"
SPAWN = multiprocessing.get_context("spawn")
HOST = "127.0.0.1"
NOISE = os.urandom(2**20)
ENTRY = NOISE[:100]
Work = Callable[[Any], object]
Measure = Callable[[Any], float]  # works in a folder, and returns the seconds that an entry took
Cell = float | str


def append() -> None:
    def ours(logs: Scuttleup) -> None:
        for _ in range(20_000):
            logs.append(ENTRY)

    def raw(db: Any) -> None:
        put = db.put
        for key in keys:
            put(key, ENTRY)

    keys = list(change_keys(log_prefix("x" * 32), 1, 20_000))
    figures = compare(9, *both(ours, raw, 20_000), original("append", 5_000))
    row("`append`, one at a time", *figures, "≥ 0.55 of raw, ≥ 12 times")
    signed = timed(ours, partial(scuttleup.open, signed=True), 20_000)
    row("signed `append`", *compare(5, signed, None, original("append", 5_000)), "≥ 1.5 times")


def extend() -> None:
    def ours(logs: Scuttleup) -> None:
        for _ in range(50):
            logs.extend(batch)

    def raw(db: Any) -> None:
        for first in range(0, 50_000, 1_000):
            with db.write_batch() as write_batch:
                for key, entry in zip(keys[first : first + 1_000], batch, strict=True):
                    write_batch.put(key, entry)

    keys, batch = list(change_keys(log_prefix("x" * 32), 1, 50_000)), make_entries(1_000)
    figures = compare(9, *both(ours, raw, 50_000), original("extend", 50_000))
    row("`extend`, 1,000 at a time", *figures, "≥ 0.70 of raw, ≥ 4 times")


def read() -> None:
    def ours(logs: Scuttleup) -> None:
        for change in logs.create_read_stream():
            pass
        assert change.seq == 100_000

    def raw(db: Any) -> None:
        for key, value in db.iterator(prefix=b"c"):
            pass

    with new_folder() as filled:
        fill(filled, 100_000)
        measures = *both(ours, raw, 100_000), original("read", 100_000)
        figures = compare(9, *measures, folder=filled)
    row("reading a snapshot", *figures, "≥ 0.50 of raw, ≥ 4 times")


def open_logs() -> None:
    def scan(db: Any) -> None:
        for key in db.iterator(include_value=False):
            pass

    measures = timed(Scuttleup, open_leveldb), timed(scan, open_leveldb)
    for count, length, goal, node in (
        (100_000, 1, "≤ 8 key scans", None),  # it takes the original a minute
        (100_000, 10, "≤ 8 key scans", None),
        (10_000, 1, "≥ 70 times", original("open")),
    ):
        with new_folder() as filled:
            fill_logs(filled, count, length)
            seconds, scans, times = compare(5, *measures, node, folder=filled)
        work = f"opening {count:,} logs, {length} in each"
        row(work, f"{seconds:.3f} s", f"{1 / scans:.1f} key scans", times, goal)


def followers() -> None:
    """A live entry, from its append to its reading, with 100,000 logs beside one with one log."""

    def work(logs: Scuttleup) -> None:
        stream = logs.create_read_stream(since=logs.head, live=True)
        for _ in range(50_000):
            logs.append(ENTRY)
            next(stream)

    live = timed(work, scuttleup.open)
    with new_folder() as one, new_folder() as many:
        fill_logs(many, 100_000, 1)
        ratio = median(1 / live(one) * live(many) for _ in range(9))
    row("one live entry with 100,000 logs", f"{ratio:.2f} times that of one", goal="≤ 1.5 times")


# What append.py and read.py do, for raw plyvel and for the original on Node.
PROGRAMS = {
    "append": ('db.put(b"key", b"hello world")', "logs.append('hello world')"),
    "read": (
        "for pair in db: print(*pair)",
        "logs.createReadStream({valueEncoding: 'utf-8'}).on('data', console.log)",
    ),
}


def scripts() -> None:
    def run(*command: str | Path) -> Measure:
        def measure(folder: Any) -> float:
            before = os.times()
            subprocess.check_call(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            return sum(os.times()[2:4]) - sum(before[2:4])

        measure(folder)  # the first run makes the database, and Python's compiled modules
        return measure

    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, it is compiled
    open_raw = f"import {binding.__name__} as b; db = b.DB('raw.db', create_if_missing=True)\n"
    open_on_node = "var logs = require('scuttleup')(require('level')('node.db'))\n"
    with new_folder() as name:
        folder = Path(name)
        for script, (on_raw, on_node) in PROGRAMS.items():
            (folder / "raw.py").write_text(open_raw + on_raw)
            (folder / "on_node.js").write_text(open_on_node + on_node)
            ours = run(sys.executable, TESTS.parent / f"{script}.py")
            node = run("node", "on_node.js") if original_process() else None
            raw = run(sys.executable, "raw.py")
            seconds, ratio, times = compare(15, ours, raw, node, folder=folder)
            work = f"`python {script}.py`, the whole process"
            row(work, milliseconds(seconds), f"{1 / ratio:.2f} times its time", times)


def replicate() -> None:
    """Over TCP. The original does not get faster with more than 20,000 entries."""
    with new_folder() as source, new_folder() as signed, new_folder() as few:
        fill(source, 100_000)
        fill(signed, 100_000, signed=True)
        fill(few, 20_000)
        for ours, its_work, what, goal in (
            (partial(replicate_in_one, source), "replicate", "both peers in one process", "≥ 20"),
            (partial(replicate_in_two, source), "replicateInTwo", "each peer in its own", "≥ 30"),
            (partial(replicate_in_one, signed), "replicate", "signed, in one process", "≥ 20"),
        ):
            figures = compare(5, ours, None, original(its_work, 20_000, few))
            row(f"replicating 100,000 entries, {what}", *figures, f"{goal} times")


def replicate_in_one(source: Any, folder: Any) -> float:
    async def serve_and_fetch() -> float:
        async with Peer(logs, listen=(HOST, 0), live=False) as server:
            return await fetch(folder, server.addresses[0])

    with scuttleup.open(source) as logs:
        return asyncio.run(serve_and_fetch())


def replicate_in_two(source: Any, folder: Any) -> float:
    with running_peer(source, "--once") as (_, port):
        return asyncio.run(fetch(folder, (HOST, port)))


async def fetch(folder: Any, address: tuple[str, int]) -> float:
    """Seconds of an entry from connecting until both have everything and are done."""
    with scuttleup.open(folder) as copy:
        start = process_time()
        async with Peer(copy, connect=[address], live=False) as peer:
            assert (await peer.wait()).received == 100_000
        return (process_time() - start) / 100_000


def sharing() -> None:
    """What each side takes, and how late the owner's event loop is, by the clock, beside a user."""

    def lateness(work: Any, *arguments: Any) -> list[float]:
        return sorted(asyncio.run(turns(asyncio.to_thread(work, *arguments), perf_counter, 0.001)))

    many, large = make_entries(1_000), make_entries(500_000)
    with new_folder() as folder, SPAWN.Pool(1) as pool, scuttleup.open(folder, share=True) as logs:
        use = partial(pool.apply, use_shared)
        for work, batch, times in ("`append`", [], 5_000), ("`extend`, 1,000 at a time,", many, 50):
            sides = []
            for _ in range(5):
                start = process_time()
                sides.append((use((folder, batch, times)), process_time() - start))
            for side, seconds in zip(("user", "owner"), zip(*sides, strict=True), strict=True):
                per_entry = median(seconds) / times / (len(batch) or 1)
                row(f"{work} in a shared database: the {side}", per_entry)
        late = lateness(use, (folder, [], 20_000))
        figure = milliseconds(late[len(late) * 99 // 100])
        row("the owner's loop beside a user who appends, p99", figure, goal="< 6 ms")
        calls = [(logs.extend, large), (use, (folder, large, 1))]
        longest = [[lateness(*call)[-1] for call in calls] for _ in range(5)]
        local, shared = (milliseconds(median(times)) for times in zip(*longest, strict=True))
        work = "the owner's loop, longest, while a user extends by 50 MB"
        row(work, shared, goal=f"as a local `extend`: {local}")


def use_shared(folder: Any, batch: list[bytes], times: int) -> float:
    """Append to a database that is shared, entries or a `batch`; seconds that it took."""
    with scuttleup.open(folder) as logs:
        start = process_time()
        work: Any = partial(logs.extend, batch) if batch else partial(logs.append, ENTRY)
        for _ in range(times):
            work()
        return process_time() - start


async def turns(work: Awaitable[object], clock: Callable[[], float], pause: float) -> list[float]:
    """How long each turn of the event loop took during `work`, beyond the `pause` of each."""
    task, times = asyncio.ensure_future(work), [clock()]
    while not task.done():
        await asyncio.sleep(pause)
        times.append(clock())
    return [after - before - pause for before, after in pairwise(times)]


def longest_rounds() -> None:
    """The longest round of the event loop, in processor time, for what a stranger may send."""

    async def longest_round(data: bytes) -> float:
        with new_folder() as folder, scuttleup.open(folder, id="us") as logs:
            async with Peer(logs, listen=(HOST, 0)) as peer:
                sent = asyncio.to_thread(pool.apply, send, (peer.addresses[0], data))
                return max(await turns(sent, thread_time, 0))

    def tiny_logs(seq: int) -> bytes:
        return b"".join(encode_changes(f"{n:06x}", seq, [b"x"]) for n in range(100_000))

    def signed_log(n: int) -> bytes:
        author = Signer(n.to_bytes(32, "big"))
        return encode_changes(author.id, 1, author.seal(1, [b"x"], FIRST_LINK)[0])

    hello = encode_handshake("remote", {}, "sync")
    by_turns = (encode_changes(peer, seq, [b"x"]) for seq in range(1, 50_001) for peer in "ab")
    digests = {f"{n:032x}": 5 for n in range(300_000)}
    cases = {
        "100,000 logs of one entry": hello + tiny_logs(1),
        "100,000 logs whose only entry is number 1000": hello + tiny_logs(1000),
        "20,000 signed logs of one entry": hello + b"".join(map(signed_log, range(20_000))),
        "two logs by turns, 100,000 entries": hello + b"".join(by_turns),
        "a handshake of 300,000 digests": encode_handshake("remote", digests, "sync"),
    }
    with SPAWN.Pool(1) as pool:  # the loop's thread has the processor to itself
        for name, data in cases.items():
            figure = milliseconds(asyncio.run(longest_round(data)))
            row(f"longest round: {name}", figure, goal="< 100 ms")


def idle_connections() -> None:
    """What 1,000 of them take: `Peer` lets one host have 250, so four addresses come."""
    with new_folder() as folder, running_peer(folder) as (peer, port), ExitStack() as opened:
        before = peer.memory_info().rss
        for n in range(1_000):
            source = (f"127.0.0.{n % 4 + 1}", 0)
            remote = opened.enter_context(socket.create_connection((HOST, port), 9, source))
            remote.sendall(encode_handshake(f"remote {n}", {}, "sync"))
            assert remote.recv(1024), "not accepted"
        kb = (peer.memory_info().rss - before) / 1_000 / 1_000
    row("memory of an idle connection, of 1,000", f"{kb:.0f} KB", goal="≤ 25 KB")


def remotes() -> None:
    """The longest stop of the loop while 100 remotes bring 10,000 entries each, by the clock.

    LevelDB makes who writes wait for its own thread, which takes no time of the processor.
    """
    entries, turn, longest = make_entries(10_000), 64 * 1024, 0.0
    with new_folder() as folder, scuttleup.open(folder) as logs:
        brought = []
        for peer in map("{:032x}".format, range(100)):
            data = encode_handshake(peer, {peer: 10_000}, "sync") + encode_changes(peer, 1, entries)
            brought.append((logs.create_replication_stream(), data))
        for at in range(0, len(data), turn):
            for stream, data in brought:
                start = perf_counter()
                stream.receive_data(data[at : at + turn])
                longest = max(longest, perf_counter() - start)
    row("longest `receive_data`: 100 remotes", milliseconds(longest), goal="< 100 ms")


def row(work: str, figure: Cell, of_raw: Cell = "–", times: Cell = "–", goal: str = "–") -> None:
    """Print what one work costs. A figure that is a number is the seconds of an entry."""
    cells = [f"{1 / figure:,.0f}/s" if isinstance(figure, float) else figure]
    for ratio in of_raw, times:
        cells.append(ratio if isinstance(ratio, str) else f"{ratio:.{1 + (ratio < 3)}f}")
    print("|", " | ".join([work, *cells, goal]), "|", flush=True)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def timed(work: Work, open_it: Callable[[Path], Any], count: int = 1) -> Measure:
    """A measure of what works on `count` entries of what `open_it` opens."""

    def measure(folder: Any) -> float:
        with open_it(folder) as opened:
            start = process_time()
            work(opened)
            return (process_time() - start) / count

    return measure


def both(ours: Work, raw: Work, count: int) -> tuple[Measure, Measure]:
    return timed(ours, scuttleup.open, count), timed(raw, open_leveldb, count)


def original(work: str, count: int = 1, *source: Any) -> Measure | None:
    """The original, if it is there, at `work` in benchmark.js; it takes its own time."""

    def measure(folder: Any) -> float:
        request = json.dumps([work, folder, count, *source], default=str)
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        return float(process.stdout.readline()) / count

    process = original_process()
    return measure if process else None


def compare(turns: int, *measures: Measure | None, folder: Any = None) -> tuple[float, Any, Any]:
    """Our seconds; then those of raw LevelDB and of the original, each divided by ours.

    Each of these `measures` works in `folder`, or else in a fresh one; "–" where one is None.
    """
    ours, *others = results = [list[float]() for _ in measures]
    for _ in range(turns):
        for seconds, measure in zip(results, measures, strict=True):
            with nullcontext(folder) if folder else new_folder() as where:
                seconds += [measure(where)] if measure else []
    raw, original = (median(map(truediv, each, ours)) if each else "–" for each in others)
    return median(ours), raw, original


@cache
def original_process() -> Any:
    if not shutil.which("node") or not (NODE_MODULES / "scuttleup").exists():
        return None
    command = ["node", str(TESTS / "interop" / "benchmark.js")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def make_entries(count: int) -> list[bytes]:
    starts = (number * 101 % (len(NOISE) - 100) for number in range(count))
    return [NOISE[start : start + 100] for start in starts]


def fill(folder: Any, count: int, *, signed: bool = False) -> None:
    entries = make_entries(10_000)
    with scuttleup.open(folder, signed=signed) as logs:
        for _ in range(0, count, len(entries)):
            logs.extend(entries)


def fill_logs(folder: Any, count: int, length: int) -> None:
    with open_leveldb(folder) as db:
        Scuttleup(db)
        for number in range(count):
            peer = f"{number * 2654435761 % 2**32:032x}"  # as different as random ids
            for key in change_keys(log_prefix(peer), 1, length):
                db.put(key, ENTRY)


@contextmanager
def running_peer(folder: Any, *options: str) -> Iterator[tuple[psutil.Popen, int]]:
    """`scuttleup replicate` in a process of its own, and its port."""
    command = [sys.executable, "-m", "scuttleup", "replicate", "--db", ".", "--listen", "0"]
    pipes: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with psutil.Popen([*command, *options], cwd=folder, **pipes) as peer:
        port = int(peer.stderr.readline().rpartition(b":")[2])
        threading.Thread(target=peer.stderr.read, daemon=True).start()
        try:
            yield peer, port
        finally:
            peer.terminate()


def send(address: tuple[str, int], data: bytes) -> None:
    """Send it, and wait until the peer has had it."""
    with socket.create_connection(address) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(2**20):
            pass


ROWS = [append, extend, read, open_logs, followers, scripts]
ROWS += [replicate, sharing, longest_rounds, idle_connections, remotes]


def main() -> None:
    rows = {measure.__name__: measure for measure in ROWS}
    print("| work | figure | of raw plyvel | times the original | goal |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or rows:
        rows[name]()


if __name__ == "__main__":
    main()
