"""Waiting for what takes a moment, and not for what never comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from scuttleup import Scuttleup

T = TypeVar("T")

LIMIT = 30  # seconds, for what takes a moment


def start(work: Callable[[], T]) -> Future[T]:
    """Do `work` in a thread that a failing test does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def until(condition: Callable[[], object]) -> None:
    """Look again and again. `conftest.py` ends a test in which this takes too long."""
    while not condition():
        await asyncio.sleep(0.002)


async def settle() -> None:
    """Let every other task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def arrival(logs: Scuttleup, head: Mapping[str, int]) -> None:
    """Wait until these logs are here, up to these numbers."""
    with logs.create_read_stream(live=True, value_encoding="binary") as changes:
        async for _ in changes:
            if all(logs.head.get(peer, 0) >= seq for peer, seq in head.items()):
                return
