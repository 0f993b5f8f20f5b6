"""Arguments of captures and handlers: names that were meant otherwise, and numbers that are none."""

import inspect
from functools import partial
from math import inf, nan
from typing import Any

import pytest

from uno.event_bus.bus import EventBus
from uno.event_bus.dead_letter import ConfigError, DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.backoff import FixedDelay
from uno.event_bus.dead_letter.capture import ARGUMENTS, check_metadata

AWAY = "redis://127.0.0.1:1"
"""Nothing listens there: what is refused must be refused before any I/O."""


@pytest.fixture
def queue() -> DeadLetterQueue:
    return DeadLetterQueue(AWAY, DeadLetterConfig(max_retries=9, operation_timeout=0.05))


async def handle(event: object) -> None:
    pass


# -- names ------------------------------------------------------------------------------------------------


def test_the_list_of_arguments_is_that_of_the_methods() -> None:
    """A new argument has to be entered."""
    for verb, names in ARGUMENTS.items():
        found = inspect.signature(getattr(DeadLetterQueue, verb)).parameters
        assert set(names) == {name for name, it in found.items() if it.kind is it.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("verb", "name", "meant"),
    [
        ("add", "subscription", "subscription_id"),
        ("add", "id", "event_id"),
        ("add", "event_ids", "event_id"),
        ("add", "attempt", "attempt_count"),
        ("add", "attempts", "attempt_count"),
        ("add", "dedup_key", "event_id"),
        ("add", "order_key", "ordering_key"),
        ("add", "retry", "delay"),
        ("add", "failed_att", "failed_at"),
        ("add_many", "dedupe_key", "event_ids"),
        ("add_many", "event_id", "event_ids"),
        ("add_many", "subscription", "subscription_id"),
    ],
)
async def test_a_header_that_was_meant_as_an_argument_is_refused(
    queue: DeadLetterQueue, verb: str, name: str, meant: str
) -> None:
    """It would be kept as a header, and the letter go astray."""
    with pytest.raises(ConfigError, match=rf"^{name} is no argument of {verb}; did you mean {meant}[?]"):
        await getattr(queue, verb)([{}] if verb == "add_many" else {}, **{name: "s1"})


@pytest.mark.parametrize("name", ["timeout", "concurrency", "fn"])
async def test_arguments_of_a_handler_are_none_of_a_capture(queue: DeadLetterQueue, name: str) -> None:
    """No other argument is near."""
    how: dict[str, Any] = {name: 1}
    with pytest.raises(ConfigError, match=rf"^{name} is no argument of add [(]"):
        await queue.add({}, **how)


async def test_capture_refuses_it_before_its_body_runs(queue: DeadLetterQueue) -> None:
    """Afterwards the event would be lost for a typing error."""
    ran = False
    with pytest.raises(ConfigError, match="did you mean subscription_id"):
        async with queue.capture({}, subscription="s1"):
            ran = True
    assert not ran


def test_other_names_are_headers() -> None:
    """What services do name theirs."""
    for verb in ARGUMENTS:
        check_metadata(verb, ["tenant", "user_id", "reason_code", "error_code", "region", "source", "event_version"])


# -- numbers ----------------------------------------------------------------------------------------------

NO_SECONDS: list[Any] = [inf, -inf, nan, 1e300, -1, "5", True, None, [], 10**400]


@pytest.mark.parametrize("value", NO_SECONDS, ids=lambda value: repr(value)[:10])
async def test_seconds_are_finite_and_not_below_0(queue: DeadLetterQueue, value: Any) -> None:
    """The message names argument, value and what is allowed."""
    if value is not None:
        for name in ("delay", "failed_at"):
            with pytest.raises(ConfigError, match=rf"^{name} is .*: allowed is a number of seconds from 0 to"):
                await queue.add({}, **{name: value})
        with pytest.raises(ConfigError, match=r"^timeout is"):
            queue.add_handler(handle, timeout=value)


@pytest.mark.parametrize("value", ["x", "5", 1.5, -1, True, None, nan], ids=repr)
async def test_counts_are_whole(queue: DeadLetterQueue, value: Any) -> None:
    """Attempts from 0, all others from 1."""
    with pytest.raises(ConfigError, match=r"^attempt_count is .*: allowed is a whole number"):
        await queue.add({}, attempt_count=value)
    with pytest.raises(ConfigError, match=r"^batch_size is"):
        await queue.replay_events(batch_size=value)
    if value is not None:
        with pytest.raises(ConfigError, match=r"^max_concurrent is"):
            await queue.replay_events(max_concurrent=value)
        with pytest.raises(ConfigError, match=r"^concurrency is"):
            queue.add_handler(handle, concurrency=value)


async def test_none_at_all_is_no_count(queue: DeadLetterQueue) -> None:
    """0 must not pass for "not given"."""
    for name in ("batch_size", "max_concurrent"):
        how: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match=rf"^{name} is 0: allowed is a whole number of .* from 1"):
            await queue.replay_events(**how)
    with pytest.raises(ConfigError, match=r"^concurrency is 0"):
        queue.add_handler(handle, concurrency=0)


def test_a_batch_is_at_most_what_a_script_takes() -> None:
    """More would be cut in silence."""
    assert DeadLetterConfig(batch_size=1000).batch_size == 1000
    with pytest.raises(ConfigError, match="from 1 to 1000"):
        DeadLetterConfig(batch_size=1001)


# -- policies ---------------------------------------------------------------------------------------------


def test_a_handlers_delay_has_the_queues_number_of_retries(queue: DeadLetterQueue) -> None:
    """Not a default of its own."""
    assert queue.get_retry_policy(queue.add_handler(handle, retry=10)) == FixedDelay(10, 9)


def test_none_is_no_policy_to_set(queue: DeadLetterQueue) -> None:
    """For `add_handler` it means the queue's, for a policy to park at once."""
    handler = queue.add_handler(handle)
    with pytest.raises(ConfigError, match="policy is None"):
        queue.set_retry_policy(None)
    with pytest.raises(ConfigError, match="policy is None"):
        queue.set_retry_policy(None, handler=handler)
    queue.set_retry_policy(())
    assert queue.get_retry_policy().first_delay() is None


# -- ids of subscriptions ---------------------------------------------------------------------------------


def test_a_scripts_handler_is_named_as_a_worker_imports_it(
    queue: DeadLetterQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """``python events.py`` calls the module ``__main__``; the worker imports ``events``."""
    import sys
    from types import ModuleType

    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "events.py")
    monkeypatch.setitem(sys.modules, "__main__", main)

    async def on_paid(event: object) -> None:
        pass

    on_paid.__module__, on_paid.__qualname__ = "__main__", "on_paid"
    assert EventBus(queue).subscribe("Paid", on_paid) == "events.on_paid"


def test_a_handler_without_a_name_needs_an_id(queue: DeadLetterQueue) -> None:
    """A `partial` has none, and must have the same in every process."""
    bus = EventBus(queue)
    with pytest.raises(ConfigError, match="give id="):
        bus.subscribe("Paid", partial(handle))
    assert bus.subscribe("Paid", partial(handle), id="paid") == "paid"
