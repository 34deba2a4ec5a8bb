"""The commands and the two programs as every system has them, Windows included.

`test_command_line.py` says more of the commands, with the terminals and signals of POSIX.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from readme import ROOT
from waiting import LIMIT

import scuttleup

Run = Callable[..., str]
Start = Callable[..., Any]  # a Popen whose files are pipes of text


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `scuttleup` with some arguments in a folder of the test's own."""
    with ExitStack() as stack:

        def start(*args: str, program: tuple[str, ...] = ("-m", "scuttleup")) -> Any:
            process = subprocess.Popen(
                [sys.executable, *program, *args],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                bufsize=1,  # a line that is typed is not held back
            )
            stack.enter_context(process)  # closes its files and waits for it
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a command that ends well and says nothing on stderr; returns what it printed."""

    def run(*args: str, typed: str = "") -> Any:
        process = start(*args)
        printed, said = process.communicate(typed, timeout=LIMIT)
        assert (process.returncode, said) == (0, "")
        return printed

    return run


def test_append_read_and_head(run: Run, tmp_path: Path) -> None:
    assert run("append", "one", "grün 日") == ""
    assert run("append", typed="three\nhalf a line") == ""
    head = run("head", "--json")
    [peer] = json.loads(head)
    (tmp_path / "head.json").write_text(head)
    run("append", "news")

    lines = [
        f"{{peer: '{peer}', seq: {seq}, entry: '{entry}'}}\n"
        for seq, entry in enumerate(["one", "grün 日", "three", "half a line", "news"], 1)
    ]
    assert run("read") == "".join(lines)
    assert run("head") == f"* 5 '{peer}'\n"
    assert run("read", "--since", "-", typed=head) == lines[4]
    news = json.loads(run("read", "--json", "--since", "head.json"))
    assert news == {"peer": peer, "seq": 5, "entry": "news"}


def test_trouble_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "grün.db"):
        for path, reason in (
            ("grün.db", "grün.db is open in another process"),
            ("no/such.db", "no/such.db cannot be used: .*"),
        ):
            process = start("--db", path, "read")
            printed, said = process.communicate(timeout=LIMIT)
            assert (process.returncode, printed) == (1, "")
            assert re.fullmatch(rf"scuttleup: {reason}\n", said)


def test_two_peers_see_what_is_typed(start: Start, run: Run) -> None:
    alice = start("--db", "alice.db", "replicate", "--listen", "0")
    address = "127.0.0.1:" + alice.stderr.readline().strip().rpartition(":")[2]
    bob = start("--db", "bob.db", "replicate", address)
    alice.stdin.write("from alice, grün 日\n")
    heard = bob.stdout.readline()
    assert heard.endswith("seq: 1, entry: 'from alice, grün 日'}\n")
    bob.stdin.write("from bob\n")
    assert alice.stdout.readline().endswith("seq: 1, entry: 'from bob'}\n")

    carol = start("--db", "carol.db", "replicate", "--once", address)
    printed, said = carol.communicate(timeout=LIMIT)
    assert carol.returncode == 0
    assert said.endswith("sent 0, received 2\n")
    assert printed.count("\n") == 2

    for peer in (alice, bob):
        peer.kill()
        peer.wait(LIMIT)
    everything = run("--db", "carol.db", "read")
    assert heard in everything
    assert run("--db", "alice.db", "read") == run("--db", "bob.db", "read") == everything


@pytest.mark.parametrize("program", [("-m", "scuttleup", "read"), (str(ROOT / "read.py"),)])
def test_a_reader_of_the_output_that_leaves_is_no_traceback(
    start: Start, tmp_path: Path, program: tuple[str, ...]
) -> None:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs.extend([b"x" * 100] * 20_000)
    reading = start(program=program)
    assert reading.stdout.readline().endswith("x'}\n")
    reading.stdout.close()
    assert len(reading.stderr.read().splitlines()) <= (1 if sys.platform == "win32" else 0)
    assert reading.wait(LIMIT) != 0
