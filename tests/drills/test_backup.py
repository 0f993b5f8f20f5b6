"""Backup and recovery: what a snapshot or a copy of the AOF gives back, on a server and on a cluster, under load.

Each drill loses the place after the backup, restores it as `docs/backup.md` says, and then compares: what had been
captured before the backup is there or had been settled, no letter is there twice, leases of before end, and every
letter that is back is run once more.
"""

import shutil
import signal
from collections import Counter
from pathlib import Path

import anyio
import pytest

from tests.integration.conftest import Queues, queues_on
from tests.support.backups import FOLDER, HELD, LEASE_S, Scripts, drain, drilling
from tests.support.clusters import Cluster
from tests.support.places import Place
from tests.support.servers import Server
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.store.layout import slot_of
from uno.event_bus.dead_letter.store.local_cluster import LocalNode

pytestmark = pytest.mark.xdist_group("backup")

AOF = ("--appendonly", "yes", "--appendfsync", "everysec")


@pytest.fixture
def scripts(place: Place, tmp_path: Path) -> Scripts:
    return Scripts(place.name, tmp_path)


def at(socket: Path) -> dict[str, Path | str]:
    """Where the scripts find a server."""
    return {"REDIS_SOCKET": socket}


async def assert_restored(queues: Queues, before: set[str], ended: set[str]) -> tuple[DeadLetterQueue, list[str]]:
    """What the queue holds now is what it held at the backup; give it, and the event ids of its letters.

    ``before`` are the letters whose capture was acknowledged when the backup began, ``ended`` those whose handler has
    ended by now.
    """
    queue = queues(lease_seconds=LEASE_S)
    back = [letter.event_id async for letter in queue.letters()]
    assert len(back) == len(set(back)), "a letter is there twice"
    assert not before - set(back) - ended, "letters of before the backup are gone"
    stats, report = await queue.stats(), await queue.verify()
    assert report.clean, report
    assert report.difference == 0, report
    assert stats.leased >= len(HELD)
    return queue, back


async def assert_runs_once_more(queue: DeadLetterQueue, back: list[str]) -> None:
    """Leases of workers that are gone run out; every letter that is back is run once."""
    began = await queue.stats()
    assert await drain(queue) == Counter(back)
    totals = (await queue.stats()).totals
    assert totals["crashed"] == began.totals["crashed"] + began.leased
    assert totals["captured"] == totals["resolved"]
    assert totals["orphaned"] == 0, "repair had to find letters that were nowhere"


# -- one server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["dump.rdb alone is replaced", "the AOF is gone as well"])
def test_the_steps_of_the_guide_bring_back_the_old_aof_or_nothing(server: Server, lost: str) -> None:
    """``cp dump-latest.rdb dump.rdb`` and a start, with ``appendonly yes``: the dump is not looked at."""
    with Server(server.name, *AOF) as stopped:
        stopped.client.set("at the snapshot", 1)
        stopped.client.save()
        dump = (stopped.folder / "dump.rdb").read_bytes()
        stopped.client.set("after it", 1)
        stopped.stop(signal.SIGTERM)
        (stopped.folder / "dump.rdb").write_bytes(dump)
        if lost == "the AOF is gone as well":
            shutil.rmtree(stopped.folder / "appendonlydir", ignore_errors=True)
            (stopped.folder / "appendonly.aof").unlink(missing_ok=True)
        stopped.start()
        expected = set() if lost == "the AOF is gone as well" else {b"at the snapshot", b"after it"}
        assert set(stopped.keys()) == expected


async def test_a_restored_snapshot_has_what_was_not_settled(server: Server, scripts: Scripts, tmp_path: Path) -> None:
    """Taken under load, restored after SIGKILL on a server with an AOF, which must not win over it."""
    with Server(server.name, *AOF) as live:
        where = at(live.socket_path)
        async with queues_on(live) as queues:
            async with drilling(queues) as drill:
                before = drill.known
                backup = await scripts.backup("snapshot.sh", tmp_path / "backup", env=where)
                await drill.resumed()  # work went on; and the AOF has what the snapshot has not
                too_late = str(max(drill.acknowledged))
                assert scripts.refused("restore.sh", "--data-dir", live.folder, backup, env=where).endswith(
                    "stop it first, since it would write over what is restored"
                )
                live.stop()
            scripts.done("restore.sh", "--data-dir", live.folder, backup, env=where)
            live.start()
            queue, back = await assert_restored(queues, before, drill.ended)
            assert too_late not in back
            await assert_runs_once_more(queue, back)
            live.stop()  # what is written after a restore is kept like anything else
            live.start()
            assert (await queue.stats()).open == 0
            assert (await queue.stats()).totals["captured"] > 0


async def test_a_worker_that_lives_through_a_restore_keeps_only_leases_that_are_in_it(
    server: Server, scripts: Scripts, tmp_path: Path
) -> None:
    """It settles what it held at the snapshot; what it was leased later is not its own any more, and runs again."""
    with Server(server.name, *AOF) as live:
        where = at(live.socket_path)
        async with queues_on(live, lease_seconds=10.0, operation_timeout=1.0) as queues:
            runs: Counter[str] = Counter()
            may_end = anyio.Event()
            worker, operator = queues(), queues(operation_timeout=20)

            @worker.handler()
            async def handle(event: str) -> None:
                runs[event] += 1
                await may_end.wait()

            async def resolved() -> int:
                return (await operator.stats()).totals["resolved"]

            async with running(worker):
                await operator.add("before", delay=0)
                later = await operator.add("later", delay=60)
                await eventually(lambda: runs["before"])
                backup = await scripts.backup("snapshot.sh", tmp_path / "backup", env=where)
                await operator.retry(later)
                await eventually(lambda: runs["later"])
                live.stop()
                scripts.done("restore.sh", "--data-dir", live.folder, backup, env=where)
                live.start()
                may_end.set()
                await eventually(resolved)
                assert [letter.payload async for letter in operator.letters()] == [b'"later"']
                await operator.retry(later)
                await eventually(lambda: runs["later"] == 2)
            assert (await resolved(), runs["before"]) == (2, 1)


async def test_a_copy_of_the_aof_is_whole_while_it_is_rewritten(
    server: Server, scripts: Scripts, tmp_path: Path
) -> None:
    """Copied under load and between rewrites, restored elsewhere."""
    with Server(server.name, *AOF) as live, Server(server.name, *AOF) as other:
        async with queues_on(live) as queues, drilling(queues) as drill, anyio.create_task_group() as group:

            async def rewrite() -> None:
                while True:
                    if not live.client.info("persistence")["aof_rewrite_in_progress"]:
                        live.client.bgrewriteaof()
                    await anyio.sleep(0.01)

            group.start_soon(rewrite)
            before = drill.known
            backup = await scripts.backup("aof.sh", tmp_path / "backup", env=at(live.socket_path))
            ended = set(drill.ended)
            group.cancel_scope.cancel()
        other.stop()
        scripts.done("restore.sh", "--data-dir", other.folder, backup, env=at(other.socket_path))
        other.start()
        async with queues_on(other) as queues:
            await assert_runs_once_more(*await assert_restored(queues, before, ended))
        assert not list(live.folder.glob(".aof-backup-*"))


async def test_the_aof_of_a_server_that_was_killed_has_all_that_was_acknowledged(
    server: Server, scripts: Scripts, tmp_path: Path
) -> None:
    """SIGKILL under load, the last command cut, restored elsewhere. A lost machine may lose its last second."""
    with Server(server.name, *AOF) as dead, Server(server.name, *AOF) as other:
        async with queues_on(dead) as queues:
            async with drilling(queues) as drill:
                dead.stop()
                known = drill.known
            parts = [path for path in dead.folder.rglob("appendonly.aof*") if path.suffix == ".aof"]
            last = max(parts, key=lambda path: path.name)  # the increment, where there is a base
            with last.open("ab") as file:
                # Half of a script: its first write is whole, its end is missing.
                file.write(b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n*3\r\n$3\r\nSE")
            backup = Path(scripts.done("aof.sh", "--data-dir", dead.folder, tmp_path / "backup"))
            assert "last-command-cut" in (backup / "manifest").read_text()
            other.stop()
            scripts.done("restore.sh", "--data-dir", other.folder, backup, env=at(other.socket_path))
            other.start()
            assert other.client.get("half") is None
            dead.start()  # for the check that the queues close with
        async with queues_on(other) as queues:
            await assert_runs_once_more(*await assert_restored(queues, known, drill.ended))


# -- a cluster -----------------------------------------------------------------------------------------------------


def folder_of(node: LocalNode) -> Path:
    return Path(node.client.config_get("dir")["dir"])


def ports(node: LocalNode) -> dict[str, int]:
    """Where the scripts find a node."""
    return {"REDIS_PORT": node.port}


async def test_a_cluster_is_restored_primary_by_primary(cluster: Cluster, scripts: Scripts, tmp_path: Path) -> None:
    """Taken under load over the network; no replica wins over its primary, and both have the same in the end."""
    with Cluster(cluster.name, appendonly=True) as live:
        primaries, folders = live.primaries(), {node: folder_of(node) for node in live.nodes}
        replicas = [node for node in live.nodes if node not in primaries]
        async with queues_on(live, shards=4) as queues:
            async with drilling(queues) as drill:
                before = drill.known
                backup = await scripts.backup("snapshot.sh", "--cluster", tmp_path / "backup", env=ports(replicas[0]))
                await drill.resumed()
                too_late = str(max(drill.acknowledged))
                primaries[0].kill()
                refused = scripts.refused(
                    "restore.sh", "--data-dir", folders[primaries[0]], backup, env=ports(primaries[0])
                )
                assert "its replica 127.0.0.1:" in refused and "still runs" in refused
                for node in (*replicas, *primaries):
                    node.kill()
            for node in primaries:
                scripts.done("restore.sh", "--data-dir", folders[node], backup, env=ports(node))
            for node in replicas:
                assert "use --replica" in scripts.refused(
                    "restore.sh", "--data-dir", folders[node], backup, env=ports(node)
                )
                scripts.done("restore.sh", "--data-dir", folders[node], "--replica", env=ports(node))
            for node in (*primaries, *replicas):
                node.start()
            live.wait_until_ok()
            assert live.primaries() == primaries
            queue, back = await assert_restored(queues, before, drill.ended)
            assert too_late not in back
            await assert_runs_once_more(queue, back)
            for node in primaries:
                [replica] = live.replicas_of(node)
                assert node.client.wait(1, 20_000) == 1
                assert sorted(replica.client.keys()) == sorted(node.client.keys())


async def test_a_cluster_of_other_nodes_takes_over_what_lay_in_the_same_slots(
    cluster: Cluster, scripts: Scripts, tmp_path: Path
) -> None:
    """Copied node by node, beside each primary; new nodes keep their own nodes.conf."""
    primaries = cluster.primaries()
    async with queues_on(cluster, shards=4) as queues:
        ids = set(await queues().add_many(list(range(100)), delay=60))
        backups = [
            await scripts.backup("snapshot.sh", tmp_path / f"of {i}", env=ports(node))
            for i, node in enumerate(primaries)
        ]
        for backup, node, slots in zip(backups, primaries, ("0-5460", "5461-10921", "10922-16383"), strict=True):
            assert backup.name.endswith(f"-{node.id[:8]}")
            assert [path.name for path in backup.glob("*.rdb")] == [f"dump-{slots}-{node.id[:8]}.rdb"]
        [replica] = cluster.replicas_of(primaries[0])
        assert "is a replica" in scripts.refused("snapshot.sh", tmp_path / "of none", env=ports(replica))
        primaries[0].client.execute_command("CLUSTER SETSLOT", 0, "MIGRATING", primaries[1].id)
        assert "are moving" in scripts.refused("snapshot.sh", "--cluster", tmp_path / "of none", env=ports(replica))
        primaries[0].client.execute_command("CLUSTER SETSLOT", 0, "STABLE")
        assert not list((tmp_path / "of none").iterdir())
    with Cluster(cluster.name, appendonly=True, replicas=0) as new:
        nodes = new.primaries()
        folders = [folder_of(node) for node in nodes]
        for node in nodes:
            node.stop()
        assert "They must be the same" in scripts.refused(
            "restore.sh", "--data-dir", folders[0], backups[1], env=ports(nodes[0])
        )
        for node, folder, backup in zip(nodes, folders, backups, strict=True):
            scripts.done("restore.sh", "--data-dir", folder, backup, env=ports(node))
        for node in nodes:
            node.start()
        new.wait_until_ok()
        async with queues_on(new, shards=4) as queues:
            assert {letter.id async for letter in queues().letters()} == ids


async def test_a_replica_that_runs_wins_over_a_restored_primary(cluster: Cluster) -> None:
    """Why `restore.sh` refuses: the primary alone is stopped and given other data, and comes back without it."""
    node = cluster.primaries()[0]
    [replica] = cluster.replicas_of(node)
    key = next(f"k{n}" for n in range(1000) if cluster.primary_of(slot_of(f"k{n}")) is node)
    dump = folder_of(node) / "dump.rdb"
    node.client.set(key, "at the snapshot")
    node.client.save()
    try:
        node.client.set(key, "after it")
        assert node.client.wait(1, 20_000) == 1
        node.kill()
        await eventually(replica.is_primary)
        node.start()  # with the dump
        cluster.wait_until_ok()
        assert (node.is_primary(), replica.client.get(key)) == (False, b"after it")
        assert cluster.primary_of(slot_of(key)) is replica
    finally:
        dump.unlink(missing_ok=True)


# -- the scripts ---------------------------------------------------------------------------------------------------


def test_what_is_damaged_or_cut_off_is_not_restored(server: Server, scripts: Scripts, tmp_path: Path) -> None:
    """A byte changed after the backup; a backup that never became whole; and the server's files stay as they were."""
    server.client.config_set("repl-diskless-sync-delay", 0)
    server.client.set("k", 1)
    backup = Path(scripts.done("snapshot.sh", "--stream", tmp_path / "backup", env=at(server.socket_path)))
    target = tmp_path / "data"
    target.mkdir()
    restore = ("restore.sh", "--data-dir", target)
    elsewhere = at(tmp_path / "none.sock")
    dump = backup / "dump.rdb"
    whole = dump.read_bytes()
    dump.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged, or not whole" in scripts.refused(*restore, backup, env=elsewhere)
    dump.write_bytes(whole)
    (backup / "manifest").rename(backup / "manifesto")
    assert "has no manifest" in scripts.refused(*restore, backup, env=elsewhere)
    (backup / "manifesto").rename(backup / "manifest")
    assert list(target.iterdir()) == []
    (target / "appendonlydir").mkdir()  # of whichever version: a server that looks for it would load what is in it
    (target / "appendonlydir" / "old").touch()
    scripts.done(*restore, backup, env=elsewhere)
    assert not (target / "appendonlydir" / "old").exists()
    assert len(list(target.glob("before-restore-*/appendonlydir/old"))) == 1
    assert (target / "dump.rdb").stat().st_mode & 0o777 == 0o640
    assert not [path for path in target.iterdir() if path.name.startswith(".")]


def test_a_save_that_fails_is_no_backup(server: Server, scripts: Scripts, tmp_path: Path) -> None:
    """The child that saves cannot rename its file, and only INFO tells: BGSAVE itself has said that it started."""
    with Server(server.name, "--dbfilename", "taken") as full:
        (full.folder / "taken").mkdir()
        refused = scripts.refused("snapshot.sh", tmp_path / "backup", env=at(full.socket_path))
        assert "has failed: see the server's log" in refused
    assert not list((tmp_path / "backup").iterdir())


def test_a_password_is_never_on_a_command_line(server: Server, scripts: Scripts, tmp_path: Path) -> None:
    """A wrong one gives one line, and nothing is left; the right one comes from a file."""
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    variables = at(server.socket_path) | {"REDIS_PASSWORD_FILE": secret, "REDIS_USER": "backup"}
    rights = "+ping +info +config|get +bgsave +lastsave +time +cluster +sync +psync +replconf"
    if server.version < (7, 0):
        rights = rights.replace("|get", "")
    server.client.execute_command("ACL", "SETUSER", "backup", "on", ">right", *rights.split())
    try:
        refused = scripts.refused("snapshot.sh", tmp_path / "backup", env=variables)
        assert refused.startswith(f"snapshot.sh: {server.socket_path} refuses PING: ")
        assert "wrong" not in refused.replace("WRONGPASS", "").lower()
        assert not (tmp_path / "backup").exists()
        secret.write_text("right\n")
        assert (Path(scripts.done("snapshot.sh", tmp_path / "backup", env=variables)) / "dump.rdb").is_file()
    finally:
        server.client.execute_command("ACL", "DELUSER", "backup")
    for script in FOLDER.glob("*.sh"):
        assert " -a " not in script.read_text() and "--pass" not in script.read_text()


def test_a_scheduled_backup_deletes_what_is_old_and_says_so(server: Server, scripts: Scripts, tmp_path: Path) -> None:
    """By the time in the name, only what is ours, never the newest, and nothing when the backup fails."""
    kept = ["rdb-29990101T000000Z", "aof-20200101T000000Z", "rdb-20200101T000000Z-0123abcd", "dump-20200101.rdb"]
    old = ["rdb-20200101T000000Z", "rdb-20200102T000000Z", "aof-20190101T000000Z"]
    for name in kept + old:
        (tmp_path / "backup" / name).mkdir(parents=True)
    nobody = scripts.refused("scheduled.sh", tmp_path / "backup", env=at(tmp_path / "none.sock"))
    assert "does not answer PING" in nobody
    assert "KEEP_DAYS is '0'" in scripts.refused("scheduled.sh", tmp_path / "backup", env={"KEEP_DAYS": 0}, status=2)
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {*kept, *old, ".lock"}
    ended = scripts.run("scheduled.sh", tmp_path / "backup", env=at(server.socket_path))
    assert ended.returncode == 0, ended
    for name in old:
        assert f"scheduled.sh: deleted {name}: older than 7 days" in ended.stdout.splitlines()
    found = {path.name for path in (tmp_path / "backup").iterdir()}
    assert not found & set(old) and found >= set(kept) and len(found) == len(kept) + 2


@pytest.mark.parametrize("name", ["snapshot.sh", "aof.sh", "restore.sh", "scheduled.sh"])
def test_each_script_says_what_it_does(name: str, tmp_path: Path) -> None:
    """--help: usage, variables, exit status. A word that is no option ends with status 2, one line, and the word."""
    scripts = Scripts("valkey-9.1", tmp_path)
    said = scripts.run(name, "--help")
    assert said.returncode == 0 and said.stderr == ""
    for word in (f"{name}: ", "Usage: ", "Variables: ", "Exit status: "):
        assert word in said.stdout
    if name != "scheduled.sh":  # which hands its words on
        assert "--tpyo is no option" in scripts.refused(name, "--tpyo", status=2)
