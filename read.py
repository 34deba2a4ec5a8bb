"""Print every entry of every log in logs.db."""

import sys

import scuttleup

sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
try:
    logs = scuttleup.open("logs.db", value_encoding="utf-8", create=False, wait=5)
    for change in logs.create_read_stream():
        print(change, flush=True)
except (scuttleup.ScuttleupError, OSError) as error:
    sys.stdout = None  # it is not flushed once more, as the reader of `read.py | head -1` has left
    sys.exit(1 if isinstance(error, BrokenPipeError) else f"read.py: {error}")
