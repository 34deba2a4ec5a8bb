"""A peer that runs: it serves others, comes back to those it lost, prints what is new."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import ssl
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import plyvel

from .changes import Change
from .errors import ScuttleupError
from .log import Scuttleup

Address = tuple[str, int]

# Seconds before the next try; twice as long after each that failed, and up to half of it less, by
# chance, lest all who lost the same peer come back at the same moment.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0


class Peer:
    """What `scuttleup replicate` runs.

    `once` ends it when every exchange is done. `tls` is the files of a certificate, its key and
    the authority that signed those of all who may take part. `take_lines` appends what is typed,
    b"" being the end, and returns whether there may be more.
    """

    def __init__(
        self,
        logs: Scuttleup,
        *,
        mode: str,
        once: bool,
        tls: Sequence[str] | None,
        take_lines: Callable[[bytes], bool],
    ) -> None:
        self._logs = logs
        self._mode = mode
        self._once = once
        self._tls = tls
        self._take_lines = take_lines
        self._printed = logs.head  # how far the entries are on the screen
        self._sent = self._received = 0
        self._failed = False
        self._typing = not once  # whether there may be more on stdin
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: Exception | None = None  # of ours, not of a remote

    async def run(self, peers: Sequence[Address], listen: Address | None) -> int:
        """Run until SIGINT or SIGTERM, or until all is exchanged; return the exit status.

        Raises OSError or ValueError if it cannot listen or read the certificates, and
        `plyvel.Error` if the disk fails.
        """
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._over.set)
        server_tls, client_tls = _contexts(self._tls) if self._tls else (None, None)
        if listen:
            server = await asyncio.start_server(self._serve, *listen, ssl=server_tls)
            for sock in server.sockets:
                _say(f"listening on {_name(sock.getsockname())}")
        links = [self._start(self._connect(address, client_tls)) for address in peers]
        self._start(self._print_new())
        if self._once and sys.stderr.isatty():
            self._start(self._show_progress())
        if self._once and links:
            asyncio.gather(*links).add_done_callback(lambda _: self._over.set())
        if not self._once:
            self._read_stdin(loop)
        await self._over.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._typing and select.select([0], [], [], 0)[0]:
            self._take()
        for change in self._logs.create_read_stream(since=self._printed, value_encoding="utf-8"):
            self._print(change)
        if self._error:
            raise self._error
        if self._once:
            _say(f"sent {self._sent}, received {self._received}")
        return int(self._failed and self._once)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        # Not a coroutine: asyncio makes a task of that, and a traceback when it is cancelled.
        self._start(self._serve_one(reader, writer))

    async def _serve_one(self, reader: StreamReader, writer: StreamWriter) -> None:
        await self._exchange(_name(writer.get_extra_info("peername")), reader, writer)
        if self._once:
            self._over.set()

    async def _connect(self, address: Address, tls: ssl.SSLContext | None) -> None:
        name = _name(address)
        delay = FIRST_DELAY
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address, ssl=tls)
            except (OSError, UnicodeError) as error:  # a name that no host can have
                self._failed = True
                _say(f"{name}: {error}")
            else:
                _say(f"{name}: connected")
                if await self._exchange(name, reader, writer):
                    delay = FIRST_DELAY
            if self._once:
                return
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, LONGEST_DELAY)

    async def _exchange(self, name: str, reader: StreamReader, writer: StreamWriter) -> bool:
        try:
            sent, received = await self._logs.replicate(
                reader, writer, mode=self._mode, live=not self._once
            )
        except ScuttleupError as error:
            self._failed = True
            _say(f"{name}: {error}")
            return False
        except plyvel.Error as error:
            self._fail(error)
            return False
        if not self._once:
            _say(f"{name}: gone")
        self._sent += sent
        self._received += received
        return True

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._over.set()

    async def _print_new(self) -> None:
        try:
            async for change in self._logs.create_read_stream(
                since=self._printed, live=True, value_encoding="utf-8"
            ):
                self._print(change)
        except (plyvel.Error, OSError) as error:  # the latter when nobody reads what we print
            self._fail(error)

    def _print(self, change: Change) -> None:
        self._printed[change.peer] = change.seq
        if change.peer != self._logs.id:  # what was typed here is on the screen already
            print(change, flush=True)

    async def _show_progress(self) -> None:
        before = sum(self._printed.values())
        while True:
            print(f"\rreceived {sum(self._printed.values()) - before}", end="", file=sys.stderr)
            sys.stderr.flush()
            await asyncio.sleep(0.2)

    def _read_stdin(self, loop: asyncio.AbstractEventLoop) -> None:
        def take() -> None:
            if not self._take():
                loop.remove_reader(0)

        try:
            loop.add_reader(0, take)
        except OSError:  # a regular file, for one, which is always ready
            while self._take():
                pass

    def _take(self) -> bool:
        try:
            self._typing = self._take_lines(os.read(0, 1 << 16))
        except (plyvel.Error, ScuttleupError) as error:
            self._fail(error)
            self._typing = False
        except OSError:  # there is no stdin
            self._typing = False
        return self._typing


def _contexts(files: Sequence[str]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For serving and for connecting: a peer is who has a certificate of the authority."""
    cert, key, ca = files
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.check_hostname = False  # peers move, and no name of theirs is told to us
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(cert, key)
            context.load_verify_locations(ca)
        except OSError as error:
            raise ValueError(f"certificates {cert}, {key}, {ca}: {error}") from error
    return contexts


def _name(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(message: str) -> None:
    print(f"scuttleup: {message}", file=sys.stderr, flush=True)
