"""A LevelDB without scuttleup, with whichever binding is installed, and one with faults."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

binding: Any = import_module("plyvel_next" if find_spec("plyvel_next") else "plyvel")


def open_leveldb(path: Path) -> Any:
    """The LevelDB at `path`, which is made if there is none, with every check that it has."""
    return binding.DB(str(path), create_if_missing=True, paranoid_checks=True)


def contents(path: Path) -> dict[bytes, bytes]:
    """Every key of the database at `path` with its value, whatever they are."""
    with open_leveldb(path) as db:
        return dict(db)


class FakeDB:
    """A real LevelDB, `sound`, that a test listens to and breaks.

    `asked` has, for each write, whether it was to reach the disk.
    """

    def __init__(self, sound: Any, steps: int = 10**9) -> None:
        self._sound = sound
        self.asked: list[bool] = []
        self.before: BaseException | None = None  # raised instead of writing
        self.after: BaseException | None = None  # raised when it was written
        # So many keys can still be read in order. Behind them everything is damaged, and LevelDB
        # ends an iteration without an error if there is no further key that it can read.
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    def put(self, key: bytes, value: bytes, *, sync: bool = False) -> None:
        self.asked.append(sync)
        self.perform(lambda: self._sound.put(key, value, sync=sync))

    def write_batch(self, *, sync: bool = False) -> _FakeBatch:
        self.asked.append(sync)
        return _FakeBatch(self, self._sound.write_batch(sync=sync))

    def perform(self, write: Callable[[], None]) -> None:
        if self.before:
            raise self.before
        write()
        if self.after:
            raise self.after

    def get(self, key: bytes, **options: Any) -> Any:
        if self.steps < 0:
            raise binding.CorruptionError(b"Corruption: block checksum mismatch")
        return self._sound.get(key, **options)

    def iterator(self, **options: Any) -> _FakeIterator:
        return _FakeIterator(self, self._sound.iterator(**options))

    def step(self, step: Callable[[], Any]) -> Any:
        self.steps -= 1
        if self.steps < 0:
            raise StopIteration
        return step()


class _FakeBatch:
    def __init__(self, db: FakeDB, sound: Any) -> None:
        self.put, self.delete = sound.put, sound.delete
        self.write = lambda: db.perform(sound.write)


class _FakeIterator:
    def __init__(self, db: FakeDB, sound: Any) -> None:
        self._db = db
        self._sound = sound
        self.seek, self.seek_to_start = sound.seek, sound.seek_to_start

    def __enter__(self) -> _FakeIterator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sound.close()

    def __iter__(self) -> _FakeIterator:
        return self

    def __next__(self) -> Any:
        return self._db.step(self._sound.__next__)

    def prev(self) -> Any:
        return self._db.step(self._sound.prev)
