"""Every limit of this package, with its reason.

A limit is either part of the format, so that nothing can exceed it, or it is there so that nobody
who can connect to a peer can exhaust its memory, its descriptors or its time.
"""

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
# How many spans of logs are remembered for those who follow; one turn can bring 5,000. A follower
# that falls further behind looks through all heads once, which takes some 0.1 µs a log.
NEWS = 16 * 1024

# --- What a remote may send ---

# Bytes of a frame that is not kept: a handshake, which is read a digest at a time, and a change
# whose entry is too large for us, which is skipped. Whoever sends more than that is not serious.
MAX_SKIPPED = 1024 * 1024 * 1024
# Bytes that are kept of one field of such a frame. The longest valid digest has 266.
MAX_FIELD = 1024
# How many logs are remembered as left out of one connection, because something was wrong with an
# entry of theirs. Each takes some 100 to 350 bytes. When there are more, no log is taken any more
# of which we have nothing. To get there a remote has to send so many bad logs, and with as many
# good ones it could use up the room in our handshake.
MAX_LEFT_OUT = 100_000
# How many of the logs that are left out of one connection are named, in `Replicated.refused` and
# by a warning each. The rest is counted.
MAX_NAMED = 20
# Characters that are shown of a peer id when a remote chose it. Random and signed ids are shorter.
MAX_SHOWN = 64

# --- What is sent in one turn of an event loop ---

# Read from the connection and received, and handed to the connection. About 5,000 logs of one tiny
# entry fit into it, or 700 entries of one log, which take 30 and 1 ms to be stored.
TURN_BYTES = 64 * 1024
# How many runs of entries are read for that, in case they are tiny.
TURN_RUNS = 256
# Seconds of one round of the event loop after which no further turn begins, of whatever connection.
ROUND = 0.01

# --- How long a remote is waited for, in seconds ---

# A remote that is silent before its handshake, that takes nothing of what we send, that has
# vanished, or that leaves a frame unfinished, is gone after this. In the last case a stranger would
# otherwise hold up to MAX_FRAME of our memory for as long as they like.
ALIVE = 60
# A frame that is not finished has to grow by so many bytes within ALIVE: 1.1 kB/s, less than any
# link that can be used. A byte now and then is thus not enough. So who wants to hold MAX_FRAME
# of our memory has to send it, and can hold it for four hours at most before sending it again.
PROGRESS_BYTES = 64 * 1024
# A replication that is not live waits so long for more of what it was promised. The remote may have
# deleted that.
PROMISED = 5
# After our own end the remote may go on to read what we sent. It is left so much time for that.
LINGER = 10

# --- Connections of a `Peer` ---

# Connections of one `Peer`, those that it makes itself included. An idle one takes some 20 KB.
MAX_CONNECTIONS = 1000
# Descriptors that no connection ever gets. LevelDB opens and closes files all the time, and a write
# that finds no descriptor left fails as if the disk were broken.
SPARE_DESCRIPTORS = 64
# Connections that the kernel keeps until we have accepted them. One loop accepts them all, so they
# wait for some milliseconds at most.
BACKLOG = 256
# Seconds that a connection may take from the look-up of a name to the end of the TLS handshake.
CONNECT_SECONDS = 60
# Seconds in which the same event is told once, so that strangers cannot fill anybody's log.
TELL_SECONDS = 60
# Events that are told within that time before those of further remotes are told together.
MAX_TOLD = 100
