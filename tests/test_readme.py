"""What the README shows runs, what it names exists, and its numbers are those of the code."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import tomllib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from interop import FOLDER, require_node
from readme import ROOT, TEXT, block, blocks

import scuttleup
from scuttleup import keys, limits
from scuttleup.command import cli
from scuttleup.signed import signing

# Each block by a text that only it has. Those of the chat and of Node have tests of their own.
PYTHON = API, SERVER, CHAT, SIGNED, STRANGERS, STATE = (
    "logs.entry(", "alice.db", '"username"', "signed=True", "accept=", "sqlite3"
)  # fmt: skip
NODE = (NODE_CLIENT,) = ("net.connect",)
SHELL = EXERCISE, TALK, NEWS, MONDAY, TLS, TESTS = (
    "append.py", "alice.db replicate --listen", "seen.json", "monday.db", "openssl", "bin/pytest"
)  # fmt: skip

WORDS = re.sub(r"\s+", " ", TEXT)  # with every line break a blank
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NODE_PATH": str(FOLDER / "node_modules")}


def test_every_block_of_code_is_one_that_a_test_runs() -> None:
    for language, texts in (("python", PYTHON), ("js", NODE), ("sh", SHELL), ("ini", ("Exec",))):
        assert blocks(language) == [block(language, containing=text) for text in texts]
    assert TEXT.count("```") == 2 * (len(PYTHON) + len(NODE) + len(SHELL) + 1)


# --- The programs ---


def test_the_api_by_example_does_what_its_comments_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python", containing=API), {})
    entries = re.findall(r"seq: (\d), entry: '(.*)'}", capsys.readouterr().out)
    assert entries == [("1", "hello"), ("2", "brave"), ("3", "world")]
    with scuttleup.open("logs.db", value_encoding="utf-8") as logs:
        assert logs.head == {logs.id: 6, "a-friend": 1}
        assert logs.entry("a-friend", 1) == "hi"


def test_a_signed_log_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python", containing=SIGNED), {})
    assert len((tmp_path / "signed.db" / "signing.key").read_bytes()) == signing.KEY_BYTES
    assert command(["--db", "signed.db", "check"]) == 0


def test_whose_logs_are_taken_and_a_stranger_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with scuttleup.open("signed.db", signed=True) as logs:
        logs.write([("a-friend", n, b"x") for n in range(1, 1003)] + [("a-stranger", 1, b"x")])
    exec(block("python", containing=STRANGERS), {})
    [friend] = re.findall(r'accept={"(ed25519\..*)"}', TEXT)
    assert signing.is_signed(friend)
    with scuttleup.open("signed.db") as logs:
        assert [seq for _, seq, _ in logs.create_read_stream()] == [1001, 1002]
        assert logs.forgotten == {"a-stranger"}


@pytest.mark.parametrize("live", [False, True])
def test_each_entry_is_applied_once_to_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    """Live it ends here with an error of the state, and takes that entry up the next time."""
    monkeypatch.chdir(tmp_path)
    code = block("python", containing=STATE)
    end = contextlib.nullcontext() if not live else pytest.raises(sqlite3.IntegrityError)
    if live:
        assert "With `since=since, live=True` and batches of 1 the loop does not end" in WORDS
        code = code.replace("since=since)", "since=since, live=True)").replace("1000", "1")
        code = code.replace("word TEXT", "word TEXT CHECK (word <> 'end')")
    for entries in ["one two", "two"], ["three"]:
        with scuttleup.open("logs.db") as logs:
            logs.extend([*entries, *["end"] * live])
        for _ in range(2):
            with end:
                exec(code, {})
        with scuttleup.open("logs.db") as logs:
            logs.delete(logs.id, logs.head[logs.id]) if live else None
    state = sqlite3.connect("state.sqlite")
    words = [word for (word,) in state.execute("SELECT * FROM words")]
    assert words == ["one", "two", "two", "three"]


# --- The recipes of the shell ---


def sh(code: str) -> str:
    """What these commands print, in the order in which they stand there, with our `scuttleup`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-ec", code], env={**ENVIRONMENT, "PATH": path}, check=True, text=True, stdout=PIPE
    ).stdout


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_cron_appends_beside_a_running_peer_and_shows_what_is_new() -> None:
    with scuttleup.open("logs.db") as logs:
        logs.write([("them", 1, b"first")])
    peer = Command("replicate", "--listen", "0", stdin=subprocess.DEVNULL)
    peer.port()
    shown = [re.findall("entry: '(.*)'", sh(block("sh", containing=NEWS))) for _ in range(2)]
    assert [sorted(each) for each in shown] == [
        ["first", "the night is over"],
        ["the night is over"],
    ]
    assert peer.end()[0] == 0


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_database_is_backed_up_restored_moved_and_begun_anew() -> None:
    with scuttleup.open("friend.db") as friend, scuttleup.open("alice.db") as alice:
        alice.extend(["one", "two"])
        friend.write([*alice.create_read_stream(), (alice.id, 3, "lost here")])
    peer = Command("--db", "friend.db", "replicate", "--listen", "0", stdin=subprocess.DEVNULL)
    port = str(peer.port())
    new = sh(block("sh", containing=MONDAY).replace("2014", port)).splitlines()[-1]
    with scuttleup.open("monday.db") as monday, scuttleup.open("new.db") as moved:
        assert monday.id == new
        assert signing.is_signed(new)
        assert monday.head == {alice.id: 3}
        assert list(monday.create_read_stream()) == list(moved.create_read_stream())
        assert monday.append("on").seq == 1


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_service_runs_and_sigterm_ends_it_with_0() -> None:
    unit = configparser.ConfigParser()
    unit.read_string(block("ini", containing="Exec"))
    program, *args = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/.venv/bin/scuttleup")
    args = [each.replace("/srv/logs/", "").replace("0.0.0.0:2014", "0") for each in args]
    service = Command(*args, stdin=subprocess.DEVNULL, start_new_session=True)
    service.port()
    assert service.end(signal.SIGTERM)[0] == 0
    assert os.listdir() == ["alice.db"]


async def test_the_files_of_tls_are_made_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_logs: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["sh", "-ec", block("sh", containing=TLS)], check=True)
    [call] = re.findall(r"Peer\(logs, tls=(scuttleup\.load_tls\(.*?\))", WORDS)
    tls = eval(call)
    async with (
        scuttleup.Peer(new_logs("alice"), listen=("127.0.0.1", 0), tls=tls) as alice,
        scuttleup.Peer(new_logs("bob"), connect=alice.addresses, tls=tls, live=False) as bob,
    ):
        await bob.wait()
        assert bob.failures == 0


@asynccontextmanager
async def running(folder: Path, *command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=ENVIRONMENT, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """The program that serves, once it serves its one entry, and the port that it has for 2014."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with scuttleup.open(folder / "alice.db") as logs:
        logs.append("from alice")
    code = block("python", containing=SERVER).replace("2014", str(port))
    async with running(folder, sys.executable, "-c", code) as alice:
        while alice.returncode is None:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0)
        yield alice, str(port)


async def test_the_program_that_connects_gets_and_gives_what_there_is(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "bob.db") as logs:
        logs.extend(["from", "bob"])
    async with serving(tmp_path) as (_, port):
        [peer] = re.findall(r"`(scuttleup\.Peer\(.*?live=False\))`", WORDS)
        code = block("python", containing=SERVER).replace("alice", "bob")
        code = re.sub(r"scuttleup\.Peer\(.*\)(?= as)", peer, code).replace("2014", port)
        code = code.replace("await peer.wait()", "print(await peer.wait())")
        async with running(tmp_path, sys.executable, "-c", code) as bob:
            out, err = await bob.communicate()
    assert (out.rstrip(), err) == (
        b"Replicated(sent=2, received=1, refused={}, delivered=2, refused_there={}, given_up=0)",
        b"",
    )


async def test_the_program_on_node_gets_what_there_is_and_one_ctrl_c_ends_the_server(
    tmp_path: Path,
) -> None:
    (tmp_path / "node").mkdir()
    show = """
        logs.createReadStream({ live: true, valueEncoding: 'utf-8' })
          .on('data', ({ entry }) => console.log(entry))
    """
    async with serving(tmp_path) as (alice, port):
        code = block("js", containing=NODE_CLIENT).replace("2014", port)
        async with running(tmp_path / "node", require_node(), "-e", code + show) as node:
            assert node.stdout
            assert await node.stdout.readline() == b"from alice\n"
            alice.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
            await alice.wait()


# --- The commands ---


def test_the_commands_and_options_of_scuttleup_exist() -> None:
    shell = re.findall(r"^\.venv/bin/scuttleup (.*)", TEXT, re.MULTILINE)
    inline = re.findall(r"`scuttleup ([^`]*)`", TEXT)
    assert len(shell) == 2
    assert "check" in inline
    for command in {*shell, *inline} - {"--help"}:
        cli._parser().parse_args(shlex.split(command))


def test_the_test_command_is_the_one_that_runs_here() -> None:
    assert TEXT.count("bin/pytest") == 1
    assert "grep -m 1 'bin/pytest' README.md" in (ROOT / ".ci/run").read_text("utf-8")


# --- What it names ---


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"\b(?:scuttleup|tests)/[\w/.]+\w", TEXT))
    assert named >= {"scuttleup/replication/messages.py", "tests/simulate.py", "tests/simulate.svg"}
    named |= set(re.findall(r"bin/python ([\w/.]+)", TEXT))
    assert {name for name in named if not (ROOT / name).exists()} == {"chat.py"}, "is yours"


def test_the_names_that_stand_for_those_of_the_original_are_those_of_the_api() -> None:
    [sentences] = re.findall(r"Names are those of the original.*?needed\.", WORDS)
    names = re.findall(r"is `(\w+)", sentences)
    assert names == ["delete", "extend", "write", "create_read_stream"]
    assert all(callable(getattr(scuttleup.Scuttleup, name)) for name in names)


# --- Its numbers ---


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("An entry has at most 16 MiB less {} bytes", 16 * 2**20 - limits.MAX_ENTRY),
        ("a peer id at most {} bytes", limits.MAX_PEER),
        (
            "room for some {:,} logs",
            limits.MAX_HANDSHAKE // keys.log_bytes("x" * 32) // 10**4 * 10**4,
        ),
        ("no promised entry came for {} seconds", limits.PROMISED),
        ("some {} bytes a log", limits.LOG_BYTES),
        ("remove the last {} of each entry", signing.TRAILER_BYTES),
    ],
)
def test_a_number_is_that_of_the_code(text: str, number: int | str) -> None:
    assert text.format(number) in WORDS


def test_the_keys_of_the_database_are_those_of_the_code() -> None:
    for key, prefix in (
        ("`c` U+00FF peer U+00FF number", keys.log_prefix("peer") + b"number"),
        ("`m` U+00FF `id`", keys.ID),
        ("`m` U+00FF `head` U+00FF peer", keys.DELETED_HEADS + b"peer"),
        ("`m` U+00FF `hash` U+00FF peer", keys.DELETED_HASHES + b"peer"),
    ):
        assert key in TEXT
        assert key.replace("`", "").replace(" U+00FF ", "\xff").encode() == prefix


def test_the_javascript_knows_a_signed_id_as_we_do() -> None:
    [pattern] = re.findall(r"`/\^(.*)\$/`", TEXT)
    id = signing.id_of(bytes(range(32)))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/="
    for other in [id[:-1] + last for last in alphabet] + [id[:-1], id + "A", id[1:]]:
        assert bool(re.fullmatch(pattern, other, re.ASCII)) == signing.is_signed(other), other


def test_versions_and_bindings_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "You need Python 3.11 or newer" in WORDS
    assert [dependency.partition("; ")[2] for dependency in project["dependencies"]] == [
        "python_version < '3.12' or python_version >= '3.15'",
        "python_version >= '3.12' and python_version < '3.15'",
    ]
    assert "| CPython 3.11 | 3.12 to 3.14 | 3.15 |" in TEXT
    bindings = [re.findall(r"\| (plyvel[-\w]*)", line) for line in TEXT.splitlines()]
    assert bindings.count(["plyvel", "plyvel-next", "plyvel"]) == 2
    [original] = re.findall(r"package \[scuttleup\]\(.*?\) (\S+) for Python", WORDS)
    package = json.loads((FOLDER / "package.json").read_text())
    assert package["dependencies"]["scuttleup"] == original
