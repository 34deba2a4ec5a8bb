"""`python -m scuttleup` is the command line; see `command/cli.py`."""

import sys

from .command.cli import main

if __name__ == "__main__":
    sys.exit(main())
