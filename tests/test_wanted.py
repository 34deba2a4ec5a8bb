"""Which logs of others are wanted: `accept`, `forget`, and what a remote hears of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run

import scuttleup
from scuttleup import Change, Scuttleup
from scuttleup.deleting.forgetting import _want

NewLogs = Callable[..., Scuttleup]


def of(peer: str, *seqs: int) -> list[Change]:
    return [Change(peer, seq, f"{peer} {seq}") for seq in seqs]


def meet(a: Scuttleup, b: Scuttleup, **options: Any) -> list[scuttleup.Replicated]:
    """All that the two exchange, without a connection."""
    streams = [each.create_replication_stream(live=False, **options) for each in (a, b)]
    while any(data := [stream.data_to_send() for stream in streams]):
        for stream, there in zip(reversed(streams), data, strict=True):
            stream.receive_data(there) if there else None
    assert all(stream.finished for stream in streams)
    for stream in streams:
        stream.close()
    return [stream.replicated for stream in streams]


@pytest.fixture
def relay(new_logs: NewLogs) -> Scuttleup:
    """It holds the logs of a friend and of a stranger."""
    relay = new_logs("relay")
    relay.append("mine")
    relay.write(of("friend", 1, 2) + of("stranger", 1, 2))
    return relay


@pytest.mark.parametrize("as_set", [True, False], ids=["set", "function"])
def test_only_what_is_accepted_is_taken_and_that_is_nobodys_failure(
    new_logs: NewLogs, relay: Scuttleup, as_set: bool, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def accept(peer: str) -> bool:
        asked.append(peer)
        return peer != "stranger"

    us = new_logs("us", accept={"friend", "relay"} if as_set else accept)
    for _ in range(2):
        there, here = meet(relay, us)
        assert here.refused == there.refused_there == {"stranger": "not accepted"}
        assert us.head == {"friend": 2, "relay": 1}
    assert (there.sent, there.delivered) == (2, 0)  # in the second meeting
    assert as_set or sorted(asked) == ["friend", "relay", "stranger", "stranger"]
    assert not caplog.records


def test_an_accept_that_fails_leaves_the_log_out_and_is_told(
    new_logs: NewLogs, relay: Scuttleup, caplog: pytest.LogCaptureFixture
) -> None:
    us = new_logs("us", accept=lambda peer: peer != "relay" or 1 / 0)
    assert meet(us, relay)[0].refused == {"relay": "not accepted"}
    assert "ZeroDivisionError" in caplog.text
    assert us.head == {"friend": 2, "stranger": 2}


async def wait(peer: str) -> bool:
    return True


@pytest.mark.parametrize("accept", ["us", 7, b"us", wait])
def test_an_accept_that_is_no_set_is_named(tmp_path: Path, accept: Any) -> None:
    with pytest.raises(TypeError, match=f"{accept!r}"):
        scuttleup.open(tmp_path / "logs.db", accept=accept)


def test_a_forgotten_log_is_gone_and_does_not_come_back(
    new_logs: NewLogs, relay: Scuttleup
) -> None:
    us = new_logs("us")
    meet(us, relay)
    us.delete("stranger", 2)  # so that its number has a key of its own
    room = us._store.room
    assert us.forget("stranger") == 1
    assert us.forget("stranger") == 0
    assert us._store.room > room
    assert us.forgotten == {"stranger"}
    with us._store.database as db:
        keys = list(db.iterator(include_value=False))
    assert [key for key in keys if b"stranger" in key] == ["m\xffforgotten\xffstranger".encode()]
    for logs in (us, Scuttleup(us._store.database.db)):
        assert meet(logs, relay)[0].refused == {"stranger": "forgotten"}
        with pytest.raises(ValueError, match="'stranger': forgotten"):
            logs.write(of("stranger", 1))
        assert logs.head == {"friend": 2, "relay": 1}
    us.remember("stranger")
    meet(us, relay)
    assert us.head == {"friend": 2, "relay": 1, "stranger": 2}
    with pytest.raises(ValueError, match="our own log"):
        us.forget("us")


def test_who_reads_or_replicates_just_then_gets_no_more_of_it(
    new_logs: NewLogs, relay: Scuttleup
) -> None:
    us, other = new_logs("us", value_encoding="binary"), new_logs("other")
    us.write([Change("a", seq, bytes(1000)) for seq in range(1, 301)] + of("b", 1))
    with us.create_read_stream(live=True) as reader:
        assert next(reader).seq == 1
        (to_other, to_us), (from_relay, relays) = (
            [each.create_replication_stream() for each in pair]
            for pair in ((us, other), (us, relay))
        )
        to_other.receive_data(to_us.data_to_send())
        to_us.receive_data(to_other.data_to_send())  # a part of the log
        from_relay.receive_data(relays.data_to_send())
        relays.receive_data(from_relay.data_to_send())
        us.forget("a")
        us.forget("stranger")
        while change := next(reader):
            if change.peer != "a":
                break
            assert change.seq < 257  # what the reader had got at once
        assert change.peer == "b"
        while data := to_other.data_to_send():
            to_us.receive_data(data)
        assert other.head["b"] == 1
        assert other.head["a"] < 100
        while data := relays.data_to_send():
            from_relay.receive_data(data)
        assert us.head == {"b": 1, "friend": 2, "relay": 1}


def test_what_a_crash_left_of_a_forgotten_log_is_not_there_and_does_not_come_back(
    new_logs: NewLogs,
) -> None:
    us = new_logs("us")
    us.write(of("stranger", 1, 2, 3))
    _want(us._store, "stranger", False)  # and then the process was killed
    again = Scuttleup(us._store.database.db)
    assert again.head == {}
    again.remember("stranger")
    again.write(of("stranger", 1))
    assert [change.seq for change in again.create_read_stream()] == [1]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_command_forgets_and_remembers(tmp_path: Path) -> None:
    path = str(tmp_path / "logs.db")
    with scuttleup.open(path, id="us") as logs:
        logs.write(of("stranger", 1, 2))
    assert run("--db", path, "forget", "stranger") == (0, "'stranger': 2 entries deleted\n", "")
    assert run("--db", path, "head") == (0, "* 0 'us'\n", "")
    assert run("--db", path, "remember", "stranger") == (0, "", "")
    status, _, err = run("--db", path, "forget", "us")
    assert (status, err) == (1, "scuttleup: 'us' is our own log, which cannot be forgotten\n")


def test_a_bookmark_of_a_log_that_was_forgotten_is_ahead_of_it(relay: Scuttleup) -> None:
    seen = relay.head
    relay.forget("stranger")
    with pytest.raises(ValueError, match="since has 2 of 'stranger', whose log ends at 0 here"):
        relay.create_read_stream(since=seen)
    del seen["stranger"]
    assert list(relay.create_read_stream(since=seen)) == []
