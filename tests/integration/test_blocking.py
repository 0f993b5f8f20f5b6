"""The blocking twin: every verb, many threads, close and use again, and above all what a fork leaves of it."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.support.servers import Server
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    Disabled,
    InvalidEvent,
    LetterNotFound,
    LetterState,
    StoreUnavailable,
)
from uno.event_bus.dead_letter.blocking import DeadLetterQueue

DEADLINE_S = 20.0
"""A bound for what takes milliseconds: only a failing test waits for it."""

CHECKOUT = Path(__file__).parents[2]


def _connections(server: Server) -> list[str]:
    return [row["name"] for row in server.client.client_list() if row["name"].startswith("uno-dlq")]


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "uno-dead-letter"]


def _soon(check: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


@pytest.fixture
def queue(server: Server) -> Iterator[DeadLetterQueue]:
    """A queue without workers; at the end neither a connection nor a thread may be left."""
    with DeadLetterQueue(server.url, DeadLetterConfig(shards=2, operation_timeout=5.0)) as queue:
        yield queue
    assert not _threads()
    _soon(lambda: not _connections(server))


# -- verbs ------------------------------------------------------------------------------------------------


def test_every_verb(queue: DeadLetterQueue) -> None:
    """Each does what its async twin does."""
    first = queue.add({"number": 1}, delay=60, error=ValueError("no"))
    letter = queue.get(first)
    assert (letter.id, letter.payload) == (first, b'{"number":1}')
    second, third = queue.add_many([{"number": 2}, {"number": 3}], delay=60)
    assert [queue.get(id).payload for id in (second, third)] == [b'{"number":2}', b'{"number":3}']
    queue.retry(first)
    queue.retry(second, delay=30)
    assert [queue.get(id).state for id in (first, second)] == [LetterState.SCHEDULED] * 2
    queue.discard(third, "not needed")
    with pytest.raises(LetterNotFound):
        queue.get(third)
    stats = queue.stats()
    assert (stats.open, stats.totals["discarded"]) == (2, 1)


def test_capture_takes_what_the_body_raises(queue: DeadLetterQueue) -> None:
    """An error goes no further, and is kept; no error captures nothing."""
    with queue.capture({"number": 1}, delay=60):
        pass
    assert queue.stats().open == 0
    with queue.capture({"number": 1}, delay=60):
        raise ValueError("no stock")
    assert queue.stats().open == 1


def test_capture_lets_an_interrupt_pass(queue: DeadLetterQueue) -> None:
    """What is no `Exception` is no failure of the event."""
    with pytest.raises(KeyboardInterrupt), queue.capture({"number": 1}):
        raise KeyboardInterrupt
    assert not _threads()


def test_a_capture_that_fails_names_the_cause(queue: DeadLetterQueue) -> None:
    """Neither of two errors is swallowed."""
    with pytest.raises(InvalidEvent) as caught, queue.capture(object()):
        raise ValueError("no stock")
    assert isinstance(caught.value.__cause__, ValueError)


def test_capture_of_a_disabled_queue_raises_the_bodys_error(redis_url: str) -> None:
    """Switched off, it is as if it were not there."""
    with DeadLetterQueue(redis_url, DeadLetterConfig(enabled=False)) as queue:
        with pytest.raises(ValueError, match="no stock"), queue.capture({}):
            raise ValueError("no stock")
        with pytest.raises(Disabled):
            queue.add({})


def test_errors_pass_through(queue: DeadLetterQueue) -> None:
    """They are those of the async queue, and the queue goes on."""
    with pytest.raises(InvalidEvent):
        queue.add(object())
    for verb in (queue.get, queue.retry, partial(queue.discard, why="")):
        with pytest.raises(LetterNotFound):
            verb("1-1718000000000-0")
    with pytest.raises(TypeError):
        queue.add_many([{}], event_ids=3)
    assert queue.add({"number": 1})


def test_settings_of_the_environment(redis_url: str) -> None:
    """`from_env` reads them, and says at once what is missing or wrong."""
    with DeadLetterQueue.from_env({"DLQ_REDIS_URL": redis_url, "DLQ_QUEUE": "orders", "DLQ_SHARDS": "2"}) as queue:
        assert queue.config.queue == "orders"
        assert queue.add({"number": 1})
    with pytest.raises(ConfigError):
        DeadLetterQueue.from_env({})
    with pytest.raises(ConfigError):
        DeadLetterQueue("ftp://localhost")


async def test_in_an_event_loop_it_says_what_to_use(queue: DeadLetterQueue) -> None:
    """It would block every other task."""
    with pytest.raises(RuntimeError, match=r"dead_letter\.DeadLetterQueue there"):
        queue.add({"number": 1})
    assert not _threads()


# -- life -------------------------------------------------------------------------------------------------


def test_many_threads_at_once(queue: DeadLetterQueue) -> None:
    """All share one background thread, also those that come first together."""
    barrier = threading.Barrier(20)

    def add(number: int) -> list[str]:
        barrier.wait(DEADLINE_S)
        return [queue.add({"number": number, "of": i}, delay=60) for i in range(10)]

    with ThreadPoolExecutor(20) as pool:
        ids = [id for some in pool.map(add, range(20)) for id in some]
    assert len(set(ids)) == queue.stats().open == 200
    assert len(_threads()) == 1


def test_close_and_use_again(queue: DeadLetterQueue, server: Server) -> None:
    """Closing ends connections and thread; closing twice, or before any use, does nothing."""
    queue.close()
    for number in range(3):
        queue.add({"number": number}, delay=60)
        assert _threads()
        assert _connections(server)
        queue.close()
        queue.close()
        assert not _threads()
        _soon(lambda: not _connections(server))
    assert queue.stats().open == 3


def test_closing_while_others_call_loses_no_call(queue: DeadLetterQueue) -> None:
    """Calls in flight are waited for, later ones begin anew."""
    done = threading.Event()

    def add(number: int) -> int:
        made = 0
        while not done.is_set():
            queue.add({"number": number}, delay=60)
            made += 1
        return made

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(add, number) for number in range(4)]
        try:
            for _ in range(50):
                queue.close()
                time.sleep(0.005)
        finally:
            done.set()
        made = sum(future.result(DEADLINE_S) for future in futures)
    assert queue.stats().open == made > 0


def test_close_does_not_wait_for_a_dead_server(server: Server) -> None:
    """A call that hangs ends with an error of ours, and `close` with it."""
    queue = DeadLetterQueue(server.url, DeadLetterConfig(shards=2, operation_timeout=1.0))
    _soon(lambda: _is_open(queue))
    calls = _calls_of(queue)
    with ThreadPoolExecutor(1) as pool:
        server.send(signal.SIGSTOP)
        try:
            future = pool.submit(queue.add, {"number": 2})
            _soon(lambda: _calls_of(queue) > calls)
            began = time.monotonic()
            queue.close()
            assert time.monotonic() - began < DEADLINE_S
            assert isinstance(future.exception(DEADLINE_S), StoreUnavailable)
        finally:
            server.send(signal.SIGCONT)
    assert not _threads()


def _is_open(queue: DeadLetterQueue) -> bool:
    try:
        return queue.stats().open == 0
    except StoreUnavailable:  # within its short timeout
        return False


def _calls_of(queue: DeadLetterQueue) -> int:
    """How many tasks run on the background loop."""
    assert queue._background is not None
    return len(asyncio.all_tasks(queue._background._loop))


def test_a_dropped_queue_ends_its_thread(server: Server) -> None:
    """Nobody closed it, nobody can."""
    queue = DeadLetterQueue(server.url, DeadLetterConfig(shards=2))
    queue.add({"number": 1}, delay=60)
    del queue
    gc.collect()
    _soon(lambda: not _threads())
    _soon(lambda: not _connections(server))


# -- processes --------------------------------------------------------------------------------------------

PRELUDE = """
    import os, signal, sys, threading, time
    from uno.event_bus.dead_letter import DeadLetterConfig
    from uno.event_bus.dead_letter.blocking import DeadLetterQueue

    queue = DeadLetterQueue(sys.argv[1], DeadLetterConfig(shards=2, operation_timeout=15.0))

    def wait(child, deadline_s=20.0):
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hangs"
"""


def _run(server: Server, body: str) -> None:
    """Run a script on the server; it must end by itself, in order and without a word."""
    code = dedent(PRELUDE) + dedent(body)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT / "src")}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, server.url],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S + 30,
        check=False,
    )
    said = "\n".join(line for line in done.stderr.splitlines() if "fork" not in line)  # Python's warning of threads
    assert (done.returncode, said, done.stdout) == (0, "", ""), done.stderr
    _soon(lambda: not _connections(server))


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
@pytest.mark.parametrize("work", ["pass", "queue.add({'number': 2}, delay=60)", "queue.close()"])
def test_a_forked_child_works_and_ends(server: Server, work: str, end: str) -> None:
    """Whether it uses the queue or not, however it ends; and the parent goes on with its connections."""
    script = f"""
        queue.add({{"number": 1}}, delay=60)
        before = queue.stats().open
        child = os.fork()
        if child == 0:
            {work}
            {end}
        assert (ended := wait(child)) == 0, ended
        began = time.monotonic()
        assert queue.stats().open == before + {"add" in work}
        queue.add({{"number": 3}}, delay=60)
        assert time.monotonic() - began < 15, "a reply was not the parent's"
    """
    _run(server, script)


def test_two_threads_that_come_first_in_the_child(server: Server) -> None:
    """They share one new thread; so do children of children."""
    script = """
        queue.add({"number": 1}, delay=60)

        def use():
            barrier = threading.Barrier(8)
            ids = []
            def add(number):
                barrier.wait(20)
                ids.append(queue.add({"number": number}, delay=60))
            threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(set(ids)) == 8, ids
            assert len([thread for thread in threading.enumerate() if thread.name == "uno-dead-letter"]) == 1

        child = os.fork()
        if child == 0:
            use()
            child = os.fork()
            if child == 0:
                use()
                sys.exit(0)
            assert (ended := wait(child)) == 0, ended
            sys.exit(0)
        assert (ended := wait(child, 30)) == 0, ended
        assert queue.stats().open == 17
    """
    _run(server, script)


def test_a_fork_while_other_threads_call(server: Server) -> None:
    """Whatever lock was taken at the moment of the fork."""
    script = """
        done = threading.Event()
        def work():
            while not done.is_set():
                queue.add({"number": 1}, delay=60)
                queue.close()
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(10):
            child = os.fork()
            if child == 0:
                queue.add({"number": 2}, delay=60)
                sys.exit(0)
            assert (ended := wait(child)) == 0, (number, ended)
        done.set()
        for thread in threads:
            thread.join(20)
    """
    _run(server, script)


def test_a_child_lets_go_of_the_parents_connections(server: Server) -> None:
    """The server sees that the parent has closed them while the child lives."""
    script = """
        queue.add({"number": 1}, delay=60)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            sys.exit(0)
        queue.close()
        import redis
        path = sys.argv[1].removeprefix("unix://")
        client = redis.Redis(unix_socket_path=path)
        end = time.monotonic() + 20
        while names := [row["name"] for row in client.client_list() if row["name"].startswith("uno-dlq")]:
            assert time.monotonic() < end, names
            time.sleep(0.005)
        client.close()
        os.close(writer)
        assert (ended := wait(child)) == 0, ended
    """
    _run(server, script)


def test_a_process_just_ends(server: Server) -> None:
    """Without `close`, also from a thread that is in a call, also with a queue that was dropped."""
    _run(server, 'queue.add({"number": 1}, delay=60)')
    _run(server, 'DeadLetterQueue(sys.argv[1]).add({"number": 1}, delay=60)')
    _run(server, "pass")


def test_an_interrupt_ends_a_call(server: Server) -> None:
    """Ctrl-C comes through at once, and the queue goes on."""
    script = """
        queue.add({"number": 1}, delay=60)
        import redis
        path = sys.argv[1].removeprefix("unix://")
        client = redis.Redis(unix_socket_path=path)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        began = time.monotonic()
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            queue.add({"number": 2}, delay=60)
        except KeyboardInterrupt:
            assert time.monotonic() - began < 10, "it waited for the reply"
        else:
            raise AssertionError("not interrupted")
        client.execute_command("CLIENT", "UNPAUSE")
        client.close()
        assert queue.add({"number": 3}, delay=60)
    """
    _run(server, script)
