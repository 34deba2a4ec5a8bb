"""`Peer`: keeps the logs connected. It serves others, connects to others, and comes back.

Theory of operation
===================

A peer is a set of tasks in one `asyncio.TaskGroup`, which exists exactly as long as the body of the
`async with`:

    an *acceptor* for each listening socket       accepts, and starts a session for each connection
    a *session* for each connection that came     replicates once and ends
    a *session* for each address in `connect`     connects, replicates, waits, and begins again

These events end tasks:

- **The body of the `async with` ends**, be it normally, by an exception or by a cancellation such
  as Ctrl-C under `asyncio.run`. Leaving cancels all tasks and waits until each has closed its
  socket. No task needs anything from the remote for that, so leaving takes a moment, whoever is
  connected.
- **A remote is in error, or the connection breaks.** That ends one exchange and is told. Nothing
  else is affected. A session with an address of `connect` waits and tries again: 0.5 seconds, then
  twice as long each time up to 30 seconds, while no exchange outlasts the wait before it. After a
  `ProtocolError` the wait is 5 minutes, since the remote will most likely do the same again. Each
  wait is shortened by chance, by up to a half, so that not all who lost a peer come back at the
  same moment.
- **An exchange meets a mistake in this package.** That, too, ends this exchange only. The mistake
  is told with its traceback, as asyncio tells of an exception that nobody catches.
- **Our own database fails.** That hits every session alike, and only the user can do something
  about the cause. So no session catches the error. The task group then cancels all tasks and the
  body, and leaving the `async with` raises that error.
- **The logs are closed**, by another thread or in a signal handler. Then there is nothing left to
  serve. All tasks end, and `wait` returns.
- **All is exchanged**, if the peer is not `live`. Then every session ends after one exchange, and
  `wait` returns when the last session has ended. The peer still listens until the body ends.

A name can mean several addresses. They are tried in turn, each for CONNECT_SECONDS, until an
exchange with one of them goes well. So an address that leads nowhere, or to ourselves, does no
harm.

*Places.* Connections are counted from the moment they are accepted, before the TLS handshake. The
places of the addresses in `connect` are taken from the start, so strangers cannot occupy them. A
host gets a quarter of the places at most. A connection without a place is closed at once.

*Descriptors* are limited without counting, because the kernel always gives out the lowest free
number: if no connection keeps a descriptor above a certain number, the numbers above stay free for
LevelDB, however many descriptors the process has open otherwise. For connections that come, that
number is lower by the number of addresses in `connect`. If the process runs out of descriptors all
the same, the acceptor pauses for a tenth of a second.

`Peer` does not use asyncio's own server, which logs a traceback for each failed attempt, many
thousand a second. From Python 3.12 on, that server also waits at its end until all who are
connected have left.

`Peer` prints nothing. The logger "scuttleup" gets a line for each event. The same event is told
once a minute and then with a count (see `notes/events.py`), so strangers can make a log file grow
by no more than some lines a minute.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import ssl
import sys
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from . import limits
from .errors import ConnectionLost, ProtocolError, ScuttleupError
from .follower import Had
from .log import Scuttleup
from .replication import MODES, Mode, Replicated, ReplicationStream, replicate

# A host, which is a name or a number, and a port.
Address = tuple[str, int]
# Where connections come from: one address of IPv4, or a /64 of IPv6, which one host is given.
Host = str | bytes
Task = asyncio.Task[None]

# Seconds between two attempts to connect: the first wait, and the longest.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
# Seconds before the next attempt after a remote was in error.
ERROR_DELAY = 300.0
# Seconds that the acceptor rests after the system refused a connection. Connections that come
# meanwhile wait in the kernel.
ACCEPT_PAUSE = 0.1

logger = logging.getLogger("scuttleup")
# Without any handler, Python would print warnings on stderr. A program decides itself what is
# printed.
logger.addHandler(logging.NullHandler())


class Connection(NamedTuple):
    """A connection of a `Peer`, and how far it has come.

    `remote_id` is None before the remote's handshake. `delivered` is how many of the `sent` changes
    the remote says it has, and None if the remote does not report. `complete` is whether the remote
    has dealt with all of them, and has sent all that it had when the two met.
    """

    address: Address
    remote_id: str | None
    sent: int
    delivered: int | None
    received: int
    complete: bool


class Tls(NamedTuple):
    """The two sides of TLS: a peer is a server to some and a client to others."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def load_tls(cert: str, key: str, ca: str) -> Tls:
    """Make what the argument `tls` of `Peer` takes, from three PEM files.

    `cert` is the certificate of this peer and `key` is its private key. `ca` is the certificate of
    the authority that signed the certificates of all who may take part. Both sides of a connection
    must show such a certificate. The names in the certificates do not matter, because peers move.

    Raises ValueError if a file cannot be read or does not fit.

    >>> tls = load_tls("alice.pem", "alice-key.pem", "ca.pem")
    >>> peer = Peer(logs, listen=("0.0.0.0", 2014), tls=tls)
    """
    tls = Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(cert, key)
            context.load_verify_locations(ca)
        except OSError as error:
            raise ValueError(f"certificates {cert}, {key}, {ca}: {error}") from error
    return tls


class Peer:
    """Keeps `logs` connected for as long as the body of its `async with` runs.

    - `listen` is a host and a port to serve other peers at, or a list of them. If a port is 0 the
      system chooses one, which `addresses` tells. Whoever can connect may read and write, so see
      `load_tls` for an untrusted network.
    - `connect` is a list of hosts and ports to stay connected to. The methods `connect` and
      `disconnect` change it at any time.
    - `mode` is "sync", "push" (only send) or "pull" (only receive).
    - `live`: if false, each address is connected to once, only the entries that are there are
      exchanged, and `wait` returns after that.
    - `tls` is what `load_tls` returns, or None to send everything in the clear.
    - `max_connections` bounds all connections together, and a quarter of that number those that
      come from one host, which is a /64 in IPv6. There are fewer if the process may not have that
      many descriptors and 64 more. The soft limit of the process is raised as far as that needs and
      the hard limit allows.

    Wrong arguments are a TypeError or ValueError at once. Entering raises ScuttleupError if the
    peer cannot listen. Leaving raises DatabaseError if our own database failed; the body is
    cancelled when that happens. Events are told to `logging.getLogger("scuttleup")`.

    >>> async with Peer(logs, listen=("127.0.0.1", 2014), connect=[("10.0.0.7", 2014)]) as peer:
    ...     await peer.wait()
    """

    def __init__(
        self,
        logs: Scuttleup,
        *,
        listen: Address | Iterable[Address] = (),
        connect: Iterable[Address] = (),
        mode: Mode = "sync",
        live: bool = True,
        tls: Tls | None = None,
        max_connections: int = limits.MAX_CONNECTIONS,
    ) -> None:
        if not isinstance(logs, Scuttleup):
            raise TypeError(f"logs are a Scuttleup, not {logs!r}")
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        if not isinstance(max_connections, int) or max_connections < 1:
            raise ValueError(f"max_connections is a number from 1 on, not {max_connections!r}")
        if tls is not None and not isinstance(tls, Tls):
            raise TypeError(f"tls is what load_tls returns, not {tls!r}")
        self._logs = logs
        flat = isinstance(listen, (str, tuple)) and not any(isinstance(x, tuple) for x in listen)
        addresses: Iterable[Any] = [listen] if flat and listen else listen or ()
        self._listen = [_check_address(address) for address in addresses]
        self._connect = [_check_address(address) for address in connect]
        if (count := len(self._connect)) > max_connections:
            raise ValueError(f"connect has {count} addresses, max_connections is {max_connections}")
        self._mode, self._live, self._tls = mode, live, tls
        self._max_connections = max_connections
        # All tasks of this peer. The group is entered and left with the `async with`.
        self._group = asyncio.TaskGroup()
        # A task for each listening socket.
        self._acceptors: set[Task] = set()
        # A task for each connection that came, with the host, and a task for each address in
        # `connect`, with the address, whether or not that is connected at present.
        self._sessions: dict[Task, Host | Address] = {}
        # Whether the `async with` has begun.
        self._entered = False
        # The addresses of those who are connected now, and the replications with them, by their
        # writers.
        self._connected: dict[StreamWriter, tuple[Address, ReplicationStream]] = {}
        # Set when a remote has reported, and when a connection has begun or ended.
        self._changed = asyncio.Event()
        # Set when nothing is left to do: see `wait`.
        self._over = asyncio.Event()
        # Where everything that happens is told.
        self._store = logs._own_store("replicate")
        self._tell = self._store.events.tell
        # From this number on, descriptors are not for connections. 0 means that there is no limit.
        self._first_spare = 0
        # The sum of all exchanges that have ended.
        self._replicated = Replicated(0, 0, {})
        self._failures = self._lost = 0
        self._addresses: list[Address] = []

    @property
    def addresses(self) -> list[Address]:
        """The listening addresses, with real ports; a name like "localhost" can mean two."""
        return self._addresses

    @property
    def failures(self) -> int:
        """How many exchanges failed: no connection, a remote in error, or a connection broken."""
        return self._failures

    @property
    def lost(self) -> int:
        """How many changes, sent in exchanges that have ended, remotes say they wanted and lack."""
        return self._lost

    @property
    def replicated(self) -> Replicated:
        """The sum of all exchanges that ended well: changes sent and received, and logs refused.

        An exchange that is under way is not counted yet.
        """
        return self._replicated

    @property
    def connected(self) -> list[Address]:
        """The addresses of those who are connected now, in the order in which they came."""
        return [address for address, _ in self._connected.values()]

    @property
    def connections(self) -> list[Connection]:
        """The connections to those who are connected now, in the same order."""
        found = []
        for address, stream in self._connected.values():
            sent, received, _, delivered, *_ = stream.replicated
            about = address, stream.remote_id, sent, delivered, received, stream.complete
            found.append(Connection(*about))
        return found

    async def caught_up(self) -> None:
        """Wait until those who are connected and report have all that we have, and we have theirs.

        At least one who reports has to be connected. A connection that is lost meanwhile is waited
        for again. Entries that a remote got after the meeting may still be on their way. A remote
        that does not report, such as the original, is not waited for. Raises ScuttleupError if the
        logs are closed or the peer has ended.
        """
        met: set[Address] = set()
        while True:
            self._changed.clear()
            self._store.database.ready()
            if self._over.is_set() and not self._sessions:
                raise ScuttleupError("the peer has ended")
            links = [link for link in self._connected.values() if link[1].reports is not False]
            now = {address for address, _ in links}
            met = (met | now) & set(self._connect)
            if links and met <= now and all(stream.caught_up for _, stream in links):
                return
            await self._changed.wait()

    def connect(self, address: Address) -> None:
        """Stay connected to one more address. Raises ValueError if there are too many."""
        if len(self._connect) >= self._max_connections:
            raise ValueError(f"{address!r} is more than max_connections, {self._max_connections}")
        address = _check_address(address)
        self._connect.append(address)
        if self._entered:
            self._start(self._stay_connected(address), address)
            if len(self._sessions) > self._max_connections:
                came = [task for task, who in self._sessions.items() if not isinstance(who, tuple)]
                for task in came[-1:]:
                    task.cancel()

    def disconnect(self, address: Address) -> None:
        """Leave an address of `connect` at once. Raises ValueError for any other address."""
        if _check_address(address) not in self._connect:
            raise ValueError(f"{address!r} is not an address that is connected to")
        self._connect.remove(address)
        for task, who in self._sessions.items():
            if who == address:
                task.cancel()
                break

    async def wait(self) -> Replicated:
        """Wait until the peer ends by itself, and return `replicated`.

        A peer ends by itself if it is not `live` and all is exchanged, or if the logs are closed.
        Otherwise this waits until the cancellation. See `failures` for whether all went well.
        """
        await self._over.wait()
        return self._replicated

    async def __aenter__(self) -> Peer:
        loop = asyncio.get_running_loop()

        # A group can be entered once: this is a RuntimeError if the peer was entered before.
        await self._group.__aenter__()
        # This follower gives nothing to read, but is woken when the logs are closed.
        self._sentinel = self._store.follow(
            Had(), snapshot=False, live=False, wake=partial(loop.call_soon_threadsafe, self._look)
        )
        self._first_spare = _limit_descriptors(self._max_connections)
        for sock in await _listen(self._listen):
            self._addresses.append(_address_of(sock.getsockname()))
            logger.info("listening on %s", _show(self._addresses[-1]))
            task = self._group.create_task(self._accept(sock))
            self._acceptors.add(task)
            self._close_after(task, sock)
        self._entered = True
        for address in self._connect:
            self._start(self._stay_connected(address), address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        self._sentinel.close()
        self._stop()
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # A single error matters: the body's own, else the first that a task had. The body's own
            # goes on by itself when this returns.
            if error in group.exceptions:
                return
            first = group.exceptions[0]
            raise first from first.__cause__

    def _look(self) -> None:
        """Stop if the logs were closed."""
        if self._sentinel.closed:
            self._stop()

    def _stop(self) -> None:
        """End all tasks. Each closes its socket on its way out."""
        for task in (*self._acceptors, *self._sessions):
            task.cancel()
        self._over.set()
        self._changed.set()

    def _start(self, session: Coroutine[Any, Any, None], who: Host | Address) -> Task:
        """Start a session with `who`, which counts as a connection until the end."""
        task = self._group.create_task(session)
        self._sessions[task] = who
        task.add_done_callback(self._forget)
        return task

    def _close_after(self, task: Task, sock: socket.socket) -> None:
        """Close `sock` when `task` is done, also if its cancel came before its first step."""
        task.add_done_callback(lambda _: sock.close())

    def _forget(self, task: Task) -> None:
        """Forget a session that has ended. A peer that is not `live` is over after the last."""
        del self._sessions[task]
        if not self._live and not self._sessions:
            self._over.set()
        self._changed.set()

    # --- Those who come ---

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections from a listening socket, for ever."""
        while True:
            try:
                sock, name = await _accept_one(listener)
            except OSError as error:
                # Most likely there are too few descriptors or too little memory. That passes, so
                # try again.
                text = f"cannot accept a connection: {_reason(error)}"
                self._tell("warning", "not accepted", text)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            address = _address_of(name)
            host = _host_of(address)
            # As many descriptors as there are addresses in `connect` are left for those.
            if (
                len(self._sessions) < self._max_connections
                and list(self._sessions.values()).count(host) < max(1, self._max_connections // 4)
                and self._may_keep(sock, len(self._connect))
            ):
                self._close_after(self._start(self._serve(sock, address), host), sock)
            else:
                sock.close()
                text = f"{_show(address)}: closed, as there are too many connections"
                self._tell("warning", "too many", text)
            # While connections are waiting, accepting them lets nobody else run.
            await asyncio.sleep(0)

    def _may_keep(self, sock: socket.socket, kept_free: int = 0) -> bool:
        """Whether a connection may have the descriptor of `sock`: see the theory of operation."""
        return not self._first_spare or sock.fileno() < self._first_spare - kept_free

    async def _serve(self, sock: socket.socket, address: Address) -> None:
        """Replicate once with a peer that came, from the TLS handshake to the end."""
        loop = asyncio.get_running_loop()
        reader = StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, **_tls_options(self._tls and self._tls.server)
            )
        except OSError as error:
            # The TLS handshake failed.
            self._failures += 1
            text = f"{_show(address)}: {_reason(error)}"
            self._tell("warning", "lost", text, who=address[0])
            return
        writer = StreamWriter(transport, protocol, reader, loop)
        await self._exchange(address, address[0], reader, writer)

    # --- Those whom we connect to ---

    async def _stay_connected(self, address: Address) -> None:
        """Connect to an address, replicate, wait and begin again; if not `live`, only once."""
        delay = FIRST_DELAY
        while True:
            in_error, took = await self._meet(address)
            if not self._live:
                return
            # After an exchange that outlasted the wait before, begin with a short wait.
            if took > delay:
                delay = FIRST_DELAY
            await asyncio.sleep((ERROR_DELAY if in_error else delay) * random.uniform(0.5, 1))
            delay = min(2 * delay, LONGEST_DELAY)

    async def _meet(self, address: Address) -> tuple[bool, float]:
        """Replicate with the addresses that the name means, until an exchange goes well.

        Returns whether all of them were in error, and how many seconds the last exchange took.
        """
        now, name = asyncio.get_running_loop().time, _show(address)
        # The end of each attempt: "" if there was no connection, else the kind of the failure.
        ends: list[str] = []
        targets: list[Any] = []
        reason, took = "there is no such address", 0.0
        try:
            async with asyncio.timeout(limits.CONNECT_SECONDS):
                targets = await _resolve(*address)
        # A name that no host can have is a UnicodeError.
        except (OSError, UnicodeError) as error:
            reason = _reason(error)
        for family, *_, target in targets:
            try:
                async with asyncio.timeout(limits.CONNECT_SECONDS):
                    reader, writer = await self._open_one(family, target)
            except OSError as error:
                reason = _reason(error)
                ends.append("")
                continue
            begun = now()
            ends.append(await self._exchange(address, name, reader, writer))
            took = now() - begun
            # They are not to be kept in memory.
            del reader, writer
            if ends[-1] == "gone":
                self._failures -= sum(map(bool, ends[:-1]))
                return False, took
        if not any(ends):
            self._failures += 1
            text = f"{name}: cannot connect: {reason}"
            self._tell("warning", "not connected", text, who=name)
        return set(ends) == {"in error"}, took

    async def _open_one(self, family: int, target: Any) -> tuple[StreamReader, StreamWriter]:
        """Connect to one address, over TLS if we have certificates. Raises OSError."""
        tls = self._tls and self._tls.client
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if not self._may_keep(sock):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, target)
            options = _tls_options(tls)
            return await asyncio.open_connection(
                sock=sock, server_hostname="" if tls else None, **options
            )
        except BaseException:
            sock.close()
            raise

    # --- Both ---

    async def _exchange(
        self, address: Address, who: str, reader: StreamReader, writer: StreamWriter
    ) -> str:
        """Replicate until that ends; return the kind of the end, which is "gone" if all went well.

        `who` is the name by which `Events` tells this remote from others.
        """
        name, end = _show(address), "lost"
        self._tell("info", "connected", f"{name}: connected", who=who)
        try:
            result = await replicate(partial(self._make_stream, address, writer), reader, writer)
        except (ProtocolError, ConnectionLost) as error:
            self._failures += 1
            if isinstance(error, ProtocolError):
                end = "in error"
            self._tell("warning", end, f"{name}: {error}", who=who)
        except ScuttleupError:
            if not self._sentinel.closed:  # these logs were closed just before we used them
                raise
        except Exception as error:
            self._failures += 1
            # This is a mistake in this package, which is told as asyncio tells of its own mistakes.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{name}: an exchange failed", "exception": error}
            )
        else:
            end = "gone"
            self._count(result)
            self._lost += self._connected[writer][1].lost_there
            if self._live:
                self._tell("info", end, f"{name}: gone", who=who)
        finally:
            self._connected.pop(writer, None)
            self._changed.set()
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        return end

    def _make_stream(
        self, address: Address, writer: StreamWriter, wake: Callable[[], None]
    ) -> ReplicationStream:
        stream = self._logs.create_replication_stream(mode=self._mode, live=self._live, wake=wake)
        stream.on_report = self._changed.set
        self._connected[writer] = address, stream
        return stream

    def _count(self, result: Replicated) -> None:
        """Add the result of an exchange. Only MAX_NAMED of the refused logs are kept."""
        before, named = self._replicated, {}
        for name in ("refused", "refused_there"):
            both = {**getattr(before, name), **getattr(result, name)}
            named[name] = dict(islice(both.items(), limits.MAX_NAMED))
        known = [each.delivered for each in (before, result) if each.delivered is not None]
        self._replicated = Replicated(
            sent=before.sent + result.sent,
            received=before.received + result.received,
            delivered=sum(known) if known else None,
            given_up=before.given_up + result.given_up,
            **named,
        )


async def _listen(addresses: list[Address]) -> list[socket.socket]:
    """Listen on every address of all these names, or on none: then ScuttleupError is raised."""
    sockets: list[socket.socket] = []
    with ExitStack() as failing:
        for address in addresses:
            found: list[socket.socket] = []
            missing: OSError | None = None
            try:
                for family, *_, local in await _resolve(*address, flags=socket.AI_PASSIVE):
                    try:
                        sock = socket.create_server(local, family=family, backlog=limits.BACKLOG)
                    except OSError as error:
                        # The name "localhost" means an IPv6 address as well, even where a machine
                        # has no IPv6.
                        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                            raise
                        missing = error
                    else:
                        sock.setblocking(False)
                        found.append(failing.enter_context(sock))
                if missing and not found:
                    raise missing
            # A name that no host can have is a UnicodeError.
            except (OSError, UnicodeError) as error:
                text = f"cannot listen on {_show(address)}: {_reason(error)}"
                raise ScuttleupError(text) from error
            sockets += found
        failing.pop_all()
    return sockets


async def _accept_one(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Do as `loop.sock_accept` does, but safe to be cancelled.

    `sock_accept` that is cancelled at a bad moment loses a connection and logs a traceback (seen on
    CPython 3.11, and 3.13 has the same code).
    """
    loop = asyncio.get_running_loop()
    while True:
        with suppress(BlockingIOError):
            sock, address = listener.accept()
            sock.setblocking(False)
            return sock, address
        readable = asyncio.Event()
        try:
            loop.add_reader(listener, readable.set)
        except NotImplementedError:
            # This is Windows, where `sock_accept` is another function.
            return await loop.sock_accept(listener)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(listener)


async def _resolve(host: str, port: int, flags: int = 0) -> list[Any]:
    """Return the answer of `socket.getaddrinfo`, which nobody waits for when we end.

    A name server that does not answer keeps a thread for half a minute. asyncio would wait for such
    a thread of its own at the end of the program, so this thread is ours.
    """
    found: Future[list[Any]] = Future()

    def look_up() -> None:
        # Nobody waits for the answer any more: the future was cancelled.
        with suppress(InvalidStateError):
            try:
                found.set_result(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags))
            except (OSError, UnicodeError) as error:
                found.set_exception(error)

    try:
        threading.Thread(target=look_up, daemon=True).start()
    except RuntimeError as error:  # the system has no thread left, which passes
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    return await asyncio.wrap_future(found)


def _limit_descriptors(max_connections: int) -> int:
    """The first descriptor that is not for connections; 0 where that is not limited.

    Raises the soft limit of the process, as far as the hard one allows, to what the connections
    need. Where the limit is very small, half of the descriptors are for connections.
    """
    if sys.platform == "win32":  # where a socket is no descriptor
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 0
    # The soft limit is not simply raised to the hard limit. That can be a billion, and some
    # programs close every descriptor up to the limit when they start another program.
    wanted = max_connections + 4 * limits.SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        with suppress(OSError, ValueError):
            # Some systems name a hard limit and then refuse it.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft - min(limits.SPARE_DESCRIPTORS, soft // 2)


def _check_address(address: Address) -> Address:
    """Return `address` if it is a host and a port, else raise TypeError or ValueError."""
    match address:
        case str(host), int(port):
            if host and 0 <= port <= 65535:
                return host, port
            raise ValueError(f"an address is a host and a port up to 65535, not {address!r}")
    raise TypeError(f"an address is a host and a port, not {address!r}")


def _address_of(name: Any) -> Address:
    """The host and port in the name of a socket, with the zone of an IPv6 address."""
    host, port, *more = name
    if more and more[-1]:
        with suppress(OSError):
            host += f"%{socket.if_indextoname(more[-1])}"
    return host, port


def _host_of(address: Address) -> Host:
    """The host that an address belongs to."""
    host = address[0].partition("%")[0]
    return socket.inet_pton(socket.AF_INET6, host)[:8] if ":" in host else host


def _tls_options(context: ssl.SSLContext | None) -> dict[str, Any]:
    """The options of a connection over TLS, or without TLS."""
    return {"ssl": context, "ssl_handshake_timeout": limits.CONNECT_SECONDS} if context else {}


def _show(address: Address) -> str:
    """An address as people write it: IPv6 in brackets.

    >>> _show(("::1", 2014))
    '[::1]:2014'
    """
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: Exception) -> str:
    """The reason why a connection failed, in words."""
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, (socket.gaierror, ssl.SSLError)) or not isinstance(error, OSError):
        return str(error)
    # The words come from the number of the error, because asyncio puts the address there, which we
    # have named already. On Windows `os.strerror` does not know the errors of sockets.
    if sys.platform == "win32" and (number := error.winerror or error.errno):
        from ctypes import FormatError

        return FormatError(number)
    # A TLS handshake that the remote ends is an error without number and words.
    return os.strerror(error.errno) if error.errno else str(error) or "the connection was closed"
