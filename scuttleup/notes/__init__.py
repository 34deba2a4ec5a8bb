"""What is noted beside the entries: marks in the database, and lines for the logger.

`marks.py` has the marks that say how the logs may go on, and `events.py` tells of what happens, in
so few lines that nobody can fill a log file.
"""

from .events import Events as Events
from .marks import Fork as Fork
from .marks import Marks as Marks
from .marks import load_marks as load_marks
