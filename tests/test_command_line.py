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

import pytest
from commands import ENVIRONMENT, Command, Result, run
from waiting import LIMIT
from wire import encode_handshake

import scuttleup
from scuttleup.limits import MAX_ENTRY
from scuttleup.replication.messages import encode_changes

if sys.platform != "win32":
    import fcntl
    import pty
    import resource
    import termios

pytestmark = [
    pytest.mark.usefixtures("in_a_folder_of_its_own"),
    pytest.mark.skipif(
        sys.platform == "win32",
        reason="these are the terminals and signals of POSIX; test_every_system.py runs on Windows",
    ),
]

HERE = ("127.0.0.1", 0)


def listen(*args: str, has: Iterable[str] = (), **options: Any) -> tuple[Command, int]:
    """Start alice, with some entries of hers, and return her with her port."""
    with scuttleup.open("a.db") as logs:
        logs.extend(list(has))
    alice = Command("--db", "a.db", "replicate", "--listen", "0", *args, **options)
    return alice, alice.port()


def join(port: int, *args: str, db: str = "b.db", **options: Any) -> Command:
    """Start bob, or whoever has the database `db`, who connects to a port."""
    return Command("--db", db, "replicate", f"127.0.0.1:{port}", *args, **options)


def once(port: int, *args: str, **options: Any) -> Result:
    """Run bob, who exchanges what there is."""
    return join(port, "--once", *args, **options).result()


def entries(database: str = "logs.db") -> list[str]:
    with scuttleup.open(database, value_encoding="utf-8") as logs:
        return [change.entry for change in logs.create_read_stream()]


def wait_until_stored(entry: str, database: str = "logs.db") -> None:
    """Wait until a running peer has written `entry` to a journal of LevelDB."""
    end = time.monotonic() + LIMIT
    while not any(entry.encode() in log.read_bytes() for log in Path(database).glob("*.log")):
        assert time.monotonic() < end, entry


# --- append, read, head ---


def test_the_database_is_named_before_the_command_or_after_it() -> None:
    assert run("--db", "our.db", "append", "x") == (0, "", "")
    assert run("append", "--db", "our.db", "y") == (0, "", "")
    assert entries("our.db") == ["x", "y"]


def test_append_takes_the_lines_of_stdin_and_the_last_one_needs_no_end() -> None:
    lines = ["a", "", *(f"line {n}" for n in range(100_000))]
    assert run("append", stdin="\n".join(lines)) == (0, "", "")
    assert entries() == lines


def test_a_line_longer_than_an_entry_is_refused_and_those_before_it_are_kept() -> None:
    status, _, err = run("append", stdin="first\n" + "x" * (MAX_ENTRY + 1))
    assert (status, err) == (1, f"scuttleup: a line is longer than {MAX_ENTRY} bytes\n")
    assert entries() == ["first"]


def test_append_that_is_interrupted_is_status_130_and_keeps_whole_lines() -> None:
    appender = Command("append")
    appender.stdin.write("one\ntw")
    wait_until_stored("one")
    assert appender.end(signal.SIGINT)[0] == 130
    assert entries() == ["one"]


def test_an_argument_that_is_no_text_is_appended_byte_for_byte() -> None:
    """The console script does that, too."""
    script = [Path(sys.executable).with_name("scuttleup")]
    for program in [sys.executable, "-m", "scuttleup"], script:
        subprocess.run([*program, "append", b"\xff"], env=ENVIRONMENT, check=True)
    assert entries() == ["\ufffd"] * 2


def test_read_as_json_has_base64_for_what_is_no_text() -> None:
    with scuttleup.open("logs.db", id="us") as logs:
        logs.extend(["é", b"\xff"])
    assert [json.loads(line) for line in run("read", "--json")[1].splitlines()] == [
        {"peer": "us", "seq": 1, "entry": "é"},
        {"peer": "us", "seq": 2, "entry_base64": "/w=="},
    ]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_read_live_goes_on_until_it_is_told_to_end(signum: int) -> None:
    run("append", "first")
    reader = Command("read", "--live")
    assert "first" in reader.stdout.readline()
    assert reader.end(signum) == (0, "", "")


def test_head_marks_the_log_of_this_peer() -> None:
    with scuttleup.open("logs.db", id="us") as logs:
        logs.write([("them", 7, b"")])
    assert run("head") == (0, "  7 'them'\n* 0 'us'\n", "")
    assert run("head", "--json") == (0, '{"them": 7}\n', "")


# What a file holds that has no head in it.
NO_HEADS = {"list": "[]", "text": '{"a": "b"}', "deep": "[" * 100_000, "half": "{", "latin": "ÿ"}


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        *((f"read --since {name}", name) for name in ("missing", *NO_HEADS)),
        ("replicate --once 127.0.0.1:65535", "127.0.0.1:65535"),
        ("replicate --once a..b:1", "a..b:1"),
        ("replicate --listen 203.0.113.1:2014", "203.0.113.1"),
        ("replicate --listen 0 --tls-cert x --tls-key x --tls-ca x", "certificates x, x, x"),
        ("replicate --listen 0 --tls-cert= --tls-key= --tls-ca=", "certificates"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line_with_status_1(args: str, complaint: str) -> None:
    for name, text in NO_HEADS.items():
        Path(name).write_text(text, encoding="latin-1")
    scuttleup.open("logs.db").close()
    status, out, err = run(*args.split())
    assert (status, out) == (1, "")
    [line] = [line for line in err.splitlines() if "sent 0, received 0" not in line]
    assert line.startswith("scuttleup: ")
    assert complaint in line


@pytest.mark.parametrize(
    "args",
    [
        "",
        "replicate",
        *(f"replicate {bad}" for bad in ("nowhere", "host:port", "host:²", ":80", "host:65536")),
        "replicate --listen host:",
        "replicate --listen 1 --tls-cert x",
    ],
)
def test_wrong_arguments_are_status_2(args: str) -> None:
    status, out, err = run(*args.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: scuttleup")
    assert not Path("logs.db").exists()


@pytest.mark.parametrize("command", ["append", "read", "head", "replicate"])
def test_the_help_of_a_command_says_what_it_does_and_how_it_ends(command: str) -> None:
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert re.search(r"^(Append|Print|Exchange) .*\.$", out, re.MULTILINE)
    assert "Exit status: 0" in out


# --- replicate ---


@pytest.mark.parametrize(("mode", "sent", "received"), [("", 1, 3), ("push", 1, 0), ("pull", 0, 3)])
def test_once_exchanges_what_is_there_and_says_how_much(
    mode: str, sent: int, received: int
) -> None:
    run("--db", "b.db", "append", "4")
    alice, port = listen("--once", has="123")
    status, out, err = once(port, *([f"--mode={mode}"] if mode else []))
    assert status == 0
    assert [line[-4:-1] for line in out.splitlines()] == ["'1'", "'2'", "'3'"][:received]
    delivered, back = (f", delivered {count}" if count else "" for count in (sent, received))
    said = f"scuttleup: .*: connected\nscuttleup: sent {sent}, received {received}{delivered}\n"
    assert re.fullmatch(said, err)
    status, _, err = alice.result()
    assert status == 0
    assert err.endswith(f"scuttleup: sent {received}, received {sent}{back}\n")


def test_once_fails_if_what_it_sent_is_not_taken() -> None:
    pytest.importorskip("nacl")
    run("--db", "b.db", "append", "unsigned")
    run("--db", "a.db", "--signed", "append", "signed")
    alice = Command("--db", "a.db", "replicate", "--listen", "0", "--only-signed")
    status, _, err = once(alice.port(), "--mode=push")
    assert status == 1
    assert re.search("the remote leaves out our own log: is not signed", err)
    assert err.endswith("sent 1, received 0, delivered 0\n")
    alice.end(signal.SIGINT)


def test_once_ends_when_all_have_been_met_and_not_with_the_first_that_comes() -> None:
    with socket.create_server(HERE) as silent:
        alice, port = listen("--once", f"127.0.0.1:{silent.getsockname()[1]}")
        run("--db", "b.db", "append", "x")
        assert once(port)[0] == 0
        assert "x" in alice.stdout.readline()
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
def test_what_an_exchange_brought_is_counted_and_the_status_says_if_it_was_all(
    sends: bytes, status: int
) -> None:
    with socket.create_server(HERE) as server:
        peer = join(server.getsockname()[1], "--once")
        remote, _ = server.accept()
        with remote:
            remote.sendall(encode_handshake("them", {"them": 4}, "sync"))
            remote.sendall(encode_changes("them", 1, [b"one"]) + sends)
            assert "one" in peer.stdout.readline()
            assert "two" in peer.stdout.readline()
            remote.shutdown(socket.SHUT_WR)
            found, _, err = peer.result()
    assert found == status
    assert ("is left out" in err) == (b"is left out" in sends)
    assert err.endswith(f"scuttleup: sent 0, received {2 + (not status)}\n")


def test_once_that_is_interrupted_is_status_130() -> None:
    with socket.create_server(HERE) as silent:
        peer = join(silent.getsockname()[1], "--once")
        peer.stderr_line("connected")
        assert peer.end(signal.SIGINT) == (130, "", "scuttleup: sent 0, received 0\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_was_typed_is_stored_when_a_signal_ends_it(signum: int) -> None:
    """All of it is stored, also when it is more than one read takes."""
    peer, _ = listen(pipesize=1 << 20)
    peer.send_signal(signal.SIGSTOP)
    lines = [f"{n:099}" for n in range(10_000)]
    peer.type("\n".join(lines))
    peer.send_signal(signum)
    assert peer.end(signal.SIGCONT) == (0, "", "")
    assert entries("a.db") == lines


def test_the_lines_of_a_file_are_appended_as_if_they_were_typed() -> None:
    Path("lines").write_text("one\ntwo\n")
    with open("lines") as lines:
        _, port = listen(stdin=lines)
    bob = join(port)
    assert "one" in bob.stdout.readline()
    assert "two" in bob.stdout.readline()


def test_an_endless_input_does_not_keep_it_from_ending() -> None:
    with subprocess.Popen("yes", stdout=subprocess.PIPE) as yes:
        peer, _ = listen(stdin=yes.stdout)
        assert peer.end()[0] == 0
        yes.kill()
    assert set(entries("a.db")) == {"y"}


def test_where_nothing_can_be_typed_it_only_prints() -> None:
    with open("only for writing", "w") as no_input:
        alice, port = listen(stdin=no_input)
    join(port).type("hello")
    assert "hello" in alice.stdout.readline()
    assert alice.end()[:2] == (0, "")


def test_a_line_that_is_too_long_is_told_and_the_peer_goes_on() -> None:
    alice, port = listen()
    alice.type("fits\n" + "x" * (MAX_ENTRY + 1))
    assert "nothing more is taken" in alice.stderr_line("stdin: ")
    bob = join(port)
    assert "fits" in bob.stdout.readline()
    bob.type("still there?")
    assert "still there?" in alice.stdout.readline()


def test_a_remote_that_leaves_in_the_middle_does_not_end_us() -> None:
    """A write to it is a broken pipe, as `head` makes one of our output."""
    alice, port = listen(has=["x" * 1000] * 20_000)
    with socket.create_connection(("127.0.0.1", port)) as remote:
        remote.sendall(encode_handshake("stranger", {}, "pull"))
        remote.shutdown(socket.SHUT_WR)
        remote.recv(1000)
    alice.stderr_line("the connection broke")
    status, out, _ = once(port)
    assert (status, out.count("\n")) == (0, 20_000)
    alice.stderr_line(": gone")
    assert alice.end() == (0, "", "")


def test_with_certificates_strangers_are_kept_out(
    new_certificates: Callable[[], list[str]],
) -> None:
    cert, key, ca = new_certificates()
    tls = [f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-ca={ca}"]
    _, port = listen(*tls, has=["secret"])
    assert once(port)[:2] == (1, "")
    status, out, _ = once(port, *tls)
    assert status == 0
    assert "secret" in out


def test_idle_strangers_take_no_descriptor_that_leveldb_needs() -> None:
    alice, port = listen(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    bob = join(port)
    bob.type("first")
    assert "first" in alice.stdout.readline()
    with contextlib.ExitStack() as crowd:
        for _ in range(80):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        alice.stderr_line("too many")
        for n in range(600):  # 6 MB, so that LevelDB makes new files
            bob.type(f"{n:010000}")
        for n in range(600):
            assert f"{n:010000}" in alice.stdout.readline()
    # They have left, so others are served.
    assert once(port, db="c.db")[1].count("\n") == 601
    status, _, err = alice.end()
    assert status == 0
    assert len(err) < 1000


# --- Outputs and disks that are slow, full or closed ---


def fill(command: Command) -> None:
    """Wait until nearly all is taken of the 64 KiB that the pipe of its stdout holds."""
    unread = bytes(4)
    while int.from_bytes(unread, sys.byteorder) < 60_000:
        assert command.poll() is None
        unread = fcntl.ioctl(command.stdout, termios.FIONREAD, unread)


def test_a_peer_whose_output_nobody_reads_goes_on_and_one_signal_ends_it() -> None:
    _, port = listen(has=["a line"] * 10_000)
    bob = join(port, "--listen", "0")
    fill(bob)
    status, out, _ = once(bob.port(), db="c.db")
    assert (status, out.count("\n")) == (0, 10_000)
    bob.terminate()
    assert bob.wait(LIMIT) == 0


@pytest.mark.parametrize("output", ["stdout", "stderr"])
@pytest.mark.parametrize("wrong", ["no reader", "full"])
def test_a_peer_with_an_output_that_fails_goes_on(output: str, wrong: str) -> None:
    alice, port = listen()
    if wrong == "full":
        bad = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, bad = os.pipe()
        os.close(reader)
    options: dict[str, Any] = {output: bad}
    bob = join(port, **options)
    os.close(bad)
    bob.type("one")
    assert "one" in alice.stdout.readline()
    alice.type("two")
    if output == "stdout":
        bob.stderr_line("stdout: ")
    else:
        assert "two" in bob.stdout.readline()
        alice.end(signal.SIGKILL)  # the link is made again
        alice = Command("--db", "a.db", "replicate", "--listen", str(port))
    bob.type("three")
    assert "three" in alice.stdout.readline()
    assert bob.end()[0] == 0
    assert sorted(entries("b.db")) == ["one", "three", "two"]


def test_once_waits_for_a_slow_reader_but_not_after_a_signal() -> None:
    _, port = listen(has=["a line"] * 10_000)
    slow = join(port, "--once")
    stuck = join(port, "--once", db="c.db")
    fill(slow)
    fill(stuck)
    status, out, _ = slow.result()
    assert (status, out.count("\n")) == (0, 10_000)
    stuck.terminate()
    assert stuck.wait(LIMIT) == 130


def allow_1_mib_a_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))


FULL = "scuttleup: .\\.db cannot be used: .*File too large; .*open it again\n"


@pytest.mark.parametrize("received", [False, True], ids=["typed", "received"])
def test_a_full_disk_is_one_line_and_status_1(received: bool) -> None:
    alice, port = listen(has=["fits"], **({} if received else {"preexec_fn": allow_1_mib_a_file}))
    peer = join(port, preexec_fn=allow_1_mib_a_file) if received else alice
    if received:
        assert "fits" in peer.stdout.readline()
    alice.type("x" * 2_000_000)
    status, out, err = peer.result()
    assert (status, out) == (1, "")
    assert re.search(FULL + "$", err)
    assert entries("b.db" if received else "a.db") == ["fits"]


def test_what_cannot_be_printed_on_a_full_disk_is_one_line_and_status_1() -> None:
    _, port = listen(has="x")
    with open("/dev/full", "w") as full:
        status, _, err = once(port, stdout=full)
        assert status == 1
        assert "scuttleup: stdout: No space left on device\n" in err


# --- The terminal ---


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {**ENVIRONMENT, "PS1": "$ ", "PYTHON": sys.executable}
            os.execvpe("bash", ["bash", "--norc", "--noediting", "-i"], environment)
        self._shown = ""
        self.wait_for("$ ")

    def type(self, text: str, until: str | None = None) -> str:
        """Type, and if `until` is given, wait until that is shown."""
        os.write(self.terminal, text.encode())
        return self.wait_for(until) if until else ""

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown, and return what was shown before it."""
        while text not in self._shown:
            assert select.select([self.terminal], [], [], LIMIT)[0], self._shown
            self._shown += os.read(self.terminal, 65536).decode()
        before, _, self._shown = self._shown.partition(text)
        return before


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    os.kill(shell.pid, signal.SIGHUP)
    os.close(shell.terminal)
    os.waitpid(shell.pid, 0)


REPLICATE = "$PYTHON -m scuttleup replicate --listen 0"


def test_a_job_takes_what_is_typed_whenever_it_is_in_front(shell: Shell) -> None:
    shell.type(f"{REPLICATE} &\n", "listening on ")
    shell.type('echo it is the shell"\'"s\n', "\nit is the shell's")
    for turn, keys in enumerate(("fg\n", "\x1abg\n\nfg\n", "\x1afg\n")):
        for key in keys:  # one at a time, or the peer would get what is for the shell
            shell.type(key)
            if key == "\x1a":
                shell.wait_for("Stopped")
                shell.wait_for("$ ")
        shell.wait_for("replicate --listen 0\r\n")
        shell.type(f"typed {turn}\n")
        wait_until_stored(f"typed {turn}")
    shell.type("\x03", "$ ")
    shell.type("echo status $?\n", "\nstatus 0")
    assert entries() == ["typed 0", "typed 1", "typed 2"]


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


def test_a_program_that_reads_single_keys_gets_all_of_them(shell: Shell) -> None:
    """A pager does that, and shares the terminal with the peer whose output it shows."""
    Path("pager.py").write_text(PAGER)
    shell.type(f"{REPLICATE} | $PYTHON pager.py\n", "ready")
    for key in "abcdefghij":
        shell.type(key, f"got {key}")
    shell.type("q", "the pager is gone")
    shell.type("typed x\n")
    wait_until_stored("typed x")
    shell.type("\x03", "$ ")


def test_a_terminal_that_is_stopped_stops_no_peer(shell: Shell) -> None:
    shell.type(f"{REPLICATE}\n", "listening on 127.0.0.1:")
    port = int(shell.wait_for("\r\n"))
    shell.type("\x13")  # Ctrl-S
    run("--db", "b.db", "append", "over", "there")
    for sent, delivered in ((2, ", delivered 2"), (0, "")):
        status, _, err = once(port)
        last = f"scuttleup: sent {sent}, received 0{delivered}"
        assert (status, err.splitlines()[-1]) == (0, last)
    shell.type("\x03", "$ ")


def test_once_shows_progress_on_a_terminal() -> None:
    _, port = listen(has="123")
    ours, theirs = pty.openpty()
    once(port, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "received 0\r" in shown
    assert "sent 0, received 3" in shown
