"""The commands and scripts as processes, for tests with the fixture `in_a_folder_of_its_own`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import IO, Any, ClassVar

from readme import ROOT
from waiting import LIMIT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # it hides what is wrong with the last write

Result = tuple[int, str, str]  # the exit status, what was printed, what was said on stderr


class Command(subprocess.Popen[str]):
    """A running `scuttleup`, whose lines can be waited for."""

    ends: ClassVar[ExitStack]  # of the test that runs
    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def __init__(
        self, *args: str, program: Iterable[str] = ("-m", "scuttleup"), **options: Any
    ) -> None:
        options = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), **options}
        command = [sys.executable, *program, *args]
        super().__init__(command, env=ENVIRONMENT, encoding="utf-8", bufsize=1, **options)
        self.ends.callback(self.end)

    def type(self, line: str) -> None:
        print(line, file=self.stdin)

    def stderr_line(self, containing: str) -> str:
        for line in self.stderr:
            if containing in line:
                return line
        raise AssertionError(f"stderr ended without a line containing {containing!r}")

    def port(self) -> int:
        return int(self.stderr_line("listening on").rpartition(":")[2])

    def end(self, signum: int = signal.SIGTERM) -> Result:
        self.send_signal(signum)
        return self.result()

    def result(self, stdin: str = "") -> Result:
        try:
            out, err = self.communicate(stdin, timeout=LIMIT)
        finally:
            self.kill()
        return self.returncode, out, err


def run(*args: str, stdin: str = "", **options: Any) -> Result:
    return Command(*args, **options).result(stdin)
