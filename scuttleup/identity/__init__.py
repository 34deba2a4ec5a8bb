"""What becomes of our own log: backups that know that they are, forks, and new ids.

Everything here takes a `Store`, and is used seldom. The store itself only knows by `Store.marks`
whether our log may go on.
"""

from .own_log import back_up as back_up
from .own_log import begin_anew as begin_anew
from .own_log import note_fork as note_fork
from .own_log import resume as resume
