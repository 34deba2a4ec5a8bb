"""The replication protocol without any I/O: bytes in, bytes out, as h11 does it for HTTP.

Theory of operation
-------------------

Each side sends its handshake at once: its id, the last number of every log that it has (its head, a
digest a log), and its mode. The handshake of the other side tells which changes the other lacks.
Each side sends these, log by log, and then, if live, every change that is stored later, from
anywhere but this connection. The two directions do not depend on each other: nothing is asked for.

    GREETING ----------> EXCHANGING ----------> FINISHED        from GREETING and EXCHANGING:
             handshake              nothing left                  the logs are closed --> FINISHED
             of the remote          to send or to                 an error ------------> FAILED
             is complete            wait for

*What each side sends.* In GREETING we send our handshake. In EXCHANGING we send changes if the
modes let us: a side in mode "pull" sends none, and a side in mode "push" gets none.

*The changes that the remote has* stand in `had`, as a number for each log. The digests of the
remote give the first numbers, and each change that the remote sends, or that we send, raises a
number. The follower of our logs leaves out all up to these numbers. `had` is raised before the
follower is asked again, so no change goes back to its sender.

*Reports.* The original acknowledges nothing. But if both handshakes say so, each side reports how
many changes of the other were taken, how many of those are not in its log, and which logs are left
out and why; and once, that all was sent that the other lacked. Both numbers only grow, so the last
report counts. Heads would not do: a third peer can move a head over a gap, changes that then come
for the gap are dropped as known, and the head says that they are there. Only if a turn stored fewer
changes than came are the others looked up.

*How long we wait.* A stream that is not live waits until a remote that reports is complete and has
taken all that was sent. Time decides nothing but a standstill: for ALIVE seconds no byte came and
none was taken. Another remote is waited for until all its promises are kept: every number of its
digests above our heads. A promise is over when our head has reached the number, whoever brought the
entries; when the remote has ended; when its log is left out, see below; and when nothing came for
PROMISED seconds, because the remote may have deleted the entries. Then the promise is given up,
which is told. A live stream waits for nothing in particular.

*How it ends.* A stream that is not live is finished when nothing is waited for and all is sent that
the remote lacked at the handshake. A live stream goes on until the logs are closed or the remote
ends; after the end of the remote the stream counts as not live. The only exception: where the modes
let us send, and not the remote, the end of a remote that does not report means nothing, because the
original ends its side at once in that mode and goes on listening.

*A fault in a log harms that log alone.* Digests and changes go through a `Door`, which leaves such
logs out and says why. Here they are only named: by a warning, and in `Replicated`.

A ProtocolError is for bytes that cannot be read, for a remote with our own id, and for a change
that the modes forbid.

*How much a remote can make us keep:* a number for each log in its handshake that is here or has
room here, at the most MAX_LEFT_OUT names of other logs, a part of one message, of which `Decoder`
tells, and an entry that the remote does not take. `budget.py` limits the sum of all connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple, NoReturn

from .. import limits
from ..changes import Run
from ..errors import ConnectionLost, ProtocolError
from ..follower import Follower
from ..identity import resume
from ..limits import MAX_ENTRY, MAX_SEQ
from ..store import Store
from .budget import Holding
from .door import UNWANTED, Accept, Door, Verify
from .had import RemoteHad
from .messages import (
    MODES,
    Decoder,
    Handshake,
    Refusal,
    Report,
    decode_report,
    digests_size,
    encode_changes,
    encode_report,
    handshake_pieces,
)


class Replicated(NamedTuple):
    """The result of a replication.

    `sent` is the number of changes that were handed to the connection, and `received` the number of
    new changes that were stored. `refused` says which logs were left out, and why, for instance
    {"far": "entry 5 has more than 16776947 bytes"}. At most MAX_NAMED logs are named. Control
    characters of an id are escaped, and no more than MAX_SHOWN characters are shown.

    `delivered` is how many of `sent` the remote says it has, or None if the remote does not report.
    `refused_there` says which logs the remote leaves out, and why. `given_up` is the number of logs
    of which a remote that does not report never sent all that it had promised.
    """

    sent: int
    received: int
    refused: dict[str, str]
    delivered: int | None = None
    refused_there: dict[str, str] = {}  # noqa: RUF012  # nobody writes to it
    given_up: int = 0


# The tag of a refusal, which other reports rarely hold.
_REFUSED = b"\xda\x3e"


class State(Enum):
    """Where a replication is: see the picture above."""

    GREETING = auto()
    EXCHANGING = auto()
    FINISHED = auto()
    FAILED = auto()


class Standstill:
    """Tells how long something has stood still.

    >>> still = Standstill()
    >>> still.measure("half a frame", now=10), still.measure("half a frame", now=12)
    (0, 2)
    """

    def __init__(self) -> None:
        # The mark when it last changed, and the time of that change.
        self._mark: object = None
        self._changed = 0.0

    def measure(self, mark: object, now: float) -> float:
        """How many seconds ago `mark` changed last.

        Call this again and again, with `now` by a clock that does not go back.
        """
        if mark != self._mark:
            self._mark, self._changed = mark, now
        return now - self._changed


class ReplicationStream:
    """One end of a replication.

    The owner of the connection hands the bytes that come to `receive_data`, and sends the bytes
    that `data_to_send` returns. There may be more to send after each call of `receive_data`, and
    whenever `wake` is called, from any thread. If time limits are wanted, call `tick` every second
    or so. The replication is over when `finished` says so, or after an error; then call `close`.
    One thread at a time may use a stream.

    >>> stream.receive_data(sock.recv(65536))
    >>> while data := stream.data_to_send():
    ...     sock.sendall(data)
    """

    def __init__(
        self,
        store: Store,
        *,
        mode: str,
        live: bool,
        verify: Verify,
        accept: Accept = None,
        wake: Callable[[], None],
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        self._store = store
        self._mode = mode
        # Whether we go on when all is exchanged. This becomes false at the end of the remote.
        self._live = live
        self._wake = wake
        self._state = State.GREETING
        # The part of this connection in the budget, how many bytes have come since the budget was
        # told, and whether no further name may be kept.
        self._holding = Holding(store, wake)
        self._bytes_unsaid = 0
        self._is_full = self._holding.is_full
        # All that comes in has to pass here.
        self._door = Door(store, verify, accept, self._holding)
        # Holds a message of the remote that is not complete.
        self._decoder = Decoder(store.max_entry)
        # The handshake of the remote; None until all of it has come.
        self._remote: Handshake | None = None
        # Whether we send changes, and whether the remote does. The two modes decide that.
        self._sends = self._receives = False

        # The last number that the remote has of each log, as far as we know. The follower uses the
        # same numbers.
        self._had = RemoteHad(store)
        # How many logs the remote has named.
        self._digests = 0
        # The numbers of the remote above our heads, up to which the remote is going to send. Empty
        # if we are live.
        self._promised: dict[str, int] = {}
        # Whether more was promised than could be remembered.
        self._promised_more = False
        # The last number that the remote sent of each log in its handshake. Empty if we are live.
        self._came: dict[str, int] = {}
        # This goes up whenever the remote sends more of the promised entries.
        self._progress = 0
        # How many bytes have come since then, and in all.
        self._bytes_without_progress = self._bytes = 0
        # Of how many logs the promises were given up.
        self._given_up = 0
        # For how long nothing promised came, and for how long half a frame did not grow.
        self._promise_stands, self._frame_stands = Standstill(), Standstill()

        # The logs that were left out, in either direction, as they are shown, and why.
        self._refused: dict[str, str] = {}

        # The last report of the remote; None if there are none.
        self._there: Report | None = None
        self._refused_there: dict[str, str] = {}
        # How many refusals of the remote were read.
        self._refusals = 0
        # The contents of our next report: how many changes came, how many of them are not here, how
        # many are not wanted, and the logs that are left out and were not named before.
        self._taken = self._lost = self._unwanted = 0
        self._to_name: list[Refusal] = []
        # The contents of our last report; see `_to_report`.
        self._said: tuple[int, int, bool, int, int] = 0, 0, False, 0, 0
        # Whether a report of a live stream shall wait. For the owner of the connection.
        self.hold_reports = False
        # Whether the remote has as much of our own log as we had: a backup goes on when such a
        # remote has sent all that it has.
        self._ours_there = False
        # Whether the remote has ended its side.
        self._ended = False
        # Called when `caught_up` may have changed. For the owner of the connection.
        self.on_report: Callable[[], object] = lambda: None

        # Gives the runs that we have to send. Until the remote's handshake is there, and if the
        # modes let us send nothing, this follower gives nothing and only tells whether the logs
        # were closed.
        self._follower: Follower | None = store.follow(
            self._had, snapshot=False, live=False, wake=wake
        )
        # The pieces of our handshake that were not sent yet.
        self._greeting: Iterator[bytes] | None = self._greet()
        # The rest of the bytes that were made ready to be sent.
        self._outgoing: bytes | memoryview = b""
        # How many changes were handed out, and how many new ones were stored.
        self._sent = self._received = 0

    def _greet(self) -> Iterator[bytes]:
        """Our handshake, in pieces, without the logs that do not fit.

        Those are left out with a warning. Only a database that the original filled has so many
        logs.
        """
        heads = self._store.heads.copy()
        count = len(heads)
        # An id and a mode take less than 512 bytes. So many logs are kept as would fit if all took
        # the same number of bytes. Then these are measured again.
        while (size := digests_size(heads)) > limits.MAX_HANDSHAKE - 512:
            heads = dict(islice(heads.items(), len(heads) * (limits.MAX_HANDSHAKE - 1024) // size))
        if len(heads) < count:
            text = f"{count - len(heads)} of {count} logs do not fit into our handshake"
            self._tell("do not fit", f"{text}: remotes will send them again")
        return handshake_pieces(self._store.id, heads, self._mode, reports=True)

    @property
    def remote_id(self) -> str | None:
        """The id of the remote, once known. Perhaps no log can have this id."""
        return self._remote.id if self._remote else None

    @property
    def replicated(self) -> Replicated:
        """The result so far."""
        there = self._there
        delivered = None if there is None else there.taken - there.lost - there.unwanted
        refused, refused_there = self._refused.copy(), self._refused_there.copy()
        counts = self._sent, self._received, refused, delivered, refused_there
        return Replicated(*counts, self._given_up)

    @property
    def lost_there(self) -> int:
        """How many of the changes that we sent the remote says it wanted and lacks."""
        return self._there.lost if self._there else 0

    @property
    def reports(self) -> bool | None:
        """Whether the remote reports; None before its handshake."""
        return None if self._remote is None else self._there is not None

    @property
    def complete(self) -> bool:
        """Whether the remote has taken all that we sent, and sent all that it had at the handshake.

        This is never so if the remote does not report.
        """
        there = self._there
        return there is not None and there.complete and there.taken == self._sent

    @property
    def caught_up(self) -> bool:
        """Whether, as far as both sides know just now, each has all entries of the other."""
        return self.complete and self._idle

    @property
    def _idle(self) -> bool:
        """Whether everything is sent that is here."""
        return self.between_frames and (self._follower is None or self._follower.idle)

    @property
    def state(self) -> State:
        """Where this replication is now."""
        unfinished = self._state in (State.GREETING, State.EXCHANGING)
        if unfinished and (self.closed or (self._remote and not self._live and self._all_done())):
            self._state = State.FINISHED
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the logs were closed, or this stream."""
        return self._follower is None or self._follower.closed

    @property
    def between_frames(self) -> bool:
        """Whether the bytes that `data_to_send` has returned so far end where a frame ends."""
        return not self._greeting and not self._outgoing

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to send or to wait for.

        A live stream is finished only when the remote has ended, or the logs were closed.
        """
        return self.state is State.FINISHED

    def _all_done(self) -> bool:
        """Whether everything is sent and reported, and nothing is waited for."""
        return self._idle and not self.waiting and self._to_report() is None

    @property
    def waiting(self) -> bool:
        """Whether a stream that is not live still expects something of the remote."""
        if self._there is not None:
            return not (self.complete or self._ended)
        heads, promised = self._store.heads, self._promised
        # A promise that our head has reached is over, no matter who brought the entries. The last
        # promise is looked at, and the promise before only if the last is over. So this costs next
        # to nothing. `popitem` alone finds the last item of a dict that shrinks at once.
        while promised:
            peer, seq = promised.popitem()
            if heads.get(peer, 0) < seq:
                promised[peer] = seq
                return True
        return self._promised_more

    def close(self) -> None:
        """Give up the place in the store, and all that is remembered of the remote.

        Bytes that were to be sent are gone. `replicated` stays.
        """
        if self._follower:
            self._follower.close()
        # The caller may still hold this stream, or an exception whose traceback does. So everything
        # large is dropped here.
        self._follower = None
        self._decoder = Decoder()
        self._greeting, self._outgoing = None, b""
        self._had, self._promised, self._came = RemoteHad(self._store), {}, {}
        self._door = Door(self._store)
        self._holding.close()
        self._wake = self.on_report = lambda: None

    # --- Sending ---

    def data_to_send(self) -> bytes:
        """The next bytes for the remote, at most TURN_BYTES; b"" when there are none now.

        Raises DatabaseError if the database cannot be read, ScuttleupError in a child process.
        """
        if self.closed:
            if self._follower and not self._store.database.closed:
                self._store.database.ready()
            return b""
        most = limits.TURN_BYTES
        # This is the middle of a large entry.
        if len(self._outgoing) >= most:
            data, self._outgoing = bytes(self._outgoing[:most]), self._outgoing[most:]
            return data
        holds = self._greeting or (self.hold_reports and self._live)
        report = b"" if holds else self._report()
        pieces: list[bytes | memoryview] = [self._outgoing, report]
        size = len(self._outgoing) + len(report)
        for _ in range(limits.TURN_RUNS):
            if size >= most or not (piece := self._next_piece()):
                break
            pieces.append(piece)
            size += len(piece)
        data = b"".join(pieces)
        if not data:
            self.on_report()
        self._outgoing = memoryview(data)[most:] if size > most else b""
        if self._outgoing or self._holding.bytes:
            self._hold()
        return data[:most]

    # --- The budget ---

    def _hold(self) -> None:
        """Say how much is kept because of the remote, and ask whether more names may be."""
        self._bytes_unsaid, self._is_full = 0, self._holding.is_full
        names = max(len(self._had.others), len(self._promised) + len(self._came))
        # A view keeps the whole that it is a part of.
        whole = self._outgoing.obj if isinstance(self._outgoing, memoryview) else b""
        self._holding.hold(names + self._door.names, self._decoder.kept + memoryview(whole).nbytes)

    @property
    def dropped(self) -> bool:
        """Whether this connection is to end, because no other holds more."""
        return self._holding.dropped

    def _end_dropped(self) -> NoReturn:
        self._state = State.FAILED
        raise ConnectionLost(
            f"all connections hold more than {limits.MAX_HELD} bytes, and this one the most"
        )

    def _next_piece(self) -> bytes:
        """A piece of our handshake or the frames of a run; b"" when there are none now."""
        if self._greeting:
            if piece := next(self._greeting, b""):
                return piece
            self._greeting = None
        run = self._follower.read() if self._follower else None
        if run is None:
            # All that the remote lacked was sent, which is to be said once, and at once.
            complete_is_said = self._said[2]
            return b"" if complete_is_said or (self.hold_reports and self._live) else self._report()
        peer, first, entries = run
        if len(entries[-1]) > MAX_ENTRY:
            # No remote takes such an entry, which only the original stores. It is larger than a
            # run, so nothing comes after it in this run. The log is sent no further on this
            # connection.
            self._had[peer] = MAX_SEQ
            entries = entries[:-1]
            seq = first + len(entries)
            self._tell_left_out(peer, f"entry {seq} has more than {MAX_ENTRY} bytes: not sent")
        self._sent += len(entries)
        # If nothing of the run can be sent, an empty frame goes out instead. That says nothing to
        # the remote, but b"" would say here that there is no more.
        return encode_changes(peer, first, entries) or b"\0"

    @property
    def holds_report(self) -> bool:
        """Whether there is something to report that waits."""
        return self.hold_reports and self._live and self._to_report() is not None

    def _to_report(self) -> tuple[int, int, bool, int, int] | None:
        """The contents of a report, if they differ from those of the last report.

        A large change takes its time. So there is a report with every PROGRESS_BYTES of a change,
        too.
        """
        if self._there is None or self._ended or self._follower is None:
            return None
        coming = self._decoder.pending // limits.PROGRESS_BYTES
        complete = self._follower.past_snapshot
        now = self._taken, self._lost, complete, len(self._to_name), coming
        return now if now != self._said else None

    def _report(self) -> bytes:
        """A report, if there is something to say."""
        if not (now := self._to_report()):
            return b""
        taken, lost, complete, _, coming = now
        refused, self._to_name = tuple(self._to_name), []
        self._said = taken, lost, complete, 0, coming
        return encode_report(Report(taken, lost, self._unwanted, complete, refused))

    @property
    def last_words(self) -> bytes:
        """After a ProtocolError: the last report for a remote that reports; else b""."""
        return self._report() if self.between_frames else b""

    # --- Receiving ---

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the remote, b"" for its end, and store the changes in them.

        All bytes are taken at once. To keep an event loop responsive, hand over at most TURN_BYTES.

        Raises ProtocolError when the remote is in error, ConnectionLost when it ended before its
        handshake or in the middle of a frame, and DatabaseError when the database is in trouble.
        Changes that came before that are stored. After an error nothing more is taken.
        """
        state = self._state
        if state is State.FAILED:
            raise ProtocolError("this replication ended with an error")
        if self._holding.dropped:
            self._end_dropped()
        # The stream counts as failed until all of this went well.
        self._state = State.FAILED
        try:
            if len(data) == 0:
                self._receive_end()
            self._decoder.feed(data)
            self._bytes_without_progress += len(data)
            self._bytes += len(data)
            if self._remote is None:
                for peer, seq in self._decoder.digests():
                    self._receive_digest(peer, seq)
                if self._decoder.handshake:
                    self._receive_handshake(self._decoder.handshake)
                    state = State.EXCHANGING
            if self._remote is not None:
                self._receive_changes()
        except ValueError as error:
            # The text is kept short. A remote chooses a part of that text, which goes to a log
            # file.
            raise ProtocolError(f"{error!s:.300}") from error
        self._bytes_unsaid += len(data)
        if self._bytes_unsaid >= limits.HOLD_STEP:
            self._hold()
        self._state = state

    def _receive_digest(self, peer: str, seq: int) -> None:
        """Note the last number of one log of the remote, and the promise in that."""
        head, had = self._store.heads.get(peer, 0), self._had
        fault = "" if peer in had.others else self._door.look(peer)
        if fault and not head:
            self._tell_left_out(peer, fault, 0)
            return
        self._digests += 1
        self._ours_there |= peer == self._store.id and seq >= head
        if head:
            had[peer] = seq
        elif seq and not self._is_full:  # a digest of 0 promises nothing
            had.others[peer] = seq
        if seq > head and not self._live and not fault:
            if self._is_full:
                self._promised_more = True
            else:
                self._promised[peer] = seq

    def _receive_handshake(self, remote: Handshake) -> None:
        """Go from GREETING to EXCHANGING. `remote` is who speaks, and in which mode."""
        if remote.id == self._store.id:
            raise ValueError(f"the remote has our own id, {remote.id!r}: one of us is a copy")
        self._remote = remote
        if remote.reports:
            self._there = Report()
        self._sends = self._mode != "pull" and remote.mode != "push"
        self._receives = self._mode != "push" and remote.mode != "pull"
        if remote.reports or not self._receives:
            self._promised, self._promised_more = {}, False
        if self._sends:
            self._follower = self._store.follow(
                self._had, snapshot=True, live=self._live, wake=self._wake
            )

    def _receive_changes(self) -> None:
        """Take the changes that have come, store them, and name the logs that are left out.

        Few functions are called, because each change may be of another log: some 5,000 in a turn.
        """
        runs: list[Run] = []
        came = 0
        left_out, unwanted = self._door.left_out, self._door.unwanted
        notes_promises = not self._live and self._there is None
        try:
            for peer, first, entries in self._decoder.changes():
                if not self._receives:
                    raise ValueError(f"a change, though the modes allow none: {first} of {peer!r}")
                count = len(entries) or 1
                self._taken += count
                if peer in left_out:
                    self._lost += count
                    continue
                if peer in unwanted:
                    self._unwanted += count
                    continue
                came += count
                runs.append(Run(peer, first, entries))
                if entries and notes_promises:
                    self._note_progress(peer, first, first + len(entries) - 1)
        finally:
            # This happens after an error, too: the changes before that are stored.
            if runs:
                new, stored, verdicts = self._door.admit(runs)
                self._received += new
                self._had.give_rows([run.peer for run in stored])
                for peer, seq, reason in verdicts:
                    self._promised.pop(peer, None)
                    self._tell_left_out(peer, reason, seq)
                if came > new and self._there is not None:
                    self._lost += came - new - self._known(runs, stored)
                    if unwanted:
                        more = sum(len(it[2]) or 1 for it in runs if it.peer in unwanted)
                        self._lost, self._unwanted = self._lost - more, self._unwanted + more
        # Our follower is asked only after this, so nothing is sent back. The numbers of logs that
        # are left out are not raised: the remote gets from us the entries of these that it lacks,
        # and another remote can send us the entries that are missing here.
        had, heads = self._had, self._store.heads
        rows, numbers, others = had.rows, had.numbers, had.others
        for peer, first, taken in runs:
            last = min(first + len(taken) - 1, heads.get(peer, 0))
            if last > 0:
                row = rows.get(peer, MAX_SEQ)
                if row >= len(numbers):
                    row = had.row(peer)
                elif peer in others:
                    last = max(last, others.pop(peer))
                if last > numbers[row]:
                    numbers[row] = last
        if self._decoder.reports:
            self._receive_reports()

    def _known(self, runs: list[Run], stored: list[Run]) -> int:
        """How many of the changes in `runs` are here, but for those in `stored`, which were new."""
        heads, rest = self._store.heads, iter(stored)
        # An entry that is not new and not above our head may be here, or deleted, or in a gap.
        known: list[tuple[str, int, int]] = []
        run = next(rest, None)
        for peer, first, entries in runs:
            last = min(first + len(entries) - 1, heads.get(peer, 0))
            if run and run.peer == peer and first <= run.first < first + len(entries):
                last, run = run.first - 1, next(rest, None)
            if 0 < first <= last:
                known.append((peer, first, last))
        return self._door.count(known)

    def _note_progress(self, peer: str, first: int, last: int) -> None:
        """Note changes that the remote promised, and now sends for the first time.

        Known ones count, too, because others may have brought them.
        """
        had = self._had
        is_here = peer in self._store.heads
        named = had.get(peer, 0) if is_here else had.others.get(peer, 0)
        if last >= named:
            # All of that log has come. To wait for the head would be to find all of these later, at
            # once.
            self._promised.pop(peer, None)
        if first <= named and last > self._came.get(peer, 0):
            self._came[peer] = last
            self._progress += 1
            self._bytes_without_progress = 0

    def _receive_reports(self) -> None:
        """Take the reports that have come. The numbers only grow, up to the number of changes sent.

        The last report has the numbers that count. Others are read only for their refusals.
        """
        before, messages = self._there, self._decoder.reports
        self._decoder.reports = []
        if before is None:
            raise ValueError("a report, though the handshakes did not announce any")
        for message in messages[:-1]:
            if _REFUSED in message and self._refusals <= 2 * limits.MAX_NAMED:
                self._receive_refusals(decode_report(message).refused)
        now = decode_report(messages[-1])
        self._receive_refusals(now.refused)
        if not (
            before.taken <= now.taken <= self._sent
            and before.lost <= now.lost
            and before.unwanted <= now.unwanted
            and before.taken - before.lost - before.unwanted <= now.taken - now.lost - now.unwanted
        ):
            raise ValueError(f"a report of {now.taken} changes less {now.lost + now.unwanted}")
        self._there = now._replace(complete=now.complete or before.complete, refused=())
        if now.complete and self._ours_there and self._receives and self._store.marks.backup:
            resume(self._store)
        self.on_report()

    def _receive_refusals(self, refused: tuple[Refusal, ...]) -> None:
        """Tell of the logs that the remote leaves out: our own, and MAX_NAMED others."""
        for peer, seq, reason, proof in refused:
            # An honest remote names no log twice, and few logs.
            if self._refusals > 2 * limits.MAX_NAMED:
                return
            self._refusals += 1
            shown, reason = _show(peer), _show(reason, limits.MAX_REASON)
            ours = peer == self._store.id
            if ours and proof:
                self._door.hear_proof(seq, proof)
            if ours or len(self._refused_there) < limits.MAX_NAMED:
                self._refused_there[shown] = reason
                which = "our own log" if ours else f"the log '{shown}'"
                text = f"the remote leaves out {which}: {reason}"
                if reason not in UNWANTED:
                    self._tell("left out there", text, shown)

    def _receive_end(self) -> None:
        """The remote has ended its side, and with that all its promises are over."""
        if self._decoder.pending:
            raise ConnectionLost("the connection ended in the middle of a frame")
        if self._remote is None:
            raise ConnectionLost("the connection ended before the handshake")
        self._promised, self._promised_more = {}, False
        if self._there is not None:
            if not self._live and not self.caught_up:
                raise ConnectionLost("the remote left before all was exchanged")
            self._ended, self._live = True, False
        # A remote that never sends changes may end its side at once and go on listening, as the
        # original does. Any other remote is about to leave, but still gets all that it lacks.
        if self._receives or not self._sends:
            self._live = False

    # --- Telling ---

    def _tell_left_out(self, peer: str, reason: str, seq: int | None = None) -> None:
        """Warn that the log of `peer` is left out, and why. MAX_NAMED logs are named.

        The remote is told, too, if its entries are left out, from number `seq` on.
        """
        shown = _show(peer)
        if shown in self._refused:
            return
        # The log of either side is always named: so its owner learns that it has forked.
        owned = peer in (self.remote_id, self._store.id)
        if len(self._refused) >= limits.MAX_NAMED and reason not in UNWANTED:
            # Logs that somebody does not want give way to logs with a fault.
            decided = (name for name, why in self._refused.items() if why in UNWANTED)
            self._refused.pop(next(decided, ""), None)
        if len(self._refused) >= limits.MAX_NAMED and not owned:
            if reason in UNWANTED:
                return
            self._tell("further logs", f"further logs are left out of a connection: {reason}")
            return
        self._refused[shown] = reason
        if seq is not None:
            proof = b""
            if peer == self.remote_id and reason == f"fork at {seq}":
                # The author has signed another entry than ours before that one.
                seq, proof = seq - 1, self._door.proof(peer, seq - 1)
            why = reason[: limits.MAX_REASON]
            self._to_name.append(Refusal(peer[: limits.MAX_PEER], seq, why, proof))
        if reason not in UNWANTED:  # which somebody has decided
            text = f"the log '{shown}' is left out of a connection: {reason}"
            self._tell("left out", text, shown)

    def _tell(self, kind: str, text: str, who: str = "") -> None:
        self._store.events.tell("warning", kind, text, who)

    def _give_up(self) -> None:
        """Give up the promises that the remote does not keep, and tell so."""
        heads, given_up = self._store.heads, self._promised
        self._promised = {}
        missing = [peer for peer, seq in given_up.items() if heads.get(peer, 0) < seq]
        self._given_up += len(missing)
        names = ", ".join(f"'{_show(peer)}'" for peer in missing[:3])
        text = f"{len(missing)} logs, such as {names}: given up, the remote never sent all of them"
        if self._promised_more:
            text += "; it may lack some of further logs that were too many to be remembered"
            self._promised_more = False
        self._tell("given up", text)

    # --- Time ---

    def tick(self, now: float, *, unsent: bool = False) -> float:
        """Keep the time limits; return after how many seconds to call this again.

        `now` is the time in seconds, by any clock that does not go back; time counts from the first
        call. `unsent` is whether bytes that `data_to_send` returned have not been taken yet.

        Half a frame, and half a handshake, has to grow by PROGRESS_BYTES within ALIVE seconds or
        be complete, and a handshake has to begin within ALIVE seconds; else this raises
        ConnectionLost, because the remote may have been stopped.

        A stream that is not live gives up a remote that reports, with ConnectionLost, if nothing
        came for ALIVE seconds. The promises of another remote are given up when none was kept for
        PROMISED seconds, and longer if there are many logs to look through: look at `finished`
        after this. The seconds begin anew with a promised change that the remote had not sent
        before, and with each byte of a change that is not complete, up to the size of one frame.
        They do not pass while something is `unsent`, because the remote may be busy with that.
        """
        if self.closed:
            return limits.ALIVE
        if self.dropped:
            self._end_dropped()
        # How many frames are complete, and how many times PROGRESS_BYTES have come of the next.
        frame = self._decoder.complete, self._decoder.pending // limits.PROGRESS_BYTES
        half = self._remote is None or self._decoder.pending > 0
        # Where nothing is waited for, the mark is the time, which is always new.
        if self._frame_stands.measure(frame if half else now, now) > limits.ALIVE:
            self._state = State.FAILED
            what = "half a frame did not grow for" if self._decoder.pending else ""
            raise ConnectionLost(f"{what or 'no handshake within'} {limits.ALIVE} seconds")
        waiting = not self._live and self.waiting and not unsent
        # A promised change may be large, so each byte of it is progress.
        coming = self._bytes_without_progress < limits.MAX_FRAME and self._decoder.pending
        mark = self._bytes if self._there is not None else (self._progress, coming)
        stood = self._promise_stands.measure(mark if waiting else now, now)
        if self._there is not None:
            if stood > limits.ALIVE:
                self._state = State.FAILED
                raise ConnectionLost(f"the remote said nothing for {limits.ALIVE} seconds")
        elif stood > limits.PROMISED + self._digests / limits.PROMISED_LOGS:
            self._give_up()
        return (limits.ALIVE if self._live else limits.PROMISED) / 5


def _show(peer: str, most: int = limits.MAX_SHOWN) -> str:
    """A peer id, or other text that a remote chose, short and without control characters.

    >>> _show("a\\nb")
    'a\\\\nb'
    """
    return repr(peer[:most])[1:-1] + "…" * (len(peer) > most)
