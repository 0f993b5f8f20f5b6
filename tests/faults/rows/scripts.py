"""Scripts that are forgotten, that keep the server busy, or that do not fit: F19, F21, F27."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.rows.registry import row
from tests.support.harness.actors import Actor
from tests.support.harness.run import RESUMES_S, Promise, Run


@contextmanager
def flushing(run: Run) -> Iterator[None]:
    """Every script is forgotten by every node, twenty times a second."""
    stop = threading.Event()

    def flush() -> None:
        while not stop.wait(0.05):
            for node in run.cluster.nodes:
                if node.is_running and not node.is_paused:
                    try:
                        node.client.script_flush()
                    except Exception:
                        continue

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        with run.fault("SCRIPT FLUSH storm"):
            yield
    finally:
        stop.set()
        thread.join()


@row("F19", "every script is forgotten twenty times a second", "cluster")
def forgotten_scripts(run: Run) -> None:
    run.promise = Promise(errors=0, duplicated=0, crashed=0)
    run.begin(lanes=8)
    with flushing(run):
        run.sleep(3)
    run.resumes(time.monotonic())
    run.finish()


@row("F27-hung", "the server hangs for three leases, twice: what waited in its sockets is served late", "standalone")
def hung(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S, crashed=0)
    run.begin(mix=[[2, "ok", 5], [2, "ok", 400]])
    for _ in range(2):
        with run.fault("SIGSTOP of the server"):
            run.server.send(signal.SIGSTOP)
            run.sleep(3 * run.lease_s)
            run.server.send(signal.SIGCONT)
        run.resumes(time.monotonic())
        run.sleep(1.5)
    run.finish()


@row("F27", "the server is busy with a script of another for 6 s", "standalone")
def busy(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S, crashed=0)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 400]])
    run.server.client.config_set("lua-time-limit", 1000)
    with run.fault("a busy script"):
        run.server.client.eval(_BUSY, 0)
    run.resumes(time.monotonic())
    run.finish()
    run.server.client.config_set("lua-time-limit", 5000)


# TIME may be frozen inside a script: it counts instead, about 6 s on this kind of machine.
_BUSY = "local n = 0 for i = 1, 400000000 do n = n + i % 7 end return n"


@row("F21", "another process with other shards, and one with earlier scripts: refused, nothing written", "standalone")
def mismatch(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin()
    with run.fault("DLQ_SHARDS=8"):
        how = {"config": {"shards": 8}, "repeats": False, "most": 3}
        stranger = Actor("producer", run.settings_of("producer", how))
        code = stranger.wait(20)
        refused = run.count_of(stranger.name, "fail") + run.count_of(stranger.name, "info")
        if run.count_of(stranger.name, "ok") or not (code or refused):
            run.failures.append(f"a process with 8 shards was let in: {code}, {stranger.said()}")
        if run.server.client.exists(*(run.key(shard, "letters") for shard in range(4, 8))):
            run.failures.append("it has written to shards that nobody reads")
    with run.fault("shards of a later protocol"):
        for shard in run.shards:
            run.server.client.hset(run.key(shard, "meta"), "protocol", 99)
        run.sleep(0.2)
        captured = [int(run.server.client.hget(run.key(shard, "meta"), "captured")) for shard in run.shards]
        run.sleep(1)
        if captured != [int(run.server.client.hget(run.key(shard, "meta"), "captured")) for shard in run.shards]:
            run.failures.append("a shard of a later protocol was written to")
        for shard in run.shards:
            run.server.client.hset(run.key(shard, "meta"), "protocol", 1)
    run.resumes(time.monotonic())
    run.finish()
