"""What all connections of a store may hold together, whatever their remotes do."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from functools import partial

import pytest
from waiting import until
from wire import encode_handshake

from scuttleup import ConnectionLost, Peer, ReplicationStream, Scuttleup, limits
from scuttleup.replication.budget import Budget
from scuttleup.replication.messages import encode_changes

HELLO = encode_handshake("far", {}, "sync")
LARGE = encode_changes("far", 1, [bytes(1_000_000)])

NewStream = Callable[..., ReplicationStream]


@pytest.fixture(autouse=True)
def at_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOLD_STEP", 0)


@pytest.fixture
def new_stream(logs: Scuttleup) -> NewStream:
    def make(head: dict[str, int] | None = None, live: bool = True) -> ReplicationStream:
        stream = logs.create_replication_stream(live=live)
        stream.receive_data(HELLO if head is None else encode_handshake("far", head, "sync"))
        return stream

    return make


def names(count: int, first: int = 0) -> dict[str, int]:
    return {f"log {n}": 1 for n in range(first, first + count)}


def held(logs: Scuttleup) -> tuple[int, int]:
    budget = Budget.of(logs._store)
    return budget.names, budget.bytes


# --- Names ---


def test_of_too_many_digests_some_are_not_remembered_and_all_logs_come(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_NAMES_HELD", 100 * limits.NAME_BYTES)
    full, late = new_stream(names(120)), new_stream(names(10, 200))
    assert held(logs) == (120, 0)
    late.receive_data(b"".join(encode_changes(peer, 1, [b"x"]) for peer in names(10, 200)))
    full.receive_data(b"".join(encode_changes(peer, 1, [b"x"]) for peer in names(120)))
    assert len(logs.head) == 130
    assert held(logs) == (0, 0)


def test_a_log_that_is_not_remembered_is_sent_to_who_has_it(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, full = new_stream(names(1)), new_stream()
    monkeypatch.setattr(limits, "MAX_NAMES_HELD", 0)
    late = new_stream(names(1))
    for stream in (first, late):
        while stream.data_to_send():
            pass
    full.receive_data(encode_changes("log 0", 1, [b"x"]))
    assert (first.data_to_send(), late.data_to_send()) == (b"", encode_changes("log 0", 1, [b"x"]))


def test_a_promise_that_is_not_remembered_is_waited_for(
    logs: Scuttleup,
    new_stream: NewStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(limits, "MAX_NAMES_HELD", 0)
    stream = new_stream(names(2), live=False)
    while stream.data_to_send():
        pass
    assert not stream.finished
    stream.tick(0)
    stream.receive_data(encode_changes("log 0", 1, [b"x"]))
    stream.tick(limits.PROMISED + 1)
    assert stream.finished
    assert "too many to be remembered" in caplog.text


def test_who_sends_too_many_bad_logs_is_not_listened_to_any_more_and_others_are(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_NAMES_HELD", 100 * limits.NAME_BYTES)
    bad, good = new_stream(), new_stream()
    for first in (0, 100):
        logs_of_old = (encode_changes(peer, 0, [b"x"]) for peer in names(100, first))
        bad.receive_data(b"".join(logs_of_old))
    assert held(logs) == (100, 0)
    bad.receive_data(encode_changes("new", 1, [b"x"]))
    good.receive_data(encode_changes("bad", 0, [b"x"]) + encode_changes("bad", 1, [b"x"]))
    good.receive_data(encode_changes("good", 1, [b"x"]))
    assert logs.head == {"good": 1}
    # Not even when there is room again.
    good.close()
    monkeypatch.undo()
    bad.receive_data(encode_changes("new", 2, [b"x"]))
    assert logs.head == {"good": 1}


def test_accept_is_asked_again_where_its_answer_could_not_be_remembered(
    db: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def accept(peer: str) -> bool:
        asked.append(peer)
        return False

    with Scuttleup(db, id="us", accept=accept) as logs:
        monkeypatch.setattr(limits, "MAX_NAMES_HELD", 0)
        stream = logs.create_replication_stream()
        stream.receive_data(encode_handshake("far", names(3), "sync"))
        stream.receive_data(encode_changes("log 1", 1, [b"x"]))
        assert asked == [*names(3), "log 1"]
        assert (logs.head, held(logs)) == ({}, (0, 0))


# --- Bytes ---


def test_beyond_the_limit_the_connection_that_holds_the_most_is_dropped(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD", 1_000_000)
    some, most, last = (new_stream() for _ in range(3))
    some.receive_data(LARGE[:300_000])
    most.receive_data(LARGE[:500_000])
    last.receive_data(LARGE[:300_000])
    assert [stream.dropped for stream in (some, most, last)] == [False, True, False]
    assert held(logs) == (0, 600_000)
    for use in (lambda: most.receive_data(b"x"), lambda: most.tick(0)):
        with pytest.raises(ConnectionLost, match="hold more than 1000000 bytes, and this one the"):
            use()
    most.close()
    some.receive_data(LARGE[300_000:])
    assert logs.head == {"far": 1}
    assert held(logs) == (0, 300_000)


def test_a_connection_whose_event_loop_is_closed_harms_no_other(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    wake = partial(loop.call_soon_threadsafe, print)
    dead = logs.create_replication_stream(wake=wake)  # type: ignore[arg-type]
    dead.receive_data(HELLO + LARGE[:500_000])
    monkeypatch.setattr(limits, "MAX_HELD", 600_000)
    stream = new_stream()
    stream.receive_data(LARGE[:300_000])
    stream.receive_data(LARGE[300_000:])
    assert dead.dropped
    assert logs.head == {"far": 1}


def test_what_a_remote_does_not_take_counts(
    logs: Scuttleup, new_stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.append("x" * 1_000_000)
    streams = [new_stream() for _ in range(3)]
    for stream in streams:
        while b"xxx" not in stream.data_to_send():
            pass
    assert held(logs)[1] > 3_000_000
    monkeypatch.setattr(limits, "MAX_HELD", 2_500_000)
    streams[0].data_to_send()
    assert sum(stream.dropped for stream in streams) == 0  # nothing has grown
    streams[0].receive_data(b"\x80")
    assert sum(stream.dropped for stream in streams) == 1


def test_who_is_gone_holds_nothing(logs: Scuttleup, new_stream: NewStream) -> None:
    closed, forgotten = new_stream(names(9)), new_stream(names(9))
    forgotten.receive_data(LARGE[:1000])
    assert held(logs) == (18, 1000)
    closed.close()
    del forgotten
    gc.collect()
    assert held(logs) == (0, 0)


async def test_a_connection_is_dropped_while_its_remote_takes_nothing(
    logs: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_HELD", 25_000_000)
    logs.append("x" * 15_000_000)
    async with Peer(logs, listen=("127.0.0.1", 0)) as peer:
        (address,) = peer.addresses
        writers = [(await asyncio.open_connection(*address))[1] for _ in range(2)]
        for writer in writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(HELLO)
        await until(lambda: peer.failures == 1 and len(peer.connected) == 1)
        for writer in writers:
            writer.transport.abort()
