"""Disks that are full, and servers that die and come back with what is on them: F15, F19."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rows.registry import Skip, need, row
from tests.support.harness.run import RESUMES_S, Promise, Run
from tests.support.servers import Server

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


@row(
    "F15-always",
    "the disk is full, AOF always: the server ends, is started again; captures fsynced",
    "standalone",
    place=always,
)
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


@row(
    "F19-outage",
    "the server is away for two leases, AOF always: nobody's leases are taken back for it",
    "standalone",
    place=always,
)
def outage(run: Run) -> None:
    """Leases that nobody could renew look old afterwards: a reclaimer must have been in touch for a lease first."""
    run.promise = Promise(resumes_s=RESUMES_S, crashed=0)
    run.begin(mix=[[2, "ok", 5], [2, "ok", 400]])
    for _ in range(2):
        with run.fault("the server is away"):
            run.server.stop()
            run.sleep(2 * run.lease_s)
            run.server.start()
        run.resumes(time.monotonic())
        run.sleep(0.5)
    run.finish()


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
