"""Print every entry of every log in logs.db."""

import os
import signal
import sys

import plyvel

from scuttleup import Scuttleup

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `read.py | head -1` ends quietly
sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
try:
    # Create it only where there is nothing: over a damaged database LevelDB makes an empty one.
    is_new = not os.path.exists("logs.db")
    logs = Scuttleup(plyvel.DB("logs.db", create_if_missing=is_new, paranoid_checks=True))
    for change in logs.create_read_stream(value_encoding="utf-8"):
        print(change)
except plyvel.Error as error:
    sys.exit(f"read.py: cannot use logs.db: {error.args[0].decode()}")
