"""The command line: the commands (`cli.py`), the terminal of a running peer (`terminal.py`), and
the look at a whole database (`check.py`).
"""

from .cli import main as main
