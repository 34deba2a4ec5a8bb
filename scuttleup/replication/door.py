"""The door: everything that was made elsewhere comes in here, and here alone.

Theory of operation
-------------------

A remote's digests, a remote's changes and the changes that a program hands to `write` go through a
`Door`. It decides, and the store stores. For each log that is not taken, or not taken further, the
door gives back a `Verdict`: the log, the number of the first entry that is left out, and the
reason. These are the rules, in the order in which they are asked:

1. The id can be that of a log.
2. The log was not forgotten, and `accept` takes it.
3. This door has not left out the log before, nor too many others: MAX_LEFT_OUT, or fewer where
   all connections together remember too many names.
4. The log is signed, where only signed logs are taken, and its signatures can be checked here.
5. Our handshake has room for the log.
6. The number of the entry is not 0.
7. The entry is not above `max_entry`.
8. The author has signed the entry, and not another entry in its place (a fork).
9. The entry leaves no gap in our own log. A stranger's entry would otherwise decide on the number
   of our next entry. Our own signed log may have gaps, because strangers cannot sign. Nor does a
   remote show another entry of our own unsigned log than is here: that may be a fork, and is told.
10. `verify` has nothing against the entry.

*A fault in a log harms that log alone.* The entries before the fault are stored, that log is left
out with all that follows in it, since that would leave a gap here for good, and everything else
goes on. A relay sends all its entries at every meeting. So if a bad log were an error, a stranger
who hands a bad log to a relay could cut it off from its peers for good.

*No decision is out of date.* The rules are asked under the store's lock, and the store gets the
approved runs before that lock is given back. Only `verify` is asked without the lock, as it is a
function of the user's: it is asked about the entries that the other rules approve, and these rules
are then asked once more.

*What is remembered* is the names of the logs that this door has left out because of an entry of
theirs, or for want of room, and what `accept` has said. The other rules need no memory: they would
say the same again. Each remote gets its own door, so that its faults do not count against another
remote.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from traceback import format_exception
from typing import Any, NamedTuple

from .. import limits
from ..changes import Change, Run, expand
from ..errors import EntryNotFound, shown
from ..identity import note_fork
from ..keys import check_peer, check_seq, log_bytes, log_prefix, pack_seq
from ..limits import MAX_SEQ
from ..scan import keys_between
from ..signed import PREFIX, SIGNATURE_BYTES, check, is_odd, proof_of, proves, pynacl_installed
from ..store import Store, too_large
from .budget import Holding

_NO_ROOM = "there is no room for another log"
_GAP = "of our own log does not follow"
# Reasons that are nobody's failure.
UNWANTED = "not accepted", "forgotten"
# What a program says of the changes that are taken, and of the logs.
Verify = Callable[[Change], bool] | None
Accept = Callable[[str], bool] | Container[str] | None
# The same as `inspect.CO_COROUTINE`. `inspect` takes a while to load.
CO_COROUTINE = 0x80


class Verdict(NamedTuple):
    """Why the log of `peer` is left out, from entry number `seq` on; 0 stands for all of it."""

    peer: str
    seq: int
    reason: str


class Door:
    """Decides which of a remote's or a caller's entries come into `store`, and has them stored.

    `verify(change) -> bool` is asked about each change that nothing else is wrong with. `accept` is
    a set of ids, or `accept(peer) -> bool` is asked once about each log of others that is not here.
    """

    def __init__(
        self,
        store: Store,
        verify: Verify = None,
        accept: Accept = None,
        holding: Holding | None = None,
    ) -> None:
        self._store = store
        self._verify = verify
        in_set = None if accept is None or callable(accept) else accept.__contains__
        self._accept: Callable[[str], bool] | None = accept if callable(accept) else in_set
        self._holding = holding
        # Whether nothing is taken any more, because no further log could be remembered as left out.
        self._shut = False
        # The logs that `accept` has taken on this door.
        self._accepted: set[str] = set()
        # The logs of which this door has left out an entry. Those after it would leave a gap.
        # For reading from outside.
        self.left_out: set[str] = set()
        # The logs that are not wanted here. For reading from outside.
        self.unwanted: set[str] = set()
        # How many bytes our handshake has left for the logs that the remote has and we have not.
        self._room = store.room

    @property
    def names(self) -> int:
        """How many logs this door remembers."""
        return len(self.left_out) + len(self.unwanted) + len(self._accepted)

    @property
    def _is_full(self) -> bool:
        """Whether no further log may be remembered."""
        return self._holding is not None and self._holding.is_full

    def look(self, peer: str) -> str:
        """Why nothing of the log of `peer`, which a remote says that it has, is taken; "" if it is.

        For a log that is not here, this sets room aside. So ask once for each log.
        """
        is_new = peer not in self._store.heads and peer != self._store.id
        fault = self._log_fault(peer, is_new)
        if is_new and not fault:
            if self._room < log_bytes(peer):
                return _NO_ROOM
            self._room -= log_bytes(peer)
        return fault

    def admit(self, runs: Iterable[Run]) -> tuple[int, list[Run], list[Verdict]]:
        """Store the entries of `runs` that may be stored, in one batch; return how many were new.

        The new runs, in the same order, and the verdicts are returned, too.

        The runs of one log come in order. A run without entries stands for an entry that was too
        large to be kept. The entries up to the head of a log are known, and skipped. With the first
        fault in a log all that follows in it is left out, and there is a verdict.
        """
        verdicts: list[Verdict] = []
        if len(self.left_out) > limits.MAX_NAMED and self._is_full:
            self._shut = True
        if self._verify is not None:
            approved, verdicts = self._decide(runs)
            runs = list(self._verified(approved, self._verify, verdicts))
        store = self._store
        store.refuse_nested()
        with store.database.writes, store.database:
            store.settle()
            approved, more = self._decide(runs)
            count = store.commit(approved)
        if verdicts := verdicts + more:
            self._note_fork(verdicts, "in a remote's entries")
            self.left_out.update(verdict.peer for verdict in verdicts if verdict.seq)
        return count, approved, verdicts

    def count(self, ranges: Iterable[tuple[str, int, int]]) -> int:
        """How many of the entries in `ranges`, each (peer, first, last), are here."""
        count = 0
        with self._store.database.reads, self._store.database as db:
            for peer, first, last in ranges:
                prefix = log_prefix(peer)
                start, stop = prefix + pack_seq(first), prefix + pack_seq(last)
                if first == last:  # a fourth of the time
                    count += db.get(start, verify_checksums=True) is not None
                else:
                    count += len(keys_between(db, start, stop, last + 1 - first))
        return count

    def _decide(
        self, runs: Iterable[Run], *, compares: bool = True
    ) -> tuple[list[Run], list[Verdict]]:
        """Which of `runs`, or parts of them, may be stored behind what is here, and the verdicts.

        With `compares` an entry of our own log is no known one if the entry here is another.
        All of it stands here, because each run may be of another log: some 5,000 in a turn.
        """
        store, most, room = self._store, self._store.max_entry, self._store.room
        approved: list[Run] = []
        verdicts: list[Verdict] = []
        # The heads as they will be, and in signed logs the links after them.
        heads: dict[str, int] = {}
        links: dict[str, bytes | None] = {}
        # The logs of which an entry is left out, here or before.
        bad = self.left_out.copy() if self.left_out else set()
        for run in runs:
            peer, first, entries = run
            if peer in bad:
                continue
            head = heads[peer] if peer in heads else store.heads.get(peer, 0)
            if 0 < first <= head:
                if compares and peer == store.id and self._is_another(first, entries):
                    verdicts.append(Verdict(peer, first, f"fork at {first}"))
                    bad.add(peer)
                    continue
                entries, first = entries[head + 1 - first :], head + 1
                if not entries:
                    continue
            is_new = not head and peer != store.id
            if fault := self._log_fault(peer, is_new):
                verdicts.append(Verdict(peer, 0, fault))
                continue
            # The number of the first entry that is left out, if there is a fault.
            bad_seq = first
            if is_new and room < log_bytes(peer):
                entries, fault = [], _NO_ROOM
            elif not first:
                entries, fault, bad_seq = [], "an entry has the number 0", head + 1
            elif not entries or max(map(len, entries)) > most:
                large = next((at for at, entry in enumerate(entries) if len(entry) > most), 0)
                fault = too_large(first + large, len(entries[large]) if entries else 0, most)
                entries, bad_seq = entries[:large], first + large
            if entries and peer.startswith(PREFIX):
                link = links[peer] if peer in links else store.authors.link_after(peer, head)
                checked = check(Run(peer, first, entries), link if first == head + 1 else None)
                links[peer] = checked.link
                if checked.fault:
                    entries, fault = entries[: checked.proven], checked.fault
                    bad_seq = first + checked.proven
            elif entries and peer == store.id and first != head + 1:
                entries, fault = [], f"entry {first} {_GAP} {head}"
            if fault:
                verdicts.append(Verdict(peer, bad_seq, fault))
                bad.add(peer)
            if entries:
                room -= log_bytes(peer) if is_new else 0
                heads[peer] = first + len(entries) - 1
                approved.append(run if entries is run.entries else Run(peer, first, entries))
        return approved, verdicts

    def proof(self, peer: str, seq: int) -> bytes:
        """The proof that the author of `peer` has signed the entry that is here; else b""."""
        with suppress(EntryNotFound):
            return proof_of(self._store.get(peer, seq))
        return b""

    def hear_proof(self, seq: int, proof: bytes) -> None:
        """Note a fork if `proof` is of another entry `seq` of our own log than that here."""
        own = self._store.id
        if pynacl_installed() and 0 < seq <= MAX_SEQ and proves(own, seq, proof):
            ours = self.proof(own, seq)
            if ours and ours[:-SIGNATURE_BYTES] != proof[:-SIGNATURE_BYTES]:
                note_fork(self._store, seq, "by a remote")

    def _is_another(self, seq: int, entries: Sequence[bytes]) -> bool:
        """Whether our own log is not signed, and its entry `seq` here is not that in `entries`."""
        store = self._store
        with suppress(EntryNotFound):
            return not store.is_signed and bool(entries) and store.get(store.id, seq) != entries[0]
        return False

    def _note_fork(self, verdicts: list[Verdict], where: str) -> None:
        """Tell the store if one of `verdicts` says that our own log has gone on elsewhere."""
        for peer, seq, reason in verdicts:
            if peer == self._store.id and (reason == f"fork at {seq}" or _GAP in reason):
                note_fork(self._store, seq, where)

    def _log_fault(self, peer: str, is_new: bool) -> str:
        """The fault of a log that its id alone shows; "" if there is none."""
        if self._shut:
            return f"{len(self.left_out)} logs were left out before"
        if is_new:
            try:
                check_peer(peer)
            except ValueError as error:
                return f"{error!s:.120}"
            if fault := self._unwanted(peer):
                return fault
            if len(self.left_out) >= limits.MAX_LEFT_OUT:
                return f"{len(self.left_out)} logs were left out before"
        if not peer.startswith(PREFIX):
            return "is not signed" if self._store.only_signed else ""
        if is_odd(peer):
            return "begins like a public key and is none"
        return "" if pynacl_installed() else "cannot be checked without PyNaCl"

    def _unwanted(self, peer: str) -> str:
        """Why a log that is not here is not wanted; "" if it is."""
        if peer in self._store.marks.forgotten:
            fault = UNWANTED[1]
        elif self._accept is None or peer in self._accepted:
            return ""
        elif peer in self.unwanted or not self._ask(self._accept, "accept", peer):
            fault = UNWANTED[0]
        else:
            fault = ""
        # A log that is not remembered is asked about again.
        if len(self.unwanted) < limits.MAX_LEFT_OUT and not self._is_full:
            (self.unwanted if fault else self._accepted).add(peer)
        return fault

    def _verified(
        self, runs: Iterable[Run], verify: Callable[[Change], bool], verdicts: list[Verdict]
    ) -> Iterator[Run]:
        """The runs, or parts of them, that `verify` takes; a verdict for each log with others."""
        bad: set[str] = set()
        for peer, first, entries in runs:
            for change in expand(peer, first, entries if peer not in bad else ()):
                if fault := self._objection(verify, change):
                    verdicts.append(Verdict(peer, change.seq, fault))
                    bad.add(peer)
                    entries = entries[: change.seq - first]
                    break
            else:
                entries = entries if peer not in bad else ()
            if entries:
                yield Run(peer, first, entries)

    def _objection(self, verify: Callable[[Change], bool], change: Change) -> str:
        """The objection of `verify` to a change; "" if there is none."""
        answer = self._ask(verify, "verify", change)
        if answer is None:
            return f"verify failed at {change.seq}"
        return "" if answer else f"verify refused {change.seq}"

    def _ask(self, function: Callable[[Any], bool], name: str, about: Any) -> bool | None:
        """The answer of a function of the user's; None if it failed.

        An exception of `verify` is a mistake of the program, and is told with its traceback.
        """
        try:
            answer = function(about)
            if hasattr(answer, "__await__"):  # such an object is true, whatever it would come to
                raise TypeError(f"{name} has to answer at once, but returned an awaitable")
            return bool(answer)
        except Exception as error:
            trace = "".join(format_exception(error))
            self._store.events.tell("error", f"{name} failed", f"{name} failed:\n{trace}")
            return None


def check_wishes(verify: Verify, accept: Accept) -> None:
    """Raise TypeError unless these can be asked about changes and logs."""
    if verify is not None and not callable(verify):
        raise TypeError(f"verify is a function or None, not {verify!r}")
    if isinstance(accept, (str, bytes)) or not (
        accept is None or callable(accept) or hasattr(accept, "__contains__")
    ):
        raise TypeError(f"accept is a set of ids, a function or None, not {accept!r}")
    for name, function in ("verify", verify), ("accept", accept):
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & CO_COROUTINE:
            # Nobody would await it, and a coroutine is true: it would let everything pass.
            raise TypeError(f"{name} has to answer at once, so it cannot be async: {function!r}")


def runs_of(changes: Iterable[tuple[str, int, Any]], encode: Callable[[Any], bytes]) -> list[Run]:
    """Gather changes, which a program hands to `write`, to runs. Raises TypeError or ValueError."""
    runs: list[Run] = []
    # The entries of the last run.
    entries: list[bytes] = []
    for change in changes:
        try:
            peer, seq, entry = change
        except (TypeError, ValueError):
            raise TypeError(f"a change is (peer, seq, entry), not {shown(change)}") from None
        # A change that follows the one before in the same log goes into the same run.
        if not runs or (peer, seq) != (runs[-1].peer, runs[-1].first + len(entries)):
            entries = []
            runs.append(Run(check_peer(peer), seq, entries))
        check_seq(seq)
        entries.append(encode(entry))
    return runs


def write(store: Store, runs: list[Run], sync: bool | None = None) -> int:
    """Store in one batch what a program hands in, all or none; return how many entries were new.

    Raises ValueError, which names every log with a fault.
    """
    door = Door(store)
    store.refuse_nested()
    with store.database.writes, store.database:
        store.settle()
        approved, verdicts = door._decide(runs, compares=False)
        if verdicts:
            if store.is_signed:
                door._note_fork(verdicts, "by write")
            raise ValueError("; ".join(f"{peer!r}: {why}" for peer, _, why in verdicts))
        return store.commit(approved, sync)
