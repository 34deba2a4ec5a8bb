"""What `Scuttleup` promises: ids, heads, the writes, the single reads, and every refusal.

That writes, deletions, reads and reopening in any order do what they say, test_model.py tries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from leveldb import FakeDB
from uses import CHANGES, USES
from waiting import LIMIT, start
from wire import encode_handshake

import scuttleup
from scuttleup import Change, DamagedDatabase, EntryNotFound, Scuttleup, ScuttleupError
from scuttleup.keys import DELETED_HEADS, ID, log_prefix, pack_seq
from scuttleup.limits import MAX_ENTRY, MAX_SEQ


def key(peer: str, seq: int) -> bytes:
    return log_prefix(peer) + pack_seq(seq)


def put_log(db: Any, peer: str, seqs: Iterable[int], entry: bytes = b"x") -> None:
    """Store entries as another program may have stored them."""
    with db.write_batch() as batch:
        for seq in seqs:
            batch.put(key(peer, seq), entry)


@contextmanager
def unchanged(logs: Scuttleup, db: Any) -> Iterator[None]:
    before, head = list(db), logs.head
    yield
    assert list(db) == before
    assert logs.head == head


# --- The id ---


def test_without_a_stored_id_a_random_one_is_made_and_stored_at_once(db: Any) -> None:
    parts = [db.prefixed_db(name) for name in (b"a", b"b", b"c")]
    ids = [Scuttleup(part).id for part in parts]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)
    assert [part.get("m\xffid".encode()).decode() for part in parts] == ids
    assert [Scuttleup(part).id for part in parts] == ids


def test_a_given_id_takes_the_place_of_the_stored_one(db: Any) -> None:
    old = Scuttleup(db)
    old.append(b"old")
    new = Scuttleup(db, id="new")
    assert new.append(b"new") == ("new", 1, b"new")
    assert new.head == {old.id: 1, "new": 1}
    assert Scuttleup(db).id == "new"


# --- Heads ---


def test_the_head_is_a_dict_of_ones_own(logs: Scuttleup) -> None:
    logs.append("a")
    head = logs.head
    assert logs.append("b").seq == 2
    assert head == {"us": 1}
    head["us"] = 99
    assert logs.append("c").seq == 3
    assert logs.head == {"us": 3}


WIDTHS = [1, 8, 9, 10, 250, 251, 506, 507, 66042, 66043, 16843259, MAX_SEQ]


@pytest.mark.parametrize(
    "heads",
    [
        {f"p{last}": last for last in WIDTHS},
        {f"peer-{number:06}": number % 3 + 1 for number in range(100_000)},
    ],
    ids=["every width of the key", "100,000 logs"],
)
def test_heads_are_found_again(db: Any, heads: dict[str, int]) -> None:
    for peer, last in heads.items():
        put_log(db, peer, range(max(1, last - 20), last + 1))
    assert Scuttleup(db).head == heads


# --- append ---


def test_append_goes_on_over_every_border_of_a_block_of_keys(logs: Scuttleup, db: Any) -> None:
    seqs = range(1, 1101)
    assert [logs.append("x").seq for _ in seqs] == list(seqs)
    assert [k for k, _ in db.iterator(prefix=log_prefix("us"))] == [key("us", seq) for seq in seqs]


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("sync", [None, False, True])
def test_a_write_asks_for_the_disk_or_not(fake: FakeDB, sync: bool | None, default: bool) -> None:
    logs = Scuttleup(fake, sync=default)
    assert fake.asked == [True], "the id is always to reach the disk"
    logs.append(b"x", sync=sync)
    logs.extend([b"x"], sync=sync)
    logs.write([Change("other", 1, b"x")], sync=sync)
    assert fake.asked[1:] == [default if sync is None else sync] * 3
    logs.delete("other", 1)
    assert fake.asked[4:] == [default]
    Scuttleup(fake)
    assert len(fake.asked) == 5, "an id that is stored is not stored again"


def test_a_generator_may_append_itself(logs: Scuttleup) -> None:
    def entries() -> Iterator[str]:
        yield "b"
        logs.append("a")

    assert logs.extend(entries()) == [Change("us", 2, "b")]


# --- The last number ---


@pytest.fixture
def nearly_full(db: Any) -> Scuttleup:
    """A log with two numbers left."""
    put_log(db, "us", [MAX_SEQ - 2])
    return Scuttleup(db, id="us")


def test_a_log_runs_to_the_last_number(nearly_full: Scuttleup, db: Any) -> None:
    assert nearly_full.append(b"a").seq == 4294967294
    assert nearly_full.extend([b"b"])[0].seq == 4294967295
    assert nearly_full.entry("us", 4294967295) == b"b"
    assert Scuttleup(db).head == {"us": 4294967295}
    assert [c.seq for c in nearly_full.create_read_stream()] == [MAX_SEQ - 2, MAX_SEQ - 1, MAX_SEQ]


@pytest.mark.parametrize(
    ("left", "add"),
    [
        (0, lambda logs: logs.append(b"x")),
        (0, lambda logs: logs.extend([b"x"])),
        (2, lambda logs: logs.extend([b"x"] * 3)),
    ],
)
def test_a_full_log_takes_no_more(nearly_full: Scuttleup, db: Any, left: int, add: Any) -> None:
    nearly_full.extend([b"x"] * (2 - left))
    for _ in range(2):
        with unchanged(nearly_full, db), pytest.raises(OverflowError, match="4294967295"):
            add(nearly_full)
    assert nearly_full.write([Change("other", 1, b"x")]) == 1
    assert len(nearly_full.extend([b"x"] * left)) == left


# --- entry ---


@pytest.mark.parametrize(("peer", "seq"), [("us", 2), ("us", MAX_SEQ), ("stranger", 1)])
def test_an_entry_that_is_not_here_is_a_key_error(logs: Scuttleup, peer: str, seq: int) -> None:
    logs.append("a")
    with pytest.raises(EntryNotFound, match=f"^no entry {seq} of {peer!r}$") as caught:
        logs.entry(peer, seq)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ScuttleupError)


# --- Limits ---


@pytest.mark.parametrize(
    "add",
    [
        lambda logs, entry: logs.append(entry),
        lambda logs, entry: logs.extend([b"x", entry]),
        lambda logs, entry: logs.write([Change("a", 1, b"x"), Change("b", 1, entry)]),
    ],
    ids=["append", "extend", "write"],
)
@pytest.mark.parametrize("options", [{"max_entry": 5}, {}], ids=["an option", "the default"])
def test_an_entry_has_at_most_max_entry_bytes(db: Any, add: Any, options: dict[str, Any]) -> None:
    logs = Scuttleup(db, id="us", **options)
    limit = options.get("max_entry", MAX_ENTRY)
    named = f"of {limit + 1} bytes, .* most is {limit}$"
    with unchanged(logs, db), pytest.raises(ValueError, match=named):
        add(logs, bytes(limit + 1))
    add(logs, bytes(limit))
    assert bytes(limit) in [change.entry for change in logs.create_read_stream()]


def test_a_log_beyond_our_handshake_is_refused(db: Any, limit: Any) -> None:
    """A log counts for 40 bytes, or for those of its id and 12 more."""
    limit(MAX_HANDSHAKE=3 * 40 + 112)
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


def test_a_log_takes_json_and_each_read_can_have_its_own_encoding(db: Any) -> None:
    logs = Scuttleup(db, id="us", value_encoding="json")
    value = {"text": "é", "list": [1, 2.5, None]}
    text = '{"text":"é","list":[1,2.5,null]}'
    assert logs.append(value) == ("us", 1, value)
    encoding: Any
    for encoding, entry in (None, value), ("utf-8", text), ("binary", text.encode()):
        assert logs.entry("us", 1, value_encoding=encoding) == entry
        [change] = logs.create_read_stream(value_encoding=encoding)
        assert change == ("us", 1, entry)


def test_a_binary_log_takes_bytes_and_text_and_gives_bytes(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    logs.extend([b"\xff", "é"])
    assert [change.entry for change in logs.create_read_stream()] == [b"\xff", "é".encode()]


# --- A LevelDB that others use as well ---


def test_two_peers_live_in_parts_of_one_leveldb(db: Any) -> None:
    one = Scuttleup(db.prefixed_db(b"one"), id="us")
    other = Scuttleup(db.prefixed_db(b"other"), id="them")
    one.extend([b"a", b"b"])
    other.append(b"x")
    one.delete("us", 2)
    for logs in one, Scuttleup(db.prefixed_db(b"one")):
        assert (logs.id, logs.head) == ("us", {"us": 2})
        assert list(logs.create_read_stream()) == [("us", 1, b"a")]
    assert other.head == {"them": 1}
    assert list(other.create_read_stream()) == [("them", 1, b"x")]


FOREIGN = [b"", b"\x00", b"\xff", b"a", b"b\xff", b"c", b"cat", b"c\xc3", b"c\xc3\xbe", b"c\xc4"]
FOREIGN += [b"l", b"m", b"m\xc3\xbf", b"m\xc3\xbfhead", b"m\xc3\xbfother", b"m\xc3\xbfid2", b"me"]
FOREIGN += [b"n"]


def test_foreign_keys_are_left_alone(logs: Scuttleup, db: Any) -> None:
    for foreign in FOREIGN:
        db.put(foreign, b"foreign")
    logs.extend(["a", "b", "c"])
    logs.write([Change("\xfe", 1, "x")])
    logs.delete("us", 3)
    logs.delete("us", 1)
    assert list(Scuttleup(db).create_read_stream()) == [("us", 2, b"b"), ("\xfe", 1, b"x")]
    assert Scuttleup(db).head == {"us": 3, "\xfe": 1}
    assert {db.get(foreign) for foreign in FOREIGN} == {b"foreign"}


# Ids that hold U+00FF and lie in, before, after and among the log of "us", and ids above it.
STRANGERS = ["", "\xff", "\xffus", "us\xff", "us\xff\xff", "us\xffb", "us\xff01", "us\xfffe\xff"]
STRANGERS += ["us\xffz", "v\xffv", "us\u0100", "\u0100", "😀"]


@pytest.mark.parametrize("count", [1, 20, 300])
@pytest.mark.parametrize("stranger", STRANGERS, ids=ascii)
def test_a_log_that_the_original_loses_breaks_no_other(db: Any, stranger: str, count: int) -> None:
    """Its keys lie among those of other logs; it may itself not be seen."""
    put_log(db, stranger, range(1, count + 1), b"strange")
    strange = dict(db)
    heads = {"t": 2, "us": 300, "v": 2}
    for peer, last in heads.items():
        put_log(db, peer, range(1, last + 1))
    logs = start(lambda: Scuttleup(db, id="us")).result(LIMIT)
    assert heads.items() <= logs.head.items()
    changes = start(lambda: list(logs.create_read_stream())).result(LIMIT)
    assert [change for change in changes if change.entry != b"strange"] == [
        (peer, seq, b"x") for peer, last in heads.items() for seq in range(1, last + 1)
    ]
    assert logs.append(b"x").seq == 301
    assert strange.items() <= dict(db).items()


@pytest.mark.parametrize(
    ("stray", "first"), [("us\xff02", 1), ("us\xff05", 1), ("us\xff", 1), ("us\xfffd01", 131_300)]
)
def test_an_entry_that_is_missing_is_not_replaced_by_one_whose_key_lies_there(
    db: Any, stray: str, first: int
) -> None:
    numbers = [seq for seq in range(first, first + 60) if seq != first + 2]
    put_log(db, "us", numbers)
    put_log(db, stray, [1], b"forged")
    stream = Scuttleup(db, id="us").create_read_stream(since={"us": first - 1})
    assert [c for c in stream if c.peer == "us"] == [("us", seq, b"x") for seq in numbers]


def test_a_log_that_the_original_loses_is_not_taken_for_another(db: Any) -> None:
    put_log(db, "he", range(1, 21))
    put_log(db, "us\xffz", range(1, 21))
    assert start(lambda: Scuttleup(db, id="us").head).result(LIMIT) == {"he": 20}


@pytest.mark.parametrize(
    "stray", [b"", b"us", b"u", b"us\xc3\xbf", b"us\xc3\xbfzz", b"us\xc3\xbf00", b"us\xc3\xbf\xff"]
)
def test_a_stray_key_among_the_changes_hides_no_log(db: Any, stray: bytes) -> None:
    db.put("c\xff".encode() + stray, b"stray")
    put_log(db, "us", range(1, 21))
    assert Scuttleup(db, id="us").head == {"us": 20}


# --- close ---


@pytest.mark.parametrize("use", USES)
def test_closed_logs_refuse_everything(logs: Scuttleup, db: Any, use: str) -> None:
    logs.append("a")
    logs.close()
    with unchanged(logs, db), pytest.raises(ScuttleupError, match="these logs are closed"):
        USES[use](logs)


def test_the_database_stays_open_when_the_logs_are_closed(logs: Scuttleup, db: Any) -> None:
    logs.append("a")
    logs.close()
    logs.close()
    assert not db.closed
    assert logs.head == {"us": 1}
    assert Scuttleup(db).append("b").seq == 2


# --- Wrong input ---

WRONG_PEERS = ["", "\xff", "a\xffb", "a\u0100", "😀", "\ud800", "x" * 256, "é" * 128]

# The id, the number, and the error for that one of the two which is wrong.
WRONG_KEYS: list[tuple[Any, Any, type[Exception]]] = [
    *((peer, 1, ValueError) for peer in WRONG_PEERS),
    *((peer, 1, TypeError) for peer in (b"us", 1)),
    *(("us", seq, ValueError) for seq in (-1, 2**32, 10**12)),
    *(("us", seq, TypeError) for seq in (None, True, 1.0, "1", b"1")),
]


@pytest.mark.parametrize(("peer", "seq", "error"), WRONG_KEYS, ids=lambda value: ascii(value)[:12])
def test_a_wrong_peer_id_or_number_is_named_wherever_it_comes_in(
    logs: Scuttleup, db: Any, peer: Any, seq: Any, error: type[Exception]
) -> None:
    what, wrong = ("an entry's number", seq) if peer == "us" else ("a peer id", peer)
    named = f"^{what} .*not {re.escape(repr(wrong))}$"
    uses: list[Callable[[], object]] = [
        lambda: logs.entry(peer, seq),
        lambda: logs.delete(peer, seq),
        lambda: logs.write([Change("them", 1, "x"), Change(peer, seq, "x")]),
        lambda: logs.create_read_stream(since={peer: seq}),
    ]
    if wrong is peer:
        uses.append(lambda: Scuttleup(db, id=peer))
    for use in uses:
        with unchanged(logs, db), pytest.raises(error, match=named):
            use()


# Up to 255 bytes of UTF-8: it takes two ids to hold all characters that an id may hold.
LONG_PEERS = ["x" * 255, "é" * 127 + "x"]
LONG_PEERS += [bytes(range(0x80)).decode(), bytes(range(0x80, 0xFF)).decode("latin-1")]


@pytest.mark.parametrize("peer", LONG_PEERS, ids=ascii)
def test_a_long_peer_id_is_taken_wherever_it_comes_in(logs: Scuttleup, db: Any, peer: str) -> None:
    logs.write([Change(peer, 1, "x")])
    assert logs.entry(peer, 1) == "x"
    assert list(logs.create_read_stream(since={peer: 1})) == []
    assert Scuttleup(db).head == {peer: 1}
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
def test_wrong_ids_and_heads_are_damage(db: Any, key: bytes, value: bytes, named: str) -> None:
    db.put(ID, b"us")
    db.put(key, value)
    before = list(db)
    with pytest.raises(DamagedDatabase, match=f"logs.db is damaged: .*{named}"):
        Scuttleup(db)
    assert list(db) == before


async def refuse_later(change: Change) -> bool:
    return False


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"id": "bob", "signed": True}, ValueError, "'bob'"),
        ({"path": None}, TypeError, "not NoneType"),
        ({"id": ""}, ValueError, "''"),
        ({"id": "ed25519.short"}, ValueError, "'ed25519.short'"),
        ({"key": b"short"}, ValueError, "not 5"),
        ({"only_signed": True}, ValueError, "only_signed"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
        ({"value_encoding": "utf-16"}, ValueError, "'utf-16'"),
        ({"verify": True}, TypeError, "True"),
        ({"verify": refuse_later}, TypeError, "async: <function refuse_later"),
        *(
            ({"max_entry": wrong}, ValueError, f"not {re.escape(repr(wrong))}$")
            for wrong in (0, -1, MAX_ENTRY + 1, 1.5, "5", None)
        ),
    ],
)
def test_a_wrong_option_is_named_and_makes_no_database(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        scuttleup.open(**{"path": tmp_path / "new.db", **options})
    assert list(tmp_path.iterdir()) == []


def failing() -> Iterator[Any]:
    yield Change("a", 1, "x")
    raise ZeroDivisionError("in the middle")


# A call, its error, and what that names.
WRONG: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda logs: logs.append(b"bytes"), TypeError, "b'bytes'"),
    (lambda logs: logs.extend(["x", 5, "y"]), TypeError, "5"),
    (lambda logs: logs.extend([b"x", b"y"]), TypeError, "b'x'"),
    (lambda logs: logs.extend("text"), TypeError, "'text'"),
    (lambda logs: logs.extend(b"bytes"), TypeError, "b'bytes'"),
    (lambda logs: logs.extend(entry for _, _, entry in failing()), ZeroDivisionError, "middle"),
    (lambda logs: logs.write(failing()), ZeroDivisionError, "middle"),
    (lambda logs: logs.append(bytearray(1000)), TypeError, r"a str, not bytearray\(.{290}…$"),
    (lambda logs: logs.create_replication_stream(wake=None), TypeError, "not None"),
    (lambda logs: logs.create_replication_stream().receive_data(None), TypeError, "NoneType"),
    (lambda logs: logs.entry("us", 1, value_encoding="xml"), ValueError, "'xml'"),
    (lambda logs: logs.write([Change("b", 1, "x"), Change("c", 1, b"y")]), TypeError, "b'y'"),
    (lambda logs: logs.write([Change("b", 1, "x"), ("b", 2.0, "y")]), TypeError, "2.0"),
    (lambda logs: logs.write([("us", 3, "x"), ("us", 5, "y")]), ValueError, "'us': entry 5 "),
    (lambda logs: logs.write([("b", 1, "x"), ("us", MAX_SEQ, "y")]), ValueError, "'us': entry "),
    (lambda logs: logs.write([("b", 1)]), TypeError, r"\('b', 1\)"),
    (lambda logs: logs.write([17]), TypeError, "17"),
    (lambda logs: logs.create_read_stream(since=[("us", 1)]), TypeError, r"\[\('us', 1\)\]"),
    (lambda logs: logs.create_read_stream(value_encoding="xml"), ValueError, "'xml'"),
]


@pytest.mark.parametrize(("call", "error", "named"), WRONG)
def test_wrong_input_is_named_and_changes_nothing(
    logs: Scuttleup, db: Any, call: Callable[[Any], object], error: type[Exception], named: str
) -> None:
    logs.extend(["a", "b"])
    with unchanged(logs, db), pytest.raises(error, match=named):
        call(logs)
    assert logs.append("c").seq == 3


@pytest.mark.parametrize("nested", CHANGES)
def test_a_write_in_the_middle_of_a_write_is_refused(
    fake: FakeDB, monkeypatch: pytest.MonkeyPatch, nested: str
) -> None:
    """A signal handler can do that: Python runs it in the thread that it interrupts."""
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    logs.append("one")
    with monkeypatch.context() as patch:
        patch.setattr(fake, "perform", lambda write: (write(), USES[nested](logs)))
        with pytest.raises(ScuttleupError, match="in the middle of another"):
            logs.append("two")
    assert logs.append("three") == Change("us", 3, "three"), "2 was written and is not given again"
    assert [change.entry for change in logs.create_read_stream()] == ["one", "two", "three"]


@pytest.mark.parametrize("wrong", [None, 5, {}, b"logs.db", "logs.db"])
def test_what_is_no_database_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"not {wrong!r}"):
        Scuttleup(wrong)
