"""Every use of a `Scuttleup` by its name. Closed logs refuse each, and so does a child."""

from __future__ import annotations

from typing import Any

from scuttleup import Change, Scuttleup


def append(logs: Scuttleup, entry: Any = "x", **options: Any) -> None:
    logs.append(entry, **options)


def extend(logs: Scuttleup, entry: Any = "x", **options: Any) -> None:
    logs.extend([entry] * 3, **options)


def write(logs: Scuttleup, entry: Any = "x", **options: Any) -> None:
    heads = logs.head
    changes = [Change(peer, heads.get(peer, 0) + 1, entry) for peer in ("us", "them")]
    logs.write(changes, **options)


def replicate(logs: Scuttleup) -> None:
    stream = logs.create_replication_stream()
    stream.receive_data(b"\x06\x0a\x04them")
    while stream.data_to_send():
        pass


# Those that store entries, `entry` in each log, with the option `sync`.
WRITES = {"append": append, "extend": extend, "write": write}
USES = WRITES | {
    "delete": lambda logs: logs.delete("us", logs.head.get("us", 1)),
    "entry": lambda logs: logs.entry("us", 1),
    "snapshot": lambda logs: list(logs.create_read_stream()),
    "live": lambda logs: list(logs.create_read_stream(live=True)),
    "replicate": replicate,
}
CHANGES = [*WRITES, "delete"]
