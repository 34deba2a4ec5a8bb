"""Signed logs: ids that are keys, and entries that prove who wrote them.

`signing.py` is the format, and needs no database; `authors.py` has what it means for a store. Of
this folder, the rest of the package asks three things: whether an id is that of a signed log, what
the plain entry in a stored one is, and how many entries of a run are their author's.
"""
