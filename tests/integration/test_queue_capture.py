"""Capture: `add`, `add_many` and `capture`, as services call them."""

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import attrs
import msgspec
import pydantic
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import SOON_S, eventually
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterError,
    DeadLetterQueue,
    DeadLetterReason,
    Disabled,
    InvalidEvent,
    LetterState,
    PartialCapture,
    PayloadTooLarge,
    QueueFull,
    StoreUnavailable,
)
from uno.event_bus.dead_letter.store.node import SIZES


class Order(msgspec.Struct):
    number: int


class Paid(pydantic.BaseModel):
    number: int


@dataclass
class Sent:
    number: int


@attrs.define
class Returned:
    number: int


# -- events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "type", "payload"),
    [
        (Order(1), "Order", b'{"number":1}'),
        (Paid(number=2), "Paid", b'{"number":2}'),
        (Sent(3), "Sent", b'{"number":3}'),
        (Returned(4), "Returned", b'{"number":4}'),
        ({"number": 5}, "dict", b'{"number":5}'),
        (b"\x00\xff raw \r\n", "bytes", b"\x00\xff raw \r\n"),
        (b"", "bytes", b""),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_every_kind_of_event_is_kept_byte_for_byte(queues: Queues, event: Any, type: str, payload: bytes) -> None:
    """What is read back has the event's type and exactly its bytes."""
    queue = queues()
    letter = await queue.get(await queue.add(event, delay=60))
    assert (letter.type, letter.payload) == (type, payload)


async def test_any_bytes_come_back_as_they_were(queues: Queues) -> None:
    """All 256 bytes, what RESP and Lua could stumble over, and a megabyte less than the limit."""
    queue = queues()
    payloads = [
        bytes(range(256)) * 3,
        b"\r\n$5\r\n*1\r\n",
        b"\xed\xa0\x80\xfe",
        b'{"n":9007199254740993}',
        bytes(1_048_576),
    ]
    ids = await queue.add_many(payloads, delay=60)
    assert [(await queue.get(id)).payload for id in ids] == payloads


async def test_a_letter_keeps_failure_origin_and_metadata(queues: Queues) -> None:
    """Error, traceback, subscription, attempts, headers and keyword metadata are all there."""
    queue = queues()
    try:
        raise ValueError("no stock for 4711")
    except ValueError as error:
        id = await queue.add(
            Order(1),
            error=error,
            subscription_id="stock",
            attempt_count=3,
            event_id="e-1",
            ordering_key="customer-1",
            headers={"correlation": "c-1"},
            failed_at=1_700_000_000.5,
            region="eu",
            delay=60,
        )
    letter = await queue.get(id)
    assert letter.reason == DeadLetterReason.HANDLER_FAILED
    assert (letter.error_type, letter.error) == ("ValueError", "no stock for 4711")
    assert "test_queue_capture.py" in letter.traceback
    assert letter.fingerprint
    assert (letter.subscription, letter.caller_attempts, letter.event_id) == ("stock", 3, "e-1")
    assert (letter.ordering_key, letter.failed_at_ms) == ("customer-1", 1_700_000_000_500)
    assert (letter.headers["correlation"], letter.headers["region"]) == ("c-1", "eu")


@pytest.mark.parametrize(
    ("error", "reason", "expected"),
    [
        (None, None, DeadLetterReason.UNKNOWN),
        (ValueError("no"), None, DeadLetterReason.HANDLER_FAILED),
        (TimeoutError(), None, DeadLetterReason.TIMEOUT),
        ("a text", None, DeadLetterReason.HANDLER_FAILED),
        (InvalidEvent("Order", "why"), None, DeadLetterReason.INVALID_EVENT),
        (ValueError("no"), "of my own", "of my own"),
        (ValueError("no"), DeadLetterReason.TIMEOUT, DeadLetterReason.TIMEOUT),
    ],
)
async def test_the_reason_is_the_given_one_or_told_by_the_error(
    queues: Queues, error: Any, reason: str | None, expected: str
) -> None:
    """A reason that is given wins."""
    queue = queues()
    assert (await queue.get(await queue.add({}, error=error, reason=reason, delay=60))).reason == expected


async def test_an_event_that_cannot_be_serialised_is_refused_before_any_connection(queues: Queues) -> None:
    """The error names type and field; nothing is sent, also when Redis is not there."""
    queue = queues("redis://localhost:1/0")
    with pytest.raises(InvalidEvent, match=r"'dict' at a\[1\]\.b"):
        await queue.add({"a": [1, {"b": float("nan")}]})
    with pytest.raises(InvalidEvent):
        await queue.add(None)


@pytest.mark.parametrize("size", [1023, 1024])
async def test_a_payload_up_to_the_limit_is_captured(queues: Queues, size: int) -> None:
    """The limit itself is allowed."""
    queue = queues(max_payload_bytes=1024)
    await queue.add(bytes(size), delay=60)


async def test_a_payload_over_the_limit_is_refused_before_any_connection(queues: Queues) -> None:
    """Sizes are facts of the error; no I/O is done for it."""
    queue = queues("redis://localhost:1/0", max_payload_bytes=1024)
    with pytest.raises(PayloadTooLarge) as refused:
        await queue.add(bytes(1025))
    assert (refused.value.size, refused.value.limit) == (1025, 1024)


async def test_headers_over_the_limit_are_refused_alike(queues: Queues) -> None:
    """Metadata and the caller's headers count together, and apart from the payload."""
    queue = queues("redis://localhost:1/0", max_payload_bytes=1024)
    with pytest.raises(PayloadTooLarge, match=r"^headers: 10\d\d bytes, max_payload_bytes is 1024"):
        await queue.add(b"", headers={"note": "x" * 512}, remark="x" * 512)


async def test_a_disabled_queue_refuses_and_lets_errors_through(queues: Queues) -> None:
    """`add` and `add_many` raise `Disabled`; `capture` raises the body's own error."""
    queue = queues(enabled=False)
    with pytest.raises(Disabled):
        await queue.add({})
    with pytest.raises(Disabled):
        await queue.add_many([{}])
    with pytest.raises(ZeroDivisionError):
        async with queue.capture({}):
            _ = 1 / 0
    assert (await queue.stats()).open == 0


@pytest.mark.parametrize(
    "how",
    [
        {"event_id": "\ud800"},
        {"subscription_id": "\ud800"},
        {"dedupe_key": "\ud800"},
        {"ordering_key": "\ud800"},
        {"reason": "\ud800"},
        {"type": "\ud800"},
        {"headers": {"h": "\ud800"}},
        {"note": "\ud800"},
    ],
    ids=lambda how: next(iter(how)),
)
async def test_texts_that_are_no_unicode_are_the_callers_error(queues: Queues, how: dict[str, Any]) -> None:
    """A lone surrogate (a file name, say) is `InvalidEvent`, not a sick server, and nothing is captured."""
    queue = queues()
    with pytest.raises(InvalidEvent):
        await queue.add({}, **how)
    assert (await queue.stats()).open == 0


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e300])
async def test_a_delay_that_is_none_is_refused(queues: Queues, delay: float) -> None:
    """One line says what is allowed."""
    with pytest.raises(ConfigError, match="delay is"):
        await queues().add({}, delay=delay)


# -- delays -----------------------------------------------------------------------------------------------


async def test_without_a_delay_a_letter_is_due_after_the_policys_first_one(queues: Queues) -> None:
    """The queue's policy, or the one of the handler that will get the letter."""
    queue = queues(retry_delay=100)
    queue.add_handler(print, type="fast", retry=[7])
    queue.add_handler(print, type="never", retry=None)
    queue.set_retry_policy(30)

    async def shortened_ms(by_rights_ms: int, **how: Any) -> int:
        letter = await queue.get(await queue.add({}, **how))
        return by_rights_ms - (letter.not_before_ms - letter.captured_at_ms)

    # By as long as the way took; never longer but for the millisecond in which an id is made.
    assert -1 <= await shortened_ms(30_000) < 1000
    assert -1 <= await shortened_ms(7_000, type="fast") < 1000
    assert -1 <= await shortened_ms(0, delay=0) < 1000
    assert -1 <= await shortened_ms(12_500, delay=12.5) < 1000


async def test_delay_0_is_due_now_and_a_delay_is_waited_for(queues: Queues) -> None:
    """`process` runs the one and leaves the other."""
    queue = queues()
    seen: list[Any] = []
    queue.add_handler(seen.append)
    await queue.add({"n": 1}, delay=0)
    await queue.add({"n": 2}, delay=60)
    await queue.process()
    assert seen == [{"n": 1}]


# -- once -------------------------------------------------------------------------------------------------


async def test_a_repeated_capture_answers_the_first_id(queues: Queues) -> None:
    """By event id and subscription, or by dedupe key; also after the letter was resolved."""
    queue = queues()
    queue.add_handler(lambda event: None)
    first = await queue.add({"n": 1}, event_id="e", delay=0)
    assert await queue.add({"n": 1}, event_id="e", delay=0) == first
    assert await queue.add({"n": 1}, event_id="e", subscription_id="other", delay=0) != first
    keyed = await queue.add({"n": 2}, dedupe_key="k", delay=0)
    assert await queue.add({"n": 3}, dedupe_key="k", event_id="other", delay=0) == keyed
    await queue.process()
    assert await queue.add({"n": 1}, event_id="e", delay=0) == first
    stats = await queue.stats()
    assert (stats.open, stats.totals["captured"], stats.totals["repeated"]) == (0, 3, 3)


async def test_twenty_captures_of_one_event_at_a_time_are_one_letter(queues: Queues) -> None:
    """Concurrent repeats all get the same id."""
    queue = queues()
    ids: list[str] = []
    async with anyio.create_task_group() as group:
        for _ in range(20):

            async def add() -> None:
                ids.append(await queue.add({}, event_id="one", delay=60))

            group.start_soon(add)
    assert len(ids) == 20
    assert len(set(ids)) == 1


async def test_an_add_whose_reply_is_lost_is_captured_once(queues: Queues, place: Place) -> None:
    """The engine repeats it, and the capture key makes the repeat the same letter."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis)
        await queue.open()
        proxy.lose_replies("add", 1)
        id = await queue.add({"n": 1}, delay=60)
        assert proxy.replies_to_lose == 0
        assert [letter.id async for letter in queue.letters()] == [id]
        await queue.aclose()


async def test_without_a_memory_an_add_whose_reply_is_lost_is_not_repeated(queues: Queues, place: Place) -> None:
    """With ``dedupe_window=0`` a repeat could be a second letter: the caller hears that the outcome is unknown."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, dedupe_window=0)
        await queue.add_many([{}] * 20, delay=60)  # every shard's node knows the script
        proxy.lose_replies("add", 1)
        with pytest.raises(StoreUnavailable) as failed:
            await queue.add({}, delay=60)
        assert not failed.value.certain
        assert (await queue.stats()).open == 21
        await queue.aclose()


# -- many -------------------------------------------------------------------------------------------------


async def test_add_many_answers_the_ids_in_the_order_of_the_events(queues: Queues) -> None:
    """Over all shards, in batches, for more events than a batch has."""
    queue = queues(shards=4)
    ids = await queue.add_many([{"n": n} for n in range(450)], delay=60)
    assert len(set(ids)) == 450
    assert {id.partition("-")[0] for id in ids} == {"0", "1", "2", "3"}
    letters = {letter.id: json.loads(letter.payload)["n"] async for letter in queue.letters()}
    assert [letters[id] for id in ids] == list(range(450))
    assert await queue.add_many([]) == []
    assert await (await queue._store()).add([]) == []


async def test_add_many_says_by_position_what_was_not_captured(queues: Queues) -> None:
    """The others are captured; repeating everything with the same event ids is safe."""
    queue = queues(max_payload_bytes=100)
    events = [{"n": 0}, {"n": float("nan")}, {"n": 2}, bytes(101), {"n": 4}]
    event_ids = [f"e{n}" for n in range(5)]
    with pytest.raises(PartialCapture) as partial:
        await queue.add_many(events, event_ids=event_ids, delay=60)
    assert set(partial.value.ids) == {0, 2, 4}
    assert {position: type(error) for position, error in partial.value.errors.items()} == {
        1: InvalidEvent,
        3: PayloadTooLarge,
    }
    again = await queue.add_many([events[0], events[2]], event_ids=["e0", "e2"], delay=60)
    assert again == [partial.value.ids[0], partial.value.ids[2]]
    with pytest.raises(InvalidEvent):
        await queue.add_many([{"n": float("nan")}])
    with pytest.raises(ConfigError, match="event_ids has 1"):
        await queue.add_many([{}, {}], event_ids=["e"])


async def test_add_many_repeats_within_one_call_are_one_letter(queues: Queues) -> None:
    """Two events of one id in a batch get one id."""
    queue = queues()
    ids = await queue.add_many([{"n": 1}, {"n": 2}, {"n": 1}], event_ids=["a", "b", "a"], delay=60)
    assert ids[0] == ids[2] != ids[1]


# -- full -------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_trims_nothing(queues: Queues) -> None:
    """`max_queue_size` of open letters; what is repeated is still answered, what is resolved makes room."""
    queue = queues(shards=1, max_queue_size=10)
    queue.add_handler(lambda event: None)
    ids = await queue.add_many([{"n": n} for n in range(11)], event_ids=[f"e{n}" for n in range(11)], delay=0)
    with pytest.raises(QueueFull) as full:
        await queue.add({"n": 11})
    assert full.value.limit == 10
    with pytest.raises(PartialCapture) as partial:
        await queue.add_many([{"n": 0}, {"n": 12}], event_ids=["e0", "e12"])
    assert partial.value.ids == {0: ids[0]}
    assert isinstance(partial.value.errors[1], QueueFull)
    assert (await queue.stats()).open == 11
    await queue.process()
    await queue.add({"n": 11}, delay=60)


async def test_a_shards_limit_follows_the_count_of_shards_that_the_queue_has(queues: Queues) -> None:
    """A process that still says the earlier count must not let each of the shards hold an earlier share."""
    queue = queues(shards=4, max_queue_size=40)
    await queue.open()
    queues.place.client.hset("dlq:{default}:layout", "home_shards", 1)
    old = queues(shards=1, max_queue_size=40)
    with pytest.raises(PartialCapture) as partial:
        await old.add_many([{"n": n} for n in range(200)], delay=60)
    assert len(partial.value.ids) <= 44


async def test_a_server_without_memory_refuses_captures_and_lets_work_go_on(
    queues: Queues, limit_memory: Callable[[str], None]
) -> None:
    """`QueueFull` for the producer; what was captured is worked off, and then there is room again."""
    queue = queues()
    queue.add_handler(lambda event: None)
    await queue.add_many([b"x" * 2000] * 300, delay=0)
    limit_memory("1mb")
    with pytest.raises(QueueFull, match="out of memory"):
        await queue.add({"n": 1})
    report = await queue.process()
    assert report.resolved == 300
    limit_memory("0")
    await queue.add({"n": 1}, delay=60)


# -- the context manager ----------------------------------------------------------------------------------


async def test_capture_keeps_an_event_whose_body_fails(queues: Queues) -> None:
    """The error goes no further, and is in the letter."""
    queue = queues()
    async with queue.capture(Order(1), subscription_id="stock", delay=60):
        raise LookupError("nothing left")
    [letter] = [letter async for letter in queue.letters()]
    assert (letter.type, letter.subscription, letter.error) == ("Order", "stock", "nothing left")


async def test_capture_keeps_nothing_of_a_body_that_succeeds_or_is_cancelled(queues: Queues) -> None:
    """A cancellation, or an exit of the process, is no failure of the event."""
    queue = queues()
    async with queue.capture(Order(1)):
        pass
    with anyio.move_on_after(0.01) as scope:
        async with queue.capture(Order(1)):
            await anyio.sleep(60)
    assert scope.cancelled_caught
    with pytest.raises(SystemExit):
        async with queue.capture(Order(1)):
            raise SystemExit(1)
    assert (await queue.stats()).open == 0


async def test_capture_raises_its_own_failure_with_the_bodys_as_cause(queues: Queues) -> None:
    """Nothing is swallowed when the letter cannot be kept."""
    queue = queues(max_payload_bytes=1)
    with pytest.raises(PayloadTooLarge) as failed:
        async with queue.capture({"n": 1}):
            raise LookupError("nothing left")
    assert isinstance(failed.value.__cause__, LookupError)


# -- life -------------------------------------------------------------------------------------------------


async def test_construction_needs_no_server(queues: Queues) -> None:
    """It does no I/O; what is wrong with the URL is told all the same."""
    queues("redis://localhost:1/0")
    with pytest.raises(ConfigError):
        DeadLetterQueue("ftp://localhost")
    with pytest.raises(ConfigError, match=r"allowed are redis\.asyncio\.Redis, .*RedisCluster and a URL"):
        DeadLetterQueue(object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="DLQ_REDIS_URL"):
        DeadLetterQueue()


async def test_a_server_that_is_not_there_is_store_unavailable(queues: Queues) -> None:
    """Within the operation's timeout, saying that nothing was written."""
    queue = queues("redis://127.0.0.1:1/0", operation_timeout=0.3)
    with anyio.fail_after(SOON_S), pytest.raises(StoreUnavailable) as failed:
        await queue.add({})
    assert failed.value.certain


async def test_add_works_without_and_with_async_with_and_again_after_it(queues: Queues) -> None:
    """The first call connects; a closed queue opens again."""
    queue = queues()
    await queue.add({"n": 1}, delay=60)
    await queue.aclose()
    async with queue:
        await queue.add({"n": 2}, delay=60)
    await queue.add({"n": 3}, delay=60)
    assert (await queue.stats()).open == 3


async def test_first_calls_at_the_same_time_share_one_set_of_connections(queues: Queues) -> None:
    """Twenty tasks that all come first leave no store of their own behind."""
    queue = queues()
    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(partial(queue.add, {"n": n}, delay=60))
    most = SIZES["commands"] + SIZES["work"] + SIZES["heartbeats"]
    assert len(queues.connections()) <= most * len(queues.place.clients())
    await queue.aclose()
    assert await eventually(lambda: not queues.connections())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:loop is closed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*Transport:pytest.PytestUnraisableExceptionWarning")
def test_a_queue_serves_one_event_loop_after_another(place: Place) -> None:
    """As scripts and test suites have it: `asyncio.run`, and again, without closing in between.

    The connections of an ended loop are dropped, not kept for ever.
    """
    queue = DeadLetterQueue(place.url, DeadLetterConfig(queue="loops", shards=2))
    ids = [asyncio.run(queue.add({"n": n}, delay=60)) for n in range(5)]

    async def check() -> int:
        assert (await queue.stats()).open == len(set(ids)) == 5
        assert (await queue.verify()).clean
        gc.collect()
        names = [row["name"] for row in place.connections()]
        await queue.aclose()
        return names.count("uno-dlq-loops")

    assert asyncio.run(check()) <= 4 * len(place.clients())


def test_event_loops_in_several_threads_share_a_queue(place: Place) -> None:
    """Each has connections of its own, and keeps them."""
    queue = DeadLetterQueue(place.url, DeadLetterConfig(queue="loops", shards=2))

    def connected() -> int:
        return sum(int(client.info("stats")["total_connections_received"]) for client in place.clients())

    before = connected()

    async def add_some() -> list[str]:
        ids = [await queue.add({}, delay=60) for _ in range(20)]
        await queue.aclose()
        return ids

    with ThreadPoolExecutor(4) as threads:
        found = [future.result() for future in [threads.submit(asyncio.run, add_some()) for _ in range(4)]]
    assert len({id for ids in found for id in ids}) == 80
    assert connected() - before <= 4 * 3 * len(place.clients())


async def test_ids_that_are_no_texts_are_taken_as_theirs(queues: Queues) -> None:
    """A UUID or a number as event id or key is what its text says."""
    queue = queues()
    number = uuid4()
    id = await queue.add({}, event_id=number, subscription_id=7, delay=60)  # type: ignore[arg-type]
    letter = await queue.get(id)
    assert (letter.event_id, letter.subscription) == (str(number), "7")


@pytest.mark.timed(0.3)
async def test_an_outcome_is_unknown_when_any_of_the_tries_may_have_run(queues: Queues, place: Place) -> None:
    """The reply is lost, and then the network: that the last try was not sent says nothing of the first."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1, operation_timeout=0.5)
        await queue.add({}, delay=60)  # a connection is there
        proxy.lose_replies("add", 1)
        proxy.refusing = True
        with pytest.raises(StoreUnavailable) as failed:
            await queue.add({}, event_id="e", delay=60)
        assert not failed.value.certain
        proxy.heal()
        assert await queue.add({}, event_id="e", delay=60)
        assert (await queue.stats()).open == 2
        await queue.aclose()


@pytest.mark.timed(0.5)
@pytest.mark.parametrize(("setting", "value", "before"), [("maxmemory", 1, 0), ("requirepass", "secret", "")])
async def test_an_outcome_is_unknown_when_only_the_repeat_is_refused(
    queues: Queues, server: Server, setting: str, value: str | int, before: str | int
) -> None:
    """`QueueFull` or `ConfigError` would say that nothing was captured; but the first try was, its reply is lost."""
    with Proxy(server.url) as proxy:
        queue = queues(proxy.url, operation_timeout=2.0)
        await queue.add({}, delay=60)
        proxy.lose_replies("add", 1, then_refuse=True)  # the repeat comes when the server has changed its mind
        failures: list[DeadLetterError] = []

        async def add() -> None:
            with pytest.raises(DeadLetterError) as failed:
                await queue.add({}, event_id="e", delay=60)
            failures.append(failed.value)

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(add)
                await eventually(lambda: proxy.refusing)
                server.client.config_set(setting, value)
                proxy.heal()
        finally:
            server.client.config_set(setting, before)
        assert isinstance(failures[0], StoreUnavailable) and not failures[0].certain
        assert (await queue.stats()).open == 2
        await queue.aclose()


async def test_clients_as_users_build_them_serve(queues: Queues, place: Place) -> None:
    """With ``decode_responses``, RESP2, a retry of their own; the engine leaves them open and as they were."""
    client = place.users_client(decode_responses=True, protocol=2)
    queue = queues(client)
    id = await queue.add(b"\xff\xfe", delay=60)
    assert (await queue.get(id)).payload == b"\xff\xfe"
    await queue.aclose()
    assert await client.ping()
    assert await client.get("nothing") is None
    await client.set("text", "ä")
    assert await client.get("text") == "ä"
    await client.aclose()


async def test_a_password_is_never_shown(queues: Queues, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a repr, an error or a log line: with a server that refuses it, and one that is not there."""
    secret = "s3cr3t/#@"
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for url, kind, timeout_s in (
        ("redis://user:s3cr3t%2F%23%40@localhost:1/0", StoreUnavailable, 0.2),
        (place.url_of("user", "s3cr3t%2F%23%40"), ConfigError, 10),
    ):
        config = DeadLetterConfig(redis_url=url, operation_timeout=timeout_s)
        queue = DeadLetterQueue(url, config)
        with pytest.raises(kind) as failed:
            await queue.add({})
        error: BaseException | None = failed.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
        said += [repr(queue), repr(config)]
        await queue.aclose()
    with pytest.raises(ConfigError) as refused:
        DeadLetterQueue("http://user:s3cr3t%2F%23%40@localhost")
    said += [str(refused.value), caplog.text]
    assert not [text for text in said if "s3cr3t" in text or secret in text]


async def test_a_letter_of_another_queue_is_not_found(queues: Queues) -> None:
    """Queues share nothing but the server."""
    one, two = queues(), queues(queue="two")
    id = await one.add({}, delay=60)
    assert (await two.stats()).open == 0
    assert [letter async for letter in two.letters()] == []
    assert (await one.get(id)).state is LetterState.WAITING
