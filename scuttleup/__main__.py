"""The command line: `python -m scuttleup`, or `scuttleup`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from base64 import b64encode
from functools import partial
from typing import Any

import plyvel

from .changes import Change
from .errors import ScuttleupError
from .log import Scuttleup

EPILOG = """\
Exit status: 0 when all went well; 1 after an error, told in one line; 2 for wrong arguments;
130 after Ctrl-C or SIGTERM, but 0 where they are the usual end (read --live, replicate).
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
    else:  # there the pipe may be a remote's, who is not to end us
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `scuttleup read | head` ends quietly
    for fd in (0, 1, 2):  # where one is closed, LevelDB would get it, and what we print
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    db = None
    try:
        # Create it only where there is nothing: LevelDB would make a new one over a damaged one.
        is_new = not os.path.exists(args.db)
        db = plyvel.DB(args.db, create_if_missing=is_new, paranoid_checks=True)
        logs = Scuttleup(db)
        try:
            status = int(args.run(logs, args) or 0)
            sys.stdout.flush()  # here, where what is wrong with it is told
            return status
        finally:
            logs.close()
    except plyvel.Error as error:
        held = " (another process has it open)" if b"/LOCK: " in error.args[0] else ""
        return _complain(f"{args.db}: {error.args[0].decode()}{held}")
    except (ScuttleupError, OSError, ValueError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 0 if getattr(args, "live", False) else 130
    finally:
        if db:
            db.close()


def _parser() -> argparse.ArgumentParser:
    db = argparse.ArgumentParser(add_help=False)
    db.add_argument("--db", metavar="PATH", default=argparse.SUPPRESS, help="the database")
    parser = argparse.ArgumentParser(
        prog="scuttleup",
        description="Append-only logs that replicate from peer to peer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--db", metavar="PATH", default="logs.db", help="the database, made if missing (logs.db)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            parents=[db],
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    append = add("append", _append, "append entries to this peer's log")
    append.add_argument(
        "entries", nargs="*", metavar="ENTRY", help="one entry; without any, each line of stdin"
    )

    read = add("read", _read, "print every entry of every log")
    read.add_argument(
        "--live", action="store_true", help="do not end (replicate shows what is new)"
    )
    read.add_argument(
        "--since",
        metavar="FILE",
        help="leave out what was there when `scuttleup head --json >FILE` was run; - is stdin",
    )
    read.add_argument(
        "--json",
        action="store_true",
        help="a JSON object a line, with `entry`, or `entry_base64` where that is not UTF-8",
    )

    head = add("head", _head, "print the last number of every log; * is this peer's")
    head.add_argument("--json", action="store_true", help="as a JSON object")

    replicate = add(
        "replicate",
        _replicate,
        "exchange entries with other peers: print theirs, append what is typed",
    )
    replicate.add_argument(
        "addresses",
        nargs="*",
        type=_address,
        metavar="HOST:PORT",
        help="a peer to connect to, and again, after growing pauses, when that fails or ends",
    )
    replicate.add_argument(
        "--listen",
        type=partial(_address, default_host="127.0.0.1"),
        metavar="[HOST:]PORT",
        help="serve other peers; HOST is 127.0.0.1. Who can connect may read and write",
    )
    replicate.add_argument(
        "--mode",
        choices=("sync", "push", "pull"),
        default="sync",
        help="send and receive (sync), only send (push) or only receive (pull)",
    )
    replicate.add_argument(
        "--once",
        action="store_true",
        help="end when all that was there is exchanged with those peers, and with one that came",
    )
    for option, help in (
        ("cert", "this peer's certificate, PEM"),
        ("key", "the key of that, PEM"),
        ("ca", "who signed the certificates of all who may take part, PEM"),
    ):
        replicate.add_argument(f"--tls-{option}", metavar="FILE", help=help)
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
    while lines.take(os.read(0, 1 << 16)):
        pass


class Lines:
    """Appends lines as they come: those of one read in one atomic step."""

    def __init__(self, logs: Scuttleup) -> None:
        self._logs = logs
        self._rest = bytearray()  # a line that has not ended yet

    def take(self, data: bytes) -> bool:
        """Append the lines that end in `data`, b"" ends the last one; return whether to go on."""
        ends = data or (b"\n" if self._rest else b"")
        self._rest += ends
        if b"\n" in ends:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            self._logs.extend(lines)
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

    from .peer import Peer

    peer = Peer(logs, mode=args.mode, once=args.once, tls=args.tls, take_lines=Lines(logs).take)
    return asyncio.run(peer.run(args.addresses, args.listen))


if __name__ == "__main__":
    sys.exit(main())
