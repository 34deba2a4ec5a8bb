"""Two programs, one database: others of this user's processes use the logs that this one has open.

`Share` lets them in (`owner.py`). `SharedStore` stands in for the store of a process that shares it
(`user.py`). `link.py` is the connection between the two.
"""

from .owner import Share as Share
from .user import SharedStore as SharedStore
