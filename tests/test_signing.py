"""Signed logs: what is taken as an author's own, and what is not."""

from __future__ import annotations

import subprocess
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from unittest.mock import patch

import nacl.bindings
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from scuttleup.changes import Run
from scuttleup.limits import MAX_SEQ
from scuttleup.signed.signing import (
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
    strip,
)

KEY = bytes(range(32))
ID = "ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
SIGNER = Signer(KEY)
STRANGER = Signer(b"\xff" * 32)


def seal(first: int, entries: list[bytes], link: bytes = FIRST_LINK) -> list[bytes]:
    """`entries` as their author stores them."""
    return SIGNER.seal(first, entries, link)[0]


LOG = seal(1, [b"one", b"two", b"three", b"four", b"five"])
LINKS = [FIRST_LINK, *map(link_after, LOG)]
BRANCH = LOG[:2] + seal(3, [b"3", b"4", b"5"], LINKS[2])


def found(stored: list[bytes], first: int = 1) -> tuple[int, str | None]:
    """How many of these entries in the log of `ID` are its author's, and what is wrong then."""
    checked = check(Run(ID, first, stored), None)
    return checked.proven, checked.fault


# --- The format ---


def another_implementation(
    seed: bytes, first: int, entries: list[bytes], link: bytes
) -> tuple[str, list[bytes], bytes]:
    """The id, the stored entries and the last link, written from the table of the format alone."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    stored = []
    for n, entry in enumerate(entries, first):
        digest = sha256(entry + link).digest()
        signature = private.sign(b"scuttleup\0" + n.to_bytes(8, "big") + digest)
        stored.append(entry + link + signature)
        link = sha256(stored[-1]).digest()
    return "ed25519." + urlsafe_b64encode(public).decode().rstrip("="), stored, link


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, MAX_SEQ - 5),
    st.lists(st.binary(max_size=200), max_size=5),
)
@example(KEY, 0, [b"one", b""])
@example(KEY, MAX_SEQ - 2, [b"", b"the last"])
def test_the_table_is_enough_to_write_another_implementation(
    seed: bytes, before: int, entries: list[bytes]
) -> None:
    link = before.to_bytes(32, "big")  # zeros if no entry comes before
    signer = Signer(seed)
    peer, stored, last = another_implementation(seed, before + 1, entries, link)
    assert signer.id == peer
    assert signer.seal(before + 1, entries, link) == (stored, last)
    assert check(Run(peer, before + 1, stored), link) == Checked(len(entries), last, None)
    assert list(map(strip, stored)) == entries


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


SPOILT = LOG[4][:-1] + b"\xff"
FORGED_ENTRY = b"forged" + FIRST_LINK + bytes(64)


@pytest.mark.parametrize(
    ("stored", "looks"),
    [(seal(1, [b"entry"] * 600), 1), ([*LOG[:4], SPOILT], 5), ([FORGED_ENTRY], 1)],
)
def test_an_honest_run_costs_one_signature_and_no_signature_is_looked_at_twice(
    stored: list[bytes], looks: int
) -> None:
    look = nacl.bindings.crypto_sign_open
    with patch("nacl.bindings.crypto_sign_open", wraps=look) as looked:
        found(stored)
    assert looked.call_count == looks


def test_what_an_author_signed_vouches_for_all_that_it_is_linked_to() -> None:
    assert found([*LOG[:4], SPOILT, *seal(6, [b"six"], link_after(SPOILT))]) == (6, None)


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
FORK, FORGED = "fork at {}", "{} is not signed by its author"
# The first number, what comes, how much of that is taken, and what is wrong then.
WRONG = {
    "entry 1 has a link": (1, seal(1, [b"one"], b"\1" * 32), 0, FORK),
    "entry 2 has zeros": (1, [LOG[0], *seal(2, [b"two"])], 1, FORK),
    "entry 9 has zeros": (9, seal(9, [b"nine"]), 0, FORK),
    "another branch within the run": (1, LOG[:3] + BRANCH[3:], 3, FORK),
    "a stranger goes on": (1, LOG[:2] + STRANGER.seal(3, [b"3", b"4"], LINKS[2])[0], 2, FORGED),
    "shifted by one": (2, LOG, 0, FORGED),
    "one left out": (1, [*LOG[:2], *LOG[3:]], 2, FORGED),
    "one twice": (1, [*LOG[:2], *LOG[1:]], 2, FORGED),
    "nothing": (1, [*LOG[:2], b"", *LOG[2:]], 2, FORGED),
    "95 bytes": (1, [LOG[0][-95:], *LOG[1:]], 0, FORGED),
    "95 bytes that the author signed": (9, seal(9, [b""], b"\1" * 31), 0, FORGED),
    "only a trailer of another entry": (1, [LOG[0], LOG[1][-96:]], 1, FORGED),
    "S + L": (1, [OTHER_FORM, *LOG[1:]], 0, FORGED),
}


@pytest.mark.parametrize(("first", "stored", "taken", "fault"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_and_what_came_before_it_is_kept(
    first: int, stored: list[bytes], taken: int, fault: str
) -> None:
    assert found(stored, first) == (taken, fault.format(first + taken))


def test_the_link_alone_tells_what_cannot_follow() -> None:
    assert follows(3, LOG[2], LINKS[2])
    assert follows(3, LOG[2], None)
    assert not follows(4, LOG[3], link_after(BRANCH[2]))
    assert not follows(9, b"\1" * 95, None)
    assert check(Run(ID, 4, BRANCH[3:]), LINKS[3]) == Checked(0, LINKS[3], "fork at 4")


# What stands for the eight points of small order, some of them in two ways, and once more with the
# sign bit set. Where such a key is not refused, and OpenSSL does not refuse it, one signature that
# anyone can write down fits at least every eighth entry.
P = 2**255 - 19
OF_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER = [0, 1, P - 1, P, P + 1, OF_ORDER_8, P - OF_ORDER_8]
SMALL_ORDER += [number + 2**255 for number in SMALL_ORDER]
BASE_POINT = bytes.fromhex("58" + "66" * 31)


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_nobody_signs_for_a_key_of_small_order(key: int) -> None:
    peer = id_of(key.to_bytes(32, "little"))
    for number in range(64):
        stored = b"%d" % number + FIRST_LINK + BASE_POINT + (1).to_bytes(32, "little")
        assert check(Run(peer, 1, [stored]), None).proven == 0


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
        "import sys, scuttleup.signed.signing as signing",
        f"assert signing.is_signed({ID!r})",
        "assert 'nacl' not in sys.modules",
        "assert signing.pynacl_installed()",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_a_pynacl_that_lacks_a_part_is_not_told_as_missing() -> None:
    """pip would say that it is installed."""
    code = (
        "import sys, scuttleup.signed.signing as signing\n"
        "sys.modules['_cffi_backend'] = None\n"
        "signing.Signer(bytes(32))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PyNaCl, which fails to load: " in done.stderr
    assert "pip install" not in done.stderr
