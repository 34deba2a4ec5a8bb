"""Signed logs: ids that are keys, and entries that prove who wrote them.

`signing.py` is the format, and needs no database; `authors.py` has what it means for a store. The
rest of the package uses of this folder only the names that are handed out below.
"""

from .authors import KEY_FILE as KEY_FILE
from .authors import Authors as Authors
from .authors import find_id as find_id
from .authors import load_key as load_key
from .authors import new_key as new_key
from .signing import FIRST_LINK as FIRST_LINK
from .signing import KEY_BYTES as KEY_BYTES
from .signing import PREFIX as PREFIX
from .signing import SIGNATURE_BYTES as SIGNATURE_BYTES
from .signing import check as check
from .signing import is_odd as is_odd
from .signing import is_signed as is_signed
from .signing import proof_of as proof_of
from .signing import proves as proves
from .signing import pynacl_installed as pynacl_installed
from .signing import strip as strip
