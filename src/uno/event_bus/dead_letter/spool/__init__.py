"""The spool: where letters wait, on this machine's disk, while Redis is away.

==========================  ====================================================================================
what happens                what becomes of the letters
==========================  ====================================================================================
this process is killed      they stay; the next process with the same directory and queue adopts and sends them,
                            at its start, or within ten seconds when it runs already
killed while it writes      the torn record was never acknowledged; all complete ones are sent
killed while it sends       the batch is marked as tried: see `sender` for how it is captured once
a byte of a file is bad     its record alone is lost to us; the file is kept as ``.damaged``, and the log says so
the disk is full, or sick   the caller gets `StoreUnavailable` with the disk's error: the event is not captured
the bound is reached        the caller gets `SpoolFull`: nothing is dropped to make room
the queue is full           they wait until there is room; the log and `stats` say so
Redis refuses one for good  it stays, the log and `stats` say so, and those behind it are sent
the machine is lost         they are lost with it: until they are sent, one disk has them
==========================  ====================================================================================

One process captured some 8,000 letters a second into it, twenty calls at a time, and sent as many (two shared cores,
Redis beside; ``benchmarks/spool.py``). While Redis is well it costs a few microseconds a capture, and no disk.

Files: `record` (a letter on disk), `segment` (a file of them), `owners` (whose they are), `folder` (all of a queue,
and their bound), `writer` (one fsync for many calls), `sender` and `lookup` (into Redis, once), `spool` (the whole).
"""
