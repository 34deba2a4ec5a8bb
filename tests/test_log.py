"""What `Scuttleup` promises: ids, heads, the writes, the single reads, and every refusal.

That writes, deletions, reads and reopening in any order do what they say, test_model.py tries.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any

import pytest
from leveldb import FakeDB, open_leveldb

import scuttleup
from scuttleup import Change, DatabaseError, EntryNotFound, Scuttleup, ScuttleupError
from scuttleup.keys import DELETED_HEADS, ID, log_prefix, pack_seq
from scuttleup.limits import MAX_ENTRY, MAX_SEQ
from scuttleup.messages import encode_changes, encode_handshake


def key(peer: str, seq: int) -> bytes:
    return log_prefix(peer) + pack_seq(seq)


@contextmanager
def unchanged(logs: Scuttleup, db: Any) -> Iterator[None]:
    before, head = list(db), logs.head
    yield
    assert list(db) == before
    assert logs.head == head


# --- The id ---


def test_without_a_stored_id_a_random_one_is_made(tmp_path: Path) -> None:
    ids = set()
    for name in "abc":
        with open_leveldb(tmp_path / name) as db:
            ids.add(Scuttleup(db).id)
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)


def test_the_id_is_stored_at_once_and_used_again(db: Any) -> None:
    first = Scuttleup(db)
    assert db.get("m\xffid".encode()) == first.id.encode()
    assert Scuttleup(db).id == first.id


def test_a_given_id_takes_the_place_of_the_stored_one(db: Any) -> None:
    old = Scuttleup(db)
    old.append(b"old")
    new = Scuttleup(db, id="new")
    assert new.append(b"new") == ("new", 1, b"new")
    assert new.head == {old.id: 1, "new": 1}
    assert Scuttleup(db).id == "new"


def test_an_id_may_hold_any_character_below_u00ff(db: Any) -> None:
    """Up to 255 bytes of UTF-8: it takes two ids to hold them all."""
    for characters in range(0x80), range(0x80, 0xFF):
        id = "".join(map(chr, characters))
        Scuttleup(db, id=id).append(b"x")
        assert Scuttleup(db).head[id] == 1


# --- Heads ---


def test_the_head_is_a_dict_of_ones_own(logs: Scuttleup) -> None:
    logs.append("a")
    head = logs.head
    assert logs.append("b").seq == 2
    assert head == {"us": 1}
    head["us"] = 99
    assert logs.head == {"us": 2}
    assert logs.append("c").seq == 3


def test_heads_are_found_again_at_every_width_of_the_key(db: Any) -> None:
    heads = {
        f"p{seq}": seq for seq in (1, 8, 9, 10, 250, 251, 506, 507, 66042, 66043, 16843259, MAX_SEQ)
    }
    with db.write_batch() as batch:
        for peer, last in heads.items():
            for seq in range(max(1, last - 20), last + 1):
                batch.put(key(peer, seq), b"x")
    assert Scuttleup(db).head == heads


def test_100_000_logs_open(db: Any) -> None:
    heads = {f"peer-{number:06}": number % 3 + 1 for number in range(100_000)}
    with db.write_batch() as batch:
        for peer, last in heads.items():
            for seq in range(1, last + 1):
                batch.put(key(peer, seq), b"x")
    assert Scuttleup(db).head == heads


# --- append ---


def test_append_numbers_entries_from_1_and_goes_on_after_a_restart(db: Any) -> None:
    change = Scuttleup(db, id="us", value_encoding="utf-8").append("hello")
    assert type(change) is Change
    assert change == Change("us", 1, "hello")
    assert Scuttleup(db).append("b").seq == 2


def test_append_goes_on_over_every_border_of_a_block_of_keys(logs: Scuttleup, db: Any) -> None:
    assert [logs.append("x").seq for _ in range(1100)] == list(range(1, 1101))
    assert [k for k, _ in db.iterator(prefix=log_prefix("us"))] == [
        key("us", seq) for seq in range(1, 1101)
    ]


def test_an_entry_may_be_empty_or_a_megabyte(logs: Scuttleup) -> None:
    for entry in ("", "x" * 2**20):
        assert logs.entry("us", logs.append(entry).seq) == entry


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("sync", [None, False, True])
def test_a_write_asks_for_the_disk_if_it_is_to(
    fake: FakeDB, sync: bool | None, default: bool
) -> None:
    logs = Scuttleup(fake, sync=default)
    assert fake.asked == [True], "the id is always to reach the disk"
    logs.append(b"x", sync=sync)
    logs.extend([b"x"], sync=sync)
    logs.write([Change("other", 1, b"x")], sync=sync)
    assert fake.asked[1:] == [default if sync is None else sync] * 3
    logs.delete("us", 1)
    assert fake.asked[4:] == [default]
    Scuttleup(fake)
    assert len(fake.asked) == 5, "an id that is stored is not stored again"


# --- extend ---


def test_extend_appends_any_iterable_in_order(logs: Scuttleup) -> None:
    logs.append("a")
    entries = ["b", "c"]
    changes = logs.extend(entries)
    assert changes == [Change("us", 2, "b"), Change("us", 3, "c")]
    assert {type(change) for change in changes} == {Change}
    changes.clear()
    assert entries == ["b", "c"]
    assert [change.seq for change in logs.extend(str(n) for n in range(1000))][-1] == 1003
    assert logs.append("d").seq == 1004
    assert [change.entry for change in logs.create_read_stream()][:4] == ["a", "b", "c", "0"]


def test_extend_in_binary_takes_bytes_and_text_together(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    logs.extend([b"\xff", "é"])
    assert [change.entry for change in logs.create_read_stream()] == [b"\xff", "é".encode()]


def failing() -> Iterator[Any]:
    yield Change("a", 1, "x")
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["extend", "write"])
def test_a_generator_that_raises_stores_none(logs: Scuttleup, db: Any, name: str) -> None:
    with unchanged(logs, db), pytest.raises(ZeroDivisionError):
        getattr(logs, name)(failing())


def test_a_generator_may_append_itself(logs: Scuttleup) -> None:
    def entries() -> Iterator[str]:
        yield "b"
        logs.append("a")

    assert logs.extend(entries()) == [Change("us", 2, "b")]


# --- The last number ---


@pytest.fixture
def nearly_full(db: Any) -> Scuttleup:
    """A log with two numbers left."""
    db.put(key("us", MAX_SEQ - 2), b"early")
    return Scuttleup(db, id="us")


def test_a_log_runs_to_the_last_number(nearly_full: Scuttleup, db: Any) -> None:
    assert nearly_full.append(b"a").seq == 4294967294
    assert nearly_full.extend([b"b"])[0].seq == 4294967295
    assert nearly_full.entry("us", 4294967295) == b"b"
    assert Scuttleup(db).head == {"us": 4294967295}
    assert [c.seq for c in nearly_full.create_read_stream()] == [MAX_SEQ - 2, MAX_SEQ - 1, MAX_SEQ]


@pytest.mark.parametrize(
    "append", [lambda logs: logs.append(b"x"), lambda logs: logs.extend([b"x"])]
)
def test_a_full_log_takes_no_more(nearly_full: Scuttleup, db: Any, append: Any) -> None:
    nearly_full.extend([b"a", b"b"])
    for _ in range(2):
        with unchanged(nearly_full, db), pytest.raises(OverflowError, match="4294967295"):
            append(nearly_full)
    assert nearly_full.write([Change("other", 1, b"x")]) == 1


def test_extend_past_the_last_number_stores_none(nearly_full: Scuttleup, db: Any) -> None:
    with unchanged(nearly_full, db), pytest.raises(OverflowError, match="4294967295"):
        nearly_full.extend([b"a", b"b", b"c"])
    assert nearly_full.append(b"a").seq == MAX_SEQ - 1


# --- entry ---


@pytest.mark.parametrize(("peer", "seq"), [("us", 2), ("us", MAX_SEQ), ("stranger", 1)])
def test_an_entry_that_is_not_here_is_a_key_error(logs: Scuttleup, peer: str, seq: int) -> None:
    logs.append("a")
    with pytest.raises(KeyError) as caught:
        logs.entry(peer, seq)
    assert type(caught.value) is EntryNotFound
    assert isinstance(caught.value, ScuttleupError)
    assert str(caught.value) == f"no entry {seq} of {peer!r}"


# --- write ---


def test_write_takes_the_logs_mixed(logs: Scuttleup) -> None:
    changes = [Change(peer, seq, f"{peer}{seq}") for seq in range(1, 300) for peer in "ab"]
    assert logs.write(iter(changes)) == 598
    assert list(logs.create_read_stream()) == sorted(changes)


def test_what_was_read_is_written_as_it_is(
    logs: Scuttleup, new_logs: Callable[..., Scuttleup]
) -> None:
    logs.extend(["a", "b"])
    copy = new_logs("copy")
    assert copy.write(logs.create_read_stream()) == 2
    assert copy.head == {"us": 2}


@pytest.mark.parametrize("gap", [2, 3, 2**31, MAX_SEQ])
@pytest.mark.parametrize("before", [("a", 1), ("us", 1)], ids=str)
def test_a_gap_in_our_own_log_is_refused(
    logs: Scuttleup, db: Any, before: tuple[str, int], gap: int
) -> None:
    gap += before[0] == "us"
    gap = min(gap, MAX_SEQ)
    with unchanged(logs, db), pytest.raises(ValueError, match=f"'us': entry {gap} "):
        logs.write([Change(*before, "x"), Change("us", gap, "y")])
    assert logs.append("a").seq == 1


def test_write_reaches_the_last_number(logs: Scuttleup) -> None:
    assert logs.write([Change("a", MAX_SEQ - 1, "x"), Change("a", MAX_SEQ, "y")]) == 2
    assert logs.head == {"a": 4294967295}


# --- Limits ---

ADD: dict[str, Callable[[Scuttleup, bytes], object]] = {
    "append": lambda logs, entry: logs.append(entry),
    "append with sync": lambda logs, entry: logs.append(entry, sync=True),
    "extend": lambda logs, entry: logs.extend([b"x", entry]),
    "write": lambda logs, entry: logs.write([Change("a", 1, b"x"), Change("b", 1, entry)]),
    "write to our own log": lambda logs, entry: logs.write([Change("us", 1, entry)]),
}


@pytest.mark.parametrize("add", ADD.values(), ids=ADD)
@pytest.mark.parametrize("limit", [5, MAX_ENTRY], ids=["an option", "the default"])
def test_an_entry_may_have_max_entry_bytes_and_not_one_more(
    db: Any, add: Callable[[Scuttleup, bytes], object], limit: int
) -> None:
    logs = Scuttleup(db, id="us", max_entry=5) if limit == 5 else Scuttleup(db, id="us")
    named = f"of {limit + 1} bytes, .* most is {limit}$"
    with unchanged(logs, db), pytest.raises(ValueError, match=named):
        add(logs, bytes(limit + 1))
    add(logs, bytes(limit))
    assert bytes(limit) in [change.entry for change in logs.create_read_stream()]


def test_the_largest_entry_fits_into_a_frame_whoever_wrote_it() -> None:
    frame = encode_changes("x" * 255, MAX_SEQ, [bytes(MAX_ENTRY)])
    assert len(frame) - 4 == 16 * 1024 * 1024  # less its length, which is not counted


@pytest.mark.parametrize("max_entry", [0, -1, MAX_ENTRY + 1, 1.5, "5", None])
def test_a_wrong_max_entry_is_named(db: Any, max_entry: Any) -> None:
    with pytest.raises(ValueError, match=f"not {re.escape(repr(max_entry))}$"):
        Scuttleup(db, max_entry=max_entry)


def test_a_log_for_which_our_handshake_has_no_room_is_refused(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log counts for 40 bytes, or for those of its id and 12 more."""
    monkeypatch.setattr(scuttleup.store, "MAX_HANDSHAKE", 3 * 40 + 112)
    logs = Scuttleup(db, id="us")
    logs.write([Change("a", 1, b"")])
    for peers in ("b", "c", "d", "e"), ("x" * 101, "b"), ("x" * 141,):
        named = f"'{peers[-1]}': there is no room for another log"
        with unchanged(logs, db), pytest.raises(ValueError, match=named):
            logs.write([Change(peer, 1, b"") for peer in peers])
    logs.write([Change("b", 1, b""), Change("x" * 100, 1, b"")])
    # It is full now, and what is here goes on.
    for again in logs, Scuttleup(db):
        with pytest.raises(ValueError, match="no room for another log"):
            again.write([Change("c", 1, b"")])
        again.append(b"ours")
    assert logs.write([Change("b", 2, b""), Change("x" * 100, 2, b"")]) == 2
    assert len(encode_handshake("us", Scuttleup(db).head, "sync")) < 3 * 40 + 112


# --- Encodings ---


def test_a_json_log_takes_and_gives_values(db: Any) -> None:
    logs = Scuttleup(db, id="us", value_encoding="json")
    entry = {"text": "é", "list": [1, 2.5, None]}
    assert logs.append(entry) == ("us", 1, entry)
    assert logs.entry("us", 1) == entry
    assert db.get(key("us", 1)) == '{"text":"é","list":[1,2.5,null]}'.encode()


def test_a_binary_log_gives_bytes_for_text(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    logs.append("é")
    assert logs.entry("us", 1) == "é".encode()


def test_one_read_can_have_its_own_encoding(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    logs.append(b'{"a":1}')
    assert logs.entry("us", 1) == b'{"a":1}'
    assert logs.entry("us", 1, value_encoding="utf-8") == '{"a":1}'
    assert logs.entry("us", 1, value_encoding="json") == {"a": 1}
    (change,) = logs.create_read_stream(value_encoding="json")
    assert change.entry == {"a": 1}


def test_bytes_that_are_no_text_stay_as_they_are_stored(db: Any) -> None:
    logs = Scuttleup(db, id="us", value_encoding="utf-8")
    db.put(key("them", 1), b"a\xff")
    assert logs.entry("them", 1) == "a\ufffd"
    assert logs.entry("them", 1, value_encoding="binary") == b"a\xff"


# --- The database is shared ---


def test_two_logs_live_in_one_database(db: Any) -> None:
    one = Scuttleup(db.prefixed_db(b"one"), id="us", value_encoding="utf-8")
    other = Scuttleup(db.prefixed_db(b"other"), id="them", value_encoding="utf-8")
    one.extend(["a", "b", "c"])
    other.append("x")
    one.delete("us", 3)
    one.delete("us", 1)
    assert one.head == {"us": 3}
    assert other.head == {"them": 1}
    assert list(one.create_read_stream()) == [Change("us", 2, "b")]
    assert list(other.create_read_stream()) == [Change("them", 1, "x")]
    again = Scuttleup(db.prefixed_db(b"one"))
    assert (again.id, again.head) == ("us", {"us": 3})


FOREIGN_KEYS = [b"", b"\x00", b"a", b"b\xff", b"c", b"cat", b"c\xc3", b"c\xc3\xbe", b"c\xc4", b"l"]
FOREIGN_KEYS += [b"m", b"m\xc3\xbf", b"m\xc3\xbfhead", b"m\xc3\xbfother", b"m\xc3\xbfid2", b"me"]
FOREIGN_KEYS += [b"n", b"\xff"]
FOREIGN = dict.fromkeys(FOREIGN_KEYS, b"foreign")


def test_foreign_keys_are_left_alone(db: Any) -> None:
    for foreign, value in FOREIGN.items():
        db.put(foreign, value)
    logs = Scuttleup(db, id="us", value_encoding="utf-8")
    logs.extend(["a", "b", "c"])
    logs.write([Change("\xfe", 1, "x")])
    logs.delete("us", 3)
    logs.delete("us", 1)
    assert [tuple(change) for change in Scuttleup(db).create_read_stream()] == [
        ("us", 2, b"b"),
        ("\xfe", 1, b"x"),
    ]
    assert Scuttleup(db).head == {"us": 3, "\xfe": 1}
    assert {k: v for k, v in db if k in FOREIGN} == FOREIGN


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of running for ever. Windows has no alarm."""
    if sys.platform == "win32":
        yield
        return

    def fail(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Ids that hold U+00FF and lie in, before, after and among the log of "us", and ids above it.
STRANGERS = ["", "\xff", "\xffus", "us\xff", "us\xff\xff", "us\xffb", "us\xff01", "us\xfffe\xff"]
STRANGERS += ["us\xffz", "v\xffv", "us\u0100", "\u0100", "😀"]


@pytest.mark.parametrize("count", [1, 20, 300])
@pytest.mark.parametrize("stranger", STRANGERS, ids=ascii)
def test_a_log_that_the_original_cannot_find_again_breaks_no_other(
    db: Any, stranger: str, count: int
) -> None:
    """Its keys lie among those of other logs; it may itself not be seen."""
    strange = {}
    for seq in range(1, count + 1):
        strange[f"c\xff{stranger}\xff".encode() + pack_seq(seq)] = b"strange"
    for foreign, value in strange.items():
        db.put(foreign, value)
    with at_most(10):
        for peer, last in ("t", 2), ("us", 300), ("v", 2):
            for seq in range(1, last + 1):
                db.put(key(peer, seq), b"%d" % seq)
        logs = Scuttleup(db, id="us")
        heads = {peer: last for peer, last in logs.head.items() if peer in ("t", "us", "v")}
        assert heads == {"t": 2, "us": 300, "v": 2}
        read = [(c.peer, c.seq) for c in logs.create_read_stream() if c.entry != b"strange"]
        assert read == [
            (peer, seq) for peer in ("t", "us", "v") for seq in range(1, heads[peer] + 1)
        ]
        assert logs.append(b"x").seq == 301
        assert {k: v for k, v in db if k in strange} == strange


def test_a_log_that_the_original_cannot_find_again_is_not_taken_for_another(db: Any) -> None:
    for seq in range(1, 21):
        db.put(key("he", seq), b"x")
        db.put(key("us\xffz", seq), b"strange")
    with at_most(10):
        assert Scuttleup(db, id="us").head == {"he": 20}


@pytest.mark.parametrize(
    "stray", [b"", b"us", b"u", b"us\xc3\xbf", b"us\xc3\xbfzz", b"us\xc3\xbf00", b"us\xc3\xbf\xff"]
)
def test_a_stray_key_among_the_changes_hides_no_log(db: Any, stray: bytes) -> None:
    db.put("c\xff".encode() + stray, b"stray")
    for seq in range(1, 21):
        db.put(key("us", seq), b"x")
    assert Scuttleup(db, id="us").head == {"us": 20}


# --- close ---

USES: list[Callable[[Scuttleup], object]] = [
    lambda logs: logs.append("x"),
    lambda logs: logs.extend(["x"]),
    lambda logs: logs.write([Change("other", 1, "x")]),
    lambda logs: logs.delete("us", 1),
    lambda logs: logs.entry("us", 1),
    lambda logs: logs.create_read_stream(),
    lambda logs: logs.create_read_stream(tail=True),
    lambda logs: logs.create_replication_stream(),
]


def test_closed_logs_refuse_everything(logs: Scuttleup, db: Any) -> None:
    logs.append("a")
    logs.close()
    for use in USES:
        with unchanged(logs, db), pytest.raises(ScuttleupError, match="these logs are closed"):
            use(logs)


def test_the_database_stays_open_when_the_log_is_closed(logs: Scuttleup, db: Any) -> None:
    logs.append("a")
    logs.close()
    logs.close()
    assert not db.closed
    assert logs.head == {"us": 1}
    assert Scuttleup(db).append("b").seq == 2


# --- Wrong input ---


# One list of each, for every place where they come in.
WRONG_PEERS: list[Any] = ["", "\xff", "a\xffb", "a\u0100", "😀", "\ud800", "x" * 256, "é" * 128]
WRONG_PEERS += [b"us", 1]
WRONG_SEQS: list[Any] = [0, -1, 2**32, 10**12, None, True, 1.0, "1", b"1"]


@pytest.mark.parametrize("peer", WRONG_PEERS, ids=lambda peer: ascii(peer)[:12])
def test_a_wrong_peer_id_is_named_wherever_it_comes_in(logs: Scuttleup, db: Any, peer: Any) -> None:
    before = list(db)
    for use in (
        lambda: Scuttleup(db, id=peer),
        lambda: logs.entry(peer, 1),
        lambda: logs.delete(peer, 1),
        lambda: logs.write([Change("them", 1, "x"), Change(peer, 1, "x")]),
        lambda: logs.create_read_stream(since={peer: 1}),
    ):
        with pytest.raises((TypeError, ValueError), match="a peer id ") as caught:
            use()
        assert repr(peer) in str(caught.value)
        assert isinstance(caught.value, ValueError) == isinstance(peer, str)
    assert list(db) == before


@pytest.mark.parametrize("seq", WRONG_SEQS, ids=str)
def test_a_wrong_number_is_named_wherever_it_comes_in(logs: Scuttleup, db: Any, seq: Any) -> None:
    logs.append("a")
    before = list(db)
    for use in (
        lambda: logs.entry("us", seq),
        lambda: logs.delete("us", seq),
        lambda: logs.write([Change("them", seq, "x")]),
        # It may equal the next number of a run that has begun.
        lambda: logs.write([Change("them", 1, "x"), ("them", seq and float(seq), "x")]),  # type: ignore[list-item]
        lambda: logs.create_read_stream(since={"us": seq or -1}),  # 0 is right there
    ):
        with pytest.raises((TypeError, ValueError), match="an entry's number is "):
            use()
    with pytest.raises((TypeError, ValueError), match=f"not {re.escape(repr(seq))}$") as caught:
        logs.entry("us", seq)
    assert isinstance(caught.value, ValueError) == (type(seq) is int)
    assert list(db) == before
    assert logs.head == {"us": 1}


def test_a_peer_id_of_255_bytes_is_taken_wherever_it_comes_in(logs: Scuttleup, db: Any) -> None:
    for peer in "x" * 255, "é" * 127 + "x":
        logs.write([Change(peer, 1, "x")])
        assert logs.entry(peer, 1) == "x"
        assert Change(peer, 1, "x") not in logs.create_read_stream(since={peer: 1})
        logs.delete(peer, 1)
        assert Scuttleup(db, id=peer).id == Scuttleup(db).id == peer


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (ID, b"a\xc3\xbfb", "'aÿb'"),  # the original stores such an id, and then loses its log
        (ID, b"", "''"),
        (ID, b"\xff", "0xff"),
        (DELETED_HEADS + b"us", b"zz", "b'zz'"),
        (DELETED_HEADS + b"\xff", b"01", "0xff"),
    ],
)
def test_what_is_stored_wrongly_is_a_database_error_and_stays(
    tmp_path: Path, db: Any, key: bytes, value: bytes, named: str
) -> None:
    db.put(ID, b"us")
    db.put(key, value)
    before = list(db)
    with pytest.raises(DatabaseError, match=f"logs.db is damaged: .*{named}"):
        Scuttleup(db)
    assert list(db) == before


async def refuse_later(change: Change) -> bool:
    return False


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"value_encoding": "utf-16"}, ValueError, "'utf-16'"),
        ({"value_encoding": None}, ValueError, "None"),
        ({"verify": True}, TypeError, "True"),
        ({"verify": refuse_later}, TypeError, "async: <function refuse_later"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_stored(
    db: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        Scuttleup(db, **options)
    assert list(db) == []


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


Wrong = tuple[str, Callable[[Scuttleup], object], Any, str]  # name, call, errors, what they name

WRONG: list[Wrong] = [
    ("append bytes to text", lambda logs: logs.append(b"bytes"), TypeError, "b'bytes'"),
    ("append a number", lambda logs: logs.append(5), TypeError, "5"),
    ("append nothing", lambda logs: logs.append(None), TypeError, "None"),
    ("append no text", lambda logs: logs.append("\udc80"), ValueError, r"\\udc80"),
    ("extend a number", lambda logs: logs.extend(["x", 5, "y"]), TypeError, "5"),
    ("extend bytes as text", lambda logs: logs.extend([b"x", b"y"]), TypeError, "b'x'"),
    ("extend one text", lambda logs: logs.extend("text"), TypeError, "'text'"),
    ("extend one bytes", lambda logs: logs.extend(b"bytes"), TypeError, "b'bytes'"),
    ("entry as xml", lambda logs: logs.entry("us", 1, value_encoding="xml"), ValueError, "'xml'"),
    ("write bytes", lambda logs: logs.write([Change("b", 1, b"x")]), TypeError, "b'x'"),
    (
        "write a bad one after a good one",
        lambda logs: logs.write([Change("b", 1, "x"), Change("c", 1, Odd())]),
        TypeError,
        "<odd>",
    ),
    ("write a pair", lambda logs: logs.write([("b", 1)]), (TypeError, ValueError), r"\('b', 1\)"),  # type: ignore[list-item]
    ("write a number", lambda logs: logs.write([17]), TypeError, "17"),  # type: ignore[list-item]
    (
        "since a list",
        lambda logs: logs.create_read_stream(since=[("us", 1)]),  # type: ignore[arg-type]
        TypeError,
        r"\[\('us', 1\)\]",
    ),
    ("since 5", lambda logs: logs.create_read_stream(since=5), TypeError, "not 5"),  # type: ignore[arg-type]
    ("read xml", lambda logs: logs.create_read_stream(value_encoding="xml"), ValueError, "'xml'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "named"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG]
)
def test_wrong_input_is_named_and_changes_nothing(
    logs: Scuttleup, db: Any, call: Callable[[Scuttleup], object], error: Any, named: str
) -> None:
    logs.extend(["a", "b"])
    with unchanged(logs, db), pytest.raises(error, match=named):
        call(logs)
    assert logs.append("c").seq == 3


def test_a_signal_handler_may_close_in_the_middle_of_a_write(logs: Scuttleup) -> None:
    def write_for_ever() -> None:
        Timer(0.01, signal.raise_signal, (signal.SIGTERM,)).start()
        while True:
            logs.extend(["x"] * 1000)

    before = signal.signal(signal.SIGTERM, lambda signum, frame: logs.close())
    try:
        with at_most(20), pytest.raises(ScuttleupError, match="closed"):
            write_for_ever()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "nested",
    [
        lambda logs: logs.append("nested"),
        lambda logs: logs.extend(["nested"]),
        lambda logs: logs.write([("them", 1, "nested")]),
        lambda logs: logs.delete("us", 1),
    ],
    ids=["append", "extend", "write", "delete"],
)
def test_a_write_in_the_middle_of_a_write_is_refused(
    fake: FakeDB, monkeypatch: pytest.MonkeyPatch, nested: Callable[[Scuttleup], object]
) -> None:
    """As by a signal handler, which Python runs in the thread that it interrupts."""
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    logs.append("one")
    with monkeypatch.context() as patch:
        patch.setattr(fake, "perform", lambda write: (write(), nested(logs)))
        with pytest.raises(ScuttleupError, match="in the middle of another"):
            logs.append("two")
    assert logs.append("three") == Change("us", 3, "three"), "2 was written and is not given again"
    assert [change.entry for change in logs.create_read_stream()] == ["one", "two", "three"]


@pytest.mark.parametrize("wrong", [None, 5, {}, b"logs.db"])
def test_what_is_no_database_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"not {wrong!r}"):
        Scuttleup(wrong)


def test_a_path_instead_of_a_database_is_named() -> None:
    with pytest.raises(TypeError, match=r"'logs\.db'"):
        Scuttleup("logs.db")
