"""Servers that are full, slow, restarted, misconfigured, damaged: F13 to F16, F19 to F22, F27, F28."""

import glob
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.rows.registry import Skip, need, row
from tests.faults.rows.workers import add
from tests.support.harness.actors import Actor
from tests.support.harness.run import Promise, Run
from tests.support.servers import Server

RESUMES_S = 5.0


# -- memory -----------------------------------------------------------------------------------------------


@row("F13", "no memory is left: captures are refused, the rest goes on", "standalone")
def no_memory(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [1, "fail once", 5]])
    add(run, [{"id": f"kept.{n}", "do": "fail once", "ms": 200} for n in range(200)])
    with run.fault("maxmemory below what is used"):
        began = time.monotonic()
        run.server.client.config_set("maxmemory", "1mb")
        run.wait(lambda: run.count("fail", "queue_full"), 10, "a producer hears QueueFull")
        run.sleep(1.5)
        run.server.client.config_set("maxmemory", 0)
    run.resumes(time.monotonic())
    run.finish()
    ended = sum(line.what == "settled" and line.asked_at > began + 0.1 and line.note.endswith("OK") and
                line.at < began + 1.5 for line in run.history.lines)
    run.remarks.append(f"{ended} letters settled while memory was full")
    if not ended:
        run.failures.append("nothing was settled while memory was full")


@row("F14", "the eviction policy is changed while work goes on", "standalone")
def evicting(run: Run) -> None:
    run.promise = Promise(lost_externally=None)
    run.begin()
    with run.fault("allkeys-lru"):
        run.server.client.config_set("maxmemory-policy", "allkeys-lru")
        findings = run.ask(run.queue.doctor())
        if not any(finding.check == "eviction" and not finding.ok for finding in findings):
            run.failures.append("doctor does not see the policy")
        run.sleep(1.5)
        noticed = any("maxmemory-policy" in worker.said() for worker in run.workers)
        run.server.client.config_set("maxmemory-policy", "noeviction")
    run.remarks.append(f"doctor sees it at once; running workers {'do' if noticed else 'did not within 1.5 s'}")
    run.finish()


# -- disks ------------------------------------------------------------------------------------------------

DISK_MB = 8


class DiskServer(Server):
    """A server that lives in `folder` but for its append-only file, which is on `disk`."""

    def __init__(self, name: str, disk: str, *options: str) -> None:
        super().__init__(name)
        self.disk = Path(disk)
        # --dir after --unixsocket: its path is made whole, since the server changes its folder.
        self.options = ("--unixsocket", str(self.socket_path), "--appendonly", "yes", "--dir", disk, *options)

    def fill(self) -> None:
        """Take all room that is left on the disk."""
        with (self.disk / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        (self.disk / "ballast").unlink()


def _disk(name: str, *options: str) -> Iterator[Server]:
    need(root=True, programs=("mount", "umount"))
    folder = tempfile.mkdtemp(prefix="uno-disk-")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        os.rmdir(folder)
        raise Skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        with DiskServer(name, folder, *options) as server:
            yield server
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        os.rmdir(folder)


@contextmanager
def everysec(name: str) -> Iterator[Server]:
    yield from _disk(name, "--appendfsync", "everysec")


@contextmanager
def always(name: str) -> Iterator[Server]:
    yield from _disk(name, "--appendfsync", "always")


@row("F15", "the disk is full for a while, AOF everysec", "standalone", place=everysec)
def disk_full(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    server = run.server
    assert isinstance(server, DiskServer)
    run.begin()
    with run.fault("disk full"):
        server.fill()
        run.wait(lambda: run.count("fail", "store_unavailable"), 15, "a producer hears of it")
        run.sleep(1.0)
        server.free()
    run.resumes(time.monotonic())
    run.finish()


@row("F15-always", "the disk is full, AOF always: the server ends, is started again; captures fsynced", "standalone",
     place=always)
def disk_full_always(run: Run) -> None:
    run.settings = {"durability": "fsynced", "durable_replicas": 0}
    run.promise = Promise(resumes_s=RESUMES_S)
    server = run.server
    assert isinstance(server, DiskServer)
    run.begin()
    with run.fault("disk full", undoes=run.shards):
        server.fill()
        run.wait(lambda: _has_ended(server), 15, "the server has ended")
        server.free()
        server.stop()
        server.start()
    run.resumes(time.monotonic())
    run.finish()


def _has_ended(server: Server) -> bool:
    return os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@row("F19-restart", "the server is killed and started again, AOF always", "standalone", place=always)
def restarted(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin()
    for _ in range(3):
        with run.fault("SIGKILL of the server"):
            run.server.stop()
            run.sleep(0.2, 1.0)
            run.server.start()
        run.resumes(time.monotonic())
    run.finish()


# -- clocks -----------------------------------------------------------------------------------------------


class ClockServer(Server):
    """A server whose clock a run sets, through libfaketime; its monotonic clock is left alone."""

    def start(self) -> None:
        self._clock_file = self.folder / "clock"
        self.set_clock(0)
        fake = {
            "LD_PRELOAD": faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        before = {name: os.environ.get(name) for name in fake}
        os.environ.update(fake)
        try:
            super().start()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    def set_clock(self, ahead_s: int) -> None:
        new = self._clock_file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.rename(self._clock_file)


def faketime() -> str:
    """The library; raises `Skip` without it."""
    places = [os.environ.get("DLQ_TEST_FAKETIME", ""), *glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")]
    for place in places:
        if place and os.path.exists(place):
            return place
    raise Skip("needs libfaketime (Debian: libfaketime; or its path in DLQ_TEST_FAKETIME)")


@contextmanager
def clock(name: str) -> Iterator[Server]:
    faketime()
    with ClockServer(name) as server:
        yield server


@row("F16", "the server's clock jumps an hour ahead, and back", "standalone", place=clock)
def clock_jumps(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    server = run.server
    assert isinstance(server, ClockServer)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 300]])
    for ahead_s in (3600, 0, -3600, 0):
        with run.fault(f"clock at {ahead_s:+d} s"):
            server.set_clock(ahead_s)
            run.resumes(time.monotonic())
            run.sleep(1.2)
    run.finish()


@row("F16xF2", "a worker is stopped for three leases while the clock jumps", "standalone", place=clock)
def clock_jumps_while_stopped(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    server = run.server
    assert isinstance(server, ClockServer)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 200]])
    for ahead_s in (3600, 0):
        victim = run.chance.choice(run.workers)
        with run.fault(f"SIGSTOP, clock at {ahead_s:+d} s"):
            victim.send(signal.SIGSTOP)
            run.sleep(0.3)
            server.set_clock(ahead_s)
            run.sleep(3 * run.lease_s)
            victim.send(signal.SIGCONT)
        run.resumes(time.monotonic())
        run.sleep(0.5)
    run.finish()


# -- scripts and busy servers -----------------------------------------------------------------------------


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


# -- deletions and damage ---------------------------------------------------------------------------------


@row("F20-group", "the consumer groups are destroyed, ten times", "standalone")
def destroyed_groups(run: Run) -> None:
    run.promise = Promise(resumes_s=2.0)
    run.begin(mix=[[3, "ok", 5], [1, "ok", 80]])
    with run.fault("XGROUP DESTROY"):
        for _ in range(10):
            for shard in run.shards:
                run.server.client.xgroup_destroy(run.key(shard, "letters"), "workers")
            run.sleep(0.1)
    run.resumes(time.monotonic())
    run.finish()


@row("F20-type", "keys are of another type for a while", "standalone")
def other_types(run: Run) -> None:
    """A script that fails half-way leaves a letter in two states, never in none."""
    run.promise = Promise(resumes_s=2.0 + 2.0, orphaned=0)
    run.begin(mix=[[1, "ok", 5], [2, "fail once", 5]])
    for name in ("schedule", "history", "suspects", "groups"):
        with run.fault(f"{name} is a string"):
            key = run.key(0, name)
            saved = run.server.client.dump(key)
            run.server.client.set(key, "x")
            run.sleep(0.7)
            # What stood there is put back: letters whose only row was lost would rightly be orphans.
            pipe = run.server.client.pipeline(transaction=True)
            pipe.delete(key)
            if saved:
                pipe.restore(key, 0, saved)
            pipe.execute()
        run.resumes(time.monotonic())
    run.finish()


@row("F20-deleted", "a stream is deleted, and later everything: what is lost is told", "standalone")
def deleted(run: Run) -> None:
    run.promise = Promise(lost=None, lost_externally=None, resumes_s=2.0)
    run.begin()
    with run.fault("DEL of a stream", undoes=[0]):
        run.server.client.delete(run.key(0, "letters"))
    run.resumes(time.monotonic())
    run.sleep(1)
    with run.fault("FLUSHALL", undoes=run.shards):
        run.server.client.flushall()
    run.resumes(time.monotonic())
    run.finish()


@row("F21", "another process with other shards, and one with earlier scripts: refused, nothing written", "standalone")
def mismatch(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin()
    with run.fault("DLQ_SHARDS=8"):
        stranger = Actor("producer", run._settings("producer", {"config": {"shards": 8}, "repeats": False, "most": 3}))
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


@row("F22", "entries of strangers, broken ones too; leased entries are deleted", "standalone")
def foreign(run: Run) -> None:
    """Strangers' letters without a payload are parked; what was deleted is counted, and is all that is lost."""
    run.promise = Promise(lost=None, lost_externally=None, resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [1, "ok", 300]])
    client = run.server.client
    broken = 20
    with run.fault("strangers"):
        for n in range(broken):
            fields: dict[bytes, bytes] = {run.chance.randbytes(3): run.chance.randbytes(run.chance.randrange(30))}
            if n % 3 == 0:
                fields = {b"v": b"1", b"payload": run.chance.randbytes(20), b"content_type": b"application/json"}
            client.xadd(run.key(run.chance.choice(run.shards), "letters"), fields)
            run.journal.write("fault", "foreign")
        deletions = 0
        for shard in run.shards:
            for pending in client.xpending_range(run.key(shard, "letters"), "workers", "-", "+", 2):
                deletions += client.xdel(run.key(shard, "letters"), pending["message_id"])
    run.resumes(time.monotonic())
    run.sleep(1)
    run.finish(until=lambda stats: stats.open == stats.parked == broken)
    run.remarks.append(
        f"{len(run.open)} of {broken} strangers parked; {deletions} deleted, {run.totals['lost_externally']} told"
    )
    if len(run.open) != broken:
        run.failures.append(f"{len(run.open)} of {broken} broken entries are parked")
    if run.figures.lost > run.totals["lost_externally"] or run.totals["lost_externally"] > deletions:
        run.failures.append(f"{run.figures.lost} lost, {deletions} deleted, told {run.totals['lost_externally']}")


@row("F28", "rows, groups, marks and whole indexes are deleted or made up", "standalone")
def damaged(run: Run) -> None:
    run.settings = {"max_retries": 4}
    run.promise = Promise(resumes_s=RESUMES_S, lost_externally=None)
    run.begin(mix=[[3, "ok", 5], [2, "fail once", 5], [1, "ok", 100]])
    client = run.server.client
    strokes = [
        *(partial(_delete, name) for name in ("schedule", "suspects", "state", "history", "groups", "group_info")),
        lambda run, shard: client.zadd(run.key(shard, "schedule"), {"1-1": 1, "99-1": 5}),
        lambda run, shard: client.zadd(run.key(shard, "parked"), {"1-2": 1}),
        lambda run, shard: client.hdel(run.key(shard, "meta"), "mark"),
        lambda run, shard: client.xgroup_setid(run.key(shard, "letters"), "workers", "0-0"),
        lambda run, shard: client.hset(run.key(shard, "state"), "1-3", b"\xff nonsense"),
    ]
    with run.fault("damage"):
        for _ in range(40):
            run.chance.choice(strokes)(run, run.chance.choice(run.shards))
            run.sleep(0.05)
    run.resumes(time.monotonic())
    run.sleep(2)
    run.finish()
    run.remarks.append(f"{run.totals['orphaned']} letters found again")


def _delete(name: str, run: Run, shard: int) -> None:
    run.server.client.delete(run.key(shard, name))

