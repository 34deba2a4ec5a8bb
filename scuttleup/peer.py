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

# Seconds before the next try; twice as long after each that failed or did not outlast the wait for
# it, and up to half of it less, by chance, lest all who lost a peer come back at the same moment.
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
        # Changes. With `once` nothing but what was received is there to be printed.
        self._sent = self._received = 0
        self._failed = False  # an exchange did: the exit status with `once`
        self._typing = not once  # whether there may be more on stdin
        self._over = asyncio.Event()
        self._links: set[asyncio.Task[None]] = set()
        self._error: Exception | None = None  # of ours, not of a remote

    async def run(self, addresses: Sequence[Address], listen: Address | None) -> int:
        """Run until SIGINT or SIGTERM, or until all is exchanged; return the exit status.

        Raises OSError or ValueError if it cannot listen or read the certificates, `plyvel.Error`
        if the disk fails, and KeyboardInterrupt if `once` was interrupted.
        """
        loop = asyncio.get_running_loop()
        stopped = False

        def stop(signum: int, frame: object) -> None:
            nonlocal stopped
            stopped = True
            signal.signal(signum, signal.SIG_DFL)  # for a second one, if a write of ours hangs
            loop.call_soon_threadsafe(self._over.set)

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, stop)
        server_tls, client_tls = _contexts(self._tls) if self._tls else (None, None)
        if listen:
            server = await asyncio.start_server(self._serve, *listen, ssl=server_tls)
            for sock in server.sockets:
                _say(f"listening on {_name(sock.getsockname())}")
        for address in addresses:
            self._start(self._connect(address, client_tls))
        others = [asyncio.create_task(self._print_new())]
        if self._once and sys.stderr.isatty():
            others.append(asyncio.create_task(self._show_progress()))
        if not self._once:
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background a read then fails
            try:
                loop.add_reader(0, self._take)
            except OSError:  # a regular file, for one, which is always ready
                while self._typing:
                    self._take()
        await self._over.wait()
        tasks = (*self._links, *others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(16):  # 1 MiB, the most that a pipe holds: `yes` never ends
            if self._typing and select.select([0], [], [], 0)[0]:
                self._take()
        for change in self._logs.create_read_stream(since=self._printed, value_encoding="utf-8"):
            self._print(change)
        if self._error:
            raise self._error
        if not self._once:
            return 0
        _say(f"sent {self._sent}, received {self._received}")
        if stopped:
            raise KeyboardInterrupt
        return int(self._failed)

    def _start(self, link: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(link)
        self._links.add(task)
        task.add_done_callback(self._end)

    def _end(self, link: asyncio.Task[None]) -> None:
        self._links.discard(link)
        if self._once and not self._links:
            self._over.set()

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        # Not a coroutine: asyncio makes a task of that, and a traceback when it is cancelled.
        name = _name(writer.get_extra_info("peername"))
        self._start(self._exchange(name, reader, writer))

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
                begun = asyncio.get_running_loop().time()
                await self._exchange(name, reader, writer)
                if asyncio.get_running_loop().time() - begun > delay:
                    delay = FIRST_DELAY
            if self._once:
                return
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, LONGEST_DELAY)

    async def _exchange(self, name: str, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            sent, _, _ = await self._logs.replicate(
                reader, writer, mode=self._mode, live=not self._once
            )
        except ScuttleupError as error:
            self._failed = True
            _say(f"{name}: {error}")
        except plyvel.Error as error:
            self._fail(error)
        else:
            self._sent += sent
            if not self._once:
                _say(f"{name}: gone")

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
        self._received += 1
        if change.peer != self._logs.id:  # what was typed here is on the screen already
            print(change, flush=True)

    async def _show_progress(self) -> None:
        while True:  # what comes next is written over it
            print(f"received {self._received}", end="\r", file=sys.stderr, flush=True)
            await asyncio.sleep(0.2)

    def _take(self) -> None:
        try:
            self._typing = self._take_lines(os.read(0, 1 << 16))
        except (plyvel.Error, ScuttleupError) as error:
            self._fail(error)
            self._typing = False
        except OSError:  # there is no stdin
            self._typing = False
        if not self._typing:
            asyncio.get_running_loop().remove_reader(0)


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
