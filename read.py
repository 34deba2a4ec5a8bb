"""Print every entry of every log in logs.db."""

import sys

import scuttleup
from scuttleup.command import printing

try:
    logs = scuttleup.open("logs.db", value_encoding="utf-8", create=False, wait=5)
    with printing():
        for change in logs.create_read_stream():
            print(change)
except (scuttleup.ScuttleupError, OSError) as error:
    sys.exit(1 if isinstance(error, BrokenPipeError) else f"read.py: {error}")
