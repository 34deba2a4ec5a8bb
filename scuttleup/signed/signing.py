"""Signed logs: ids that are public keys, and entries that prove who wrote them.

Anyone who can connect to a peer can send entries that bear any peer's id. In a signed log such
entries are refused: the id of the log is an Ed25519 public key, and every entry ends with a
signature that only the owner of the secret key can make. The rest of the world sees an ordinary id
and ordinary bytes, so a peer that knows nothing of this, the original included, stores and relays
the log.

The format:

| what              | bytes                                                                     |
|-------------------|---------------------------------------------------------------------------|
| id                | `ed25519.`, then the public key as 43 characters of base64url, no padding |
| stored, S(n)      | the entry, then its link (32 bytes), then its signature (64 bytes)        |
| link of S(1)      | 32 zeros                                                                  |
| link of S(n)      | SHA-256(S(n-1))                                                           |
| signature of S(n) | Ed25519 over `scuttleup`, a zero byte, n as 8 bytes big-endian, and       |
|                   | SHA-256(entry and link)                                                   |

Theory of operation.

*What is promised.* `check` says how many entries of a run are their author's. An entry that the
owner of the key did not make for that number of that log never counts, and every honest entry up to
the first wrong entry does.

*What is remembered.* Nothing, here. A `Signer` holds a key. Whoever stores a log keeps its last
link, and hands that link in.

*Why one signature is enough for a run.* The signature of an entry covers its link. The link covers
every byte of the entry before, and so the link of that one, and so on to the start of the run. An
author who signs an entry thereby vouches for all entries before. So `check` follows the links,
which costs a hash for each entry (0.5 µs), and then looks at the signature of the last entry alone
(55 µs). Where a run ends is decided by the network and means nothing: however an honest log is cut,
all of it is found honest, and where something is wrong, the same entry is the first. There is one
exception, and only in an author's own log: if he signs an entry after an entry with a spoilt
signature, then the cut decides whether the spoilt entry is found honest.

*Why damage costs no honest entry.* Somebody may add an entry of his own to an honest run, with the
right link and a wrong signature. Then the signature of the last entry says nothing about the
others, so each entry is looked at by itself, from the start.

*Why nothing can be moved.* The signature covers the number and the link, and the key is the id. An
entry is therefore wrong at another number and in another log. An entry of another branch of the
same log, which exists when its author signed two entries with one number, has another link: that
is a fork. The link covers the signature, so that nobody can hand on an honest entry with a spoilt
signature under the entry that follows.

*What a gap means.* Entries may be deleted, so a log may go on at a later number than the next.
The link of the first entry after a gap leads to something that is not there. That link can be
anything but zeros, which only the first entry of a log has.

*Which signatures are right.* Those that libsodium takes; PyNaCl is its binding. Libsodium refuses
signatures that other implementations may let pass and that would give an entry two forms: a second
form of the same signature (S + L), and the public keys of small order, for which anyone can sign.

PyNaCl is an optional dependency and takes a while to load, so only making and checking a signature
import PyNaCl. Ids, links and the plain entries need none of it.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from operator import eq

from ..changes import Run
from ..errors import ScuttleupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple

    class _Checked(NamedTuple):
        proven: int
        link: bytes | None
        fault: str | None
else:
    _Checked = namedtuple("_Checked", ("proven", "link", "fault"))

# Every signed log has an id that begins like this. Such an id without a key is "odd".
PREFIX = "ed25519."
# Bytes of a secret key, which is the seed that the signing key is made from, and of a public key.
KEY_BYTES = 32
# Bytes of a link, which is a SHA-256.
LINK_BYTES = 32
# Bytes of an Ed25519 signature.
SIGNATURE_BYTES = 64
# A signed entry ends with the link and then the signature. `check` counts on this order.
TRAILER_BYTES = LINK_BYTES + SIGNATURE_BYTES
# The link of the first entry.
FIRST_LINK = bytes(LINK_BYTES)

# Where the link stands in a stored entry.
_LINK = slice(-TRAILER_BYTES, -SIGNATURE_BYTES)
# Stands before all that is signed here, so that no signature of this package means anything
# elsewhere, and none that the same key makes elsewhere means anything here.
_CONTEXT = b"scuttleup\0"


# --- Ids ---


def id_of(key: bytes) -> str:
    """The id of the log that the public key `key` (32 bytes) belongs to.

    >>> id_of(bytes(32))
    'ed25519.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    """
    from base64 import urlsafe_b64encode  # here and below, as few logs need it

    return PREFIX + urlsafe_b64encode(key).rstrip(b"=").decode()


def public_key(peer: str) -> bytes | None:
    """The public key (32 bytes) in the id `peer`, or None if `peer` is not a signed log's id."""
    # From Python 3.15 on, the decoder warns of these two, which are of base64's other alphabet.
    if peer.startswith(PREFIX) and not {"+", "/"} & set(peer):
        from base64 import urlsafe_b64decode

        with suppress(ValueError):
            key = urlsafe_b64decode(peer[len(PREFIX) :] + "=")
            # Python's decoder skips foreign characters and ignores the two bits that are left over
            # in the last one. A key that had two ids would be two logs, so only one form counts.
            if len(key) == KEY_BYTES and id_of(key) == peer:
                return key
    return None


def is_signed(peer: str) -> bool:
    """Whether `peer` is the id of a signed log."""
    return peer.startswith(PREFIX) and public_key(peer) is not None


def is_odd(peer: str) -> bool:
    """Whether `peer` looks like the id of a signed log but has no key.

    Such a log is left out wherever it comes in: its name promises a proof that cannot exist.
    """
    return peer.startswith(PREFIX) and not is_signed(peer)


# --- Stored entries ---


def strip(stored: bytes) -> bytes:
    """The entry in `stored`, of a signed log: all but the last 96 bytes.

    Fewer bytes are no signed entry (another program may have stored them), and are returned
    unchanged.
    """
    return stored[:-TRAILER_BYTES] if len(stored) >= TRAILER_BYTES else stored


def link_after(stored: bytes) -> bytes:
    """The link (32 bytes) of the entry that follows `stored`; see `FIRST_LINK` for number 1."""
    link: bytes = _sha256()(stored).digest()
    return link


def follows(seq: int, stored: bytes, link: bytes | None) -> bool:
    """Whether `stored` has the link that entry number `seq` must have. No signature is looked at.

    `link` is the link after entry `seq` - 1, or None if that entry is not known because there is a
    gap. It is not needed for number 1.
    """
    if seq == 1:
        link = FIRST_LINK
    found = stored[_LINK]
    if link is None:
        return len(found) == LINK_BYTES and found != FIRST_LINK
    # In an entry of fewer than 96 bytes, `found` has fewer than 32.
    return found == link


# --- Signatures ---


class Signer:
    """Makes the entries of the log that belongs to one secret key.

    `key` is the secret key, 32 random bytes, and `id` is the id of its log. Use one key for one log
    in one database: two databases would sign two entries with the same number, which is a fork, and
    peers refuse all that follows a fork.

    Raises TypeError or ValueError, which do not show the key, if `key` is not 32 bytes, and
    ScuttleupError if PyNaCl is not installed.

    >>> signer = Signer(bytes(range(32)))
    >>> stored, link = signer.seal(1, [b"hello", b"world"], FIRST_LINK)
    >>> check(Run(signer.id, 1, stored), FIRST_LINK).proven
    2
    """

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes):
            raise TypeError(f"a key is bytes, not {type(key).__name__}")
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        bindings = _nacl().bindings
        public, self._secret = bindings.crypto_sign_seed_keypair(key)
        self._sign = bindings.crypto_sign
        self.id = id_of(public)

    def seal(self, first: int, entries: Iterable[bytes], link: bytes) -> tuple[list[bytes], bytes]:
        """Sign `entries` as numbers `first`, `first` + 1, … of the log.

        `link` is the link after entry `first` - 1: see `link_after`, or `FIRST_LINK` if `first` is
        1. Returns the entries as they are stored, 96 bytes longer each, and the link after the last
        of them, which the next call needs.
        """
        sha256 = _sha256()
        # 22 µs each, of which libsodium takes 20. One hash state serves both for what is signed and
        # for the next link, so each entry is hashed only once.
        sealed = []
        for seq, entry in enumerate(entries, first):
            linked = entry + link
            state = sha256(linked)
            signature = self._sign(_signed(seq, state.digest()), self._secret)[:SIGNATURE_BYTES]
            state.update(signature)
            link = state.digest()
            sealed.append(linked + signature)
        return sealed, link


class Checked(_Checked):
    """The result of `check` for a run.

    - `proven`: how many entries of the run, from its first one on, are their author's
    - `link`: the link after the last of those; the link that was handed in if there are none
    - `fault`: why the next entry is not its author's; None if all are
    """

    __slots__ = ()


def check(run: Run, link: bytes | None) -> Checked:
    """Find how many entries of `run`, which is of a signed log, are their author's.

    `link` is the link after the entry before the run, or None if that link is not known, as after a
    gap. For number 1 no link is needed.

    The fault is "fork at 9" if the author signed entry 9, but not after our entry 8, and else "9 is
    not signed by its author".

    Raises ValueError if the id is not that of a signed log, and ScuttleupError if PyNaCl is not
    installed.
    """
    peer, first, entries = run
    key = public_key(peer)
    if key is None:
        raise ValueError(f"not the id of a signed log: {peer!r}")

    # First all hashes and then all links, each in a loop in C: 1.3 million entries a second in runs
    # of 250. `linked` says of each entry whether its link is right.
    sha256 = _sha256()
    hashes = [sha256(stored).digest() for stored in entries]
    linked = [follows(first, stored, link) for stored in entries[:1]]
    linked += map(eq, [stored[_LINK] for stored in entries[1:]], hashes)
    # So that there is always an entry at which the links end: perhaps one behind the last.
    linked.append(False)
    proven = linked.index(False)

    # The answers are kept, because a forged entry is asked about up to three times.
    @cache
    def authentic(index: int) -> bool:
        return _is_signature(key, first + index, entries[index])

    # The signature of the last linked entry vouches for all before it. If that signature is wrong,
    # each entry is looked at by itself.
    if proven and not authentic(proven - 1):
        proven = next(index for index in range(proven) if not authentic(index))
    fault = None
    if proven < len(entries):
        seq = first + proven
        fault = f"fork at {seq}" if authentic(proven) else f"{seq} is not signed by its author"
    return Checked(proven, hashes[proven - 1] if proven else link, fault)


def _signed(seq: int, digest: bytes) -> bytes:
    """The bytes that the signature of entry `seq` covers.

    `digest` is the SHA-256 of the entry and its link, so there are always 50 bytes.
    """
    return _CONTEXT + seq.to_bytes(8, "big") + digest


def _is_signature(key: bytes, seq: int, stored: bytes) -> bool:
    """Whether `stored` ends with its signature by `key` as entry number `seq`."""
    return len(stored) >= TRAILER_BYTES and _proves(key, seq, proof_of(stored))


def proof_of(stored: bytes) -> bytes:
    """All that a signature needs to be checked without the entry: a SHA-256 and the signature.

    These are 96 bytes. Who has two different ones of one number knows that the log has forked.
    """
    # A view makes no copy of an entry that may have 16 MiB.
    digest: bytes = _sha256()(memoryview(stored)[:-SIGNATURE_BYTES]).digest()
    return digest + stored[-SIGNATURE_BYTES:]


def proves(peer: str, seq: int, proof: bytes) -> bool:
    """Whether the author of the signed log `peer` has signed what `proof` is of as entry `seq`."""
    key = public_key(peer)
    return key is not None and len(proof) == TRAILER_BYTES and _proves(key, seq, proof)


def _proves(key: bytes, seq: int, proof: bytes) -> bool:
    nacl, digest = _nacl(), proof[:-SIGNATURE_BYTES]
    with suppress(nacl.exceptions.BadSignatureError):
        nacl.bindings.crypto_sign_open(proof[-SIGNATURE_BYTES:] + _signed(seq, digest), key)
        return True
    return False


def pynacl_installed() -> bool:
    """Whether signatures can be made and checked here. The first call loads PyNaCl."""
    with suppress(ScuttleupError):
        return bool(_nacl())
    return False


@cache
def _sha256() -> Any:
    """The maker of a SHA-256, loaded at the first use: OpenSSL takes 3 ms to load."""
    from hashlib import sha256

    return sha256


def _nacl() -> Any:
    """The module `nacl` with all its parts that are used.

    Raises ScuttleupError, which says how to install PyNaCl, if that is missing, and else why it
    does not load.
    """
    try:
        import nacl.bindings
        import nacl.exceptions
    except ImportError as error:
        if error.name not in ("nacl", "nacl.bindings"):  # it is here and lacks a part, as cffi
            raise ScuttleupError(
                f"signed logs need PyNaCl, which fails to load: {error}"
            ) from error
        raise ScuttleupError(
            "signed logs need PyNaCl, which this installs: pip install 'scuttleup[signed]'"
        ) from error
    return nacl
