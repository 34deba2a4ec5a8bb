"""A short test of an installed package that needs nothing else: `python tests/smoke.py`.

It opens, appends, reads, deletes and replicates, and runs the command line. It is for systems and
Pythons on which the whole suite is not run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from tempfile import TemporaryDirectory

import scuttleup
from scuttleup.leveldb import binding


async def replicate(alice: scuttleup.Scuttleup, bob: scuttleup.Scuttleup) -> None:
    async with (
        scuttleup.Peer(alice, listen=("127.0.0.1", 0)) as server,
        scuttleup.Peer(bob, connect=server.addresses),
    ):
        alice.append("live")
        with bob.create_read_stream(live=True) as stream:
            assert [(await anext(stream)).entry for _ in range(2)] == ["hello", "live"]


def main() -> None:
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "grün.db")
        with scuttleup.open(path, value_encoding="utf-8", sync=True) as logs:
            logs.extend(["hello", "gone"])
            logs.delete(logs.id, 2)
        with (
            scuttleup.open(path, value_encoding="utf-8") as alice,
            scuttleup.open(os.path.join(folder, "bob.db"), value_encoding="utf-8") as bob,
        ):
            (change,) = alice.create_read_stream()
            assert str(change) == f"{{peer: '{alice.id}', seq: 1, entry: 'hello'}}"
            asyncio.run(asyncio.wait_for(replicate(alice, bob), 30))
            assert alice.append("more").seq == 4
            with suppress(scuttleup.DatabaseError):
                scuttleup.open(path)
                sys.exit("a database was opened twice")
        command = [sys.executable, "-m", "scuttleup", "--db", path]
        subprocess.check_call([*command, "append", "from the shell"], timeout=60)
        read = subprocess.check_output([*command, "read"], timeout=60, text=True)
        assert read.endswith("seq: 5, entry: 'from the shell'}\n")
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"scuttleup {scuttleup.__version__} on Python {version} with {binding.__name__}: ok")


if __name__ == "__main__":
    main()
