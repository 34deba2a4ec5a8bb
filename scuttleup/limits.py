"""Every limit of this package, with its reason.

A limit is either part of the format, so that nothing can exceed it, or it is there so that nobody
who can connect to a peer can exhaust its memory, its descriptors or its time.
"""

from __future__ import annotations

# --- What can be stored ---

# Numbers are uint32 on the wire.
MAX_SEQ = 2**32 - 1
# Bytes of a peer id in UTF-8. Each id stands in the handshake of everybody who holds that log, so
# one long id would be paid for at every meeting of every peer.
MAX_PEER = 255
# Bytes of a message on the wire. Every peer keeps at most so much of one message in memory.
MAX_FRAME = 16 * 1024 * 1024
# Bytes of an entry as it is stored. It fits into a frame together with the longest peer id, the
# largest number and the tags and lengths of the three fields, which take 1 + 2 + 255, 1 + 5 and
# 1 + 4 bytes.
MAX_ENTRY = MAX_FRAME - 269
# Bytes of our own handshake. It names every log that we hold, so the number of logs is limited.
# Each log counts for at least LOG_BYTES, which is what a random id takes: 400,000 tiny logs are
# enough for anybody.
MAX_HANDSHAKE = MAX_FRAME
LOG_BYTES = 40

# --- How much at once ---

# What one read from LevelDB takes: small enough for the processor's cache, which is worth more than
# fewer reads, and for the patience of an event loop. The last entry may exceed the bytes.
RUN_ENTRIES = 256
RUN_BYTES = 32 * 1024
# How many writes are remembered for those who follow. A follower that falls further behind looks
# through all heads once, which takes some 0.1 µs a log.
NEWS = 4096
