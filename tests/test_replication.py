"""The protocol without I/O: what two streams that hear each other come to, and bad remotes."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leveldb import FakeDB, binding, open_leveldb
from wire import HTTP, MODES, Mode, cut, encode_handshake, frame, sends, string, tls_hello, varint

from scuttleup import (
    Change,
    ConnectionLost,
    DatabaseError,
    ProtocolError,
    ReplicationStream,
    Scuttleup,
    limits,
)
from scuttleup.keys import log_prefix, pack_seq
from scuttleup.replication.messages import encode_changes


class Peer(NamedTuple):
    logs: Scuttleup
    db: Any

    @property
    def contents(self) -> dict[bytes, bytes]:
        """The whole database."""
        return dict(self.db.iterator())

    @property
    def entries(self) -> dict[tuple[str, int], bytes]:
        return {(c.peer, c.seq): c.entry for c in self.logs.create_read_stream()}


NewPeer = Callable[..., Peer]
Limit = Callable[..., None]


@pytest.fixture(scope="module")
def new_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewPeer]:
    """Makes peers, each with a part of one LevelDB: one for each would take its time."""
    db = open_leveldb(tmp_path_factory.mktemp("peers"))
    numbers = count()

    def make(id: str, *entries: bytes, **options: Any) -> Peer:
        part = db.prefixed_db(b"%d/" % next(numbers))
        logs = Scuttleup(part, id=id, **options)
        logs.extend(entries)
        return Peer(logs, part)

    yield make
    db.close()


# What a remote may send to `us`.
HELLO = encode_handshake("far", {"far": 9, "near": 2}, "sync")
TRAFFIC = [
    HELLO,
    encode_changes("far", 1, [b"one", b"two"]),
    encode_changes("us", 3, [b"the tail", b"of a backup"]),
    encode_changes("near", 1, [b"", b"x" * 130]),
    encode_changes("far", 3, [b"three"]),
]


def change(peer: bytes, seq: int) -> bytes:
    """The frame of a change, however wrong."""
    return frame(string(1, peer) + b"\x10" + varint(seq) + b"\x1a\x01x")


@pytest.fixture
def us(new_peer: NewPeer) -> Peer:
    us = new_peer("us", b"1", b"2")
    us.logs.write([Change("near", 1, b"known")])
    return us


# --- Without a connection -------------------------------------------------------------------------

AT_ONCE = [1 << 30]
in_pieces = pytest.mark.parametrize("sizes", [AT_ONCE, [1]], ids=["at once", "byte by byte"])
Pair = tuple[ReplicationStream, ReplicationStream]


def streams(a: Peer, b: Peer) -> Pair:
    return a.logs.create_replication_stream(), b.logs.create_replication_stream()


def all_of(stream: ReplicationStream) -> bytes:
    """All that `stream` has to send now."""
    return b"".join(iter(stream.data_to_send, b""))


def hear(stream: ReplicationStream, data: bytes, sizes: Sequence[int] = AT_ONCE) -> None:
    for piece in cut(data, sizes):
        stream.receive_data(piece)


def heard(peer: Peer, data: bytes, **options: Any) -> ReplicationStream:
    """A stream of `peer` that has heard `data`."""
    stream = peer.logs.create_replication_stream(**options)
    hear(stream, data)
    return stream


def carry(
    sender: ReplicationStream, receiver: ReplicationStream, sizes: Sequence[int] = AT_ONCE
) -> int:
    """Hand over what `sender` has to send, in pieces of `sizes`, and return how much it was."""
    data = all_of(sender)
    hear(receiver, data, sizes)
    return len(data)


def pump(*pairs: Pair, sizes: Sequence[int] = AT_ONCE) -> None:
    """Let the two of each pair hear each other until nobody has anything more to say."""
    while sum(carry(a, b, sizes) + carry(b, a, sizes) for a, b in pairs):
        pass


def assert_sound(peer: Peer) -> None:
    """The heads are those of the database, and our own log has no gap."""
    assert Scuttleup(peer.db).head == peer.logs.head
    own = [seq for id, seq in peer.entries if id == peer.logs.id]
    assert own == list(range(1, len(own) + 1))


# --- What two peers come to -----------------------------------------------------------------------

lengths = st.integers(0, 4) | st.sampled_from([130, 257, 300])
some_heads = st.fixed_dictionaries({}, optional=dict.fromkeys(["a", "b", "c", "c!", "ü"], lengths))


def entry_of(peer: str, seq: int) -> bytes:
    """An entry is the same wherever it is. Some are long, and some are empty."""
    return b"%b %d" % (peer.encode(), seq) * (seq % 5) * (200 if seq == 3 else 1)


@settings(max_examples=80)
@given(
    heads=st.tuples(some_heads, some_heads),
    # Nothing is deleted from their own logs, whose gaps a remote may not fill.
    deleted=st.lists(st.tuples(st.sampled_from(["c", "ü"]), st.integers(1, 4)), max_size=3),
    modes=st.tuples(st.sampled_from(MODES), st.sampled_from(MODES)),
    live=st.tuples(st.booleans(), st.booleans()),
    sizes=st.lists(st.integers(1, 9) | st.integers(1, 3000), min_size=1, max_size=5),
)
def test_each_gets_what_it_lacks_and_nothing_else(
    new_peer: NewPeer,
    heads: tuple[dict[str, int], dict[str, int]],
    deleted: list[tuple[str, int]],
    modes: tuple[Mode, Mode],
    live: tuple[bool, bool],
    sizes: list[int],
) -> None:
    peers = new_peer("a"), new_peer("b")
    for peer, head in zip(peers, heads, strict=True):
        for id, last in head.items():
            peer.logs.write(Change(id, seq, entry_of(id, seq)) for seq in range(1, last + 1))
    for id, seq in deleted:
        peers[0].logs.delete(id, seq)
    entries = [peer.entries for peer in peers]
    promises = [peer.logs.head for peer in peers]
    a, b = (
        peer.logs.create_replication_stream(mode=modes[n], live=live[n])
        for n, peer in enumerate(peers)
    )
    pump((a, b), sizes=sizes)

    for here, there, stream, remote in ((0, 1, a, b), (1, 0, b, a)):
        peer, head = peers[here], promises[here]
        flows = sends(modes[there], modes[here])
        news = {(p, n): e for (p, n), e in entries[there].items() if flows and n > head.get(p, 0)}
        # The whole database, key by key.
        keys = {log_prefix(p) + pack_seq(n): e for (p, n), e in (entries[here] | news).items()}
        assert {key: e for key, e in peer.contents.items() if key.startswith(b"c")} == keys
        assert peer.logs.head == head | dict(sorted(news))  # the last number of each counts
        assert_sound(peer)

        assert stream.remote_id == peers[there].logs.id
        there_now = remote.replicated.received
        assert stream.replicated == (there_now, len(news), {}, there_now, {}, 0)
        assert stream.complete
        assert stream.finished == (not live[here])


@pytest.mark.parametrize("mode", ["", "SYNC", "both", None, 1, ["sync"]])
def test_an_unknown_mode_is_named(us: Peer, mode: Any) -> None:
    with pytest.raises(ValueError, match=r"sync.*push.*pull.*" + re.escape(repr(mode))):
        us.logs.create_replication_stream(mode=mode)


def test_data_to_send_comes_in_portions(new_peer: NewPeer) -> None:
    """All that is handed out and waits to be written takes memory."""
    stream = heard(new_peer("us", *[bytes(1000)] * 1000, bytes(1_000_000)), HELLO)
    sizes = [len(data) for data in iter(stream.data_to_send, b"")]
    assert sum(sizes) > 2_000_000
    assert max(sizes) == limits.TURN_BYTES


# --- Live -----------------------------------------------------------------------------------------


def test_a_new_entry_is_on_its_way_at_once(us: Peer) -> None:
    woken = threading.Event()
    stream = heard(us, HELLO, wake=woken.set)
    all_of(stream)
    for seq in (3, 4, 5):
        woken.clear()
        us.logs.append(b"new")
        assert woken.is_set()
        assert all_of(stream) == encode_changes("us", seq, [b"new"])
    stream.close()
    woken.clear()
    us.logs.append(b"not for a stream that was closed")
    assert not woken.is_set()


def test_an_entry_appended_between_the_handshakes_is_sent(us: Peer) -> None:
    """Our handshake is there before the remote says anything."""
    stream = us.logs.create_replication_stream(mode="push")
    assert stream.data_to_send() == encode_handshake("us", us.logs.head, "push", True)
    assert stream.data_to_send() == b""
    assert stream.remote_id is None
    us.logs.append(b"3")
    stream.receive_data(HELLO)
    assert all_of(stream) == encode_changes("us", 1, [b"1", b"2", b"3"])


def test_what_comes_from_one_remote_goes_to_the_others_and_not_back(us: Peer) -> None:
    near, far = (heard(us, encode_handshake(id, {}, "sync")) for id in ("near", "far"))
    all_of(near)
    all_of(far)
    far.receive_data(encode_changes("far", 1, [b"new"]))
    assert all_of(near) == encode_changes("far", 1, [b"new"])
    assert all_of(far) == b""


def test_what_the_remote_sends_while_we_send_the_same_log_is_not_sent_back(us: Peer) -> None:
    us.logs.write(("x", seq, b"-" * 100) for seq in range(1, 5001))
    stream = heard(us, HELLO)
    assert len(stream.data_to_send()) == limits.TURN_BYTES
    stream.receive_data(encode_changes("x", 1, [b"-" * 100] * 10_000))
    all_of(stream)
    assert us.logs.head["x"] == 10_000
    assert stream.replicated.sent <= 5002


def test_a_one_shot_stream_ends_though_our_log_grows(us: Peer) -> None:
    stream = heard(us, encode_handshake("far", {"us": 1, "near": 1}, "sync"), live=False)
    us.logs.append(b"too late")
    assert all_of(stream).endswith(encode_changes("us", 2, [b"2"]))
    assert stream.finished


@pytest.mark.parametrize("said", [b"", HELLO], ids=["before the handshake", "after it"])
@pytest.mark.parametrize("live", [True, False])
def test_closing_the_logs_wakes_and_ends_a_stream(us: Peer, live: bool, said: bytes) -> None:
    woken = threading.Event()
    stream = heard(us, said, live=live, wake=woken.set)
    assert not stream.finished
    us.logs.close()
    assert woken.is_set()
    assert stream.finished
    assert stream.data_to_send() == b""


def test_a_wake_that_raises_does_not_make_an_append_look_as_if_it_failed(us: Peer) -> None:
    woken = threading.Event()

    def wake() -> None:
        woken.set()
        raise RuntimeError("Event loop is closed")

    stream = heard(us, HELLO, wake=wake)
    all_of(stream)
    assert us.logs.append(b"x").seq == 3
    assert woken.is_set()


# --- The end --------------------------------------------------------------------------------------


def promised(us: Peer, head: dict[str, int]) -> ReplicationStream:
    """A one-shot that waits for what the remote promised."""
    stream = heard(us, encode_handshake("far", head, "sync"), live=False)
    all_of(stream)
    assert stream.waiting
    assert not stream.finished
    return stream


@pytest.mark.parametrize("elsewhere", [True, False], ids=["it came from elsewhere", "the end"])
def test_what_was_promised_is_not_waited_for_when_it_is_there_or_cannot_come(
    us: Peer, elsewhere: bool
) -> None:
    stream = promised(us, {"near": 2})
    if elsewhere:
        us.logs.write([Change("near", 2, b"from elsewhere")])
    else:
        stream.receive_data(b"")
    assert stream.finished


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [("sync", "sync"), ("sync", "push"), ("pull", "pull")])
def test_a_remote_that_ended_gets_the_rest(us: Peer, live: bool, ours: str, theirs: str) -> None:
    """It sent its end because it had sent all: what it lacks is still to come."""
    us.logs.extend([bytes(1000)] * 500)
    stream = heard(us, encode_handshake("far", {"far": 1}, theirs), mode=ours, live=live)
    stream.receive_data(b"")
    all_of(stream)
    assert stream.replicated.sent == (503 if sends(ours, theirs) else 0)
    assert stream.finished


@pytest.mark.parametrize(("ours", "theirs"), [("sync", "pull"), ("push", "pull"), ("push", "sync")])
def test_a_remote_that_only_listens_may_end_its_side(us: Peer, ours: str, theirs: str) -> None:
    """The original ends it when it pulls or faces a push. It is still there, and live."""
    stream = heard(us, encode_handshake("far", {}, theirs), mode=ours)
    stream.receive_data(b"")
    assert encode_changes("us", 1, [b"1", b"2"]) in all_of(stream)
    assert not stream.finished
    us.logs.append(b"3")
    assert all_of(stream) == encode_changes("us", 3, [b"3"])


# --- Bad remotes ----------------------------------------------------------------------------------

# What it is, what is sent, how the error begins or what it has in it.
BAD_HANDSHAKES = {
    "HTTP": (HTTP, "a field"),
    "a TLS client hello": (tls_hello(), "a field of wire type 3"),
    "a change first": (TRAFFIC[1], "a change where the handshake has to be"),
    "without an id": (frame(b"\x18\x01"), "a handshake without an id"),
    "an id in no UTF-8": (frame(string(1, b"a\xff")), "can't decode byte 0xff"),
    "our own id": (encode_handshake("us", {}, "sync"), "the remote has our own id, 'us'"),
    "a digest without seq": (frame(b"\x12" + frame(string(1, b"f"))), "a digest without peer or"),
    "too long": (varint(limits.MAX_SKIPPED + 1), "a frame of more than"),
}
BAD_CHANGES = {
    "HTTP": (HTTP, "a field"),
    "a handshake": (HELLO, "a change without peer, seq or entry"),
    "without an entry": (frame(b"\x0a\x01f\x10\x01"), "a change without peer, seq or entry"),
    "a field cut off": (frame(b"\x0a\x7ff"), "a message that ends in the middle of a field"),
    "a varint without an end": (frame(b"\x10" + b"\xff" * 20), "a varint without an end"),
    "a peer in no UTF-8": (change(b"\xc3", 1), "unexpected end of data"),
    "too long": (varint(limits.MAX_SKIPPED + 1), "a frame of more than"),
}


@in_pieces
@pytest.mark.parametrize(("data", "error"), BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES.keys())
def test_bad_handshakes_change_nothing(us: Peer, data: bytes, error: str, sizes: list[int]) -> None:
    before, head = us.contents, us.logs.head
    with pytest.raises(ProtocolError, match=error):
        hear(us.logs.create_replication_stream(), data, sizes)
    assert us.contents == before
    assert us.logs.head == head
    assert us.logs.append(b"3").seq == 3


@in_pieces
@pytest.mark.parametrize(("data", "error"), BAD_CHANGES.values(), ids=BAD_CHANGES.keys())
def test_what_came_before_a_bad_change_is_stored_and_nothing_else(
    us: Peer, data: bytes, error: str, sizes: list[int]
) -> None:
    before = us.entries
    good = TRAFFIC[1] + encode_changes("near", 2, [b"new"])
    with pytest.raises(ProtocolError, match=error):
        hear(us.logs.create_replication_stream(), HELLO + good + data, sizes)
    new = {("far", 1): b"one", ("far", 2): b"two", ("near", 2): b"new"}
    assert us.entries == before | new
    assert us.logs.head == {"us": 2, "near": 2, "far": 2}
    assert_sound(us)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(a, b) for a in MODES for b in MODES if not sends(b, a)]
)
def test_a_change_that_the_modes_do_not_allow_is_an_error(us: Peer, ours: str, theirs: str) -> None:
    before = us.contents
    stream = heard(us, encode_handshake("far", {"far": 1}, theirs), mode=ours)
    with pytest.raises(ProtocolError, match="a change, though the modes allow none: 1 of 'far'"):
        stream.receive_data(encode_changes("far", 1, [b"unasked"]))
    assert us.contents == before


def test_what_we_have_already_is_skipped(us: Peer) -> None:
    """It is skipped even if it is another entry: what is here stays as it is."""
    before = us.contents
    stream = heard(us, HELLO + encode_changes("us", 1, [b"no", b"no"]))
    stream.receive_data(encode_changes("near", 1, [b"no"]))
    assert us.contents == before
    assert stream.replicated.received == 0


@pytest.mark.parametrize("before", [0, len(TRAFFIC) - 1], ids=["handshake", "change"])
def test_a_frame_that_is_cut_off_is_an_error_at_the_end(us: Peer, before: int) -> None:
    for nothing in b"", b"\0\0\0":
        with pytest.raises(ConnectionLost, match="the connection ended before the handshake"):
            heard(us, nothing).receive_data(b"")
    last = TRAFFIC[before]
    for keep in range(1, len(last)):
        stream = heard(us, b"".join(TRAFFIC[:before]) + last[:keep])
        with pytest.raises(ConnectionLost, match="the connection ended in the middle of a frame"):
            stream.receive_data(b"")
    assert us.logs.head == ({"us": 4, "near": 2, "far": 2} if before else {"us": 2, "near": 1})


def test_valid_traffic_with_any_bit_flipped_does_no_harm(new_peer: NewPeer) -> None:
    data = b"".join(TRAFFIC)
    for bit in range(len(data) * 8):
        us = new_peer("us", b"1", b"2")
        before = us.contents
        flipped = (int.from_bytes(data) ^ 1 << bit).to_bytes(len(data))
        with suppress(ProtocolError):
            heard(us, flipped)
        assert before.items() <= us.contents.items()
        assert_sound(us)


def test_some_seconds_of_fuzzing_find_nothing() -> None:
    """No entry is changed, our own log gets no gap, and no stream goes on after an error."""
    program = Path(__file__).with_name("fuzz.py")
    run = subprocess.run(
        [sys.executable, str(program), "2"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


# --- What is wrong with one log -------------------------------------------------------------------


def big_change(peer: str, seq: int) -> bytes:
    """The frame of a change whose entry is above the `max_entry` of `strict`."""
    return encode_changes(peer, seq, [bytes(300)])


LONG = "x" * 256
BELOW = "a peer id is one or more characters below U+00FF, not "
# What it is, the log, what is sent of it, and why it is left out.
BAD_LOGS = {
    "an empty id": ("", change(b"", 1), f"{BELOW}''"),
    "an id with U+00FF": ("aÿ", change("aÿ".encode(), 1), f"{BELOW}'aÿ'"),
    "a long id": (LONG, encode_changes(LONG, 1, [b"x"]), "a peer id has at most 255 bytes"),
    "a number 0": ("new", change(b"new", 0), "an entry has the number 0"),
    "one of a known log": ("near", change(b"near", 0), "an entry has the number 0"),
    "a leap in our log": ("us", change(b"us", 4), "entry 4 of our own log does not follow 2"),
    "a large entry": ("new", big_change("new", 1), "entry 1 has more than 299 bytes"),
    "a large one of a known log": ("near", big_change("near", 2), "entry 2 has more than 299"),
    "a larger one": ("new", encode_changes("new", 3, [bytes(5000)]), "entry 3 has more than 299"),
}


@pytest.fixture
def strict(us: Peer) -> Peer:
    """`us`, who takes no entry of more than 299 bytes."""
    return us._replace(logs=Scuttleup(us.db, max_entry=299))


@in_pieces
@pytest.mark.parametrize(("id", "data", "why"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_a_bad_log_is_left_out_with_all_that_follows_in_it_and_the_rest_goes_on(
    strict: Peer, caplog: pytest.LogCaptureFixture, id: str, data: bytes, why: str, sizes: list[int]
) -> None:
    before = strict.entries
    stream = strict.logs.create_replication_stream()
    follows = encode_changes(id, 3, [b"?", b"?"]) + data
    hear(stream, HELLO + TRAFFIC[1] + data + follows + TRAFFIC[-1], sizes)
    hear(stream, follows + encode_changes("far", 4, [b"four"]), sizes)

    good = [b"one", b"two", b"three", b"four"]
    assert strict.entries == before | {("far", seq): e for seq, e in enumerate(good, 1)}
    assert stream.replicated[:2] == (0, 4)
    ((shown, told),) = stream.replicated.refused.items()
    assert shown == id[:64] + "…" * (len(id) > 64)
    assert why in told
    (warning,) = [text for text in caplog.messages if "your own log" not in text]
    assert warning.endswith(f"'{shown}' is left out of a connection: {told}")
    assert strict.logs.append(b"3").seq == 3
    assert_sound(strict)


def test_what_came_of_a_log_before_it_went_wrong_is_stored(strict: Peer) -> None:
    stream = heard(strict, HELLO + encode_changes("new", 1, [b"1", b"2", bytes(300), b"4"]))
    assert strict.logs.head["new"] == 2
    assert stream.replicated.refused == {"new": "entry 3 has more than 299 bytes"}


def test_a_remote_gets_what_it_lacks_of_a_log_that_was_left_out(us: Peer) -> None:
    """What it sent of that log, and what was not stored, does not count as what it has."""
    said = encode_handshake("far", {"us": 2}, "sync") + encode_changes("us", 5, [b"a gap"])
    stream = heard(us, said)
    us.logs.append(b"3")
    assert all_of(stream).endswith(encode_changes("us", 3, [b"3"]))


def test_a_log_that_was_left_out_is_taken_on_another_connection(strict: Peer) -> None:
    bad = heard(strict, HELLO + big_change("new", 1))
    heard(strict, HELLO + encode_changes("new", 1, [b"1", b"2"]))
    bad.receive_data(encode_changes("new", 2, [b"2", b"3"]))
    assert strict.logs.head["new"] == 2
    # And what the first remote sent in vain it may get from us.
    assert encode_changes("new", 1, [b"1", b"2"]) in bad.data_to_send()


def test_a_bad_log_is_no_longer_waited_for(strict: Peer) -> None:
    stream = promised(strict, {"far": 1, "new": 2, "us": 9, "": 4, "aÿ": 4, LONG: 4})
    stream.receive_data(big_change("new", 1) + change(b"us", 5))
    assert not stream.finished
    stream.receive_data(encode_changes("far", 1, [b"1"]))
    assert stream.finished
    assert stream.replicated.refused.keys() == {"new", "us", "", "aÿ", "x" * 64 + "…"}


def test_a_digest_of_0_says_that_the_remote_has_nothing(us: Peer) -> None:
    hello = encode_handshake("far", {"us": 0, "near": 0, "new": 0}, "sync")
    stream = heard(us, hello, live=False)
    sent = all_of(stream)
    assert encode_changes("us", 1, [b"1", b"2"]) in sent
    assert encode_changes("near", 1, [b"known"]) in sent
    assert stream.finished
    assert stream.replicated.refused == {}


def test_a_remote_whose_own_id_is_bad_sends_others_logs_all_the_same(us: Peer) -> None:
    """The original takes any id. It cannot find its own entries again, but relays others'."""
    for seq, id in enumerate(("", "aÿ", "😀", LONG), 1):
        stream = heard(us, encode_handshake(id, {id: 1}, "sync") + encode_changes(id, 1, [b"x"]))
        stream.receive_data(encode_changes("far", seq, [b"x"]))
        assert us.logs.head["far"] == seq
        assert len(stream.replicated.refused) == 1


def test_after_20_bad_logs_others_are_told_as_one(
    us: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [b"%d" % n for n in range(limits.MAX_NAMED + 7)]
    data = b"".join(change(id, 0) + change(id, 1) for id in ids)
    stream = heard(us, HELLO + data + TRAFFIC[1])
    assert us.logs.head == {"us": 2, "near": 1, "far": 2}
    assert len(stream.replicated.refused) == len(caplog.messages) - 1 == limits.MAX_NAMED
    assert caplog.messages[-1].startswith("further logs are left out of a connection: ")


def test_a_remote_that_comes_back_again_and_again_costs_some_lines_a_minute(
    us: Peer, caplog: pytest.LogCaptureFixture, limit: Limit
) -> None:
    for n in range(limits.MAX_TOLD + 7):
        heard(us, encode_handshake("far", {f"{n}\xff": 1}, "sync")).close()
        heard(us, encode_handshake("far", {f"{n}\xff": 1}, "sync")).close()
    assert len(caplog.messages) == limits.MAX_TOLD + 1
    limit(TELL_SECONDS=0)
    heard(us, encode_handshake("far", {"": 1}, "sync"))
    last, again = caplog.messages[-2:]
    assert f"'{limits.MAX_TOLD + 6}ÿ'" in last
    assert last.endswith("(13 of this kind in 0 seconds)")
    assert "''" in again


def test_when_too_many_logs_are_left_out_only_known_ones_are_taken(us: Peer, limit: Limit) -> None:
    limit(MAX_LEFT_OUT=3)
    stream = heard(us, HELLO + TRAFFIC[1])
    for n in range(5):
        stream.receive_data(change(b"bad %d" % n, 0))
    stream.receive_data(change(b"bad 3", 2) + change(b"new", 1) + TRAFFIC[-1])
    assert us.logs.head == {"us": 2, "near": 1, "far": 3}
    assert stream.replicated.refused["new"] == "3 logs were left out before"


def test_an_id_is_shown_without_its_control_characters(us: Peer) -> None:
    stream = heard(us, HELLO + change(b"\x1b[2J\n", 0))
    assert list(stream.replicated.refused) == [r"\x1b[2J\n"]


def test_one_log_more_than_fits_into_our_handshake_is_left_out(us: Peer) -> None:
    us.logs._store.room = 2 * limits.LOG_BYTES + 39
    stream = heard(us, HELLO)
    stream.receive_data(change(b"far", 1) + change(b"a", 1) + change(b"b", 1) + change(b"b", 2))
    stream.receive_data(change(b"a", 2) + change(b"near", 2) + change(b"us", 3))
    assert us.logs.head == {"far": 1, "a": 2, "near": 2, "us": 3}
    assert us.logs._store.room == 39
    assert stream.replicated.refused == {"b": "there is no room for another log"}


def test_no_more_of_a_handshake_is_kept_than_we_could_ever_hold(us: Peer) -> None:
    us.logs._store.room = 100 * limits.LOG_BYTES
    head = {"us": 9, "near": 9} | {f"log {n}": 1 for n in range(10_000)}
    stream = heard(us, encode_handshake("far", head, "sync"), live=False)
    assert stream.remote_id == "far"
    assert len(stream._had.others) == 100
    assert len(stream._promised) == 102


# --- What is wrong with what we hold --------------------------------------------------------------


def test_our_handshake_names_the_logs_that_fit(us: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """A database of the original may have any number of logs."""
    us.logs._store.heads.update((f"{n:040}", n) for n in range(1, 500_001))
    stream = us.logs.create_replication_stream()
    sizes = [len(data) for data in iter(stream.data_to_send, b"")]
    assert max(sizes) <= limits.TURN_BYTES
    assert limits.MAX_HANDSHAKE - 70_000 < sum(sizes) <= limits.MAX_HANDSHAKE
    (warning,) = caplog.messages
    assert re.match(r"\d{6} of 500002 logs do not fit into our handshake", warning)


def test_an_entry_that_no_remote_takes_is_not_sent_nor_what_follows_in_its_log(
    new_peer: NewPeer, caplog: pytest.LogCaptureFixture
) -> None:
    """The original takes entries of any size, and its databases are ours."""
    us, them = new_peer("us", b"1"), new_peer("them", b"2")
    us.logs.write([("log", seq, b"%d" % seq) for seq in range(1, 1001)])
    for seq in (300, 301):
        us.db.put(log_prefix("log") + pack_seq(seq), bytes(limits.MAX_ENTRY + 1))
    us.logs.write([("zzz", 1, bytes(limits.MAX_ENTRY))])
    pair = streams(us, them)
    pump(pair)
    us.logs.write([("log", 1001, b"live")])
    pump(pair)
    assert them.logs.head == {"us": 1, "them": 1, "log": 299, "zzz": 1}
    reason = f"entry 300 has more than {limits.MAX_ENTRY} bytes: not sent"
    assert pair[0].replicated == (301, 1, {"log": reason}, 301, {}, 0)
    assert pair[1].replicated[:3] == (1, 301, {})
    assert len(caplog.messages) == 1


def test_a_disk_error_leaves_everything_as_it_was_and_ends_the_stream(us: Peer) -> None:
    """What the disk refused is not sent again on this connection: the next change would leap."""
    disk = FakeDB(us.db)
    us = us._replace(logs=Scuttleup(disk))
    before, head = us.contents, us.logs.head
    stream = heard(us, HELLO)
    disk.before = binding.IOError(b"No space left on device")
    with pytest.raises(DatabaseError, match="No space left"):
        stream.receive_data(b"".join(TRAFFIC[1:-1]))
    assert (us.contents, us.logs.head, stream.replicated.received) == (before, head, 0)
    disk.before = None
    with pytest.raises(ProtocolError):
        stream.receive_data(TRAFFIC[-1])
    assert us.logs.head == head
    heard(us, b"".join(TRAFFIC))
    assert us.logs.head == {"us": 4, "far": 3, "near": 2}


# --- Time and memory ------------------------------------------------------------------------------

HELLO_OF_MANY = encode_handshake("far", {f"{n:040}": 1 for n in range(10_000)}, "sync")
HELLO_AND_A_LARGE_ENTRY = HELLO + encode_changes("far", 1, [bytes(1_000_000)])


@pytest.mark.parametrize(("live", "limit"), [(True, limits.ALIVE), (False, limits.PROMISED)])
def test_tick_tells_when_to_call_it_again(us: Peer, live: bool, limit: float) -> None:
    """Often enough to keep the shortest limit that there is."""
    assert us.logs.create_replication_stream(live=live).tick(0) == limit / 5


def test_a_remote_that_is_silent_at_first_is_lost_after_a_minute(us: Peer) -> None:
    stream = us.logs.create_replication_stream()
    for now in (1000, 1030, 1060):
        stream.tick(now)
        stream.receive_data(b"\0")  # a frame that says nothing is nothing
    with pytest.raises(ConnectionLost, match="no handshake within 60 seconds"):
        stream.tick(1061)
    with pytest.raises(ProtocolError):
        stream.receive_data(HELLO)


@pytest.mark.parametrize("said", [b"\0", HELLO], ids=["handshake", "change"])
@pytest.mark.parametrize("size", [0, 1, limits.PROGRESS_BYTES // 8])
def test_half_a_frame_has_to_grow(us: Peer, said: bytes, size: int) -> None:
    """A byte now and then is not enough: one has to send what one wants us to keep."""
    stream = heard(us, said + varint(10_000_000) + b"\x22" + varint(9_999_000))
    for now in range(0, 61, 10):
        stream.tick(now)
        hear(stream, bytes(size))
    with pytest.raises(ConnectionLost, match="half a frame did not grow for 60 seconds"):
        stream.tick(61)


@pytest.mark.parametrize(
    "data", [HELLO_OF_MANY, HELLO_AND_A_LARGE_ENTRY], ids=["handshake", "change"]
)
def test_a_frame_that_comes_slowly_is_taken(us: Peer, data: bytes) -> None:
    stream = us.logs.create_replication_stream()
    for now, piece in enumerate(cut(data, [limits.PROGRESS_BYTES])):
        stream.tick(59 * now)
        stream.receive_data(piece)
    for silence in (100, 200):
        stream.tick(59 * now + silence)  # and then silence is no fault
    assert stream.remote_id == "far"


@pytest.mark.parametrize(
    "data",
    [b"", change(b"near", 1), change(b"far", 1), encode_changes("near", 1, [bytes(100_000)])],
    ids=["nothing", "a known one", "one that was not promised", "a large known one"],
)
def test_what_is_known_or_was_not_promised_is_not_waited_for(us: Peer, data: bytes) -> None:
    stream = promised(us, {"near": 9})
    for now in range(300):
        stream.tick(now)
        if not stream.waiting:
            break
        hear(stream, data)
    assert stream.finished
    assert now > 5


@pytest.mark.parametrize(
    "data",
    [encode_changes("near", 1, [b"x"] * 20), encode_changes("far", 1, [bytes(20 * 65536)])],
    ids=["small ones", "a large one"],
)
def test_what_keeps_coming_is_waited_for(us: Peer, data: bytes) -> None:
    """Known changes count as well, because others may have brought them meanwhile."""
    us.logs.write(("near", seq, b"x") for seq in range(2, 11))
    stream = promised(us, {"near": 20, "far": 1})
    for now, piece in enumerate(cut(data, [-(-len(data) // 20)])):
        stream.tick(5 * now)
        stream.receive_data(piece)
    stream.tick(5 * now + 5)
    assert stream.waiting
    stream.tick(5 * now + 11)
    assert stream.finished


def test_while_the_remote_has_not_taken_all_it_is_given_time(us: Peer) -> None:
    stream = promised(us, {"near": 9})
    for now in range(0, 30, 3):
        stream.tick(now, unsent=True)
    stream.tick(30)
    stream.tick(35)
    assert stream.waiting
    stream.tick(36)
    assert stream.finished


@pytest.mark.parametrize("piece", [1000, 65536, 1 << 20])
@pytest.mark.parametrize("max_entry", [8 << 20, 1000], ids=["kept", "skipped"])
def test_half_a_change_takes_no_more_than_came_of_it(us: Peer, max_entry: int, piece: int) -> None:
    """And what is above the limit takes next to nothing. A bytearray keeps an eighth in reserve."""
    size = 8 << 20
    stream = Scuttleup(us.db, max_entry=max_entry).create_replication_stream()
    stream.receive_data(HELLO + varint(size) + b"\x1a" + varint(size - 10))
    tracemalloc.start()
    for _ in range(size // piece - 1):
        stream.receive_data(bytes(piece))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < max_entry * 9 // 8 + 3 * piece + 9_000


# --- verify ---------------------------------------------------------------------------------------


def explode(change: Change) -> bool:
    raise RuntimeError("no idea")


class Undecided:
    def __bool__(self) -> bool:
        raise RuntimeError("no idea")


class Later:
    def __await__(self) -> Any: ...


@in_pieces
@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (lambda change: False, ""),
        (lambda change: None, ""),
        (lambda change: Undecided(), "RuntimeError: no idea"),
        (lambda change: Later(), "TypeError: .*awaitable"),
        (explode, "RuntimeError: no idea"),
        (lambda change: int("?"), "ValueError: invalid literal"),
    ],
)
def test_what_verify_does_not_approve_is_left_out_with_all_that_follows_in_its_log(
    new_peer: NewPeer,
    answer: Callable[[Change], object],
    mistake: str,
    sizes: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mistake of `verify` is one of the program, and is told with its traceback."""

    def verify(change: Change) -> Any:
        return answer(change) if change == Change("far", 2, b"two") else True

    us = new_peer("us", b"1", b"2", verify=verify)
    stream = us.logs.create_replication_stream()
    hear(stream, b"".join(TRAFFIC), sizes)
    assert us.logs.head == {"far": 1, "us": 4, "near": 2}
    assert stream.replicated.refused == {"far": f"verify {'failed at' if mistake else 'refused'} 2"}
    if mistake:
        assert re.search(f"Traceback.*{mistake}", caplog.text, re.DOTALL)


def test_a_bad_log_and_a_change_that_verify_refuses_in_one_read_are_both_named(
    new_peer: NewPeer,
) -> None:
    us = new_peer("us", verify=lambda change: change.peer != "far")
    bad = b"ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
    stream = heard(us, HELLO + change(bad, 1) + TRAFFIC[1] + TRAFFIC[3])
    assert us.logs.head == {"near": 2}
    assert list(stream.replicated.refused.values()) == [
        "1 is not signed by its author",
        "verify refused 1",
    ]


def test_verify_sees_entries_as_the_value_encoding_reads_them(new_peer: NewPeer) -> None:
    seen: list[Change] = []

    def verify(change: Change) -> bool:
        seen.append(change)
        return True

    us = new_peer("us", value_encoding="json", verify=verify)
    heard(us, HELLO + encode_changes("far", 1, [b'{"a":1}', b'"text"']))
    assert seen == [Change("far", 1, {"a": 1}), Change("far", 2, "text")]


@pytest.mark.parametrize("entry", [b"{", b"", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused_where_it_is_verified(new_peer: NewPeer, entry: bytes) -> None:
    us = new_peer("us", value_encoding="json", verify=lambda change: True)
    stream = heard(us, HELLO + encode_changes("far", 1, [b"1", entry]))
    assert us.logs.head == {"far": 1}
    assert stream.replicated.refused == {"far": "verify refused 2"}


def test_verify_is_not_asked_about_our_own_entries(new_peer: NewPeer) -> None:
    us = new_peer("us", b"1", verify=explode)
    us.logs.write([Change("from a file", 1, b"x")])
    stream = heard(us, HELLO)
    all_of(stream)
    assert stream.replicated.sent == 2
