"""What a folder holds: a whole database, a part of one, or none.

LevelDB makes a database of any folder, and opens some that lack a part as if nothing were missing.
So this module looks first. CURRENT names the MANIFEST, which names every table and the oldest
journal that is needed (doc/impl.md of LevelDB). LevelDB itself looks for the tables. But LevelDB
takes a missing journal for an empty one, and then numbers from that journal would be given out once
more.

LevelDB makes a journal before the MANIFEST names it, and deletes it only after the MANIFEST has
named a later one. So the journal that the MANIFEST names is there at every moment, also after a
crash. While LevelDB saves the entries of that journal, writes go to a second, newer journal, which
no file names yet: nobody can tell if that is missing.
"""

from __future__ import annotations

import os

from ..errors import DamagedDatabase, DatabaseError

# The files that a killed first run leaves in place of a new database. A new disk has a folder
# "lost+found".
_DEBRIS = {"LOCK", "LOG", "LOG.old", "MANIFEST-000001", "000001.dbtmp", "lost+found"}
_DEBRIS |= {"signing.key", "signing.key.new", "share", "share.new"}
# The endings of other files that only LevelDB makes.
_OF_LEVELDB = (".log", ".ldb", ".sst", ".dbtmp")
# The bytes of a block in a MANIFEST, and of the header of each part of an edit: a checksum, the
# length and the kind.
_BLOCK, _HEADER = 32 * 1024, 7
# The kinds of parts: a whole edit, and the first and the last part of a longer one.
_FULL, _FIRST, _LAST = 1, 2, 4
# The beginning of the first edit of a MANIFEST: a tag, a length and a name.
_COMPARATOR = b"\x01\x1aleveldb.BytewiseComparator"
# The tag before the number of the oldest journal.
_LOG_NUMBER = b"\x02"


def is_new(path: str, folder: str) -> bool:
    """Whether a database may be made in `folder`, which is called `path`; False if one is there.

    Raises DamagedDatabase if there is only a part of a database, DatabaseError if there is
    something else, and OSError.
    """
    names = set(os.listdir(folder))
    if "CURRENT" not in names:
        others = sorted(names - _DEBRIS)
        if any(name.startswith("MANIFEST-") or name.endswith(_OF_LEVELDB) for name in others):
            raise DamagedDatabase(f"{path} is damaged: CURRENT is missing")
        if others:
            raise DatabaseError(f"{path} is not a database: it holds {others[0]}")
        return True
    with open(os.path.join(folder, "CURRENT"), encoding="utf-8", errors="replace") as file:
        manifest = file.read(100).rstrip("\n")
    if not manifest.startswith("MANIFEST-"):
        raise DamagedDatabase(f"{path} is damaged: CURRENT names no MANIFEST")
    if manifest not in names:
        raise DamagedDatabase(f"{path} is damaged: {manifest} is missing")
    try:
        with open(os.path.join(folder, manifest), "rb") as file:
            journal = oldest_journal(file.read())
    except PermissionError:
        if os.name != "nt":
            raise
        return False  # on Windows nobody else can read what LevelDB has open: it says who has it
    if journal and f"{journal:06}.log" not in names:
        raise DamagedDatabase(f"{path} is damaged: {journal:06}.log is missing")
    return False


def oldest_journal(manifest: bytes) -> int:
    """The number of the oldest journal that a database needs; 0 if it was only just made.

    A MANIFEST is a series of edits in the format of a journal (doc/log_format.md). In each edit
    that has the number, it stands first, but for the name of the comparator
    (`VersionEdit::EncodeTo`).
    """
    journal = found = at = 0
    while at + _HEADER <= len(manifest):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        size, kind = int.from_bytes(manifest[at + 4 : at + 6], "little"), manifest[at + 6]
        at += _HEADER
        if at + size > len(manifest):
            break  # half an edit at the end, which a crash has left: LevelDB passes over it
        edit = manifest[at : at + size].removeprefix(_COMPARATOR)
        if kind in (_FULL, _FIRST) and edit.startswith(_LOG_NUMBER):
            found = shift = 0
            for byte in edit[1:11]:  # a varint: 7 bits a byte, the lowest first
                found |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
        if kind in (_FULL, _LAST):
            journal = found
        at += size
    return journal
