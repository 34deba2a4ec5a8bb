"""The command line: the commands (`cli.py`), the terminal of a running peer (`terminal.py`), stdin
and stdout as they are (`files.py`), and the look at a whole database (`check.py`).
"""

from __future__ import annotations

from .files import printing as printing


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv`, or in the arguments of the process, and return the exit status.

    It changes the process as a program may do that owns it: the handlers of signals, and the file
    descriptors 0, 1 and 2 where they are closed.

    >>> main(["--db", "logs.db", "append", "hello world"])
    0
    """
    # Imported here, because `printing` is used without it.
    from .cli import main

    return main(argv)
