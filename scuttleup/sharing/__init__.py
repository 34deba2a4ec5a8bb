"""Two programs, one database: others of this user's processes use the logs that this one has open.

`Share` lets them in (`owner.py`). `wait_for` finds who shares a database that is held, or waits for
it; `SharedStore` stands in for the store of that process (`user.py`). `link.py` is the connection.
"""

from .owner import Share as Share
from .user import SharedStore as SharedStore
from .user import wait_for as wait_for
