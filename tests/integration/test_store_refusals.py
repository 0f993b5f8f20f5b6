"""What Redis refuses for good: each kind has an error of its own, at once, and no password in it."""

import threading
from collections.abc import Iterator
from math import inf, nan
from time import monotonic
from typing import Any

import pytest

from tests.integration.conftest import Queues
from tests.support.cli import APP, Cli
from tests.support.places import Place
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterError,
    DeadLetterQueue,
    InvalidEvent,
    Letter,
    LetterState,
    PermissionDenied,
    QueueFull,
    StoreError,
)
from uno.event_bus.dead_letter.store.layout import shard_key

PASSWORD = "s3cr3t-word"
WRONG = "wr0ng-word"
PATIENCE_S = 30.0
"""Of queues whose calls must not use it up."""


@pytest.fixture
def guarded(place: Place) -> Iterator[Place]:
    """The place, with a user that comes and goes with the test."""
    for client in place.clients():
        client.execute_command("ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    yield place
    for client in place.clients():
        client.execute_command("ACL", "DELUSER", "shop")


def queue_of(place: Place, password: str = PASSWORD) -> DeadLetterQueue:
    return DeadLetterQueue(place.url_of("shop", password), DeadLetterConfig(shards=1, operation_timeout=PATIENCE_S))


async def refused(queue: DeadLetterQueue) -> DeadLetterError:
    """The error of an `add`, which must come at once and in one line."""
    began = monotonic()
    try:
        with pytest.raises(DeadLetterError) as caught:
            await queue.add({"n": 1})
    finally:
        await queue.aclose()
    assert monotonic() - began < PATIENCE_S / 2
    for secret in (PASSWORD, WRONG, "\n"):
        assert secret not in str(caught.value)
    return caught.value


async def test_a_wrong_password_is_a_setting_to_mend(guarded: Place) -> None:
    """Waiting would not help."""
    error = await refused(queue_of(guarded, WRONG))
    assert type(error) is ConfigError
    assert guarded.address in str(error)


async def test_a_password_that_is_missing_is_a_setting_to_mend(guarded: Place) -> None:
    """NOAUTH: the server asks every user for one."""
    for client in guarded.clients():
        client.config_set("requirepass", PASSWORD)
    try:
        error = await refused(DeadLetterQueue(guarded.url, DeadLetterConfig(shards=1, operation_timeout=PATIENCE_S)))
    finally:
        for client in guarded.clients():
            client.config_set("requirepass", "")
    assert type(error) is ConfigError


@pytest.mark.parametrize(("right", "command"), [("-evalsha", "evalsha"), ("-xadd", "xadd")])
async def test_a_user_without_a_right_learns_which(guarded: Place, right: str, command: str) -> None:
    """Of a command that the engine sends, as of one that a script runs."""
    queue = queue_of(guarded)
    await queue.open()
    for client in guarded.clients():
        client.execute_command("ACL", "SETUSER", "shop", right)
    error = await refused(queue)
    assert type(error) is PermissionDenied
    if guarded.version >= (7, 2) or command == "evalsha":
        assert command in str(error).lower()


async def test_what_no_repeat_helps_is_a_store_error(guarded: Place) -> None:
    """A key of another type, here; the message says what Redis said."""
    queue = queue_of(guarded)
    await queue.open()
    guarded.client.set(shard_key("default", 0, "letters"), "of somebody else")
    error = await refused(queue)
    assert type(error) is StoreError
    assert error.code == "store_error"
    assert "WRONGTYPE" in str(error) or "wrong kind" in str(error)


@pytest.mark.parametrize("command", ["worker", "list"])
def test_a_command_exits_2_on_a_wrong_password(
    guarded: Place, tmp_path_factory: pytest.TempPathFactory, command: str
) -> None:
    """A worker that waited for ever would look as if Redis were away."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(APP)
    cli = Cli(guarded.url_of("shop", WRONG))
    process = cli.spawn(command, *(["--app", "shop:queue"] if command == "worker" else []), cwd=folder)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 2
    assert "user or password" in errors
    assert WRONG not in errors


@pytest.mark.parametrize(
    "how", [{"type": "a\ud800"}, {"reason": "a\ud800"}, {"event_id": "a\ud800"}, {"error": "a\ud800"}]
)
async def test_a_lone_surrogate_is_told_at_once(queues: Queues, how: dict[str, Any]) -> None:
    """It cannot be written as UTF-8, now or later; of an error's text it costs only that character."""
    queue = queues(operation_timeout=PATIENCE_S)
    began = monotonic()
    if "error" in how:
        await queue.discard(await queue.add({}, **how), "seen")
    else:
        with pytest.raises(InvalidEvent):
            await queue.add({}, **how)
    assert monotonic() - began < PATIENCE_S / 2


async def test_an_operators_words_and_numbers_are_checked(queues: Queues) -> None:
    """Before anything is sent."""
    queue = queues()
    letter_id = await queue.add({}, delay=60)
    for verb in (queue.park, queue.discard):
        with pytest.raises(ConfigError, match="lone surrogates"):
            await verb(letter_id, "a\ud800")
    for delay in (inf, nan, 1e300, -1, "5"):
        with pytest.raises(ConfigError, match=r"^delay is .*: allowed is a number of seconds"):
            await queue.retry(letter_id, delay=delay)  # type: ignore[arg-type]
    await queue.discard(letter_id, "seen")


async def test_a_policy_that_is_set_holds_for_a_worker_that_runs(queues: Queues) -> None:
    """The next failure follows it."""
    queue = queues(max_retries=5)

    @queue.handler()
    async def fail(event: object) -> None:
        raise ValueError

    async with running(queue):
        queue.set_retry_policy(())
        letter_id = await queue.add({}, delay=0)

        async def parked() -> bool:
            return (await queue.get(letter_id)).state is LetterState.PARKED

        await eventually(parked)
    assert (await queue.get(letter_id)).counters.failures == 1


async def test_a_plain_hook_runs_in_a_thread_and_what_it_answers_is_awaited(queues: Queues) -> None:
    """A hook that blocks must not stop the heartbeat."""
    queue = queues()
    queue.set_retry_policy(())
    ran_in: list[int] = []

    @queue.handler()
    async def fail(event: object) -> None:
        raise ValueError

    async def later() -> None:
        ran_in.append(threading.get_ident())

    def plain(letter: Letter, why: str) -> object:
        ran_in.append(threading.get_ident())
        return later()

    queue.on_parked(plain)
    await queue.add({}, delay=0)
    await queue.process()
    assert len(ran_in) == 2
    assert ran_in[0] != threading.get_ident()
    assert ran_in[1] == threading.get_ident()


async def test_a_full_shard_says_so(queues: Queues) -> None:
    """The others may have room."""
    queue = queues(shards=4, max_queue_size=4)
    for _ in range(2):  # its share, and a tenth
        await queue.add({}, ordering_key="one", delay=60)
    with pytest.raises(QueueFull, match="the letter's shard, one of 4, has its share of max_queue_size"):
        await queue.add({}, ordering_key="one", delay=60)
