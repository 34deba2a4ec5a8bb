"""Every limit of this package, with its reason.

A limit is either part of the format, so that nothing can exceed it, or protects a peer: nobody who
connects can use up the peer's memory, descriptors or time. The place where a limit is kept says
what happens beyond. As a rule, one log is left out and the connection goes on.

No limit is an option, except `max_entry`, which can only be lowered, and `max_connections`.
"""

# --- What can be stored ---

# The largest number of an entry. On the wire, numbers are uint32.
MAX_SEQ = 2**32 - 1
# Bytes of a peer id in UTF-8. Each id stands in the handshake of every peer that holds that log. So
# every peer would pay for a long id at each meeting.
MAX_PEER = 255
# Bytes of a message on the wire. A peer keeps at most so many bytes of a message in memory.
MAX_FRAME = 16 * 1024 * 1024
# Bytes of a stored entry. Such an entry fits into a frame together with the longest peer id and the
# largest number. With their tags and lengths, the three fields need 1 + 2 + 255 bytes, 1 + 5 bytes,
# and 1 + 4 bytes before the entry.
MAX_ENTRY = MAX_FRAME - 269
# Bytes of our own handshake. It names every log that we hold, so this also limits the number of
# logs.
MAX_HANDSHAKE = MAX_FRAME
# Bytes that each log counts for in the handshake, at least. A log with a random id takes 44, so
# there can be some 380,000 such logs.
LOG_BYTES = 40

# --- How much at once ---

# Bytes that LevelDB keeps in memory, and in its journal, before it writes a table. With the usual 4
# MiB, 100 remotes that bring a long log each make LevelDB wait for its own thread up to half a
# second.
WRITE_BUFFER = 16 * 1024 * 1024
# How many entries a read from LevelDB takes at most. A small run stays in the cache of the
# processor, which saves more time than fewer reads would, and holds an event loop for a short time
# only.
RUN_ENTRIES = 256
# How many bytes such a read takes. The last entry may exceed them.
RUN_BYTES = 32 * 1024
# Bytes that a backup copies before others get their turn. That takes some ms.
COPY_BYTES = 1024 * 1024
# How many entries are deleted before others get their turn. That takes some 10 ms.
DELETE_STEP = 4000
# After so many deleted entries of one log, LevelDB is made to drop them. Until then each reader of
# that log walks over them, which takes 0.3 µs each.
DELETED = 20_000
# How many writes to logs are remembered for those who follow, at least; a turn can bring 5,000. A
# follower that falls further behind looks through all heads once, which takes some 0.1 µs a log.
NEWS = 16 * 1024

# --- What a remote may send ---

# Bytes of a frame that is not kept. There are two kinds: a handshake, which is read by single
# digests, and a change whose entry is too large for us, which is skipped. No honest peer has a
# reason to send more.
MAX_SKIPPED = 1024 * 1024 * 1024
# Bytes that are kept of a field of such a frame. The longest valid digest has 264 bytes.
MAX_FIELD = 1024
# How many logs a connection remembers as left out, because an entry of theirs was wrong. Each takes
# some 100 to 350 bytes. When there are as many, no new log is taken any more. That harms nobody
# else: a remote gets there only by sending so many bad logs, and as many good logs could use up the
# room in our handshake, too.
MAX_LEFT_OUT = 100_000
# Bytes that all connections of a store together may take for the names of logs that are not here or
# are left out. A connection remembers no further name then. It may therefore be sent entries that
# it has already; a remote of which more than MAX_NAMED logs were left out is not listened to any
# more.
MAX_NAMES_HELD = 64 * 1024 * 1024
# What such a name counts for. With an id of 40 characters it takes 130 to 210 bytes.
NAME_BYTES = 250
# Bytes of frames that are not complete and of entries that a remote does not take, over all
# connections of a store. Beyond that the connection with the most is dropped.
MAX_HELD = 256 * 1024 * 1024
# A connection adds up what it holds when so many bytes have come, because that takes 1 µs.
HOLD_STEP = 4096
# How many of these logs are named, each by a warning and a line in `Replicated.refused`.
MAX_NAMED = 20
# Characters that are shown of a peer id that a remote chose. Random ids and signed ids are shorter.
MAX_SHOWN = 64
# Characters that are shown of a remote's reason for leaving out a log. Ours are shorter.
MAX_REASON = 120
# Characters of a wrong value that an error shows. A printable peer id is shown whole.
MAX_REPR = 300

# --- What is sent in one turn of an event loop ---

# Bytes that are read from the connection and received in a turn, and bytes that are handed to the
# connection in a turn. They hold about 5,000 logs of one tiny entry, which take 30 ms to be stored,
# or 700 entries of one log, which take 1 ms.
TURN_BYTES = 64 * 1024
# How many runs of entries are read from LevelDB for one such turn, in case the runs are tiny.
TURN_RUNS = 256
# Seconds after which no further turn begins in a round of the event loop. All connections of the
# loop share them.
ROUND = 0.01

# --- How long a remote is waited for, in seconds ---

# A remote is given up after this time if it is silent before its handshake, takes nothing that we
# send, has vanished, or leaves a frame unfinished. Without this limit, a stranger could hold up to
# MAX_FRAME of our memory for ever with half a frame.
ALIVE = 60
# A frame that is not finished has to grow by this many bytes within ALIVE. That is 1.1 kB/s, less
# than any usable link has. So a byte now and then is not enough. Whoever wants to hold MAX_FRAME of
# our memory has to send as much, and to send as much again after four hours at most.
PROGRESS_BYTES = 64 * 1024
# How long a replication that is not live waits for more of what a remote that does not report has
# promised. That one may have deleted those entries.
PROMISED = 5
# How many logs such a remote is thought to look through in a second, before it sends the first
# entry. The original needs more than 5 seconds for 40,000 on a slow machine.
PROMISED_LOGS = 2000
# How long a live replication lets a report wait, so that one report tells of many changes.
REPORT = 0.1
# How long the remote may go on to read after we have ended our side.
LINGER = 10

# --- How long we wait for ourselves, in seconds ---

# How often a write looks whether the folder of the database is still there. After a second, a new
# database in its place was damaged.
LOOK_SECONDS = 0.01

# --- Other processes that use our database ---

# Links to such processes: one for each process, and one for each of its streams. They come out of
# SPARE_DESCRIPTORS, and so do those that have not proven yet who they are.
MAX_USERS = 32
MAX_STRANGERS = 8
# Bytes of a question or an answer. A larger `extend` is refused.
MAX_MESSAGE = 64 * 1024 * 1024
# Seconds in which a process that has connected has to prove itself.
SHARE_SECONDS = 5
# Seconds after which a process that waits for news hears that there are none, so that each side
# notices that the other one has gone.
SHARE_LOOK = 0.2
# Seconds that a call waits for the process that has the database open. Deleting a range and
# compacting wait as long as that process is there.
CALL_SECONDS = 30

# --- Connections of a `Peer` ---

# Connections of a `Peer`, those to other peers included. An idle connection takes some 20 KB.
MAX_CONNECTIONS = 1000
# Descriptors that no connection ever gets. LevelDB opens and closes files all the time, and a write
# that finds no descriptor fails as if the disk were broken.
SPARE_DESCRIPTORS = 64
# Connections that the kernel keeps until we have accepted them. A single loop accepts them all, so
# they wait for a few milliseconds.
BACKLOG = 256
# Seconds that each of these may take: looking up a name, connecting to one of its addresses, TLS
# included, and the TLS handshake of a remote that comes. Three lost packets cost 7 seconds.
CONNECT_SECONDS = 10
# Seconds in which the same event is told only once, so that strangers cannot fill a log file.
TELL_SECONDS = 60
# How many different events are told within that time. Those of further remotes are told together.
# Warnings about logs that are left out have the same limit.
MAX_TOLD = 100
