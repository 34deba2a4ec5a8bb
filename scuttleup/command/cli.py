"""The command line: `scuttleup`, or `python -m scuttleup`.

Theory of operation
===================

`main` opens the database, runs one command, and turns every error into one line on stderr and an
exit status. All commands but `replicate` are done in the main thread and end when their work is
done. A signal ends them wherever they are, which is safe: an entry that LevelDB has not
acknowledged was not stored.

`replicate` is a `Peer` in the main thread, with a thread around it for each of stdin, stdout and
stderr (see `terminal.py`). These threads share nothing with the peer but the logs. All ends in this
order:

1. The peer ends, after a signal, or because of `--once`, or because our own database failed.
2. Lines that were typed until then are appended: stored here, and sent at the next meeting.
3. Entries that were stored until then are printed.
4. The database is closed.

A second signal ends the process at once, in case the first hangs in a write of LevelDB. See
`ending.py` for the signals.

Nothing here is needed to use the package from a program. Nothing below this file prints, reads
stdin or handles signals, except `terminal.py`, which does so for this file. Modules that take long
to load, asyncio above all, are imported by the one command that needs them.

All input and output is bytes as far as possible. An argument is appended byte for byte, in any
locale. An entry is printed in the encoding of stdout, and characters that this lacks are escaped,
so that no entry can end the program with an error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from argparse import SUPPRESS
from functools import partial

from .. import limits
from ..changes import Change
from ..errors import ScuttleupError
from ..log import Scuttleup
from ..log import open as open_logs
from .ending import Ending
from .files import Lines, open_stdin, printing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..encodings import ValueEncoding

# For how many seconds a command tries to open a database that another program has open.
WAIT = 5
# Stands at the end of every help text.
EPILOG = """\
Exit status: 0 when all went well; 1 after an error, told in one line, and when
--once had to leave out a log or not all that it sent was delivered; 2 for
wrong arguments; 130 after Ctrl-C or SIGTERM, but 0 where they are the usual
end (read --live, replicate).
While replicate runs, the other commands can use its database.

Two people in two terminals:
  alice$ scuttleup --db alice.db replicate --listen 2014
  bob$   scuttleup --db bob.db replicate 127.0.0.1:2014
Each sees what the other types, at once or, after having been away, later."""


def main(argv: list[str] | None = None) -> int:
    """Do what `command.main` says."""
    ending = Ending()
    args = _parse(argv)
    is_peer = args.command == "replicate"
    if is_peer:
        args.ending = ending
    elif sys.platform != "win32" and sys.stdout is sys.__stdout__:
        # `scuttleup read | head` is to end quietly. A peer must not end like this, because it also
        # gets this signal when a remote has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # LevelDB would get the number of a file that is closed, and our output would go into the
    # database.
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    try:
        ending.interrupt()
        signed = args.signed and args.command != "new-id"
        options = {"signed": signed, "only_signed": args.only_signed, "create": args.create}
        # A peer runs for long, and lets the other commands use its database.
        with printing(), open_logs(args.db, **options, share=is_peer, wait=WAIT) as logs:
            return int(args.run(logs, args) or 0)
    except (ScuttleupError, OSError, ValueError, OverflowError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        # This is the usual end of a command that has no end of its own.
        return 0 if args.live or (is_peer and not args.once) else 130


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Ends the program if they are wrong."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    if more and args.command in ("append", "replicate"):
        # argparse takes no arguments of a command that stand behind one of its options.
        args.parser.parse_args(more, args)
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.command == "replicate":
        if not args.addresses and not args.listen:
            parser.error("replicate: name a HOST:PORT to connect to, or --listen")
        # "" is a file that is not there, and no reason to do without TLS.
        tls = args.tls_cert, args.tls_key, args.tls_ca
        args.tls = [path for path in tls if path is not None]
        if len(args.tls) in (1, 2):
            parser.error("replicate: --tls-cert, --tls-key and --tls-ca go together")
    return args


def _parser() -> argparse.ArgumentParser:
    """The parser of all arguments. Each command leaves its function in `args.run`."""
    about = "Append-only logs that replicate from peer to peer."
    parser = _Parser("scuttleup", description=about)
    # The package has loaded this file, and stands above, so it is not imported here.
    version = f"scuttleup {sys.modules['scuttleup'].__version__}"
    parser.add_argument("--version", action="version", version=version)
    # A mistyped path is no reason for a command that only looks to make a database.
    parser.set_defaults(create=False, live=False, only_signed=False)
    common = _Parser(add_help=False)
    # Both options may stand before the command and after. After the command they have no default,
    # which would undo those before.
    for each, path, signed in (parser, "logs.db", False), (common, SUPPRESS, SUPPRESS):
        each.add_argument("--db", metavar="PATH", default=path, help="the database (logs.db)")
        help = "make the log of a new database a signed one: nobody else can add to it"
        each.add_argument("--signed", action="store_true", default=signed, help=help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str, **defaults: bool) -> Any:
        about = help[0].upper() + help[1:] + "."
        command = commands.add_parser(name, parents=[common], help=help, description=about)
        command.set_defaults(run=run, parser=command, **defaults)
        return command.add_argument

    argument = add("append", _append, "append entries to this peer's log", create=True)
    argument("entries", nargs="*", action="extend", metavar="ENTRY", help="or each line of stdin")

    argument = add("read", _read, "print every entry of every log")
    argument("--live", action="store_true", help="do not end (replicate shows what is new)")
    argument("--since", metavar="FILE", help="leave out what `head --json >FILE` saw; - is stdin")
    help = "a JSON object a line, with `entry`, or `entry_base64` where that is not UTF-8"
    argument("--json", action="store_true", help=help)

    argument = add("head", _head, "print the last number of every log; * is this peer's")
    argument("--json", action="store_true", help="as a JSON object")

    peer = {"metavar": "PEER", "help": "the id of the log, as `head` shows it, without the quotes"}
    add("forget", _forget, "delete another's log, and take it no more")("peer", **peer)
    help = "take a log again that was forgotten"
    add("remember", lambda logs, args: logs.remember(args.peer), help)("peer", **peer)
    add("export", _export, "print every entry as it is stored, a JSON object a line")
    add("import", _import, "store what export has printed, from stdin", create=True)
    help = "make a whole copy, which knows that it is a backup"
    argument = add("backup", lambda logs, args: logs.backup(args.path), help)
    argument("path", metavar="NEW", help="a folder that is not there yet")
    help = "let a backup go on, because no other copy does"
    add("resume", lambda logs, args: logs.resume(), help)
    help = "begin a new log; the old one stays as another's log"
    add("new-id", _new_id, help, create=True)
    add("check", _check, "read everything, and tell log by log whether it is what it should be")

    help = "exchange entries with other peers: print theirs, append what is typed"
    argument = add("replicate", _replicate, help, create=True)
    help = "a peer to connect to, and again, after growing pauses, when that fails or ends"
    argument("addresses", nargs="*", action="extend", type=_address, metavar="HOST:PORT", help=help)
    help = "serve other peers, who may then read and write; HOST is 127.0.0.1; may be repeated"
    at_home = partial(_address, default_host="127.0.0.1")
    argument("--listen", action="append", type=at_home, metavar="[HOST:]PORT", help=help)
    help = "send and receive (sync), only send (push) or only receive (pull)"
    argument("--mode", choices=["sync", "push", "pull"], default="sync", help=help)
    argument("--only-signed", action="store_true", help="leave out logs that are not signed")
    help = "end when all that was there is exchanged with those peers, and with one that came"
    argument("--once", action="store_true", help=help)
    argument("--tls-cert", metavar="FILE", help="this peer's certificate, PEM")
    argument("--tls-key", metavar="FILE", help="the key of that, PEM")
    argument("--tls-ca", metavar="FILE", help="the authority that signed all certificates, PEM")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser of this program, or of one of its commands."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, epilog=EPILOG, formatter_class=_formatter, **options)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """The formatter of each option. Without a width argparse loads `shutil`, which takes 3 ms."""
    return argparse.RawDescriptionHelpFormatter(prog, width=78)


def _complain(message: str) -> int:
    """Print one line on stderr and return the exit status 1."""
    try:
        print(f"scuttleup: {message}", file=sys.stderr)
    except OSError:
        # There is nobody else to tell. Python would try again at the end, for another status.
        sys.stderr = None
    return 1


# --- append, read, head ---


def _append(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Append the arguments in one atomic step, or the lines of stdin as they come."""
    if args.entries:
        # They are appended as they were typed, byte for byte.
        logs.extend([os.fsencode(entry) for entry in args.entries])
        return
    lines = Lines(logs)
    stdin = open_stdin()
    # Each line is stored as it comes.
    while lines.take(stdin.read1(1 << 16)):
        pass


def _read(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Print every entry, or every entry that was not there when FILE was written."""
    since = None
    # JSON shows an entry as text only if nothing gets lost.
    encoding: ValueEncoding = "binary" if args.json else "utf-8"
    try:
        if args.since is not None:
            import json

            with open_stdin() if args.since == "-" else open(args.since, "rb") as file:
                # These bytes may be UTF-16 with a mark, which `>` of Windows PowerShell writes.
                since = json.loads(b"".join(file))
        stream = logs.create_read_stream(since=since, live=args.live, value_encoding=encoding)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{args.since}: not what `head --json` of this database prints: {error}"
        ) from None
    for change in stream:
        print(_json_line(change) if args.json else change, flush=args.live)


def _json_line(change: Change) -> str:
    """A change as one line of JSON.

    >>> _json_line(Change("foobar", 1, b"hello"))
    '{"peer": "foobar", "seq": 1, "entry": "hello"}'
    """
    import json

    try:
        entry = {"entry": change.entry.decode()}
    except UnicodeDecodeError:
        from base64 import b64encode

        entry = {"entry_base64": b64encode(change.entry).decode()}
    return json.dumps({"peer": change.peer, "seq": change.seq, **entry})


def _export(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Print every entry as stored: those of signed logs with their signatures."""
    for change in logs.create_read_stream(raw=True):
        print(_json_line(change))


def _import(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Store what `export` has printed, some lines at a time; each of those is all stored or not."""
    import json
    from base64 import b64decode

    def parse(line: bytes) -> tuple[str, int, bytes]:
        found = json.loads(line)
        text = found.get("entry")
        entry = b64decode(found["entry_base64"], validate=True) if text is None else text.encode()
        return found["peer"], found["seq"], entry

    stdin, first = open_stdin(), 1
    while lines := stdin.readlines(1 << 20):
        try:
            logs.write(map(parse, lines))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            last = first + len(lines) - 1
            raise ValueError(f"lines {first} to {last} of stdin: {error}") from error
        first += len(lines)


def _new_id(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Begin a new log, and print its id."""
    print(logs.new_id(signed=args.signed))


def _head(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Print the last number of every log, this peer's own included, even if that is empty."""
    head = logs.head
    if args.json:
        import json

        print(json.dumps(head))
        return
    for peer, seq in sorted({logs.id: 0, **head}.items()):
        print(f"{'*' if peer == logs.id else ' '} {seq} {peer!r}")


def _forget(logs: Scuttleup, args: argparse.Namespace) -> None:
    """Forget a log."""
    print(f"{args.peer!r}: {logs.forget(args.peer)} entries deleted")


def _check(logs: Scuttleup, args: argparse.Namespace) -> int:
    """Print how whole each log is, and return 1 if there is any fault."""
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
        # A database of the original can have very many of them.
        if count < limits.MAX_NAMED:
            print(f"{key!r}: the key of no entry")
        faults += 1
    if faults:
        return _complain(f"{args.db}: {faults} faults")
    return 0


# --- replicate ---


def _address(text: str, default_host: str = "") -> tuple[str, int]:
    """The host and port in the argument `text`, in which IPv6 stands in brackets.

    >>> _address("[::1]:2014")
    ('::1', 2014)
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or default_host
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _replicate(logs: Scuttleup, args: argparse.Namespace) -> int:
    """Run a peer until it ends, and return the exit status."""
    import asyncio  # here, because it takes longer to load than all the rest

    return asyncio.run(_run_peer(logs, args))


async def _run_peer(logs: Scuttleup, args: argparse.Namespace) -> int:
    """Run a peer, with threads around it that print and type, and return the exit status.

    See the theory of operation for the order in which all this ends. The `with` blocks are in that
    order from the inside out.
    """
    import asyncio
    from contextlib import nullcontext

    ending: Ending = args.ending
    over = ending.begin()
    from ..peer import Peer, load_tls
    from ..replication import UNWANTED
    from .terminal import Messages, Printer, Typist, logger

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
            Printer(logs, ending, patient=args.once) as printer,
            nullcontext() if args.once else Typist(logs, ending),
        ):
            if args.once and sys.stderr.isatty():
                messages.show(lambda: f"received {printer.received}")
            async with peer:
                ends = (asyncio.create_task(peer.wait()), asyncio.create_task(over.wait()))
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if ending.error:
            raise ending.error
        if not args.once:
            return 0
        done = peer.replicated
        summary = f"sent {done.sent}, received {printer.received}"
        if done.sent and done.delivered is not None:
            summary += f", delivered {done.delivered}"
        logger.info(summary)
        if ending.came:
            return 130
        bad = any(reason not in UNWANTED for reason in done.refused.values())
        return int(peer.failures + peer.lost > 0 or printer.failed or bad)
