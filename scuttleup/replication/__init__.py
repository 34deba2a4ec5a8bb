"""Replication, without a peer that stays connected: the frames of the wire (`messages.py`), the
protocol without any I/O (`protocol.py`), and the same over asyncio (`connection.py`).
"""
