"""The protocol without I/O: what two streams that hear each other come to, and bad remotes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leveldb import FakeDB, binding, open_leveldb
from wire import HTTP, MAX, MODES, cut, frame, sends, string, tls_hello, varint

from scuttleup import (
    Change,
    ConnectionLost,
    DatabaseError,
    ProtocolError,
    ReplicationStream,
    Scuttleup,
)
from scuttleup.changes import expand
from scuttleup.keys import log_prefix, pack_seq
from scuttleup.limits import (
    LOG_BYTES,
    MAX_ENTRY,
    MAX_HANDSHAKE,
    MAX_NAMED,
    MAX_SKIPPED,
    MAX_TOLD,
    PROGRESS_BYTES,
    TURN_BYTES,
)
from scuttleup.messages import encode_changes, encode_handshake

AT_ONCE = [1 << 30]
BYTE_BY_BYTE = [1]


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


# --- Without a connection -------------------------------------------------------------------------


def streams(a: Peer, b: Peer, **options: Any) -> tuple[ReplicationStream, ReplicationStream]:
    return (
        a.logs.create_replication_stream(**options),
        b.logs.create_replication_stream(**options),
    )


def carry(
    sender: ReplicationStream, receiver: ReplicationStream, sizes: Sequence[int] = AT_ONCE
) -> int:
    """Hand over what `sender` has to send, in pieces of `sizes`, and return how much it was."""
    carried = 0
    while data := sender.data_to_send():
        carried += len(data)
        for piece in cut(data, sizes):
            receiver.receive_data(piece)
    return carried


def pump(
    *pairs: tuple[ReplicationStream, ReplicationStream], sizes: Sequence[int] = AT_ONCE
) -> None:
    """Let the two of each pair hear each other until nobody has anything more to say."""
    while sum(carry(a, b, sizes) + carry(b, a, sizes) for a, b in pairs):
        pass


def replicate(a: Peer, b: Peer, **options: Any) -> None:
    pair = streams(a, b, **options)
    pump(pair)
    for stream in pair:
        stream.close()


def assert_sound(peer: Peer) -> None:
    """The heads are those of the database, and our own log has no gap."""
    reopened = Scuttleup(peer.db)
    assert reopened.head == peer.logs.head
    own = [seq for id, seq in peer.entries if id == peer.logs.id]
    assert own == list(range(1, len(own) + 1))


# --- What two peers come to -----------------------------------------------------------------------

lengths = st.integers(0, 4) | st.sampled_from([130, 257, 300])
some_heads = st.fixed_dictionaries({}, optional=dict.fromkeys(["a", "b", "c", "c!", "ü"], lengths))
cuttings = st.lists(st.integers(1, 9) | st.integers(1, 3000), min_size=1, max_size=5)


def entry_of(peer: str, seq: int) -> bytes:
    """An entry is the same wherever it is. Some are long, and some are empty."""
    return b"%b %d" % (peer.encode(), seq) * (seq % 5) * (200 if seq == 3 else 1)


def fill(peer: Peer, heads: dict[str, int], deleted: Iterable[tuple[str, int]] = ()) -> None:
    for id, head in heads.items():
        peer.logs.write(Change(id, seq, entry_of(id, seq)) for seq in range(1, head + 1))
    for id, seq in deleted:
        if seq <= heads.get(id, 0):
            peer.logs.delete(id, seq)


@settings(max_examples=80, deadline=None)
@given(
    heads=st.tuples(some_heads, some_heads),
    # Not of their own logs, whose gaps a remote may not fill.
    deleted=st.lists(st.tuples(st.sampled_from(["c", "ü"]), st.integers(1, 4)), max_size=3),
    modes=st.tuples(st.sampled_from(MODES), st.sampled_from(MODES)),
    live=st.tuples(st.booleans(), st.booleans()),
    sizes=cuttings,
)
def test_each_gets_what_it_lacks_and_nothing_else(
    new_peer: NewPeer,
    heads: tuple[dict[str, int], dict[str, int]],
    deleted: list[tuple[str, int]],
    modes: tuple[str, str],
    live: tuple[bool, bool],
    sizes: list[int],
) -> None:
    peers = new_peer("a"), new_peer("b")
    fill(peers[0], heads[0], deleted)
    fill(peers[1], heads[1])
    entries = [peer.entries for peer in peers]
    head = [peer.logs.head for peer in peers]
    news = []  # for each, what the other sends
    for here, there in ((0, 1), (1, 0)):
        flows = sends(modes[there], modes[here])
        lacks = {(p, n): e for (p, n), e in entries[there].items() if n > head[here].get(p, 0)}
        news.append(lacks if flows else {})

    a, b = (
        peer.logs.create_replication_stream(mode=modes[n], live=live[n])
        for n, peer in enumerate(peers)
    )
    pump((a, b), sizes=sizes)

    for here, there, stream in ((0, 1, a), (1, 0, b)):
        expected = entries[here] | news[here]
        assert peers[here].entries == expected
        # The whole database, key by key.
        keys = {log_prefix(p) + pack_seq(n): entry for (p, n), entry in expected.items()}
        stored = peers[here].contents.items()
        assert {key: value for key, value in stored if key.startswith(b"c")} == keys
        newest = dict(sorted(news[here]))  # the last number of each counts
        assert peers[here].logs.head == head[here] | newest
        assert_sound(peers[here])

        assert stream.remote_id == peers[there].logs.id
        assert stream.replicated == (len(news[there]), len(news[here]), {})
        promised = sends(modes[there], modes[here]) and any(
            seq > peers[here].logs.head.get(peer, 0) for peer, seq in head[there].items()
        )
        assert stream.waiting == (promised and not live[here])
        assert stream.finished == (not promised and not live[here])
        stream.close()


def test_a_handshake_is_there_before_the_remote_says_anything(new_peer: NewPeer) -> None:
    stream = new_peer("us", b"1").logs.create_replication_stream(mode="pull")
    assert stream.data_to_send() == encode_handshake("us", {"us": 1}, "pull")
    assert stream.data_to_send() == b""
    assert stream.remote_id is None


@pytest.mark.parametrize("mode", ["", "SYNC", "both", None, 1, ["sync"]])
def test_an_unknown_mode_is_named(new_peer: NewPeer, mode: Any) -> None:
    with pytest.raises(ValueError, match=r"sync.*push.*pull") as caught:
        new_peer("us").logs.create_replication_stream(mode=mode)
    assert repr(mode) in str(caught.value)


def test_data_to_send_comes_in_portions(new_peer: NewPeer) -> None:
    """What waits to be written is memory."""
    us, them = new_peer("us", *[bytes(1000)] * 1000), new_peer("them")
    stream, remote = streams(us, them)
    carry(remote, stream)
    portions = [len(data) for data in iter(stream.data_to_send, b"")]
    assert sum(portions) > 1_000_000
    assert max(portions) == TURN_BYTES


# --- Live -----------------------------------------------------------------------------------------


def test_a_new_entry_is_on_its_way_at_once(new_peer: NewPeer) -> None:
    us, them = new_peer("us", b"1"), new_peer("them")
    woken = threading.Event()
    stream = us.logs.create_replication_stream(wake=woken.set)
    pump((stream, them.logs.create_replication_stream()))
    for seq in range(2, 5):
        woken.clear()
        us.logs.append(b"new")
        assert woken.is_set()
        assert stream.data_to_send() == encode_changes("us", seq, [b"new"])
        assert stream.data_to_send() == b""


def test_an_entry_appended_between_the_handshakes_is_sent(new_peer: NewPeer) -> None:
    us, them = new_peer("us", b"1"), new_peer("them")
    stream, remote = streams(us, them)
    carry(stream, remote)
    us.logs.append(b"2")
    pump((stream, remote))
    assert them.entries == us.entries


def test_what_comes_from_one_remote_goes_to_the_others_and_not_back(new_peer: NewPeer) -> None:
    us, them, third = new_peer("us"), new_peer("them", b"old"), new_peer("third")
    to_them, from_them = streams(us, them)
    to_third, from_third = streams(us, third)
    pump((to_them, from_them), (to_third, from_third))
    them.logs.append(b"new")
    carry(from_them, to_them)
    assert to_third.data_to_send() == encode_changes("them", 2, [b"new"])
    assert to_them.data_to_send() == b""
    assert to_them.replicated == (0, 2, {})


def test_a_one_shot_stream_ends_though_the_log_grows(new_peer: NewPeer) -> None:
    us, them = new_peer("us", b"1"), new_peer("them")
    stream, remote = streams(us, them, live=False)
    carry(remote, stream)
    us.logs.append(b"too late")
    carry(stream, remote)
    assert them.entries == {("us", 1): b"1"}
    assert stream.finished


@pytest.mark.parametrize("live", [True, False])
def test_closing_the_log_wakes_and_ends_a_stream(new_peer: NewPeer, live: bool) -> None:
    us = new_peer("us")
    woken = threading.Event()
    stream = us.logs.create_replication_stream(live=live, wake=woken.set)
    assert not stream.finished
    us.logs.close()
    assert woken.is_set()
    assert stream.finished
    assert stream.data_to_send() == b""


def test_what_the_remote_sends_while_we_send_the_same_log_is_not_sent_back(
    new_peer: NewPeer,
) -> None:
    us, them = new_peer("us"), new_peer("them")
    us.logs.write(("x", seq, b"-" * 100) for seq in range(1, 5001))
    stream, remote = streams(us, them)
    stream.receive_data(remote.data_to_send())
    remote.receive_data(stream.data_to_send())
    begun = stream.data_to_send()
    them.logs.write(("x", seq, b"-" * 100) for seq in range(1, 10_001))
    carry(remote, stream)
    remote.receive_data(begun)
    carry(stream, remote)
    assert us.logs.head == them.logs.head
    assert stream.replicated.sent <= 5000


def test_a_stream_that_was_closed_hears_of_nothing(new_peer: NewPeer) -> None:
    us, them = new_peer("us"), new_peer("them")
    woken = threading.Event()
    stream = us.logs.create_replication_stream(wake=woken.set)
    pump((stream, them.logs.create_replication_stream()))
    stream.close()
    del stream
    woken.clear()
    us.logs.append(b"1")
    assert not woken.is_set()


# --- The end --------------------------------------------------------------------------------------


def test_what_was_promised_may_come_from_elsewhere(new_peer: NewPeer) -> None:
    us, them = new_peer("us"), new_peer("them", b"1")
    stream, remote = streams(us, them, live=False)
    stream.receive_data(remote.data_to_send())
    assert stream.waiting
    us.logs.write([Change("them", 1, b"1")])
    assert not stream.waiting


def test_what_was_promised_does_not_come_after_the_end(new_peer: NewPeer) -> None:
    stream = new_peer("us").logs.create_replication_stream(live=False)
    stream.receive_data(encode_handshake("them", {"them": 1}, "sync"))
    assert stream.data_to_send()
    assert stream.data_to_send() == b""
    assert not stream.finished
    stream.receive_data(b"")
    assert stream.finished


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [("sync", "sync"), ("sync", "push"), ("pull", "pull")])
def test_who_ends_still_gets_everything(
    new_peer: NewPeer, live: bool, ours: str, theirs: str
) -> None:
    """It sent its end because it had sent all: what it lacks is still to come."""
    us, them = new_peer("us", *[bytes(1000)] * 500), new_peer("them", b"1")
    stream = us.logs.create_replication_stream(mode=ours, live=live)
    remote = them.logs.create_replication_stream(mode=theirs)
    carry(remote, stream)
    stream.receive_data(b"")
    carry(stream, remote)
    assert stream.finished
    assert (("us", 500) in them.entries) == sends(ours, theirs)


@pytest.mark.parametrize(("ours", "theirs"), [("sync", "pull"), ("push", "pull"), ("push", "sync")])
def test_a_remote_that_only_listens_may_end_its_side_at_once(
    new_peer: NewPeer, ours: str, theirs: str
) -> None:
    """The original does when it pulls or faces a push. It is still there, and live."""
    us, them = new_peer("us", b"1"), new_peer("them")
    stream = us.logs.create_replication_stream(mode=ours)
    remote = them.logs.create_replication_stream(mode=theirs)
    carry(remote, stream)
    stream.receive_data(b"")
    carry(stream, remote)
    assert not stream.finished
    us.logs.append(b"2")
    carry(stream, remote)
    assert them.entries == us.entries


# --- Bad remotes ----------------------------------------------------------------------------------

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


def handshake(id: bytes, peer: bytes, seq: int) -> bytes:
    digest = string(1, peer) + b"\x10" + varint(seq)
    return frame(string(1, id) + b"\x12" + frame(digest))


UNREADABLE_IDS = [(b"a\xff", "can't decode byte 0xff"), (b"\xc3", "unexpected end of data")]

# What it is, what is sent, how the error begins or what it has in it.
BAD: list[tuple[str, bytes, str]] = [
    ("HTTP", HTTP, "a field"),
    ("a TLS client hello", tls_hello(), "a field of wire type 3"),
    ("a change first", TRAFFIC[1], "a change where the handshake has to be"),
    ("a handshake without an id", frame(b"\x18\x01"), "a handshake without an id"),
    ("a handshake twice", HELLO * 2, "a change without peer, seq or entry"),
    ("our own id", encode_handshake("us", {}, "sync"), "the remote has our own id, 'us'"),
    ("a digest without seq", frame(b"\x0a\x01f\x12" + frame(string(1, b"f"))), "a digest without"),
    ("a digest of 2**32", handshake(b"far", b"far", MAX + 1), f"{MAX + 1} where {MAX} is the most"),
    ("a change 2**32", HELLO + change(b"far", MAX + 1), f"{MAX + 1} where {MAX} is the most"),
    ("a change 2**64-1", HELLO + change(b"far", 2**64 - 1), f"where {MAX} is the most"),
    ("a change without an entry", HELLO + frame(b"\x0a\x01f\x10\x01"), "a change without peer"),
    ("a field cut off", HELLO + frame(b"\x0a\x7ff"), "in the middle of a field"),
    ("a varint without an end", HELLO + frame(b"\x10" + b"\xff" * 20), "a varint without an end"),
    ("a long handshake", varint(MAX_SKIPPED + 1), f"a frame of more than {MAX_SKIPPED} bytes"),
    ("a long change", HELLO + varint(MAX_SKIPPED + 1), f"a frame of more than {MAX_SKIPPED} bytes"),
    ("a handshake without an end", b"\xff" * 300, "a frame of more than"),
    ("a change without an end", HELLO + b"\xff" * 300, "a frame of more than"),
    ("a change of length 0, without an end", HELLO + b"\x80" * 300, "a frame of more than"),
]
for id, error in UNREADABLE_IDS:
    BAD += [
        (f"a remote called {id!r}", handshake(id, b"far", 1), error),
        (f"a digest of {id!r}", handshake(b"far", id, 1), error),
        (f"a change of {id!r}", HELLO + change(id, 1), error),
    ]


def hear(stream: ReplicationStream, data: bytes, sizes: Sequence[int] = AT_ONCE) -> None:
    for piece in cut(data, sizes):
        stream.receive_data(piece)


@pytest.fixture
def us(new_peer: NewPeer) -> Peer:
    us = new_peer("us", b"1", b"2")
    us.logs.write([Change("near", 1, b"known")])
    return us


@pytest.mark.parametrize("sizes", [AT_ONCE, BYTE_BY_BYTE], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("data", "error"), [pytest.param(d, e, id=name) for name, d, e in BAD])
def test_a_bad_remote_changes_nothing_and_is_told_apart(
    us: Peer, data: bytes, error: str, sizes: list[int]
) -> None:
    before, head = us.contents, us.logs.head
    stream = us.logs.create_replication_stream()
    with pytest.raises(ProtocolError, match=error):
        hear(stream, data, sizes)
    assert us.contents == before
    assert us.logs.head == head
    assert us.logs.append(b"3").seq == 3


@pytest.mark.parametrize(
    ("data", "error"), [pytest.param(d, e, id=name) for name, d, e in BAD if d.startswith(HELLO)]
)
def test_what_came_before_the_error_in_the_same_read_is_stored(
    us: Peer, data: bytes, error: str
) -> None:
    before = us.entries
    stream = us.logs.create_replication_stream()
    good = TRAFFIC[1] + encode_changes("near", 2, [b"new"])
    with pytest.raises(ProtocolError, match=error):
        stream.receive_data(HELLO + good + data.removeprefix(HELLO))
    new = {("far", 1): b"one", ("far", 2): b"two", ("near", 2): b"new"}
    assert us.entries == before | new
    assert us.logs.head == {"us": 2, "near": 2, "far": 2}
    assert_sound(us)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(a, b) for a in MODES for b in MODES if not sends(b, a)]
)
def test_a_change_that_the_modes_do_not_allow_is_an_error(us: Peer, ours: str, theirs: str) -> None:
    before = us.contents
    stream = us.logs.create_replication_stream(mode=ours)
    stream.receive_data(encode_handshake("far", {"far": 1}, theirs))
    with pytest.raises(ProtocolError, match="a change, though the modes allow none: 1 of 'far'"):
        stream.receive_data(encode_changes("far", 1, [b"unasked"]))
    assert us.contents == before


def test_what_we_have_already_is_skipped(us: Peer) -> None:
    """Also when it is another entry: what is here stays as it is."""
    before = us.contents
    stream = us.logs.create_replication_stream()
    stream.receive_data(HELLO + encode_changes("us", 1, [b"no", b"no"]))
    stream.receive_data(encode_changes("near", 1, [b"no"]))
    assert us.contents == before
    assert stream.replicated.received == 0


@pytest.mark.parametrize("before", [0, len(TRAFFIC) - 1], ids=["handshake", "change"])
def test_a_frame_that_is_cut_off_is_an_error_at_the_end(us: Peer, before: int) -> None:
    last = TRAFFIC[before]
    for keep in range(1, len(last)):
        stream = us.logs.create_replication_stream()
        stream.receive_data(b"".join(TRAFFIC[:before]) + last[:keep])
        with pytest.raises(ConnectionLost, match="the connection ended in the middle of a frame"):
            stream.receive_data(b"")
    assert us.logs.head == ({"us": 4, "near": 2, "far": 2} if before else {"us": 2, "near": 1})


@pytest.mark.parametrize("nothing", [b"", b"\0\0\0"], ids=["nothing", "empty frames"])
def test_an_end_before_the_handshake_is_an_error(us: Peer, nothing: bytes) -> None:
    stream = us.logs.create_replication_stream()
    if nothing:
        stream.receive_data(nothing)
    with pytest.raises(ConnectionLost, match="the connection ended before the handshake"):
        stream.receive_data(b"")


def test_valid_traffic_with_any_bit_flipped_does_no_harm(new_peer: NewPeer) -> None:
    """And what came before the bit is stored as it was sent."""
    data = b"".join(TRAFFIC)
    changes = [*expand("far", 1, [b"one", b"two"]), *expand("us", 3, [b"the tail", b"of a backup"])]
    changes += [*expand("near", 1, [b"", b"x" * 130]), Change("far", 3, b"three")]
    ends = []  # of their frames
    end = len(HELLO)
    for c in changes:
        end += len(encode_changes(c.peer, c.seq, [c.entry]))
        ends.append(end)
    assert end == len(data)

    errors = 0
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        us = new_peer("us", b"1", b"2")
        before = us.contents
        stream = us.logs.create_replication_stream()
        try:
            stream.receive_data(bytes(flipped))
        except ProtocolError:
            errors += 1
        stream.close()
        sound = {
            (c.peer, c.seq): c.entry
            for c, end in zip(changes, ends, strict=True)
            if end <= bit // 8
        }
        assert sound.items() <= us.entries.items()
        assert before.items() <= us.contents.items()
        assert_sound(us)
    assert errors > len(data)


# --- What is wrong with one log -------------------------------------------------------------------


def big_change(peer: str, seq: int) -> bytes:
    """With an entry above the `max_entry` of these tests."""
    return encode_changes(peer, seq, [bytes(300)])


LONG = "x" * 256
BELOW = "a peer id is one or more characters below U+00FF, not "
# What it is, the log, how it is shown, what is sent of it, and why it is left out.
BAD_LOGS: list[tuple[str, str, str, bytes, str]] = [
    ("an empty id", "", "", change(b"", 1), f"{BELOW}''"),
    ("U+00FF", "aÿ", "aÿ", change("aÿ".encode(), 1), f"{BELOW}'aÿ'"),
    ("above U+00FF", "😀", "😀", change("😀".encode(), 1), f"{BELOW}'😀'"),
    (
        "an id of 256 bytes",
        LONG,
        "x" * 64 + "…",
        encode_changes(LONG, 1, [b"x"]),
        "a peer id has at most 255 bytes",
    ),
    ("a change 0", "new", "new", change(b"new", 0), "an entry has the number 0"),
    ("a change 0 of a known log", "near", "near", change(b"near", 0), "an entry has the number 0"),
    ("a leap in our log", "us", "us", change(b"us", 4), "entry 4 of our own log does not follow 2"),
    (
        "a great leap",
        "us",
        "us",
        change(b"us", 2**31),
        f"entry {2**31} of our own log does not follow 2",
    ),
    ("a large entry", "new", "new", big_change("new", 1), "entry 1 has more than 299 bytes"),
    (
        "one of a known log",
        "near",
        "near",
        big_change("near", 2),
        "entry 2 has more than 299 bytes",
    ),
    (
        "a larger one",
        "new",
        "new",
        encode_changes("new", 3, [bytes(5000)]),
        "entry 3 has more than",
    ),
]
bad_logs = pytest.mark.parametrize(
    ("peer", "shown", "data", "reason"), [pytest.param(*row[1:], id=row[0]) for row in BAD_LOGS]
)


@pytest.fixture
def careful(us: Peer) -> Peer:
    """`us`, who takes no entry of more than 299 bytes."""
    return us._replace(logs=Scuttleup(us.db, max_entry=299))


@pytest.mark.parametrize("sizes", [AT_ONCE, BYTE_BY_BYTE], ids=["at once", "byte by byte"])
@bad_logs
def test_a_bad_log_is_left_out_with_all_that_follows_in_it_and_the_rest_goes_on(
    careful: Peer,
    caplog: pytest.LogCaptureFixture,
    peer: str,
    shown: str,
    data: bytes,
    reason: str,
    sizes: list[int],
) -> None:
    before = careful.entries
    stream = careful.logs.create_replication_stream()
    follows = encode_changes(peer, 3, [b"?", b"?"]) + data
    hear(stream, HELLO + TRAFFIC[1] + data + follows + TRAFFIC[-1], sizes)
    hear(stream, follows + encode_changes("far", 4, [b"four"]), sizes)

    good = [b"one", b"two", b"three", b"four"]
    assert careful.entries == before | {("far", seq): e for seq, e in enumerate(good, 1)}
    assert stream.replicated[:2] == (0, 4)
    assert list(stream.replicated.refused) == [shown]
    assert reason in stream.replicated.refused[shown]
    (warning,) = caplog.messages
    assert f"'{shown}'" in warning
    assert reason in warning
    assert careful.logs.append(b"3").seq == 3
    assert_sound(careful)


def test_what_came_of_a_log_before_it_went_wrong_is_stored(careful: Peer) -> None:
    stream = careful.logs.create_replication_stream()
    entries = [b"1", b"2", bytes(300), b"4", b"5"]
    stream.receive_data(HELLO + encode_changes("new", 1, entries))
    assert careful.logs.head["new"] == 2
    assert stream.replicated.refused == {"new": "entry 3 has more than 299 bytes"}


def test_a_log_that_was_left_out_is_taken_on_another_connection(careful: Peer) -> None:
    bad, good = (careful.logs.create_replication_stream() for _ in range(2))
    bad.receive_data(HELLO + big_change("new", 1))
    good.receive_data(HELLO + encode_changes("new", 1, [b"1", b"2"]))
    bad.receive_data(encode_changes("new", 2, [b"2", b"3"]))
    assert careful.logs.head["new"] == 2
    # And what the first remote sent in vain it may get from us.
    assert encode_changes("new", 1, [b"1", b"2"]) in bad.data_to_send()


def test_a_bad_log_is_no_longer_waited_for(careful: Peer) -> None:
    stream = careful.logs.create_replication_stream(live=False)
    hello = encode_handshake("far", {"far": 1, "new": 2, "us": 9, "": 4, "aÿ": 4, LONG: 4}, "sync")
    stream.receive_data(hello + big_change("new", 1) + change(b"us", 5))
    while stream.data_to_send():
        pass
    assert not stream.finished
    stream.receive_data(encode_changes("far", 1, [b"1"]))
    assert stream.finished
    assert stream.replicated.refused.keys() == {"new", "us", "", "aÿ", "x" * 64 + "…"}


def test_a_digest_of_0_says_that_the_remote_has_nothing(us: Peer) -> None:
    stream = us.logs.create_replication_stream(live=False)
    stream.receive_data(encode_handshake("far", {"us": 0, "near": 0, "new": 0}, "sync"))
    sent = b"".join(iter(stream.data_to_send, b""))
    assert encode_changes("us", 1, [b"1", b"2"]) in sent
    assert encode_changes("near", 1, [b"known"]) in sent
    assert stream.finished
    assert stream.replicated.refused == {}


def test_a_remote_whose_own_id_is_bad_sends_others_logs_all_the_same(us: Peer) -> None:
    """The original takes any id. It cannot find its own entries again, but relays others'."""
    for seq, id in enumerate(("", "aÿ", "😀", LONG), 1):
        stream = us.logs.create_replication_stream()
        stream.receive_data(encode_handshake(id, {id: 1}, "sync") + encode_changes(id, 1, [b"x"]))
        stream.receive_data(encode_changes("far", seq, [b"x"]))
        assert us.logs.head["far"] == seq
        assert len(stream.replicated.refused) == 1


def test_only_some_of_many_bad_logs_are_named_and_the_rest_is_counted(
    us: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    stream = us.logs.create_replication_stream()
    data = b"".join(change(b"%d" % n, 0) + change(b"%d" % n, 1) for n in range(MAX_NAMED + 7))
    stream.receive_data(HELLO + data + TRAFFIC[1])
    assert us.logs.head == {"us": 2, "near": 1, "far": 2}
    assert len(stream.replicated.refused) == MAX_NAMED
    assert len(caplog.messages) == MAX_NAMED
    stream.close()
    assert caplog.messages[-1] == "further logs were left out of that connection 7 times"


def test_however_often_a_remote_comes_back_some_lines_a_minute_are_told(
    us: Peer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_in(times: int) -> None:
        for _ in range(times):
            stream = us.logs.create_replication_stream()
            stream.receive_data(encode_handshake("far", {"": 1}, "sync"))
            stream.close()

    come_in(MAX_TOLD + 7)
    assert len(caplog.messages) == MAX_TOLD
    monkeypatch.setattr("scuttleup.replication.TELL_SECONDS", 0)
    come_in(1)
    assert caplog.messages[-1].endswith("(7 such lines before this one were not told)")


def test_when_too_many_logs_are_left_out_only_known_ones_are_taken(
    us: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scuttleup.replication.MAX_LEFT_OUT", 3)
    stream = us.logs.create_replication_stream()
    stream.receive_data(HELLO + TRAFFIC[1])
    for n in range(5):
        stream.receive_data(change(b"bad %d" % n, 0))
    assert len(stream._left_out) == 3
    stream.receive_data(change(b"bad 3", 2) + change(b"new", 1) + TRAFFIC[-1])
    assert us.logs.head == {"us": 2, "near": 1, "far": 3}
    assert stream.replicated.refused["new"] == "3 logs were left out before"


def test_an_id_is_shown_without_its_control_characters(us: Peer) -> None:
    stream = us.logs.create_replication_stream()
    stream.receive_data(HELLO + change(b"\x1b[2J\n", 0))
    assert list(stream.replicated.refused) == [r"\x1b[2J\n"]


def test_one_log_more_than_fits_into_our_handshake_is_left_out(us: Peer) -> None:
    us.logs._store.room = 2 * LOG_BYTES + 39
    stream = us.logs.create_replication_stream()
    stream.receive_data(HELLO)
    stream.receive_data(change(b"far", 1) + change(b"a", 1) + change(b"b", 1) + change(b"b", 2))
    stream.receive_data(change(b"a", 2) + change(b"near", 2) + change(b"us", 3))
    assert us.logs.head == {"far": 1, "a": 2, "near": 2, "us": 3}
    assert us.logs._store.room == 39
    assert stream.replicated.refused == {"b": "there is no room for another log"}


def test_of_a_handshake_no_more_is_kept_than_we_could_ever_hold(us: Peer) -> None:
    us.logs._store.room = 100 * LOG_BYTES
    stream = us.logs.create_replication_stream(live=False)
    head = {"us": 9, "near": 9} | {f"log {n}": 1 for n in range(10_000)}
    for piece in cut(encode_handshake("far", head, "sync"), [1000]):
        stream.receive_data(piece)
        assert len(stream._since) == len(stream._promised) <= 102
        assert stream._decoder.pending < 10_000 or len(stream._decoder._buffer) < 2000
    assert len(stream._since) == 102
    assert stream.remote_id == "far"


# --- What is wrong with what we hold --------------------------------------------------------------


def test_our_handshake_names_as_many_logs_as_fit_into_16_mib(
    us: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """The original takes any number."""
    us.logs._store.heads.update((f"{n:040}", n) for n in range(1, 500_001))
    stream = us.logs.create_replication_stream()
    portions = [len(data) for data in iter(stream.data_to_send, b"")]
    assert max(portions) <= TURN_BYTES
    assert MAX_HANDSHAKE - 70_000 < sum(portions) <= MAX_HANDSHAKE
    (warning,) = caplog.messages
    assert re.match(r"\d{6} of 500002 logs do not fit into our handshake", warning)


def test_an_entry_that_no_remote_takes_is_not_sent_nor_what_follows_in_its_log(
    new_peer: NewPeer, caplog: pytest.LogCaptureFixture
) -> None:
    """The original takes entries of any size, and its databases are ours."""
    us, them = new_peer("us", b"1"), new_peer("them", b"2")
    us.logs.write([("log", seq, b"%d" % seq) for seq in range(1, 1001)])
    us.db.put(log_prefix("log") + pack_seq(300), bytes(MAX_ENTRY + 1))
    us.db.put(log_prefix("log") + pack_seq(301), bytes(MAX_ENTRY + 1))
    us.logs.write([("zzz", 1, bytes(MAX_ENTRY))])
    pair = streams(us, them)
    pump(pair)
    us.logs.write([("log", 1001, b"live")])
    pump(pair)
    assert them.logs.head == {"us": 1, "them": 1, "log": 299, "zzz": 1}
    reason = f"entry 300 has more than {MAX_ENTRY} bytes: not sent"
    assert pair[0].replicated == (301, 1, {"log": reason})
    assert pair[1].replicated == (1, 301, {})
    assert len(caplog.messages) == 1


# --- Time -----------------------------------------------------------------------------------------

HELLO_OF_MANY = encode_handshake("far", {f"{n:040}": 1 for n in range(10_000)}, "sync")


def test_a_remote_that_is_silent_at_first_is_lost_after_a_minute(us: Peer) -> None:
    stream = us.logs.create_replication_stream()
    for now in (1000, 1030, 1060):
        stream.tick(now)
        stream.receive_data(b"\0")  # a frame that says nothing is nothing
    with pytest.raises(ConnectionLost, match="no handshake within 60 seconds"):
        stream.tick(1061)
    with pytest.raises(ProtocolError):
        stream.receive_data(HELLO)


@pytest.mark.parametrize("greeting", [b"", HELLO], ids=["handshake", "change"])
@pytest.mark.parametrize("size", [0, 1, PROGRESS_BYTES // 8])
def test_half_a_frame_has_to_grow(us: Peer, greeting: bytes, size: int) -> None:
    """A byte now and then is not enough: one has to send what one wants us to keep."""
    stream = us.logs.create_replication_stream()
    stream.receive_data((greeting or b"\0") + varint(10_000_000) + b"\x22" + varint(9_999_000))
    for now in range(0, 61, 10):
        stream.tick(now)
        if size:
            stream.receive_data(bytes(size))
    with pytest.raises(ProtocolError, match="half a frame did not grow for 60 seconds"):
        stream.tick(61)


@pytest.mark.parametrize(
    "data",
    [HELLO_OF_MANY, HELLO + encode_changes("far", 1, [bytes(1_000_000)])],
    ids=["handshake", "change"],
)
def test_a_frame_that_comes_slowly_is_taken(us: Peer, data: bytes) -> None:
    stream = us.logs.create_replication_stream()
    for now, piece in enumerate(cut(data, [PROGRESS_BYTES])):
        stream.tick(59 * now)
        stream.receive_data(piece)
    for _ in range(3):
        now += 100
        stream.tick(59 * now)  # and then silence is no fault
    assert stream.remote_id == "far"


def promised(us: Peer, **head: int) -> ReplicationStream:
    """A one-shot that waits for what the remote promised."""
    stream = us.logs.create_replication_stream(live=False)
    stream.receive_data(encode_handshake("far", head, "sync"))
    while stream.data_to_send():
        pass
    assert stream.waiting
    assert not stream.finished
    return stream


@pytest.mark.parametrize(
    "data",
    [
        b"",
        change(b"near", 1),  # known, of a log of which more was promised
        change(b"far", 1),  # not promised
        encode_changes("near", 1, [bytes(100_000)]),  # known, and large
    ],
    ids=["nothing", "a known one", "another log", "a large known one"],
)
def test_what_the_remote_repeats_or_did_not_promise_is_no_reason_to_wait(
    us: Peer, data: bytes
) -> None:
    stream = promised(us, near=9)
    now = 0
    stream.tick(now)
    while stream.waiting:
        now += 1
        if data:
            stream.receive_data(data)
        stream.tick(now)
        assert now < 300
    assert stream.finished
    assert now > 5


@pytest.mark.parametrize(
    "data",
    [encode_changes("near", 1, [b"x"] * 20), encode_changes("far", 1, [bytes(20 * 65536)])],
    ids=["small ones", "a large one"],
)
def test_what_keeps_coming_is_waited_for(us: Peer, data: bytes) -> None:
    """Known ones, too: others may have brought them meanwhile."""
    us.logs.write(("near", seq, b"x") for seq in range(2, 11))
    stream = promised(us, near=20, far=1)
    for now, piece in enumerate(cut(data, [-(-len(data) // 20)])):
        stream.tick(5 * now)
        stream.receive_data(piece)
    stream.tick(5 * now + 5)
    assert stream.waiting
    stream.tick(5 * now + 11)
    assert stream.finished


def test_while_the_remote_has_not_taken_all_it_is_given_time(us: Peer) -> None:
    stream = promised(us, near=9)
    for now in range(0, 30, 3):
        stream.tick(now, unsent=True)
    stream.tick(30)
    stream.tick(35)
    assert stream.waiting
    stream.tick(36)
    assert stream.finished


# --- Memory ---------------------------------------------------------------------------------------


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("piece", [1000, 65536, 1 << 20])
@pytest.mark.parametrize(
    ("max_entry", "kept"), [(8 << 20, 8 << 20), (1000, 0)], ids=["kept", "skipped"]
)
def test_half_a_change_takes_no_more_than_what_came_of_it(
    us: Peer, max_entry: int, kept: int, piece: int, traced: None
) -> None:
    """And what is above the limit takes next to nothing. A bytearray keeps an eighth in reserve."""
    size = 8 << 20
    stream = Scuttleup(us.db, max_entry=max_entry).create_replication_stream()
    stream.receive_data(HELLO + varint(size) + b"\x1a" + varint(size - 10))
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(size // piece - 1):
        stream.receive_data(bytes(piece))
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < kept * 9 // 8 + 3 * piece + 10_000


# --- verify ---------------------------------------------------------------------------------------


def explode(change: Change) -> bool:
    raise RuntimeError("no idea")


class Undecided:
    def __bool__(self) -> bool:
        raise RuntimeError("no idea")


class Later:
    def __await__(self) -> Any: ...


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda change: False, "verify refused 2 of 'far'"),
        (lambda change: None, "verify refused 2 of 'far'"),
        (lambda change: 0, "verify refused 2 of 'far'"),
        (lambda change: Undecided(), "verify failed at 2 of 'far': RuntimeError"),
        (lambda change: Later(), "verify failed at 2 of 'far': TypeError.*awaitable"),
        (explode, r"verify failed at 2 of 'far': RuntimeError\('no idea'\)"),
        (lambda change: [][0], "verify failed at 2 of 'far': IndexError"),
        (lambda change: json.loads("{"), "verify failed at 2 of 'far': JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("sizes", [AT_ONCE, BYTE_BY_BYTE], ids=["at once", "byte by byte"])
def test_what_verify_does_not_approve_is_not_stored_nor_is_what_follows(
    new_peer: NewPeer, answer: Callable[[Change], object], error: str, sizes: list[int]
) -> None:
    def verify(change: Change) -> Any:
        return answer(change) if change == Change("far", 2, b"two") else True

    us = new_peer("us", verify=verify)
    stream = us.logs.create_replication_stream()
    with pytest.raises(ProtocolError, match=error):
        hear(stream, b"".join(TRAFFIC), sizes)
    assert us.entries == {("far", 1): b"one"}
    assert us.logs.head == {"far": 1}


def test_verify_sees_entries_as_the_log_s_encoding_reads_them(new_peer: NewPeer) -> None:
    seen: list[Change] = []

    def verify(change: Change) -> bool:
        seen.append(change)
        return True

    us = new_peer("us", value_encoding="json", verify=verify)
    us.logs.create_replication_stream().receive_data(
        HELLO + encode_changes("far", 1, [b'{"a":1}', b'"text"'])
    )
    assert seen == [Change("far", 1, {"a": 1}), Change("far", 2, "text")]


@pytest.mark.parametrize("entry", [b"{", b"", b"\xff", b"[" * 100_000])
def test_an_entry_that_is_not_json_is_refused_where_entries_are_verified(
    new_peer: NewPeer, entry: bytes
) -> None:
    us = new_peer("us", value_encoding="json", verify=lambda change: True)
    stream = us.logs.create_replication_stream()
    with pytest.raises(ProtocolError, match="verify failed at 2 of 'far'"):
        stream.receive_data(HELLO + encode_changes("far", 1, [b"1", entry]))
    assert us.logs.head == {"far": 1}


def test_verify_is_not_asked_about_our_own_entries(new_peer: NewPeer) -> None:
    us = new_peer("us", verify=explode)
    us.logs.append(b"1")
    us.logs.write([Change("far", 1, b"from a file")])
    them = new_peer("them")
    replicate(us, them)
    assert them.entries == us.entries


# --- A disk that refuses --------------------------------------------------------------------------


def test_a_disk_error_leaves_everything_as_it_was_and_ends_the_stream(us: Peer) -> None:
    """What the disk refused is not sent again on this connection: the next change would leap."""
    disk = FakeDB(us.db)
    logs = Scuttleup(disk)
    stream = logs.create_replication_stream()
    before, head = us.contents, logs.head
    stream.receive_data(HELLO)
    disk.before = binding.IOError(b"No space left on device")
    with pytest.raises(DatabaseError, match="No space left"):
        stream.receive_data(b"".join(TRAFFIC[1:-1]))
    assert (us.contents, logs.head, stream.replicated.received) == (before, head, 0)
    disk.before = None
    with pytest.raises(ProtocolError):
        stream.receive_data(TRAFFIC[-1])
    assert logs.head == head
    logs.create_replication_stream().receive_data(b"".join(TRAFFIC))
    assert logs.head == {"us": 4, "far": 3, "near": 2}


# --- Many peers -----------------------------------------------------------------------------------


def append_next(peer: Peer) -> None:
    id = peer.logs.id
    peer.logs.append(entry_of(id, peer.logs.head.get(id, 0) + 1))


events = st.tuples(
    st.sampled_from(["append", "connect", "carry"]),
    st.sampled_from(list(permutations(range(4), 2))),
    st.integers(1, 60),
)


@settings(deadline=None)
@given(st.lists(events, max_size=60))
def test_a_mesh_whose_links_are_cut_anywhere_comes_to_the_same_logs_and_to_rest(
    new_peer: NewPeer, events: list[tuple[str, tuple[int, int], int]]
) -> None:
    peers = [new_peer(name) for name in "abcd"]
    # By (from, to): who sends, who receives, and what is under way.
    links: dict[tuple[int, int], tuple[ReplicationStream, ReplicationStream, bytearray]] = {}
    for event, (here, there), amount in events:
        if event == "append":
            append_next(peers[here])
        elif event == "connect":  # this cuts the link that there was
            a, b = streams(peers[here], peers[there])
            links[here, there] = (a, b, bytearray())
            links[there, here] = (b, a, bytearray())
        elif (here, there) in links:
            sender, receiver, wire = links[here, there]
            wire += sender.data_to_send()
            receiver.receive_data(bytes(wire[:amount]) or b"\0")
            del wire[:amount]
    links.clear()
    ring = [streams(*pair) for pair in pairwise([*peers, peers[0]])]
    pump(*ring)
    for peer in peers:
        append_next(peer)
    pump(*ring)  # else it would go around for ever

    union = {key: entry for peer in peers for key, entry in peer.entries.items()}
    assert union == {(peer, seq): entry_of(peer, seq) for peer, seq in union}
    for peer in peers:
        assert peer.entries == union
        assert_sound(peer)


def test_some_seconds_of_fuzzing_find_nothing() -> None:
    """No entry changed, no gap in our own log, and no stream that goes on after an error."""
    program = Path(__file__).with_name("fuzz.py")
    run = subprocess.run(
        [sys.executable, str(program), "2"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_wake_that_raises_does_not_make_an_append_look_as_if_it_failed(us: Peer) -> None:
    def wake() -> None:
        raise RuntimeError("Event loop is closed")

    stream = us.logs.create_replication_stream(wake=wake)
    head = us.logs.head.get(us.logs.id, 0)
    assert us.logs.append(b"x").seq == head + 1
    stream.close()
