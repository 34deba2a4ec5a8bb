"""The commands and the two programs as every system has them, Windows included.

`test_command_line.py` says more of the commands, with the terminals and signals of POSIX.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from commands import Command, run
from readme import ROOT
from waiting import LIMIT

import scuttleup

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def printed(*args: str, typed: str = "") -> str:
    """What a command prints that ends well and says nothing on stderr."""
    status, out, err = run(*args, stdin=typed)
    assert (status, err) == (0, "")
    return out


def test_append_read_and_head() -> None:
    assert printed("append", "one", "grün 日") == ""
    assert printed("append", typed="three\nhalf a line") == ""
    head = printed("head", "--json")
    [peer] = json.loads(head)
    Path("head.json").write_text(head)
    printed("append", "news")

    lines = [
        f"{{peer: '{peer}', seq: {seq}, entry: '{entry}'}}\n"
        for seq, entry in enumerate(["one", "grün 日", "three", "half a line", "news"], 1)
    ]
    assert printed("read") == "".join(lines)
    assert printed("head") == f"* 5 '{peer}'\n"
    assert printed("read", "--since", "-", typed=head) == lines[4]
    news = json.loads(printed("read", "--json", "--since", "head.json"))
    assert news == {"peer": peer, "seq": 5, "entry": "news"}


def test_trouble_is_told_in_one_line() -> None:
    with scuttleup.open("grün.db"):
        for path, reason in (
            ("grün.db", "grün.db is open in another process"),
            ("no/such.db", "no/such.db: there is no database"),
        ):
            status, out, err = run("--db", path, "read")
            assert (status, out) == (1, "")
            assert re.fullmatch(rf"scuttleup: {reason}\n", err)


def test_two_peers_see_what_is_typed() -> None:
    alice = Command("--db", "alice.db", "replicate", "--listen", "0")
    address = f"127.0.0.1:{alice.port()}"
    bob = Command("--db", "bob.db", "replicate", address)
    alice.type("from alice, grün 日")
    heard = bob.stdout.readline()
    assert heard.endswith("seq: 1, entry: 'from alice, grün 日'}\n")
    bob.type("from bob")
    assert alice.stdout.readline().endswith("seq: 1, entry: 'from bob'}\n")

    status, out, err = run("--db", "carol.db", "replicate", "--once", address)
    assert status == 0
    assert err.endswith("sent 0, received 2\n")
    assert out.count("\n") == 2

    for peer in (alice, bob):
        peer.kill()
        peer.wait(LIMIT)
    everything = printed("--db", "carol.db", "read")
    assert heard in everything
    assert printed("--db", "alice.db", "read") == printed("--db", "bob.db", "read") == everything


@pytest.mark.parametrize("program", [("-m", "scuttleup", "read"), (str(ROOT / "read.py"),)])
def test_a_reader_of_the_output_that_leaves_is_no_traceback(program: tuple[str, ...]) -> None:
    with scuttleup.open("logs.db") as logs:
        logs.extend([b"x" * 100] * 20_000)
    reading = Command(program=program)
    assert reading.stdout.readline().endswith("x'}\n")
    reading.stdout.close()
    assert len(reading.stderr.read().splitlines()) <= (1 if sys.platform == "win32" else 0)
    assert reading.wait(LIMIT) != 0
