"""Reports: what one side says of the other's changes, under any order of events.

`run` is a randomized model without I/O: two or three peers, some of which do not report, with gaps,
refusals, deletions and closings, over connections that are cut anywhere. More runs than the suite
has: `python test_reports.py FIRST COUNT`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import combinations, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from leveldb import binding
from wire import encode_handshake

import scuttleup
from scuttleup import Change, ConnectionLost, ProtocolError, Scuttleup, ScuttleupError
from scuttleup.replication import ReplicationStream, protocol
from scuttleup.replication.messages import (
    Refusal,
    Report,
    decode_report,
    encode_changes,
    encode_report,
    handshake_pieces,
)
from scuttleup.signed import proof_of

PARTS = count()  # of the database, one for each peer of each run
LIMIT = 60_000  # steps, after which a run counts as one that does not end


class End:
    """One end of a connection, and the bytes that the other has not got yet."""

    other: End

    def __init__(self, logs: Scuttleup, dice: random.Random, reports: bool) -> None:
        self.logs, self.reports, self.live = logs, reports, dice.random() < 0.4
        mode: Any = dice.choice(["sync", "sync", "sync", "push", "pull"])
        self.stream = logs.create_replication_stream(mode=mode, live=self.live)
        if not reports:
            pieces = handshake_pieces(logs.id, logs.head, mode, reports=False)
            self.stream._greeting = pieces
        self.sent: list[tuple[str, int]] = []
        self.wire = bytearray()
        self.over = self.ended = False
        self.error: Exception | None = None

    @property
    def both_report(self) -> bool:
        return self.reports and self.other.reports

    def send(self, hold: bool) -> None:
        def encode(peer: str, first: int, entries: Iterable[bytes]) -> bytes:
            entries = list(entries)
            self.sent += [(peer, seq) for seq, _ in enumerate(entries, first)]
            return encode_changes(peer, first, entries)

        self.stream.hold_reports = hold
        with patch.object(protocol, "encode_changes", encode):
            self.wire += self.stream.data_to_send()

    def hear(self, data: bytes) -> None:
        if self.stream.closed:
            self.finish()
        if not self.over:
            try:
                self.stream.receive_data(data)
            except (ProtocolError, ConnectionLost) as error:
                self.finish(error)

    def finish(self, error: Exception | None = None) -> None:
        self.error, self.over, self.was_closed = error, True, self.stream.closed
        self.result, self.there = self.stream.replicated, self.stream._there
        self.stream.close()
        if error:
            self.wire.clear()


class Run:
    """One run of the model. The dice decide everything."""

    def __init__(self, db: Any, seed: int) -> None:
        self.db, self.seed = db, seed
        self.dice = dice = random.Random(seed)
        self.deleted: set[tuple[str, str, int]] = set()
        peers = [self.peer(f"p{at}") for at in range(dice.choice([2, 3]))]
        self.peers = peers
        for logs in peers:
            self.fill(logs)
        all_report = dice.random() < 0.8
        self.ends: list[End] = []
        for a, b in combinations(peers, 2):
            if (a, b) == (peers[0], peers[1]) or dice.random() < 0.6:
                pair = [End(it, dice, all_report or dice.random() < 0.6) for it in (a, b)]
                pair[0].other, pair[1].other = pair[1], pair[0]
                self.ends += pair
        self.news = dice.choice([0, 0, 3, 20])
        self.may_close = dice.random() < 0.1
        self.now = 0.0

    def peer(self, id: str) -> Scuttleup:
        options: dict[str, Any] = {}
        if self.dice.random() < 0.3:
            options["max_entry"] = 60
        if self.dice.random() < 0.2:
            veto = self.dice.randrange(40)
            options["verify"] = lambda change: (len(change.peer) * 7 + change.seq) % 40 != veto
        part = self.db.prefixed_db(f"{next(PARTS)} ".encode())
        return Scuttleup(part, id=id, **options)

    def fill(self, logs: Scuttleup) -> None:
        dice, most = self.dice, logs._store.max_entry
        logs.extend(
            b"e" * min(dice.choice([3, 3, 100]), most) for _ in range(dice.choice([0, 1, 9]))
        )
        for peer in ("x", "y", "w"):
            seqs = range(1, dice.choice([1, 2, 5, 30, 300]))
            sizes = [3 + 97 * (seq % 13 == 0) + 70_000 * (seq == 29) for seq in seqs]
            pairs = zip(seqs, sizes, strict=True)
            logs.write(Change(peer, seq, b"x" * size) for seq, size in pairs if size <= most)
        for at in range(3):  # a part of others' logs, perhaps with a gap
            first, gap = dice.randrange(1, 9), dice.choice([0, 2])
            if f"p{at}" != logs.id and dice.random() < 0.3:
                with_gap = [*range(1, first), *range(first + gap, first + gap + 4)]
                logs.write(Change(f"p{at}", seq, b"e" * 3) for seq in with_gap)
        for _ in range(dice.choice([0, 0, 1, 9])):
            self.delete(logs)

    def delete(self, logs: Scuttleup) -> None:
        if heads := logs.head:
            peer = self.dice.choice(sorted(heads))
            seq = self.dice.randrange(1, heads[peer] + 1)
            self.deleted.add((logs.id, peer, seq))
            logs.delete(peer, seq)

    def holds(self, logs: Scuttleup, peer: str, seq: int) -> bool:
        with suppress(KeyError):
            logs.entry(peer, seq)
            return True
        return (logs.id, peer, seq) in self.deleted

    def check(self, end: End) -> None:
        """What it says is delivered is stored there."""
        there, logs = end.stream._there, end.other.logs
        if there is not None and not logs._store.database.closed:
            taken = end.sent[: there.taken]
            held = sum(self.holds(logs, peer, seq) for peer, seq in taken)
            assert end.stream.replicated.delivered is not None
            assert end.stream.replicated.delivered <= held

    def happen(self) -> None:
        """Something at one of the peers."""
        logs, kind = self.dice.choice(self.peers), self.dice.random()
        if not logs._store.database.closed:
            if kind < 0.5:
                logs.append("new")
            elif kind < 0.9:
                self.delete(logs)
            elif self.may_close:
                logs.close()

    def step(self, end: End) -> bool:
        """Let one end send, or the other hear; return whether anything went on."""
        dice, before = self.dice, len(end.wire)
        if not end.over and dice.random() < 0.5:
            with suppress(ScuttleupError):
                end.send(hold=dice.random() < 0.5)
        elif end.wire:
            size = dice.choice([1, 100, 1000, 65536])
            data = bytes(end.wire[:size])
            del end.wire[:size]
            end.other.hear(data)
        elif end.over and not end.ended:
            end.ended = True
            end.other.hear(b"")
            return True
        if not end.over and end.stream.finished and dice.random() < 0.7:
            if not end.stream.closed:
                self.check(end)
            left = end.other.ended
            end.finish()
            if end.both_report and not (end.was_closed or left):
                assert end.there
                assert end.there.complete
                assert end.there.taken == end.result.sent
        if not end.other.over:
            self.check(end.other)
        return len(end.wire) != before

    def still(self) -> None:
        """Nothing moves: time passes, and live ones have caught up and are ended at last."""
        self.now += 3
        for end in self.ends:
            if not end.over:
                try:
                    end.stream.tick(self.now)
                except ConnectionLost as error:
                    if end.both_report:
                        raise AssertionError("one of two who report stood still") from error
                    end.finish(error)
        if all(end.live or end.over for end in self.ends):
            for end in self.ends:
                if not end.over and not end.wire:
                    stream = end.stream
                    assert not end.both_report or stream.caught_up or stream._ended or stream.closed
            for end in self.ends:
                if not end.over and not end.wire:
                    end.finish()

    def go(self) -> None:
        quiet = 0
        for step in count():
            active = [end for end in self.ends if not end.over or end.wire or not end.ended]
            if not active:
                break
            assert step < LIMIT, "it does not end"
            quiet = 0 if self.step(self.dice.choice(active)) else quiet + 1
            if self.news and self.dice.random() < 0.05:
                self.news, quiet = self.news - 1, 0
                self.happen()
            if quiet > 100:
                quiet = 0
                self.still()
        closed = any(logs._store.database.closed for logs in self.peers)
        for end in self.ends:
            other = end.other
            if end.both_report and not closed and not isinstance(other.error, ProtocolError):
                assert not isinstance(end.error, ConnectionLost), end.error
                if not (end.error or other.error):
                    assert end.result.refused_there.keys() <= other.result.refused.keys()
                    assert (
                        end.live or other.live or end.result.refused_there == other.result.refused
                    )


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    db = binding.DB(str(tmp_path_factory.mktemp("model")), create_if_missing=True)
    yield db
    db.close()


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_nothing_is_delivered_that_is_not_stored_and_all_ends(db: Any, first: int) -> None:
    for seed in range(first, first + 50):
        Run(db, seed).go()


def plant(name: str) -> Any:
    """A fault, for the time of a `with` block."""
    stream = ReplicationStream
    if name == "what is dropped counts as delivered":
        size: Any = lambda runs: sum(len(run.entries) or 1 for run in runs)  # noqa: E731
        return patch.object(stream, "_known", lambda _, runs, new: size(runs) - size(new))
    if name == "taken is told of what was not handled":
        encode = encode_report
        more = lambda report: encode(report._replace(taken=report.taken + 1))  # noqa: E731
        return patch.object(protocol, "encode_report", more)
    if name == "complete is never told":
        encode = encode_report
        never = lambda report: encode(report._replace(complete=False))  # noqa: E731
        return patch.object(protocol, "encode_report", never)
    if name == "a one-shot leaves before its last report":
        return patch.object(stream, "_to_report", lambda self: None)
    assert name == "a one-shot leaves before all was taken"
    return patch.object(stream, "waiting", False)


FAULTS = [
    "what is dropped counts as delivered",
    "taken is told of what was not handled",
    "complete is never told",
    "a one-shot leaves before its last report",
    "a one-shot leaves before all was taken",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_notices_a_fault(db: Any, fault: str) -> None:
    def run() -> None:
        for seed in range(500):
            Run(db, seed).go()

    with plant(fault), pytest.raises(AssertionError):
        run()


REFUSAL = Refusal("them", 9, "fork at 9", b"p" * 96)


def test_a_report_is_read_as_it_was_written() -> None:
    for report in Report(), Report(7), Report(2**40, 3, 2, True, (REFUSAL, Refusal("x", 0, ""))):
        start = 1 + (encode_report(report)[0] > 0x7F)
        assert decode_report(encode_report(report)[start:]) == report
    assert encode_report(Report(7)) == bytes.fromhex("03c83e07")


@pytest.fixture
def us(db: Any) -> ReplicationStream:
    """It has sent two changes to a remote that reports."""
    logs = Scuttleup(db.prefixed_db(f"{next(PARTS)} ".encode()), id="us")
    logs.extend(["one", "two"])
    stream = logs.create_replication_stream(live=False)
    stream.receive_data(encode_handshake("them", {}, "sync", reports=True))
    assert stream.data_to_send()
    return stream


def test_a_one_shot_is_finished_when_the_remote_has_taken_all(us: ReplicationStream) -> None:
    us.receive_data(encode_report(Report(1, complete=True)))
    assert not us.finished
    us.receive_data(encode_report(Report(2, 1, refused=(Refusal("us", 2, "a\nreason"),))))
    assert us.finished
    assert us.replicated == (2, 0, {}, 1, {"us": "a\\nreason"}, 0)


def exchange(*logs: Scuttleup, **options: Any) -> None:
    streams = [each.create_replication_stream(live=False, **options) for each in logs]
    while any(data := [stream.data_to_send() for stream in streams]):
        for stream, there in zip(reversed(streams), data, strict=True):
            if there:
                stream.receive_data(there)


def test_the_owner_of_a_log_that_has_forked_hears_of_it_with_a_proof(tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    key = bytes(range(32))

    def opened(name: str, *entries: str) -> Scuttleup:
        logs = scuttleup.open(tmp_path / name, key=key)
        logs.extend(entries)
        return logs

    friend = scuttleup.open(tmp_path / "friend")
    with opened("one", "a", "b") as one, opened("two", "a", "c", "d") as two, friend:
        exchange(friend, one)
        assert one.fork is None
        exchange(friend, two)
        assert two.fork == (2, "by a remote")
        # A proof of what is our own entry, or no proof, says nothing.
        stored = one._store.get(one.id, 2)
        for proof in (proof_of(stored), bytes(96), b""):
            stream = one.create_replication_stream()
            hello = encode_handshake("them", {}, "sync", reports=True)
            refusal = Refusal(one.id, 2, "fork at 3", proof)
            stream.receive_data(hello + encode_report(Report(refused=(refusal,))))
            assert one.fork is None


@pytest.mark.parametrize(
    ("known", "mode", "may"), [(2, "sync", True), (1, "sync", False), (2, "push", False)]
)
def test_a_backup_goes_on_when_a_peer_that_knows_it_has_sent_all(
    tmp_path: Path, known: int, mode: Any, may: bool
) -> None:
    friend_path = tmp_path / "friend"
    with scuttleup.open(tmp_path / "us", id="us") as us, scuttleup.open(friend_path) as friend:
        us.extend(["a", "b"])
        friend.write(Change("us", seq, b"ab"[seq - 1 : seq]) for seq in range(1, known + 1))
        us.backup(tmp_path / "backup")
    with (
        scuttleup.open(tmp_path / "backup") as backup,
        scuttleup.open(tmp_path / "friend") as other,
    ):
        exchange(backup, other, **({} if mode == "sync" else {"mode": "push"}))
        if may:
            assert backup.append("c").seq == 3
        else:
            with pytest.raises(ScuttleupError, match="is a backup"):
                backup.append("c")


@pytest.mark.parametrize(
    "reports",
    [[Report(3)], [Report(1, 2)], [Report(2), Report(1)], [Report(2, 1), Report(2)]],
    ids=["more than was sent", "more lost than taken", "less than before", "fewer lost"],
)
def test_a_report_that_cannot_be_is_an_error(us: ReplicationStream, reports: list[Report]) -> None:
    *before, last = map(encode_report, reports)
    for report in before:
        us.receive_data(report)
    with pytest.raises(ProtocolError, match="a report of"):
        us.receive_data(last)


def test_who_does_not_report_gets_none_and_sends_none(db: Any) -> None:
    logs = Scuttleup(db.prefixed_db(f"{next(PARTS)} ".encode()), id="us")
    stream = logs.create_replication_stream()
    assert stream.data_to_send() == encode_handshake("us", {}, "sync", reports=True)
    stream.receive_data(encode_handshake("them", {}, "sync") + encode_changes("them", 1, [b"x"]))
    assert stream.data_to_send() == b""
    with pytest.raises(ProtocolError, match="did not announce"):
        stream.receive_data(encode_report(Report()))


def test_who_stands_still_or_leaves_before_all_is_taken_is_lost(us: ReplicationStream) -> None:
    for now in (0, 59):
        us.tick(now)
    us.receive_data(encode_report(Report(1)))
    for now in (60, 119):
        us.tick(now)
    with pytest.raises(ConnectionLost, match="left before all was exchanged"):
        us.receive_data(b"")


if __name__ == "__main__":
    first, runs = map(int, sys.argv[1:])
    with TemporaryDirectory() as folder:
        database = binding.DB(folder, create_if_missing=True)
        for seed in range(first, first + runs):
            try:
                Run(database, seed).go()
            except BaseException:
                print("seed", seed)
                raise
        database.close()
    print(runs, "runs")
