"""Append `hello world` to this peer's log in logs.db."""

import os
import sys

import plyvel

from scuttleup import Scuttleup

try:
    # Create it only where there is nothing: over a damaged database LevelDB makes an empty one.
    is_new = not os.path.exists("logs.db")
    logs = Scuttleup(plyvel.DB("logs.db", create_if_missing=is_new, paranoid_checks=True))
    logs.append("hello world")
except plyvel.Error as error:
    sys.exit(f"append.py: cannot use logs.db: {error.args[0].decode()}")
