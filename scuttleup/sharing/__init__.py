"""Two programs, one database: further processes of this user use the logs that a process has open.

`Share` lets them in (`owner.py`). `wait_for` finds who shares a database that is held, or waits for
it; `SharedStore` stands in for the store of that process (`user.py`). `link.py` is the connection.
"""

from .owner import Share as Share
from .user import SharedStore as SharedStore
from .user import wait_for as wait_for
