"""Print every entry of every log in logs.db."""

import signal
import sys

import scuttleup

# So that `read.py | head -1` ends quietly. Windows has no SIGPIPE, writing fails there instead.
signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)
sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
try:
    for change in scuttleup.open("logs.db", value_encoding="utf-8").create_read_stream():
        print(change)
except (scuttleup.ScuttleupError, OSError) as error:
    sys.exit(f"read.py: {error}")
