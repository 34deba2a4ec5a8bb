"""`python -m scuttleup` as a shell user meets it: output, errors in one line, exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

import scuttleup
from scuttleup.limits import MAX_ENTRY
from scuttleup.messages import encode_changes, encode_handshake

if sys.platform != "win32":
    import fcntl
    import pty
    import resource
    import termios

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="these are the terminals and signals of POSIX; test_every_system.py runs on Windows",
)

LIMIT = 30  # seconds, for what should take a moment
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # it hides what is wrong with the last write


class Command:
    """A running `scuttleup`, whose lines can be waited for."""

    def __init__(self, folder: Path, *args: str, **options: Any) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "scuttleup", *args],
            cwd=folder,
            text=True,
            bufsize=1,
            env=ENVIRONMENT,
            **{**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), **options},
        )

    def type(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stdout_line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def stderr_line(self, containing: str = "") -> str:
        assert self.process.stderr
        for line in self.process.stderr:
            if containing in line:
                return line
        raise AssertionError(f"stderr ended without a line containing {containing!r}")

    def port(self) -> str:
        return self.stderr_line("listening on").strip().rpartition(":")[2]

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(signum)
        return self.result()

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Command] = []

    def start(*args: str, **options: Any) -> Command:
        started.append(Command(tmp_path, *args, **options))
        return started[-1]

    yield start
    for command in started:
        command.process.terminate()
    try:
        for command in started:
            command.process.communicate(timeout=LIMIT)
    finally:
        for command in started:
            command.process.kill()


@pytest.fixture
def run(start: Start) -> Run:
    def run(*args: str, stdin: str = "", **options: Any) -> tuple[int, str, str]:
        command = start(*args, **options)
        out, err = command.process.communicate(stdin, timeout=LIMIT)
        return command.process.returncode, out, err

    return run


@pytest.fixture
def listen(start: Start, tmp_path: Path) -> Callable[..., tuple[Command, str]]:
    """Starts alice, with some entries of hers, and returns her with her address."""

    def listen(*args: str, has: Iterable[str] = (), **options: Any) -> tuple[Command, str]:
        with scuttleup.open(tmp_path / "a.db") as logs:
            logs.extend(list(has))
        alice = start("--db", "a.db", "replicate", "--listen", "0", *args, **options)
        return alice, f"127.0.0.1:{alice.port()}"

    return listen


@pytest.fixture
def join(start: Start) -> Callable[..., Command]:
    """Starts bob, who connects to somebody."""
    return lambda address, **options: start("--db", "b.db", "replicate", address, **options)


@pytest.fixture
def once(run: Run) -> Run:
    """Runs bob, who exchanges what there is."""
    return lambda address, *args: run("--db", "b.db", "replicate", "--once", address, *args)


Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., Command]
Listen = Callable[..., tuple[Command, str]]
Join = Callable[..., Command]


def entries(path: Path) -> list[str]:
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        return [change.entry for change in logs.create_read_stream()]


def test_append_takes_entries_from_the_arguments(run: Run, tmp_path: Path) -> None:
    """The database is named before or after the command."""
    assert run("append", "hello", "wörld") == (0, "", "")
    assert run("--db", "logs.db", "append", "x") == (0, "", "")
    assert run("append", "--db", "logs.db", "y") == (0, "", "")
    assert entries(tmp_path / "logs.db") == ["hello", "wörld", "x", "y"]


def test_append_takes_the_lines_of_stdin_the_last_one_without_an_end_too(
    run: Run, tmp_path: Path
) -> None:
    lines = ["a", "", *(f"line {n}" for n in range(100_000))]
    assert run("append", stdin="\n".join(lines)) == (0, "", "")
    assert entries(tmp_path / "logs.db") == lines


def test_read_prints_what_read_py_prints(run: Run) -> None:
    run("append", "hello world")
    status, out, err = run("read")
    peer = json.loads(run("head", "--json")[1]).popitem()[0]
    assert (status, out, err) == (0, f"{{peer: '{peer}', seq: 1, entry: 'hello world'}}\n", "")


def test_read_as_json_has_base64_for_what_is_no_text(run: Run, tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.extend(["é", b"\xff"])
    assert [json.loads(line) for line in run("read", "--json")[1].splitlines()] == [
        {"peer": "us", "seq": 1, "entry": "é"},
        {"peer": "us", "seq": 2, "entry_base64": "/w=="},
    ]


def test_read_since_a_head_leaves_out_what_was_there(run: Run, tmp_path: Path) -> None:
    run("append", "old")
    (tmp_path / "head.json").write_text(run("head", "--json")[1])
    run("append", "new")
    status, out, _ = run("read", "--since", "head.json")
    assert (status, out.count("\n")) == (0, 1)
    assert "new" in out
    assert run("read", "--since", "-", stdin=(tmp_path / "head.json").read_text())[1] == out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_read_live_goes_on_until_it_is_told_to_end(signum: int, start: Start, run: Run) -> None:
    run("append", "first")
    reader = start("read", "--live")
    assert "first" in reader.stdout_line()
    assert reader.end(signum) == (0, "", "")


def test_read_into_a_closed_pipe_ends_quietly(run: Run, start: Start) -> None:
    run("append", stdin="a line\n" * 100_000)
    reader = start("read")
    reader.stdout_line()
    assert reader.process.stdout
    reader.process.stdout.close()
    reader.process.wait(LIMIT)
    assert reader.process.stderr
    assert reader.process.stderr.read() == ""


def test_head_marks_the_log_of_this_peer(run: Run, tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.write([("them", 7, b"")])
    assert run("head") == (0, "  7 'them'\n* 0 'us'\n", "")
    assert run("head", "--json") == (0, '{"them": 7}\n', "")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ("append --db missing/logs.db x", "missing/logs.db"),
        ("read --since missing.json", "missing.json"),
        ("read --since list.json", "list.json"),
        ("read --since text.json", "text.json"),
        ("read --since deep.json", "deep.json"),
        ("read --since half.json", "half.json"),
        ("read --since latin.json", "latin.json"),
        ("replicate --once 127.0.0.1:1", "127.0.0.1:1"),
        ("replicate --once 127.0.0.1:65535", "127.0.0.1:65535"),
        ("replicate --once a..b:1", "a..b:1"),
        ("replicate --listen 203.0.113.1:2014", "203.0.113.1"),
        ("replicate --listen 0 --tls-cert x --tls-key x --tls-ca x", "certificates x, x, x"),
        ("replicate --listen 0 --tls-cert= --tls-key= --tls-ca=", "certificates"),
    ],
)
def test_trouble_is_one_line_and_status_1(
    args: str, complaint: str, run: Run, tmp_path: Path
) -> None:
    heads = {"list": "[]", "text": '{"a": "b"}', "deep": "[" * 100_000, "half": "{", "latin": "ÿ"}
    for name, head in heads.items():
        (tmp_path / f"{name}.json").write_text(head, encoding="latin-1")
    status, out, err = run(*args.split())
    assert (status, out) == (1, "")
    (line,) = [line for line in err.splitlines() if "sent 0, received 0" not in line]
    assert line.startswith("scuttleup: ")
    assert complaint in line


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["replicate"],
        ["replicate", "nowhere"],
        ["replicate", "host:port"],
        ["replicate", "host:²"],
        ["replicate", ":80"],
        ["replicate", "host:65536"],
        ["replicate", "--listen", "host:"],
        ["replicate", "--listen", "1", "--tls-cert", "x"],
    ],
)
def test_wrong_arguments_are_status_2(args: list[str], run: Run, tmp_path: Path) -> None:
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: scuttleup")
    assert not (tmp_path / "logs.db").exists()


def test_two_peers_see_what_the_other_types_and_miss_nothing_of_what_came_before(
    tmp_path: Path, listen: Listen, join: Join
) -> None:
    alice, address = listen(has=["before"])
    bob = join(address)
    assert "before" in bob.stdout_line()
    bob.type("hello alice")
    assert "hello alice" in alice.stdout_line()
    alice.type("hello bob")
    assert "hello bob" in bob.stdout_line()
    assert bob.end(signal.SIGINT)[:2] == (0, "")
    alice.stderr_line(": gone")
    assert alice.end() == (0, "", "")
    expected = sorted(["before", "hello alice", "hello bob"])
    assert sorted(entries(tmp_path / "a.db")) == sorted(entries(tmp_path / "b.db")) == expected


@pytest.mark.parametrize(("mode", "sent", "received"), [("", 1, 3), ("push", 1, 0), ("pull", 0, 3)])
def test_once_exchanges_what_is_there_and_says_how_much(
    mode: str, sent: int, received: int, run: Run, listen: Listen, once: Run
) -> None:
    run("--db", "b.db", "append", "4")
    alice, address = listen("--once", has="123")
    status, out, err = once(address, *([f"--mode={mode}"] if mode else []))
    assert status == 0
    assert [line[-4:-1] for line in out.splitlines()] == ["'1'", "'2'", "'3'"][:received]
    said = f"scuttleup: .*: connected\nscuttleup: sent {sent}, received {received}\n"
    assert re.fullmatch(said, err)
    status, _, err = alice.result()
    assert status == 0
    assert err.endswith(f"scuttleup: sent {received}, received {sent}\n")


def test_once_shows_progress_on_a_terminal(run: Run, listen: Listen) -> None:
    _, address = listen(has="123")
    ours, theirs = pty.openpty()
    run("--db", "b.db", "replicate", "--once", address, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "received 0\r" in shown
    assert "sent 0, received 3" in shown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_was_typed_is_stored_when_a_signal_ends_it(
    signum: int, start: Start, tmp_path: Path
) -> None:
    peer = start("replicate", "--listen", "0")
    peer.port()
    for n in range(100):
        peer.type(f"line {n}")
    status, _, err = peer.end(signum)
    assert (status, err) == (0, "")
    assert entries(tmp_path / "logs.db") == [f"line {n}" for n in range(100)]


def test_more_than_one_read_takes_is_stored_when_a_signal_ends_it(
    start: Start, tmp_path: Path
) -> None:
    peer = start("replicate", "--listen", "0", pipesize=1 << 20)
    peer.port()
    peer.process.send_signal(signal.SIGSTOP)
    lines = [f"{n:099}" for n in range(10_000)]
    peer.type("\n".join(lines))
    peer.process.terminate()
    peer.process.send_signal(signal.SIGCONT)
    assert peer.result()[0] == 0
    assert entries(tmp_path / "logs.db") == lines


def test_the_lines_of_a_file_are_appended_as_if_they_were_typed(
    tmp_path: Path, listen: Listen, join: Join
) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    with (tmp_path / "lines").open() as lines:
        _, address = listen(stdin=lines)
    bob = join(address)
    assert "one" in bob.stdout_line()
    assert "two" in bob.stdout_line()


def test_where_nothing_can_be_typed_it_only_prints(
    tmp_path: Path, listen: Listen, join: Join
) -> None:
    with (tmp_path / "only for writing").open("w") as no_input:
        alice, address = listen(stdin=no_input)
    bob = join(address)
    bob.type("hello")
    assert "hello" in alice.stdout_line()
    assert alice.end()[:2] == (0, "")


def test_a_line_that_is_too_long_is_told_and_the_peer_goes_on(listen: Listen, join: Join) -> None:
    alice, address = listen()
    alice.type("fits\n" + "x" * (MAX_ENTRY + 1))
    assert "nothing more is taken" in alice.stderr_line("stdin: ")
    bob = join(address)
    assert "fits" in bob.stdout_line()
    bob.type("still there?")
    assert "still there?" in alice.stdout_line()


def allow_1_mib_a_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))


def test_a_full_disk_while_typing_is_one_line_and_status_1(start: Start, tmp_path: Path) -> None:
    peer = start("replicate", "--listen", "0", preexec_fn=allow_1_mib_a_file)
    peer.port()
    peer.type("fits")
    peer.type("x" * 2_000_000)
    status, _, err = peer.result()
    assert status == 1
    assert re.fullmatch(
        "scuttleup: logs.db cannot be used: .*File too large; .*open it again\n", err
    )
    assert entries(tmp_path / "logs.db") == ["fits"]


def test_a_full_disk_while_receiving_is_one_line_and_status_1(listen: Listen, join: Join) -> None:
    _, address = listen(has=["x" * 2_000_000])
    bob = join(address, preexec_fn=allow_1_mib_a_file)
    bob.stderr_line("connected")
    status, out, err = bob.result()
    assert (status, out) == (1, "")
    assert re.fullmatch("scuttleup: b.db cannot be used: .*File too large; .*open it again\n", err)


# --- Outputs that are slow, full or closed ---


def unread_bytes(pipe: Any) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_peer_whose_output_nobody_reads_goes_on_and_one_signal_ends_it(
    run: Run, start: Start, listen: Listen
) -> None:
    _, address = listen(has=["a line"] * 10_000)
    bob = start("--db", "b.db", "replicate", "--listen", "0", address)
    port = bob.port()
    while unread_bytes(bob.process.stdout) < 60_000:  # a pipe holds 64 KiB
        assert bob.process.poll() is None
    status, out, _ = run("--db", "c.db", "replicate", "--once", f"127.0.0.1:{port}")
    assert (status, out.count("\n")) == (0, 10_000)
    bob.process.terminate()
    assert bob.process.wait(LIMIT) == 0


@pytest.mark.parametrize("output", ["stdout", "stderr"])
@pytest.mark.parametrize("wrong", ["no reader", "full"])
def test_a_peer_with_an_output_that_fails_goes_on(
    output: str, wrong: str, start: Start, tmp_path: Path, listen: Listen, join: Join
) -> None:
    alice, address = listen()
    if wrong == "full":
        bad = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, bad = os.pipe()
        os.close(reader)
    bob = join(address, **{output: bad})
    os.close(bad)
    bob.type("one")
    assert "one" in alice.stdout_line()
    alice.type("two")
    if output == "stdout":
        assert "stdout: " in bob.stderr_line("stdout: ")
    else:
        assert "two" in bob.stdout_line()
        alice.end(signal.SIGKILL)  # the link is made again
        alice = start("--db", "a.db", "replicate", "--listen", address)
    bob.type("three")
    assert "three" in alice.stdout_line()
    assert bob.end()[0] == 0
    assert sorted(entries(tmp_path / "b.db")) == ["one", "three", "two"]


def test_once_waits_for_a_slow_reader_but_not_after_a_signal(start: Start, listen: Listen) -> None:
    _, address = listen(has=["a line"] * 10_000)
    once = ["replicate", "--once", address]
    slow = start("--db", "b.db", *once)
    stuck = start("--db", "c.db", *once)
    for bob in (slow, stuck):
        while unread_bytes(bob.process.stdout) < 60_000:
            assert bob.process.poll() is None
    status, out, _ = slow.result()
    assert (status, out.count("\n")) == (0, 10_000)
    stuck.process.terminate()
    assert stuck.process.wait(LIMIT) == 130


def test_once_that_could_not_print_is_status_1(run: Run, listen: Listen) -> None:
    _, address = listen(has="x")
    with open("/dev/full", "w") as full:
        status, _, err = run("--db", "b.db", "replicate", "--once", address, stdout=full)
    assert status == 1
    assert "scuttleup: stdout: No space left on device\n" in err


@pytest.mark.parametrize("command", [["read"], ["head"], ["head", "--json"], ["read", "--json"]])
def test_a_full_disk_for_the_output_is_one_line_and_status_1(
    command: list[str], run: Run, start: Start
) -> None:
    run("append", "x")
    with open("/dev/full", "w") as full:
        process = start(*command, stdout=full).process
        _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (1, "scuttleup: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_once_that_is_interrupted_is_status_130(signum: int, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = start("replicate", "--once", f"127.0.0.1:{silent.getsockname()[1]}")
        peer.stderr_line("connected")
        assert peer.end(signum) == (130, "", "scuttleup: sent 0, received 0\n")


def test_once_ends_when_all_have_been_met_and_not_with_the_first_that_comes(
    run: Run, start: Start
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        alice = start("--db", "a.db", "replicate", "--once", "--listen", "0", address)
        port = alice.port()
        run("--db", "b.db", "append", "x")
        assert run("--db", "b.db", "replicate", "--once", f"127.0.0.1:{port}")[0] == 0
        assert "x" in alice.stdout_line()
        remote, _ = silent.accept()
        with remote:
            remote.sendall(encode_handshake("them", {}, "sync"))
            remote.shutdown(socket.SHUT_WR)
            while remote.recv(1 << 16):
                pass
        assert alice.result()[0] == 0


@pytest.mark.parametrize(
    ("sends", "status"),
    [
        (encode_changes("them", 2, [b"two", b"three"]), 0),
        (encode_changes("them", 2, [b"two"]) + b"\x10half", 1),
        (encode_changes("b\u00ffd", 1, [b"is left out"]) + encode_changes("them", 2, [b"two"]), 1),
    ],
    ids=["all", "half a frame", "a log that is none"],
)
def test_what_an_exchange_brought_is_counted_and_the_status_tells_whether_it_was_all(
    sends: bytes, status: int, start: Start
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = start("replicate", "--once", f"127.0.0.1:{server.getsockname()[1]}")
        remote, _ = server.accept()
        with remote:
            remote.sendall(encode_handshake("them", {"them": 4}, "sync"))
            remote.sendall(encode_changes("them", 1, [b"one"]) + sends)
            assert "one" in peer.stdout_line()
            assert "two" in peer.stdout_line()
            remote.shutdown(socket.SHUT_WR)
            found, _, err = peer.result()
    assert found == status
    assert ("is left out" in err) == (b"is left out" in sends)
    assert err.endswith(f"scuttleup: sent 0, received {2 + (not status)}\n")


def test_an_endless_input_does_not_keep_it_from_ending(start: Start, tmp_path: Path) -> None:
    with subprocess.Popen("yes", stdout=subprocess.PIPE) as yes:
        peer = start("replicate", "--listen", "0", stdin=yes.stdout)
        peer.port()
        assert peer.end()[0] == 0
        yes.kill()
    assert set(entries(tmp_path / "logs.db")) == {"y"}


def test_append_that_is_interrupted_is_status_130_and_keeps_whole_lines(
    start: Start, tmp_path: Path
) -> None:
    appender = start("append")
    appender.type("one")
    appender.process.stdin.write("tw") if appender.process.stdin else None
    wait_until_stored(tmp_path, "one")
    assert appender.end(signal.SIGINT)[0] == 130
    assert entries(tmp_path / "logs.db") == ["one"]


# --- Very many connections ---


def allow(descriptors: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


@pytest.mark.parametrize(("descriptors", "strangers"), [(1024, 1113), (40, 80)])
def test_idle_strangers_take_no_descriptor_that_leveldb_needs(
    descriptors: int, strangers: int, run: Run, listen: Listen, join: Join
) -> None:
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(ours[1], 4096), ours[1]))
    alice, address = listen(preexec_fn=allow(descriptors))
    bob = join(address)
    bob.stderr_line("connected")
    bob.type("first")
    alice.stdout_line()
    with contextlib.ExitStack() as crowd:
        for _ in range(strangers):
            port = int(address.rpartition(":")[2])
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        alice.stderr_line("too many")
        for n in range(600):  # 6 MB, so that LevelDB makes new files
            bob.type(f"{n:010000}")
        for n in range(600):
            assert f"{n:010000}" in alice.stdout_line()
        assert psutil.Process(alice.process.pid).num_fds() < descriptors
    # They have left, so others are served.
    assert run("--db", "c.db", "replicate", "--once", address)[1].count("\n") == 601
    status, _, err = alice.end()
    assert status == 0
    assert len(err) < 1000


# --- The terminal ---


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noediting", "-i"],
                {**ENVIRONMENT, "PS1": "$ ", "PYTHON": sys.executable},
            )
        self._shown = ""
        self.wait_for("$ ")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown, and return what was shown before it."""
        while text not in self._shown:
            assert select.select([self.terminal], [], [], LIMIT)[0], self._shown
            self._shown += os.read(self.terminal, 65536).decode()
        before, _, self._shown = self._shown.partition(text)
        return before


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    os.kill(shell.pid, signal.SIGHUP)
    os.close(shell.terminal)
    os.waitpid(shell.pid, 0)


REPLICATE = "$PYTHON -m scuttleup replicate --listen 0"


def test_a_job_takes_what_is_typed_whenever_it_is_in_front(shell: Shell, tmp_path: Path) -> None:
    shell.type(f"{REPLICATE} &\n")
    shell.wait_for("listening on ")
    shell.type('echo it is the shell"\'"s\n')
    shell.wait_for("\nit is the shell's")
    for turn, keys in enumerate(("fg\n", "\x1abg\n\nfg\n", "\x1afg\n")):
        for key in keys:  # one at a time, or the peer would get what is for the shell
            shell.type(key)
            if key == "\x1a":
                shell.wait_for("Stopped")
                shell.wait_for("$ ")
        shell.wait_for("replicate --listen 0\r\n")
        shell.type(f"typed {turn}\n")
        wait_until_stored(tmp_path, f"typed {turn}")
    shell.type("\x03")
    shell.wait_for("$ ")
    shell.type("echo status $?\n")
    shell.wait_for("\nstatus 0")
    shell.type("exit\n")
    assert entries(tmp_path / "logs.db") == ["typed 0", "typed 1", "typed 2"]


def wait_until_stored(folder: Path, entry: str) -> None:
    """Wait until a running peer has written `entry` to a journal of LevelDB."""
    end = time.monotonic() + LIMIT
    while not any(entry.encode() in log.read_bytes() for log in folder.glob("logs.db/*.log")):
        assert time.monotonic() < end, entry


def test_a_program_that_reads_single_keys_gets_all_of_them(shell: Shell, tmp_path: Path) -> None:
    """As a pager does, which shares the terminal with the peer whose output it shows."""
    (tmp_path / "pager.py").write_text(PAGER)
    shell.type(f"{REPLICATE} | $PYTHON pager.py\n")
    shell.wait_for("ready")
    for key in "abcdefghij":
        shell.type(key)
        shell.wait_for(f"got {key}")
    shell.type("q")
    shell.wait_for("the pager is gone")
    shell.type("typed x\n")
    wait_until_stored(tmp_path, "typed x")
    shell.type("\x03")
    shell.wait_for("$ ")


PAGER = """
import os, sys, tty, termios
terminal = os.open("/dev/tty", os.O_RDWR)
before = termios.tcgetattr(terminal)
tty.setcbreak(terminal)
os.write(terminal, b"ready")
while (key := os.read(terminal, 1)) != b"q":
    os.write(terminal, b"got " + key)
termios.tcsetattr(terminal, termios.TCSANOW, before)
os.write(terminal, b"the pager is gone")
"""


def test_a_terminal_that_is_stopped_stops_no_peer(shell: Shell, run: Run, once: Run) -> None:
    shell.type(f"{REPLICATE}\n")
    shell.wait_for("listening on ")
    address = shell.wait_for("\r\n")
    shell.type("\x13")  # Ctrl-S
    run("--db", "b.db", "append", "over", "there")
    for sent in (2, 0):
        status, _, err = once(address)
        assert (status, err.splitlines()[-1]) == (0, f"scuttleup: sent {sent}, received 0")
    shell.type("\x03")
    shell.wait_for("$ ")


def test_with_certificates_strangers_are_kept_out(
    tmp_path: Path, listen: Listen, once: Run
) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    for name, ca in (("us", ours), ("stranger", theirs)):
        cert = ca.issue_cert("not.where.it.runs.example")
        cert.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        cert.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    ours.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def tls(name: str) -> list[str]:
        return [f"--tls-cert={name}.pem", f"--tls-key={name}.key", "--tls-ca=ca.pem"]

    _, address = listen(*tls("us"), has=["secret"])
    for arguments in ([], tls("stranger")):
        status, out, _ = once(address, *arguments)
        assert (status, out) == (1, "")
    status, out, _ = once(address, *tls("us"))
    assert status == 0
    assert "secret" in out


def test_a_remote_that_leaves_in_the_middle_does_not_end_us(listen: Listen, once: Run) -> None:
    """A write to it is a broken pipe, as `head` makes one of our output."""
    alice, address = listen(has=["x" * 1000] * 20_000)
    port = address.rpartition(":")[2]
    with socket.create_connection(("127.0.0.1", int(port))) as remote:
        remote.sendall(encode_handshake("stranger", {}, "pull"))
        remote.shutdown(socket.SHUT_WR)
        remote.recv(1000)
    assert "127.0.0.1" in alice.stderr_line()
    status, out, _ = once(address)
    assert (status, out.count("\n")) == (0, 20_000)
    assert alice.end()[0] == 0


def test_an_argument_that_is_no_text_is_appended_as_it_is(tmp_path: Path) -> None:
    """By the console script, too."""
    script = [Path(sys.executable).with_name("scuttleup")]
    for program in [sys.executable, "-m", "scuttleup"], script:
        subprocess.run([*program, "append", b"\xff"], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert entries(tmp_path / "logs.db") == ["\ufffd"] * 2


def test_closed_files_are_no_trouble(tmp_path: Path) -> None:
    for redirect in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        subprocess.run(
            f"{sys.executable} -m scuttleup append x {redirect} && "
            f"{sys.executable} -m scuttleup read {redirect}",
            shell=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            check=True,
        )
    assert entries(tmp_path / "logs.db") == ["x"] * 4


@pytest.mark.parametrize(
    ("command", "status"), [("append <&-", 0), ("read >&-", 0), ("read --since missing 2>&-", 1)]
)
def test_a_closed_file_is_none_of_the_database_s(
    command: str, status: int, run: Run, tmp_path: Path
) -> None:
    """LevelDB would open a file of its own in its place, and we would read or write that."""
    run("append", "x")
    done = subprocess.run(
        f"{sys.executable} -m scuttleup {command}",
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
    assert entries(tmp_path / "logs.db") == ["x"]
    for file in (tmp_path / "logs.db").iterdir():
        assert b"{peer: " not in file.read_bytes()
        assert b"scuttleup: " not in file.read_bytes()


def test_a_damaged_database_is_one_line_and_no_shorter_log(run: Run, tmp_path: Path) -> None:
    run("append", *(f"entry {n}" for n in range(100)))
    [journal] = (tmp_path / "logs.db").glob("*.log")
    damaged = bytearray(journal.read_bytes())
    damaged[damaged.index(b"entry 50")] ^= 1
    journal.write_bytes(damaged)
    status, out, err = run("read")
    assert (status, out) == (1, "")
    assert re.fullmatch("scuttleup: logs.db is damaged: .*\n", err)


@pytest.mark.parametrize("command", ["append", "read", "head", "replicate"])
def test_the_help_of_a_command_says_what_it_does_and_how_it_ends(command: str, run: Run) -> None:
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert re.search(r"^(Append|Print|Exchange) .*\.$", out, re.MULTILINE)
    assert "Exit status: 0" in out
