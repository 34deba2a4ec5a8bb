"""What all tests share: real databases in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plyvel
import pytest

from scuttleup import Scuttleup


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Any]:
    db = plyvel.DB(str(tmp_path / "logs.db"), create_if_missing=True)
    yield db
    db.close()


@pytest.fixture
def logs(db: Any) -> Iterator[Scuttleup]:
    """A log with the id "us" and text entries."""
    logs = Scuttleup(db, id="us", value_encoding="utf-8")
    yield logs
    logs.close()


@pytest.fixture
def new_logs(tmp_path: Path) -> Iterator[Callable[..., Scuttleup]]:
    """Makes as many logs as a test wants: `new_logs("foobar", value_encoding="utf-8")`."""
    made: list[tuple[Scuttleup, Any]] = []

    def make(id: str, **options: Any) -> Scuttleup:
        db = plyvel.DB(str(tmp_path / f"{len(made)}.db"), create_if_missing=True)
        options.setdefault("value_encoding", "utf-8")
        made.append((Scuttleup(db, id=id, **options), db))
        return made[-1][0]

    yield make
    for logs, db in made:
        logs.close()
        db.close()
