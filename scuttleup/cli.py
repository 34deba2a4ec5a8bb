"""The command line: `scuttleup`, or `python -m scuttleup`.

Theory of operation
===================

`main` opens the database, runs one command on it, and turns everything that went wrong into one
line on stderr and an exit status. `append`, `read` and `head` are done in the main thread and end
when their work is done. A signal ends them wherever they are, which is safe: what LevelDB has not
acknowledged was not stored.

`replicate` is a `Peer` in the main thread, with a thread around it for each of stdin, stdout and
stderr (see `terminal.py`). They share nothing with the peer but the logs. It ends in this order:

1. The peer ends, after a signal, or because of `--once`, or because our own database failed.
2. What was typed by then is appended. It is stored, and sent at the next meeting.
3. What was stored by then is printed.
4. The database is closed.

A second signal ends the process at once, in case the first hangs in a write of LevelDB.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from argparse import SUPPRESS
from base64 import b64encode
from functools import partial
from typing import Any

from .changes import Change
from .errors import ScuttleupError
from .limits import MAX_ENTRY, MAX_NAMED
from .log import Scuttleup
from .log import open as open_logs
from .messages import MODES

EPILOG = """\
Exit status: 0 when all went well; 1 after an error, told in one line, and when --once had to leave
out a log; 2 for wrong arguments; 130 after Ctrl-C or SIGTERM, but 0 where they are the usual end
(read --live, replicate).
Only one process at a time can have a database open.

Two people in two terminals:
  alice$ scuttleup --db alice.db replicate --listen 2014
  bob$   scuttleup --db bob.db replicate 127.0.0.1:2014
Each sees what the other types, at once or, after having been away, later."""


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv` and return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == "replicate":
        _check_replicate(parser, args)
    elif sys.platform != "win32":
        # So that `scuttleup read | head` ends quietly. A peer must not end like this, since it also
        # gets the signal when a remote has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for fd in (0, 1, 2):  # where one is closed, LevelDB would get it, and what we print
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        options = {"only_signed": True} if getattr(args, "only_signed", False) else {}
        with open_logs(args.db, signed=args.signed, **options) as logs:
            status = int(args.run(logs, args) or 0)
            sys.stdout.flush()  # here, where what is wrong with it is told
            return status
    except (ScuttleupError, OSError, ValueError, OverflowError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 0 if getattr(args, "live", False) else 130


def _parser() -> argparse.ArgumentParser:
    style: dict[str, Any] = {"epilog": EPILOG}
    style["formatter_class"] = argparse.RawDescriptionHelpFormatter
    about = "Append-only logs that replicate from peer to peer."
    parser = argparse.ArgumentParser("scuttleup", description=about, **style)
    common = argparse.ArgumentParser(add_help=False)
    # Both options may stand before the command and after it. After it they have no default, which
    # would undo what stood before.
    for each, path, signed in (parser, "logs.db", False), (common, SUPPRESS, SUPPRESS):
        help = "the database, made if missing (logs.db)"
        each.add_argument("--db", metavar="PATH", default=path, help=help)
        help = "make the log of a new database a signed one: nobody else can add to it"
        each.add_argument("--signed", action="store_true", default=signed, help=help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str) -> Any:
        about = help[0].upper() + help[1:] + "."
        command = commands.add_parser(name, parents=[common], help=help, description=about, **style)
        command.set_defaults(run=run)
        return command.add_argument

    argument = add("append", _append, "append entries to this peer's log")
    help = "one entry; without any, each line of stdin"
    argument("entries", nargs="*", metavar="ENTRY", help=help)

    argument = add("read", _read, "print every entry of every log")
    help = "do not end (replicate shows what is new)"
    argument("--live", action="store_true", help=help)
    help = "leave out what was there when `scuttleup head --json >FILE` was run; - is stdin"
    argument("--since", metavar="FILE", help=help)
    help = "a JSON object a line, with `entry`, or `entry_base64` where that is not UTF-8"
    argument("--json", action="store_true", help=help)

    argument = add("head", _head, "print the last number of every log; * is this peer's")
    argument("--json", action="store_true", help="as a JSON object")

    add("check", _check, "read everything, and tell log by log whether it is what it should be")

    help = "exchange entries with other peers: print theirs, append what is typed"
    argument = add("replicate", _replicate, help)
    help = "a peer to connect to, and again, after growing pauses, when that fails or ends"
    argument("addresses", nargs="*", type=_address, metavar="HOST:PORT", help=help)
    help = "serve other peers; HOST is 127.0.0.1. Who can connect may read and write"
    at_home = partial(_address, default_host="127.0.0.1")
    argument("--listen", type=at_home, metavar="[HOST:]PORT", help=help)
    help = "send and receive (sync), only send (push) or only receive (pull)"
    argument("--mode", choices=MODES, default="sync", help=help)
    argument("--only-signed", action="store_true", help="leave out logs that are not signed")
    help = "end when all that was there is exchanged with those peers, and with one that came"
    argument("--once", action="store_true", help=help)
    argument("--tls-cert", metavar="FILE", help="this peer's certificate, PEM")
    argument("--tls-key", metavar="FILE", help="the key of that, PEM")
    help = "who signed the certificates of all who may take part, PEM"
    argument("--tls-ca", metavar="FILE", help=help)
    return parser


def _complain(message: str) -> int:
    print(f"scuttleup: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at the end, with two more lines and status 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


# --- append, read, head ---


def _append(logs: Scuttleup, args: argparse.Namespace) -> None:
    if args.entries:
        logs.extend([os.fsencode(entry) for entry in args.entries])  # as they were typed
        return
    lines = Lines(logs)
    # Without a buffer, so that each line is stored as it comes. Opened like this, and not read with
    # os.read, a console of Windows gives UTF-8.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        while lines.take(stdin.read(1 << 16)):
            pass


class Lines:
    """Appends lines as they come: those of one read in one atomic step."""

    def __init__(self, logs: Scuttleup) -> None:
        self._logs = logs
        self._rest = bytearray()  # a line that has not ended yet

    def take(self, data: bytes) -> bool:
        """Append the lines that end in `data`, b"" ends the last one; return whether to go on.

        Raises ValueError if a line is too long for an entry.
        """
        ends = data or (b"\n" if self._rest else b"")
        self._rest += ends
        if b"\n" in ends:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            if sys.platform == "win32":
                lines = [line.removesuffix(b"\r") for line in lines]
            self._logs.extend(lines)
        if len(self._rest) > MAX_ENTRY:
            raise ValueError(f"a line is longer than {MAX_ENTRY} bytes")
        return bool(data)


def _read(logs: Scuttleup, args: argparse.Namespace) -> None:
    since = None
    encoding = "binary" if args.json else "utf-8"
    try:
        if args.since is not None:
            with open(0 if args.since == "-" else args.since, encoding="utf-8") as file:
                since = json.load(file)
        stream = logs.create_read_stream(since=since, live=args.live, value_encoding=encoding)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{args.since}: not what `head --json` prints: {error}") from None
    for change in stream:
        print(_json_line(change) if args.json else change, flush=args.live)


def _json_line(change: Change) -> str:
    try:
        entry = {"entry": change.entry.decode()}
    except UnicodeDecodeError:
        entry = {"entry_base64": b64encode(change.entry).decode()}
    return json.dumps({"peer": change.peer, "seq": change.seq, **entry})


def _head(logs: Scuttleup, args: argparse.Namespace) -> None:
    head = logs.head
    if args.json:
        print(json.dumps(head))
        return
    for peer, seq in sorted({logs.id: 0, **head}.items()):
        print(f"{'*' if peer == logs.id else ' '} {seq} {peer!r}")


def _check(logs: Scuttleup, args: argparse.Namespace) -> int:
    from .check import check_logs, stray_keys

    faults = 0
    for peer, last, entries, proven, fault in check_logs(logs):
        gaps = f", {last - entries} missing" if last > entries else ""
        signed = "" if proven is None else f", {proven} signed by the author"
        print(
            f"{peer!r}: {entries} entries up to number {last}{gaps}{signed}{fault and ': '}{fault}"
        )
        faults += bool(fault)
    for count, key in enumerate(stray_keys(logs)):
        if count < MAX_NAMED:
            print(f"{key!r}: the key of no entry")
        faults += 1
    if faults:
        return _complain(f"{args.db}: {faults} faults")
    return 0


# --- replicate ---


def _check_replicate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program if the arguments do not fit together."""
    if not args.addresses and not args.listen:
        parser.error("replicate: name a HOST:PORT to connect to, or --listen")
    args.tls = [args.tls_cert, args.tls_key, args.tls_ca]
    if None in args.tls:  # "" is a file that is not there: no reason to do without
        if args.tls != [None] * 3:
            parser.error("replicate: --tls-cert, --tls-key and --tls-ca go together")
        args.tls = None


def _address(text: str, default_host: str = "") -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or default_host
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _replicate(logs: Scuttleup, args: argparse.Namespace) -> int:
    import asyncio  # only here: it takes longer to load than all the rest

    return asyncio.run(_run_peer(logs, args))


async def _run_peer(logs: Scuttleup, args: argparse.Namespace) -> int:
    """Run a peer, with threads around it that print and type, and return the exit status."""
    import asyncio
    import logging
    from contextlib import nullcontext
    from threading import Event

    from .peer import Peer, load_tls
    from .terminal import Messages, Printer, Typist

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    interrupted = Event()
    errors: list[Exception] = []  # of our own database

    def interrupt(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)  # for a second one, if a write of ours hangs
        interrupted.set()
        loop.call_soon_threadsafe(over.set)

    def fail(error: Exception) -> None:
        errors.append(error)
        loop.call_soon_threadsafe(over.set)

    def may_wait() -> bool:
        """Whether a slow reader of stdout is waited for at the end."""
        return args.once and not interrupted.is_set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as a shell does for `&` in a script
            signal.signal(signum, interrupt)
    peer = Peer(
        logs,
        listen=args.listen,
        connect=args.addresses,
        mode=args.mode,
        live=not args.once,
        tls=load_tls(*args.tls) if args.tls else None,
    )
    with Messages() as messages:
        with (
            Printer(logs, fail, may_wait) as printer,
            nullcontext() if args.once else Typist(Lines(logs).take, fail),
        ):
            if args.once and sys.stderr.isatty():
                messages.show(lambda: f"received {printer.received}")
            async with peer:
                ends = (asyncio.create_task(peer.wait()), asyncio.create_task(over.wait()))
                # With a look every second. A signal that came while the process was stopped may
                # have gone to another thread, and Python handles it when this one wakes.
                while not any(end.done() for end in ends):
                    await asyncio.wait(ends, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        if errors:
            raise errors[0]
        if not args.once:
            return 0
        summary = f"sent {peer.replicated.sent}, received {printer.received}"
        logging.getLogger("scuttleup").info(summary)
        if interrupted.is_set():
            return 130
        return int(peer.failures > 0 or printer.failed or bool(peer.replicated.refused))
