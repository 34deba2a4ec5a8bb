"""Append to the database that is the first argument, in as many threads as the second says.

It never ends: `test_durability.py` kills it. It prints a line for each call that returned: the
first number, the last number and the tag. The entries are `tag i/n`: number i of the n of a call.
Now and then it has LevelDB compact everything, which takes new files for old ones.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from itertools import count

import scuttleup
from scuttleup import Scuttleup


def append_for_ever(logs: Scuttleup, writer: str) -> None:
    choose = random.Random(writer)
    for turn in count():
        tag = f"{writer}.{turn}"
        size = choose.choice([0, 0, 0, 1, 20, 400])
        sync = choose.random() < 0.02
        padding = "x" * choose.randrange(200)
        entries = [f"{tag} {i}/{size} {padding}" for i in range(1, size + 1)]
        if size:
            changes = logs.extend(entries, sync=sync)
        else:
            changes = [logs.append(f"{tag} 1/1", sync=sync)]
        if not choose.randrange(50):
            logs._store.database.whole.compact_range()
        # One write each, so that lines of several threads stay apart.
        os.write(1, f"{changes[0].seq} {changes[-1].seq} {tag}\n".encode())


def main() -> None:
    path, threads, run = sys.argv[1:]
    os.write(1, b"opening\n")
    logs = scuttleup.open(path, value_encoding="utf-8")
    for thread in range(int(threads)):
        threading.Thread(target=append_for_ever, args=(logs, f"{run}.{thread}")).start()


if __name__ == "__main__":
    main()
