"""The original, npm `scuttleup` on Node, as the tests drive it.

`npm ci` in this folder installs it. A test that uses it is skipped where it is missing, and fails
where the environment says CI=true.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scuttleup import Change

FOLDER = Path(__file__).parent
TIME_LIMIT = 120  # seconds, after which a Node process that hangs is killed


def require_node() -> str:
    """The path of Node, with the original beside it; without either, skip or fail the test."""
    node = shutil.which("node")
    missing = [
        package
        for package in ("scuttleup", "level", "fully-connected-topology")
        if not (FOLDER / "node_modules" / package / "package.json").exists()
    ]
    if node and not missing:
        return node
    reason = (
        f"{' and '.join(missing)} not installed: run `npm ci` in tests/interop"
        if node
        else "Node is not installed"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Original:
    """A Node process with the original on the database at `path`, until `with` ends.

    `options` are the original's own: `id` and `valueEncoding`. Without a path there is no database
    until `open`; after `close` another one can be opened.
    """

    def __init__(self, path: Path | None = None, **options: str) -> None:
        self._process = subprocess.Popen(
            [require_node(), str(FOLDER / "original.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if path:
            self.open(path, **options)

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The database has one user at a time: the next one waits for the end of this one.
        try:
            self._process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.communicate()
        if exc_info[0] is None:
            assert self._process.returncode == 0, "Node failed, see stderr"

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of original.js."""
        assert self._process.stdin
        assert self._process.stdout
        time_limit = threading.Timer(TIME_LIMIT, self.kill)
        time_limit.start()
        try:
            self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        finally:
            time_limit.cancel()
        assert answer, "Node ended, see stderr"
        return json.loads(answer)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process, and so any call that still waits for an answer."""
        self._process.kill()

    def open(self, path: Path, **options: str) -> None:
        self.call("open", str(path), options)

    def close(self) -> None:
        self.call("close")

    @property
    def id(self) -> str:
        id: str = self.call("id")
        return id

    @property
    def head(self) -> dict[str, int]:
        return {head["peer"]: head["seq"] for head in self.call("head")}

    def append(self, entry: Any) -> Change:
        return Change(**self.call("append", entry))

    def entry(self, peer: str, seq: int, value_encoding: str) -> Any:
        return self.call("entry", peer, seq, {"valueEncoding": value_encoding})

    def write(self, changes: Iterable[Change]) -> None:
        self.call("write", [change._asdict() for change in changes])

    def read(self) -> list[Change]:
        return [Change(**change) for change in self.call("read", {})]

    def listen(self, mode: str = "sync", *, live: bool = True) -> int:
        """Replicate with whoever connects to the port that this returns."""
        port: int = self.call("listen", {"mode": mode, "live": live})
        return port

    def connect(self, port: int, mode: str = "sync", *, live: bool = True) -> None:
        """Replicate with who listens at `port`."""
        self.call("connect", port, {"mode": mode, "live": live})

    def closed(self) -> list[str | None]:
        """Wait until all connections are closed; what each broke with, None where it did not."""
        errors: list[str | None] = self.call("closed")
        return errors
