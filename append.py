"""Append `hello world` to this peer's log in logs.db."""

import sys

import scuttleup

try:
    with scuttleup.open("logs.db", wait=5) as logs:
        logs.append("hello world")
except scuttleup.ScuttleupError as error:
    sys.exit(f"append.py: {error}")
