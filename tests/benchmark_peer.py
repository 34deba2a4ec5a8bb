"""What 1,000 idle connections cost a peer: `python tests/benchmark_peer.py`."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import psutil

from scuttleup.messages import encode_handshake

CONNECTIONS = 1000
SECONDS = 5


def idle_connections() -> tuple[float, float]:
    """The KiB of memory that each takes, and the percentage of a processor that all take."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        peer = subprocess.Popen(
            [sys.executable, "-m", "scuttleup", "replicate", "--listen", "0"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        opened.enter_context(peer)
        opened.callback(peer.terminate)
        assert peer.stderr
        port = int(peer.stderr.readline().rpartition(":")[2])
        process = psutil.Process(peer.pid)
        before = process.memory_info().rss
        for n in range(CONNECTIONS):
            remote = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            remote.sendall(encode_handshake(f"remote {n}", {}, "sync"))
            assert remote.recv(1024)  # the peer has accepted it and said its own handshake
        memory = process.memory_info().rss - before
        used = sum(process.cpu_times()[:2])
        time.sleep(SECONDS)
        used = sum(process.cpu_times()[:2]) - used
    return memory / CONNECTIONS / 1024, 100 * used / SECONDS


if __name__ == "__main__":
    memory, processor = idle_connections()
    print(
        f"{CONNECTIONS} idle connections: {memory:.0f} KiB each, {processor:.1f} % of a processor"
    )
