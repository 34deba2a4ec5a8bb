"""What goes: single entries, ranges, whole logs that are not wanted, and the disk that they took.

Everything here takes a `Store`. What the store has to know of a deleted entry, the last number of
its log and in a signed log a hash, is written in the batch that deletes the entry.
"""

from .deletion import compact as compact
from .deletion import delete as delete
from .forgetting import forget as forget
from .forgetting import forgotten as forgotten
from .forgetting import remember as remember
