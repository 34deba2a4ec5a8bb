"""A LevelDB made safe. This folder knows nothing of logs.

The rest of the package uses these names:

- `open_database` opens a LevelDB with every check there is, and makes one only where there is
  nothing.
- `Database` is an open one, which any thread may use and close at any time, and which nobody can
  use in a child process. Every failure is a `DatabaseError` in words.
- `files` brings to the disk what LevelDB does not, and keeps a small file of our own beside its.
- `Unreadable` is raised by whoever finds that what is stored cannot be right, and becomes a
  `DamagedDatabase`. `ERRORS` are all that a read or a write may raise.

| file          | what lives there                                                        |
|---------------|-------------------------------------------------------------------------|
| `copying.py`  | a whole copy, made while others read and write                          |
| `opening.py`  | what is open here, and opening, under a lock                            |
| `manifest.py` | what a folder holds: a whole database, a part of one, or none           |
| `database.py` | locks, closing, and errors, around every use                            |
| `folder.py`   | nobody else has the folder open, and it is still there                  |
| `files.py`    | files that LevelDB leaves to us: journals and names to the disk, a key  |
| `fork.py`     | a child process uses no database                                        |
| `binding.py`  | the one file that knows the binding: classes, file names, error texts   |
"""

from . import files as files
from .binding import ERRORS as ERRORS
from .binding import Unreadable as Unreadable
from .binding import binding as binding
from .database import Database as Database
from .folder import ident as ident
from .fork import FORKED as FORKED
from .opening import open_database as open_database

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .copying import copy as copy
else:

    def __getattr__(name: str) -> object:
        """Load what makes a copy when it is used, which is seldom."""
        if name != "copy":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .copying import copy

        return copy
