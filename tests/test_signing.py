"""Signed logs: what is taken as an author's own, and what is not."""

from __future__ import annotations

import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise

import nacl.bindings
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from scuttleup import ScuttleupError
from scuttleup.changes import Run
from scuttleup.limits import MAX_SEQ
from scuttleup.signing import (
    FIRST_LINK,
    Checked,
    Signer,
    check,
    follows,
    id_of,
    is_odd,
    is_signed,
    link_after,
    public_key,
    pynacl_installed,
    strip,
)

KEY = bytes(range(32))
ID = "ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
VECTORS = [
    (
        b"hello world",
        "dc20524b5b034ef78873bae5287dd98fa2c64a141c56ff677c4a0f529e5caa01"
        "3836f343d4504da7cbca3a0e84d43ff7af0aaa8015244e2a90996dbaeb780c07",
        "f687ac53d51b7bc660a874701bacb443159c9559485344ab8f4c94f3a82bba07",
    ),
    (
        b"",
        "8b1f91eb749f9843210807874955ce98937a5983401bb5a960be6371d830908a"
        "57a24706e8be9b92a1926119d044a1c3d8303dcf975ae1e700b3db9a14f3ec0b",
        "d75abbfcd254d0d191959544d73dde05fefa48250ebb58c699588b0961d224fc",
    ),
    (
        b'{"a":1}',
        "6806c28968e89851b92de4eec2593a15573433fb1fd678ac3512ab3cb947114f"
        "c2600f4f717993bfd87a397353a9d4b7dcda1da277d774c786f003550338170b",
        "98320a14fb91234120f84bcada706a7a1f2234c896854e9385482b2beb7f2030",
    ),
]
SIGNER = Signer(KEY)


def seal(*entries: bytes, signer: Signer = SIGNER, first: int = 1) -> list[bytes]:
    """`entries` as stored; if `first` is not 1, after an entry that nobody has."""
    return signer.seal(first, entries, FIRST_LINK if first == 1 else b"\1" * 32)[0]


LOG = seal(b"one", b"two", b"three", b"four", b"five")
BRANCH = LOG[:2] + SIGNER.seal(3, [b"3", b"4", b"5"], link_after(LOG[1]))[0]
STRANGER = Signer(b"\xff" * 32)


def found(stored: list[bytes], first: int = 1, link: bytes | None = None) -> tuple[int, str | None]:
    """How many of these entries in the log of `ID` are its author's, and what is wrong then."""
    checked = check(Run(ID, first, stored), link)
    return checked.proven, checked.fault


# --- The format ---


def test_a_log_is_sealed_as_the_vectors_have_it() -> None:
    stored, link = SIGNER.seal(1, [entry for entry, _, _ in VECTORS], FIRST_LINK)
    assert SIGNER.id == ID
    assert [one[-64:].hex() for one in stored] == [signature for _, signature, _ in VECTORS]
    assert [link_after(one).hex() for one in stored] == [after for _, _, after in VECTORS]
    assert link.hex() == VECTORS[-1][2]
    assert [strip(one) for one in stored] == [entry for entry, _, _ in VECTORS]


def another_implementation(seed: bytes, entries: list[bytes]) -> tuple[str, list[bytes]]:
    """The id and the stored entries of a log, written from the table of the format alone."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    stored = []
    link = bytes(32)
    for n, entry in enumerate(entries, 1):
        digest = sha256(entry + link).digest()
        signature = private.sign(b"scuttleup\0" + n.to_bytes(8, "big") + digest)
        stored.append(entry + link + signature)
        link = sha256(stored[-1]).digest()
    return "ed25519." + urlsafe_b64encode(public).decode().rstrip("="), stored


@settings(deadline=None)  # the first call loads two libraries
@given(st.binary(min_size=32, max_size=32), st.lists(st.binary(max_size=200), max_size=5))
def test_the_table_is_enough_to_write_another_implementation(
    seed: bytes, entries: list[bytes]
) -> None:
    peer, stored = another_implementation(seed, entries)
    signer = Signer(seed)
    assert (signer.id, seal(*entries, signer=signer)) == (peer, stored)


def test_a_log_goes_on_from_the_link_that_sealing_it_returned() -> None:
    some, link = SIGNER.seal(1, [b"one", b"two"], FIRST_LINK)
    assert some + SIGNER.seal(3, [b"three", b"four", b"five"], link)[0] == LOG


@pytest.mark.parametrize("stored", [b"", b"hello", b"x" * 95])
def test_what_is_too_short_to_be_signed_is_read_as_it_is(stored: bytes) -> None:
    assert strip(stored) == stored


# --- Ids ---


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_one_id_and_gives_it_back(key: bytes) -> None:
    assert public_key(id_of(key)) == key
    assert is_signed(id_of(key))
    assert not is_odd(id_of(key))


ODD_IDS = {
    "nothing": "ed25519.",
    "too short": ID[:-1],
    "too long": ID + "A",
    "33 bytes": "ed25519." + "A" * 44,
    "padding": ID + "=",
    "a left-over bit is set": ID[:-1] + "h",
    "a foreign character": ID[:20] + "!" + ID[20:],
    "a foreign character in place of another": ID[:20] + "!" + ID[21:],
    "the other base64": ID.replace("_", "/"),
    "a newline": ID + "\n",
    "beyond ASCII": ID[:-1] + "é",
}


@pytest.mark.parametrize("peer", ODD_IDS.values(), ids=ODD_IDS)
def test_an_id_that_only_looks_signed_is_odd(peer: str) -> None:
    assert is_odd(peer)
    assert not is_signed(peer)


@pytest.mark.parametrize("peer", ["foobar", "ed25519", "ED25519." + ID[8:], "x" + ID, ID[8:]])
def test_any_other_id_is_that_of_an_unsigned_log(peer: str) -> None:
    assert not is_odd(peer)
    assert not is_signed(peer)
    with pytest.raises(ValueError, match="not the id of a signed log"):
        check(Run(peer, 1, LOG), None)


# --- What is taken ---


@pytest.mark.parametrize("first", range(1, 6))
@pytest.mark.parametrize("last", range(1, 6))
def test_an_honest_run_is_taken_wherever_it_begins_and_ends(first: int, last: int) -> None:
    run = LOG[first - 1 : last]
    before = link_after(LOG[first - 2]) if first > 1 else FIRST_LINK
    after = link_after(run[-1]) if run else before
    assert check(Run(ID, first, run), before) == Checked(len(run), after, None)
    assert found(run, first) == (len(run), None)


@pytest.mark.parametrize("first", [2, 250, 251, 2**31, MAX_SEQ - 1])
def test_a_run_after_a_gap_is_taken_at_any_number(first: int) -> None:
    assert found(seal(b"a", b"b", first=first), first) == (2, None)


SPOILT = LOG[4][:-1] + b"\xff"
FORGED_ENTRY = b"forged" + FIRST_LINK + bytes(64)


@pytest.mark.parametrize(
    ("stored", "looks"),
    [(seal(*[b"entry"] * 600), 1), ([*LOG[:4], SPOILT], 5), ([FORGED_ENTRY], 1)],
)
def test_an_honest_run_costs_one_signature_and_no_signature_is_looked_at_twice(
    monkeypatch: pytest.MonkeyPatch, stored: list[bytes], looks: int
) -> None:
    asked: list[bytes] = []
    real: Callable[[bytes, bytes], bytes] = nacl.bindings.crypto_sign_open

    def look(signed: bytes, key: bytes) -> bytes:
        asked.append(signed)
        return real(signed, key)

    monkeypatch.setattr(nacl.bindings, "crypto_sign_open", look)
    found(stored)
    assert len(asked) == looks


def test_what_an_author_signed_vouches_for_all_that_it_is_linked_to() -> None:
    after = SIGNER.seal(6, [b"six"], link_after(SPOILT))[0]
    assert found([*LOG[:4], SPOILT, *after]) == (6, None)


# --- What is refused ---


def test_an_entry_with_any_bit_of_its_trailer_flipped_is_refused() -> None:
    spoilt = [flip(LOG[1], -bit) for bit in range(1, 96 * 8 + 1)]
    assert {found([LOG[0], one]) for one in spoilt} == {(1, "2 is not signed by its author")}


def flip(stored: bytes, bit: int) -> bytes:
    """`stored` with one bit changed, which is counted from the end if it is below 0."""
    changed = bytearray(stored)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


ORDER = 2**252 + 27742317777372353535851937790883648493  # of the base point, "L" in RFC 8032
OTHER_FORM = LOG[0][:-32] + (int.from_bytes(LOG[0][-32:], "little") + ORDER).to_bytes(32, "little")
# An entry that the author signed, but at a wrong place: (first number, what comes, link before,
# how much is taken).
FORKS = {
    "entry 1 has a link": (1, SIGNER.seal(1, [b"one"], b"\1" * 32)[0], None, 0),
    "entry 2 has zeros": (1, [LOG[0], *SIGNER.seal(2, [b"two"], FIRST_LINK)[0]], None, 1),
    "entry 9 has zeros": (9, SIGNER.seal(9, [b"nine"], FIRST_LINK)[0], None, 0),
    "a joint with another branch": (4, BRANCH[3:], link_after(LOG[2]), 0),
    "another branch within the run": (1, LOG[:3] + BRANCH[3:], None, 3),
    "a second entry at the first number": (3, BRANCH[2:], link_after(BRANCH[2]), 0),
}
# The same for what its author did not sign.
FORGED = {
    "nothing": (1, [*LOG[:2], b"", *LOG[2:]], None, 2),
    "95 bytes": (1, [LOG[0][-95:], *LOG[1:]], None, 0),
    "95 bytes that the author signed": (9, SIGNER.seal(9, [b""], b"\1" * 31)[0], None, 0),
    "only a trailer of another entry": (1, [LOG[0], LOG[1][-96:]], None, 1),
    "S + L": (1, [OTHER_FORM, *LOG[1:]], None, 0),
    "an entry of another log": (1, seal(b"one", signer=STRANGER), None, 0),
    "right links, a stranger's signature": (
        1,
        [*LOG[:2], *STRANGER.seal(3, [b"three"], link_after(LOG[1]))[0]],
        None,
        2,
    ),
    "a stranger goes on after it": (
        1,
        LOG[:2] + STRANGER.seal(3, [b"3", b"4", b"5"], link_after(LOG[1]))[0],
        None,
        2,
    ),
    "shifted by one": (2, LOG, None, 0),
    "shifted to the start": (1, LOG[1:], None, 0),
    "one left out": (1, [*LOG[:2], *LOG[3:]], None, 2),
    "one twice": (1, [*LOG[:2], *LOG[1:]], None, 2),
    "two swapped": (1, [LOG[0], LOG[2], LOG[1], *LOG[3:]], None, 1),
    "backwards": (1, LOG[::-1], None, 0),
}


@pytest.mark.parametrize(("first", "stored", "link", "taken"), FORKS.values(), ids=FORKS)
def test_what_the_author_signed_as_something_else_is_a_fork(
    first: int, stored: list[bytes], link: bytes | None, taken: int
) -> None:
    assert found(stored, first, link) == (taken, f"fork at {first + taken}")


@pytest.mark.parametrize(("first", "stored", "link", "taken"), FORGED.values(), ids=FORGED)
def test_what_the_author_did_not_sign_is_refused_and_what_came_before_it_is_kept(
    first: int, stored: list[bytes], link: bytes | None, taken: int
) -> None:
    assert found(stored, first, link) == (taken, f"{first + taken} is not signed by its author")


def test_the_link_alone_tells_what_cannot_follow() -> None:
    assert follows(3, LOG[2], link_after(LOG[1]))
    assert follows(3, LOG[2], None)
    assert not follows(4, LOG[3], link_after(BRANCH[2]))
    assert not follows(9, b"\1" * 95, None)


# Every form of the eight points of small order. With such a key, a signature that anyone can write
# down fits every eighth entry at least, for whoever does not look out: OpenSSL does not.
SMALL_ORDER = [
    f"{start}{middle * 30}{end}"
    for start, middle, ends in [
        ("00", "00", ["00", "80"]),
        ("01", "00", ["00", "80"]),
        ("ec", "ff", ["7f", "ff"]),
        ("ed", "ff", ["7f", "ff"]),
        ("ee", "ff", ["7f", "ff"]),
    ]
    for end in ends
] + [
    f"{rest}{end}"
    for rest, ends in [
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc", ["05", "85"]),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03", ["7a", "fa"]),
    ]
    for end in ends
]
BASE_POINT = bytes.fromhex("58" + "66" * 31)


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_nobody_signs_for_a_key_of_small_order(key: str) -> None:
    peer = id_of(bytes.fromhex(key))
    for number in range(64):
        stored = b"%d" % number + FIRST_LINK + BASE_POINT + (1).to_bytes(32, "little")
        assert check(Run(peer, 1, [stored]), None).proven == 0


# --- Any damage, and any cuts, held against a plain model ---

# What the author ever signed, each with the entry that it follows.
SIGNED = {
    (seq, after): before
    for log in (LOG, BRANCH)
    for seq, (before, after) in enumerate(pairwise([b"", *log]), 1)
}
Items = list[tuple[int, bytes]]  # by number, some left out


def model(items: Items) -> tuple[int, str | None]:
    """How many of `items` are the author's: each was signed for its number, and to follow that."""
    last, before = 0, b""
    for index, (seq, stored) in enumerate(items):
        if (seq, stored) not in SIGNED:
            return index, f"{seq} is not signed by its author"
        if seq == last + 1 and SIGNED[seq, stored] != before:
            return index, f"fork at {seq}"
        last, before = seq, stored
    return len(items), None


def receive(items: Items, cuts: set[int]) -> tuple[int, str | None]:
    """The same by `check`, run by run as somebody does who stores them and ends at a fault."""
    runs: list[tuple[int, list[bytes]]] = []
    for index, (seq, stored) in enumerate(items):
        if not runs or index in cuts or seq != runs[-1][0] + len(runs[-1][1]):
            runs.append((seq, []))
        runs[-1][1].append(stored)
    taken, head, link = 0, 0, FIRST_LINK
    for first, entries in runs:
        checked = check(Run(ID, first, entries), link if first == head + 1 else None)
        taken += checked.proven
        if checked.fault:
            return taken, checked.fault
        assert checked.link == link_after(entries[-1])
        head, link = first + len(entries) - 1, checked.link
    return taken, None


def spoil(items: Items, how: str, at: int, amount: int) -> Items:
    """`items` after something has been done to the one at index `at`, or from there on."""
    (seq, stored), rest = items[at], items[at + 1 :]
    before, link = (items[at - 1][1], link_after(items[at - 1][1])) if at else (stored, FIRST_LINK)
    changed = {
        "delete": rest,
        "flip": [(seq, flip(stored, amount % (8 * len(stored)))), *rest],
        "cut": [(seq, stored[amount % len(stored) :]), *rest],
        "move up": [(seq + 1, stored) for seq, stored in items[at:]],
        "move down": [(seq - 1, stored) for seq, stored in items[at:]],
        "repeat": [(seq, before), *rest],
        "splice": [(seq, BRANCH[min(seq, len(BRANCH)) - 1]) for seq, _ in items[at:]],
        "forge": [(seq, b"forged" + link + stored[-64:]), *rest],
        "usurp": [*enumerate(STRANGER.seal(seq, [b"stolen"] * (len(rest) + 1), link)[0], seq)],
    }[how]
    spoilt = items[:at] + changed
    in_order = all(seq < after for (seq, _), (after, _) in pairwise([(0, b""), *spoilt]))
    return spoilt if in_order else items


HOW = ["delete", "flip", "cut", "move up", "move down", "repeat", "splice", "forge", "usurp"]
indices = st.integers(0, len(LOG) - 1)


@given(
    st.integers(1, len(LOG)),
    st.lists(st.tuples(st.sampled_from(HOW), indices, st.integers(0, 1000)), max_size=3),
    st.sets(indices),
)
def test_all_up_to_the_first_wrong_entry_is_taken_and_nothing_else(
    length: int, damages: list[tuple[str, int, int]], cuts: set[int]
) -> None:
    items = list(enumerate(LOG[:length], 1))
    for how, at, amount in damages:
        if at < len(items):
            items = spoil(items, how, at, amount)
    assert receive(items, cuts) == model(items)


# --- Keys, and PyNaCl ---


@pytest.mark.parametrize(
    ("key", "error"), [("k" * 32, TypeError), (b"secret" * 5, ValueError), (b"k" * 64, ValueError)]
)
def test_a_wrong_key_is_an_error_that_does_not_show_it(key: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="a key") as caught:
        Signer(key)
    assert str(key)[2:-1] not in str(caught.value)


def test_pynacl_is_not_loaded_before_a_signature_is_made_or_checked() -> None:
    lines = [
        "import sys, scuttleup.signing as signing",
        f"assert signing.is_signed({ID!r})",
        "assert 'nacl' not in sys.modules",
        "assert signing.pynacl_installed()",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_without_pynacl_logs_are_read_and_an_error_tells_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    assert not pynacl_installed()
    assert (is_signed(ID), strip(LOG[0])) == (True, b"one")
    with pytest.raises(ScuttleupError, match=r"pip install 'scuttleup\[signed\]'"):
        Signer(KEY)
    with pytest.raises(ScuttleupError, match=r"pip install 'scuttleup\[signed\]'"):
        check(Run(ID, 1, LOG), None)
