"""Every command against stdin, stdout and stderr as a shell, a service or a notebook hands them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import ENVIRONMENT, Command, run
from readme import ROOT
from test_command_line import Shell, entries, join, listen, shell, wait_until_stored
from waiting import LIMIT

import scuttleup

if sys.platform != "win32":
    import fcntl
    import termios

pytestmark = [
    pytest.mark.usefixtures("in_a_folder_of_its_own"),
    pytest.mark.skipif(sys.platform == "win32", reason="these are the files of POSIX"),
]

__all__ = ["shell"]
READERS = ["read", "read --json", "head", "head --json", "check", "export"]
WITH_FILES = ["read", "head", "check", "export", "append", "append y", "import", "read.py"]


@pytest.fixture
def many(in_a_folder_of_its_own: None) -> None:
    """A `logs.db` of which each command prints more than a pipe holds."""
    with scuttleup.open("logs.db", id="us") as logs:
        logs.write((f"{n:0200}", 1, "x" * 100) for n in range(500))


def program(command: str) -> dict[str, Any]:
    """What `Command` takes to run the `command`, which may be read.py."""
    return {"program": [str(ROOT / command)]} if command.endswith(".py") else {}


def start(command: str, **options: Any) -> Command:
    args = [] if command.endswith(".py") else command.split()
    return Command(*args, **program(command), **options)


# --- Non-blocking ---


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("command", [*READERS, "read.py"])
def test_all_comes_through_a_stdout_that_a_neighbour_makes_non_blocking(command: str) -> None:
    expected = start(command).result()[1]
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    reader = start(command, stdout=theirs)
    os.close(theirs)
    wait_until_unread(ours, 60_000)
    with open(ours) as pipe:
        assert pipe.read() == expected
    assert (reader.wait(LIMIT), reader.stderr.read()) == (0, "")
    assert len(expected) > 70_000


@pytest.mark.parametrize(
    ("command", "pieces"),
    [
        ("append", ["one\n", "tw", "o\nthr", "ee"]),
        ("read --since -", ['{"th', 'em": ', "1}"]),
        ("import", ['{"peer": "them", "seq": 2, "entry": "one"}\n{"peer": "t', 'hem", "seq": 3, ',
                    '"entry": "two"}\n']),
    ],
)  # fmt: skip
def test_a_pause_on_a_stdin_that_is_non_blocking_is_not_its_end(
    command: str, pieces: list[str]
) -> None:
    with scuttleup.open("logs.db") as logs:
        logs.write([("them", 1, b"x")])
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    process = start(command, stdin=theirs)
    for piece in pieces:
        os.write(ours, piece.encode())
        wait_until_unread(theirs, 0)
    os.close(theirs)
    os.close(ours)
    assert process.wait(LIMIT) == 0
    assert (process.stdout.read(), process.stderr.read()) == ("", "")
    found = {"append": ["one", "two", "three"], "import": ["one", "two"]}.get(command, [])
    assert sorted(entries()) == sorted(["x", *found])


def wait_until_unread(pipe: int, size: int) -> None:
    """Wait until so many bytes, or more, lie in the pipe; with 0, until none does."""
    end = time.monotonic() + LIMIT
    while True:
        unread = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
        there = int.from_bytes(unread, sys.byteorder)
        if there >= size if size else not there:
            return
        assert time.monotonic() < end, there


# --- Closed, full, and no file at all ---


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("command", [*WITH_FILES, "read --since missing"])
def test_a_closed_file_is_none_of_the_database_and_no_traceback(
    command: str, closed: list[int]
) -> None:
    """LevelDB would open a file of its own in its place, and we would read or write that."""
    run("append", "x")
    status, _, err = start(command, preexec_fn=lambda: [*map(os.close, closed)]).result()
    fails = "missing" in command
    assert (status, len(err.splitlines())) == (fails, fails and 2 not in closed)
    assert entries() == ["x", "y"][: 1 + (command == "append y")]
    written = b"".join(file.read_bytes() for file in Path("logs.db").iterdir())
    assert b"{peer: " not in written
    assert b"scuttleup: " not in written


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("command", [*READERS, "new-id", "forget x", "read --live", "read.py"])
def test_a_full_stdout_is_one_line_and_status_1(command: str) -> None:
    name = "read.py" if command == "read.py" else "scuttleup"
    with open("/dev/full", "w") as full:
        status, _, err = start(command, stdout=full).result()
        assert (status, err) == (1, f"{name}: [Errno 28] No space left on device\n")
        assert start("read --since missing", stderr=full).result()[:2] == (1, "")


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("command", [*READERS, "read.py"])
def test_what_somebody_else_appends_to_the_file_of_stdout_takes_nothing_away(command: str) -> None:
    expected = start(command).result()[1]
    with open("out", "ab") as ours, open("out", "ab", buffering=0) as theirs:
        theirs.write(b"before|")
        reader = start(command, stdout=ours)
        while reader.poll() is None:
            theirs.write(b"theirs|")
    out = Path("out").read_text()
    assert out.startswith("before|theirs|")
    assert (reader.returncode, out.replace("theirs|", "")) == (0, "before|" + expected)


def test_a_file_that_grows_is_appended_up_to_its_end_and_later_from_there() -> None:
    with open("lines", "ab", buffering=0) as growing, open("lines") as lines:
        for piece in b"one\ntwo", b"", b"\nthree\n":
            growing.write(piece)
            assert start("append", stdin=lines).wait(LIMIT) == 0
    assert entries() == ["one", "two", "", "three"]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("command", [*READERS, "read.py"])
def test_a_reader_that_leaves_is_no_trouble(command: str) -> None:
    reader = start(command)
    reader.stdout.readline()
    reader.stdout.close()
    assert reader.wait(LIMIT) in (0, 1, -signal.SIGPIPE)
    assert reader.stderr.read() == ""


def test_what_is_printed_goes_where_the_program_has_directed_it(
    command: Callable[[list[str]], int],
) -> None:
    """As in IDLE, in Jupyter, and under `redirect_stdout`."""
    assert command(["append", "x"]) == 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command(["read"]) == command(["head"]) == 0
        runpy.run_path(str(ROOT / "read.py"))
    line, head, again = out.getvalue().splitlines()
    assert "entry: 'x'" in line
    assert again == line
    assert head.startswith("* 1 ")


# --- Ends that are none ---


def test_a_fifo_is_read_on_when_a_writer_has_left() -> None:
    os.mkfifo("fifo")
    with open(os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)) as fifo:
        peer, _ = listen(stdin=fifo)
    for line in ("one", "two", "three"):
        Path("fifo").write_text(line)
        wait_until_stored(line, "a.db")
    assert peer.end() == (0, "", "")
    assert entries("a.db") == ["one", "two", "three"]


def test_a_terminal_is_read_on_after_a_ctrl_d(shell: Shell) -> None:
    shell.type("$PYTHON -m scuttleup replicate --listen 0\n", "listening on ")
    for line in ("one", "two"):
        shell.type(f"{line}\n\x04")
        wait_until_stored(line)
    shell.type("\x03", "$ ")


def test_a_stdin_that_has_ended_is_told_once() -> None:
    """Cron, systemd and `docker run` without -i hand over /dev/null."""
    peer = Command("--db", "a.db", "replicate", "--listen", "0", stdin=subprocess.DEVNULL)
    said = sorted([peer.stderr.readline(), peer.stderr.readline()])
    assert said[1] == "scuttleup: stdin has ended: nothing more is taken from it\n"
    join(int(said[0].rpartition(":")[2])).type("x")
    assert "entry: 'x'" in peer.stdout.readline()
    status, _, err = peer.end()
    assert (status, "stdin" in err) == (0, False)


# --- Signals, systems, arguments ---

HOOK = """
import os, signal, sys
from scuttleup.command import main
class Swallowed:
    def __del__(self): os.kill(os.getpid(), signal.{signal})
def hook(event, args):
    global hook
    if event == "import" and args[0] == {module!r} and hook:
        hook = None
        {act}
sys.addaudithook(lambda *args: hook and hook(*args))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("signame", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("act", ["os.kill(os.getpid(), signal.{0})", "Swallowed()"])
@pytest.mark.parametrize("module", ["scuttleup.sharing", "asyncio", "scuttleup.peer"])
def test_a_signal_while_it_starts_ends_it_as_later(module: str, act: str, signame: str) -> None:
    code = HOOK.format(module=module, act=act.format(signame), signal=signame)
    peer = Command("replicate", "--listen", "0", program=["-c", code], stdin=subprocess.DEVNULL)
    assert peer.wait(LIMIT) == 0
    if act != "Swallowed()":
        assert "Traceback" not in peer.stderr.read()


def test_a_signal_before_the_arguments_are_read_ends_it_as_later() -> None:
    code = """
import os, signal, sys
from scuttleup.command import cli
def parser(make=cli._parser):
    os.kill(os.getpid(), signal.SIGTERM)
    return make()
cli._parser = parser
sys.exit(cli.main(sys.argv[1:]))
"""
    for command, status in ("replicate --listen 0", 0), ("append x", 130):
        assert run(*command.split(), program=["-c", code]) == (status, "", "")
    assert os.listdir() == []


# What starts a command, the variables that it hands over beside PATH, and stdin, None for a pipe.
# In a namespace of its own it is the process 1, which the kernel spares what it has no handler for.
NAMESPACE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
PLACES: dict[str, tuple[list[str], dict[str, str], int | None]] = {
    "cron": ([], {"LANG": "C", "SHELL": "/bin/sh"}, None),
    "systemd": ([], {"LANG": "C.UTF-8", "INVOCATION_ID": "x"}, subprocess.DEVNULL),
    "docker run": (NAMESPACE, {"HOSTNAME": "x"}, subprocess.DEVNULL),
    "docker run -i": (NAMESPACE, {"HOSTNAME": "x"}, None),
}
# In this order, and what each prints.
TABLE = {
    "append y": "",
    "append": "",
    "import": "",
    "head": "  1 'them'\n* 2 'us'\n",
    "head --json": '{"them": 1, "us": 2}\n',
    "read --since seen": "{peer: 'us', seq: 2, entry: 'y'}\n",
    "check": "'them': 1 entries up to number 1\n'us': 2 entries up to number 2\n",
    "forget them": "'them': 1 entries deleted\n",
    "remember them": "",
    "export": "".join(
        f'{{"peer": "us", "seq": {n}, "entry": "{entry}"}}\n' for n, entry in [(1, "x"), (2, "y")]
    ),
    "backup new.db": "",
    "--db new.db resume": "",
}


@pytest.mark.parametrize("place", PLACES)
def test_each_command_where_there_is_no_terminal_no_home_and_no_input(place: str) -> None:
    """stdout is a socket, as that of a service is, and stdin is at its end or /dev/null."""
    before, variables, stdin = PLACES[place]
    if before and subprocess.run([*before, "true"], capture_output=True).returncode:
        before = []  # this machine lets nobody make a namespace
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}

    def begin(command: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "scuttleup", *command.split()],
                env=environment, stdin=subprocess.PIPE if stdin is None else stdin,
                stdout=theirs.fileno(), stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        Command.ends.callback(process.kill)
        if process.stdin:
            process.stdin.close()
            process.stdin = None
        return process, ours

    with scuttleup.open("logs.db", id="us") as logs:
        logs.append("x")
        logs.write([("them", 1, b"z")])
    Path("seen").write_text('{"them": 1, "us": 1}')
    for command, expected in TABLE.items():
        process, ours = begin(command)
        with ours, ours.makefile() as out:
            assert (out.read(), process.communicate()[1]) == (expected, b""), command
        assert process.returncode == 0, command
    process, ours = begin("replicate --listen 0")
    with ours:
        assert process.stderr
        said = sorted([process.stderr.readline(), process.stderr.readline()])
        assert said[0].startswith(b"scuttleup: listening on ")
        assert said[1] == b"scuttleup: stdin has ended: nothing more is taken from it\n"
        [ended] = psutil.Process(process.pid).children() if before else [process]
        ended.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0


def test_in_the_locale_c_no_byte_is_lost() -> None:
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0",
                   "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}  # fmt: skip
    command = [sys.executable, "-m", "scuttleup"]
    subprocess.run([*command, "append", "grüße"], env=environment, check=True)
    found = subprocess.run([*command, "read"], env=environment, check=True, capture_output=True)
    assert rb"gr\xfc\xdfe" in found.stdout
    assert entries() == ["grüße"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_head_is_read_however_a_shell_has_written_it(encoding: str) -> None:
    run("append", "x")
    Path("head").write_text(run("head", "--json")[1], encoding=encoding)
    assert run("read", "--since", "head") == (0, "", "")
    run("append", "y")
    assert "'y'" in run("read", "--since", "head")[1]


def test_arguments_stand_before_options_and_after_them() -> None:
    assert run("append", "a", "--db", "x.db", "b") == (0, "", "")
    assert entries("x.db") == ["a", "b"]
    assert run("append", "a", "--db", "x.db", "--such")[0] == 2
    assert run("replicate", "h:1", "--once", "nowhere")[0] == 2


def test_a_peer_listens_at_several_addresses() -> None:
    peer = Command("replicate", "--listen", "0", "--listen", "[::1]:0")
    said = peer.stderr_line("listening on") + peer.stderr_line("listening on")
    assert "127.0.0.1:" in said
    assert "[::1]:" in said


def test_the_version_and_a_help_that_fits_a_terminal() -> None:
    assert run("--version") == (0, f"scuttleup {scuttleup.__version__}\n", "")
    for command in ("append", "read", "head", "check", "replicate"):
        out = subprocess.run(
            [sys.executable, "-m", "scuttleup", command, "--help"],
            env={**ENVIRONMENT, "COLUMNS": "80"}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert max(map(len, out.splitlines())) < 80
    assert json.loads(run("append", "x") and run("head", "--json")[1])
