"""Signed logs in the store: how our own goes on, and what is known of any of them.

Theory of operation
-------------------

`signing.py` signs and checks entries if it knows one thing, the *link*: the SHA-256 of the stored
entry before. So the link after the head of each log is needed. The link is not kept in memory,
because a hash of the newest entry in LevelDB takes less time than a signature. If the newest entry
is deleted, the same batch stores its hash under a key of its own.

*Our own log* goes on from our newest entry. Before the first entry is signed, two things are
checked: the secret key is that of the log, and the newest entry is signed. A program that knows
nothing of signatures may have appended to this database, and other peers would refuse every entry
that we signed after that. The link after the entry that was signed last is remembered, and is used
only while that number is our head. So a failed write does no harm. The link is forgotten when
entries of our own log come in from elsewhere, as after a backup was restored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count

from ..changes import Run
from ..errors import ScuttleupError
from ..keys import DELETED_HASHES, DELETED_HEADS, check_peer, log_prefix, pack_seq
from ..leveldb import Database, Unreadable, files
from ..scan import load_id
from .signing import (
    FIRST_LINK,
    KEY_BYTES,
    PREFIX,
    Signer,
    check,
    is_odd,
    is_signed,
    link_after,
    pynacl_installed,
)

# The file in the database's folder that holds the secret key, 32 bytes.
KEY_FILE = "signing.key"
# What is wrong with a key that is not there.
_MISSING = "is not here"


class Authors:
    """Signs our own entries, and knows the links to check others' entries against.

    `id` is our own log. `key` is its secret key, or None if the log is not signed or the key is not
    here.
    """

    def __init__(self, database: Database, id: str, key: bytes | None) -> None:
        self._database = database
        self._id = id
        self._key = key
        # Made when the first entry is signed, as that needs PyNaCl and the check in `_make_signer`.
        self._signer: Signer | None = None
        # The number of the entry that we signed last, and the link after it.
        self._newest: tuple[int, bytes] = 0, FIRST_LINK

    def seal(self, head: int, entries: list[bytes]) -> list[bytes]:
        """Our own `entries`, from number `head` + 1 on, as they are stored.

        Called under the store's lock `writes`. Raises ScuttleupError if they cannot be signed: the
        text says why, and what to do.
        """
        if self._signer is None:
            self._signer = self._make_signer(head)
        last, link = self._newest
        if last != head:
            found = self.link_after(self._id, head)
            if found is None:
                raise ScuttleupError(
                    f"entry {head} of our own log {self._id!r} is missing, so the next one cannot "
                    "be signed: replicate with a peer that has it, or begin a new log"
                )
            link = found
        sealed, link = self._signer.seal(head + 1, entries, link)
        self._newest = head + len(sealed), link
        return sealed

    def forget(self) -> None:
        """Forget what we signed last: our newest entry may be another entry of that number."""
        self._newest = 0, FIRST_LINK

    def _make_signer(self, head: int) -> Signer:
        """The signer of our log, whose newest entry is number `head`.

        Raises ScuttleupError if the key is missing or wrong, and if that entry is not signed: see
        "Our own log" above.
        """
        if self._key is None:
            why = _read_key(self._database)[1] or "was not handed in"
            raise ScuttleupError(
                f"the secret key of {self._id!r} {why}: its log can be read and replicated, but "
                "not appended to"
            )
        signer = Signer(self._key)
        if signer.id != self._id:
            raise ScuttleupError(f"the key here is that of {signer.id!r}, not of {self._id!r}")
        with self._database.reads, self._database as db:
            newest = db.get(log_prefix(self._id) + pack_seq(head), verify_checksums=True)
        # With an unknown link, `check` looks at the signature alone.
        if newest is not None and check(Run(self._id, head, [newest]), None).fault:
            raise ScuttleupError(
                f"entry {head} of our own log {self._id!r} is not signed: another program has "
                "appended it. Nothing can be signed after it: begin a new log in a new database"
            )
        return signer

    def link_to_keep(self, peer: str, head: int) -> bytes | None:
        """The link after entry `head`, for `delete` to keep; None if its author did not sign it.

        Such an entry is somebody's garbage, and no entry is to be linked to it.
        """
        with self._database.reads, self._database as db:
            stored = db.get(log_prefix(peer) + pack_seq(head), verify_checksums=True)
        # With an unknown link, `check` looks at the signature alone.
        known = stored is not None and pynacl_installed()
        if known and check(Run(peer, head, [stored]), None).fault:
            return None
        return self.link_after(peer, head)

    def link_after(self, peer: str, head: int) -> bytes | None:
        """The link (32 bytes) after entry `head` of a signed log; None if that is not known here.

        The link is computed from the entry, or, if the entry was deleted, is read from the key that
        `delete` wrote.
        """
        if head == 0:
            return FIRST_LINK
        with self._database.reads, self._database as db:
            stored = db.get(log_prefix(peer) + pack_seq(head), verify_checksums=True)
            if stored is not None:
                return link_after(stored)
            name = peer.encode()
            if db.get(DELETED_HEADS + name, verify_checksums=True) != pack_seq(head):
                # A stored hash would be that of another entry.
                return None
            link: bytes | None = db.get(DELETED_HASHES + name, verify_checksums=True)
            return link


def new_key(database: Database, key: bytes | None) -> None:
    """Put `key` where the secret key lies. An older key is renamed and not deleted."""
    path = os.path.join(database.folder, KEY_FILE)
    old = next(name for number in count(1) if not os.path.exists(name := f"{path}.old{number}"))
    with suppress(FileNotFoundError):
        os.rename(path, old)
    if key is not None:
        files.write_file(path, key)


def _read_key(database: Database) -> tuple[bytes | None, str]:
    """The secret key in the database's folder and "", or None and what is wrong with it."""
    try:
        key = files.read_file(os.path.join(database.folder, KEY_FILE))
    except OSError as error:
        return None, f"cannot be read, {KEY_FILE}: {error.strerror}"
    if key is None:
        return None, _MISSING
    if len(key) != KEY_BYTES:
        return None, f"is damaged, {KEY_FILE} has {len(key)} bytes and not {KEY_BYTES}"
    return key, ""


def find_id(stored: str | None, id: str | None, key: bytes | None, only_signed: bool) -> str:
    """Decide on the id of our own log.

    `stored` is the id in the database, None in a new database. `id`, `key` and `only_signed` come
    from the user. The result is the first of these that there is: the id of `key`, in a new
    database or if `id` was given as well; `id`; the stored id; a random id.

    Raises ValueError if these do not go together, ScuttleupError if a new log is to be signed and
    PyNaCl is not installed.
    """
    if key is not None and (stored is None or id is not None):
        of_key = Signer(key).id
        if id not in (None, of_key):
            raise ValueError(f"the id that belongs to the key is {of_key!r}, not {id!r}")
        return of_key
    id = check_peer(id if id is not None else stored or os.urandom(16).hex())
    if is_odd(id):
        raise ValueError(f"an id that begins with {PREFIX!r} ends with a public key, not as {id!r}")
    if not is_signed(id) and (key is not None or only_signed):
        option = "only_signed" if only_signed else "key"
        raise ValueError(f"our own log {id!r} is not signed, so there can be no {option}")
    if is_signed(id) and id != stored:
        raise ValueError(f"a log with the id {id!r} needs the secret key of that id")
    return id


def load_key(database: Database, *, make: bool) -> bytes | None:
    """The secret key that lies in the database's folder, or None if none can be read there.

    If there is none and `make` is true, a new key is made and stored. Raises ValueError if the
    database has a log already, which cannot become a signed one, DatabaseError if it has none and
    its key is damaged, and ScuttleupError if PyNaCl is missing.
    """
    key, why = _read_key(database)
    with database.reads, database as db:
        id = load_id(db)
        if id is None and why not in ("", _MISSING):
            # It may be the key of a log that was lost. Nothing is put in its place.
            raise Unreadable(f"its secret key {why}")
    if key is not None or not make:
        return key
    if id is not None:
        why = f"its secret key {why}" if is_signed(id) else "it was not begun as a signed one"
        raise ValueError(f"{database.path}: the log {id!r} cannot be signed, {why}")
    key = os.urandom(KEY_BYTES)
    # Before anything is written, because this raises where PyNaCl is missing.
    Signer(key)
    with database:
        files.write_file(os.path.join(database.folder, KEY_FILE), key)
    return key
