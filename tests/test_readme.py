"""What the README shows does what it says."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def block(containing: str) -> str:
    [found] = [text for text in BLOCKS if containing in text]
    return str(found)


def test_the_api_by_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block("logs.entry("), found)
    assert str(found["change"]).endswith("seq: 3, entry: 'world'}")  # the last one printed


def test_the_two_peers_replicate_and_a_bad_connection_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server_code = block("serve_forever").replace("2014", port)
    client_code = block("open_connection").replace("2014", port)
    server_code = server_code.replace(
        "async with server:", 'async with server:\n        print("up")'
    )
    logs_py = 'logs.append("from alice")\n'
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            server_code.replace("async def serve(", logs_py + "async def serve("),
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        assert server.stdout.readline() == "up\n"
        with socket.create_connection(("127.0.0.1", int(port))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: none\r\n" * 4)
            assert server.stdout.readline().startswith("a connection ended: ")
        client = subprocess.run(
            [sys.executable, "-c", client_code],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert client.stdout == "0 sent, 1 received\n"
        server.send_signal(signal.SIGKILL)
        assert server.communicate(timeout=30) == ("", "")
    finally:
        server.kill()
        server.wait()


def test_the_test_command_is_the_one_that_runs_here() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count("bin/pytest") == 1
    assert "grep -m 1 'bin/pytest' README.md" in (ROOT / ".ci/run").read_text("utf-8")
