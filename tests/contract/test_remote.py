"""A remote queue alone: what it does when the service is away, slow, another one, or does not know it."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.running_service import service_of, tokens
from tests.support.spools import all_sent, numbers
from tests.support.waiting import SOON_S, eventually, in_time, patiently
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterQueue,
    PartialCapture,
    PermissionDenied,
    StoreUnavailable,
    blocking,
)
from uno.event_bus.dead_letter.codec import Encoded
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.service.app import make_app
from uno.event_bus.dead_letter.service.server import Server
from uno.event_bus.dead_letter.service.settings import ServiceSettings
from uno.event_bus.dead_letter.store.lookup import Kept

NEVER: Any = {"delay": 3600}


class Far:
    """A queue on Redis, a service in front of it, and a network between that and its callers."""

    def __init__(self, truth: DeadLetterQueue, proxy: Proxy, stack: AsyncExitStack) -> None:
        self.truth = truth
        self.proxy = proxy
        proxy.marks_of = lambda path: (path.encode(),)  # type: ignore[assignment]
        [(host, port)] = proxy.fronts.values()
        self.url = f"http://{host}:{port}"
        self._stack = stack

    async def queue(self, **settings: Any) -> DeadLetterQueue:
        """A remote queue; it need not be open."""
        made = DeadLetterQueue(self.url, DeadLetterConfig(**({"operation_timeout": 10.0} | settings)))
        self._stack.push_async_callback(made.aclose)
        return made

    async def listed(self) -> list[str]:
        return [letter.id async for letter in self.truth.letters(whole=False)]


@pytest.fixture
async def far(queues: Queues) -> AsyncIterator[Far]:
    truth = queues(shards=1)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(service_of(truth))
        yield Far(truth, stack.enter_context(Proxy(url)), stack)


@pytest.fixture
def nobody(unused_port: int) -> str:
    """The URL of a service that is not there."""
    return f"http://127.0.0.1:{unused_port}"


@pytest.fixture
def unused_port() -> Iterator[int]:
    import socket

    with socket.socket() as taken:  # bound, and never listening: connecting is refused
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# -- what it is -------------------------------------------------------------------------------------------


async def test_a_remote_queue_runs_no_handlers(far: Far) -> None:
    """Verbs that need handlers, or Redis itself, say so in one line."""
    queue = await far.queue()
    queue.add_handler(lambda event: None)
    for verb, call in {
        "run": queue.run(),
        "process": queue.process(),
        "replay_events": queue.replay_events(),
        "snapshot": queue.snapshot(),
    }.items():
        with pytest.raises(ConfigError) as refused:
            await call
        assert f"{verb} needs Redis itself" in str(refused.value) and "\n" not in str(refused.value)


async def test_variables_make_a_queue_remote(far: Far) -> None:
    """DLQ_SERVICE_URL goes before a Redis URL."""
    queue = DeadLetterQueue.from_env({"DLQ_SERVICE_URL": far.url + "/", "DLQ_REDIS_URL": "redis://localhost:1"})
    async with queue:
        assert queue.is_remote
        assert await queue.add({"n": 1}, **NEVER) in await far.listed()


async def test_the_blocking_queue_may_be_remote(far: Far) -> None:
    """The same in a thread, for callers without async."""

    def capture() -> str:
        with blocking.DeadLetterQueue.from_env({"DLQ_SERVICE_URL": far.url}) as queue:
            return queue.add({"n": 1}, **NEVER)

    assert await anyio.to_thread.run_sync(capture) in await far.listed()


async def test_a_service_of_another_queue_is_refused(far: Far) -> None:
    """Letters must not get into somebody else's queue."""
    queue = await far.queue(queue="orders")
    with pytest.raises(ConfigError, match="'orders'"):
        await queue.add({}, **NEVER)
    assert await far.listed() == []


# -- replies that are lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
async def test_a_capture_whose_reply_is_lost_is_made_once(far: Far, many: bool) -> None:
    """It is sent again, and the service knows the event ids, which this side has made."""
    queue = await far.queue()
    await queue.open()
    far.proxy.lose_replies("POST /v1/letters/batch", 2)
    ids = await queue.add_many([{"n": 1}, {"n": 2}], **NEVER) if many else [await queue.add({"n": 1}, **NEVER)]
    assert far.proxy.replies_to_lose == 0
    assert sorted(await far.listed()) == sorted(ids)


async def test_a_verb_whose_reply_is_lost_is_not_repeated(far: Far) -> None:
    """What a second try would do is not what was meant; the outcome is unknown."""
    queue = await far.queue()
    letter_id = await queue.add({}, **NEVER)
    far.proxy.lose_replies("/discard", 1)
    with pytest.raises(StoreUnavailable) as unknown:
        await queue.discard(letter_id, "test")
    assert not unknown.value.certain
    assert await far.listed() == []
    assert (await far.truth.stats()).totals["discarded"] == 1


async def test_a_read_whose_reply_is_lost_is_repeated(far: Far) -> None:
    """Looking twice does no harm."""
    queue = await far.queue()
    letter_id = await queue.add({}, **NEVER)
    far.proxy.lose_replies(f"GET /v1/letters/{letter_id}", 2)
    assert (await queue.get(letter_id)).id == letter_id


async def test_a_reply_that_breaks_off_leaves_the_outcome_unknown(far: Far) -> None:
    """The work of a bulk verb may have been done."""
    queue = await far.queue()
    await queue.add_many([{"n": n} for n in range(10)], **NEVER)
    far.proxy.lose_replies("POST /v1/letters/retry", 1)
    with pytest.raises(StoreUnavailable) as unknown:
        await queue.retry_many({})
    assert not unknown.value.certain
    assert (await queue.retry_many({}, delay=60)).done == 10, "to repeat it is safe"


# -- a service that is away -------------------------------------------------------------------------------


async def test_nothing_is_done_where_nobody_listens(nobody: str) -> None:
    """It is tried for `operation_timeout`, and then certain."""
    async with AsyncExitStack() as stack:
        queue = DeadLetterQueue(nobody, DeadLetterConfig(operation_timeout=0.3))
        stack.push_async_callback(queue.aclose)

        async def capture() -> None:
            with pytest.raises(StoreUnavailable) as away:
                await queue.add({})
            assert away.value.certain and str(away.value).startswith(f"the service is unavailable ({nobody}: ")

        await in_time(capture, 2)


async def test_calls_that_find_nobody_wait_together(nobody: str) -> None:
    """Not one after the other for its turn to ask."""
    queue = DeadLetterQueue(nobody, DeadLetterConfig(operation_timeout=0.3))

    async def capture() -> None:
        with pytest.raises(StoreUnavailable):
            await queue.add({})

    async def capture_twenty() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(capture)

    await in_time(capture_twenty, 1.5)
    await queue.aclose()


async def test_a_letter_that_the_service_refuses_costs_no_other(far: Far) -> None:
    """Not those that came with it: the request is halved until it is alone."""
    queue = await far.queue()
    events = [Encoded("x" * 70_000 if n == 5 else "Odd", "application/json", b"{}") for n in range(9)]
    with pytest.raises(PartialCapture, match=r"position 5: the service refused the request .*65536") as caught:
        await queue.add_many(events, **NEVER)
    assert list(caught.value.errors) == [5]
    assert await far.listed() == list(caught.value.ids.values())


async def test_a_silent_network_is_given_up_in_time(far: Far) -> None:
    """A try takes `operation_timeout` at most, and all of them twice that."""
    queue = await far.queue(operation_timeout=0.3)

    async def capture() -> float:
        far.proxy.heal()
        await patiently(queue.open)
        await patiently(partial(queue.add, {}, **NEVER))  # by a connection that stands
        far.proxy.silence()
        began = monotonic()
        with pytest.raises(StoreUnavailable) as silent:
            await queue.add({}, **NEVER)
        assert not silent.value.certain
        return monotonic() - began

    await in_time(capture, 2)
    far.proxy.heal()


async def test_captures_wait_on_disk_while_the_service_is_away(far: Far, tmp_path: Path) -> None:
    """In order, and once each, also those of which nobody knows whether they arrived."""
    queue = await far.queue(operation_timeout=0.3, spool_dir=str(tmp_path))
    await queue.add({"n": 0}, **NEVER)
    far.proxy.lose_replies("POST /v1/letters/batch", 1, then_refuse=True)
    ids = [await queue.add({"n": n}, event_id=f"e{n}", **NEVER) for n in range(1, 6)]
    assert ids == [f"spooled:e{n}" for n in range(1, 6)]
    far.proxy.heal()
    await all_sent(queue)
    assert await numbers(far.truth) == [0, 1, 2, 3, 4, 5]
    assert [letter.event_id async for letter in far.truth.letters()][1:] == [f"e{n}" for n in range(1, 6)]


async def test_a_spool_counts_on_no_more_than_what_the_service_remembers(queues: Queues, tmp_path: Path) -> None:
    """Where that is nothing, what may be there is looked for before it is sent again."""
    truth = queues(shards=1, dedupe_window=0)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(service_of(truth))
        far = Far(truth, stack.enter_context(Proxy(url)), stack)
        queue = await far.queue(spool_dir=str(tmp_path), dedupe_window=600)
        await queue.open()
        far.proxy.lose_replies("POST /v1/letters/batch", 1)
        assert await queue.add({}, event_id="e", **NEVER) == "spooled:e"
        await all_sent(queue)
        assert len(await far.listed()) == 1


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_long_look_for_letters_of_a_spool_is_waited_for_and_ends_with_who_waits(
    far: Far, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """It walks over all that came in since: given up after ``operation_timeout``, a spool would stay full for ever."""
    began, ended = anyio.Event(), anyio.Event()

    async def slow(*args: Any, **how: Any) -> set[int]:
        began.set()
        try:
            await anyio.sleep(60 if leaves else 0.3)
        finally:
            ended.set()
        return {0}

    monkeypatch.setattr(far.truth, "known", slow)
    queue = await far.queue(operation_timeout=0.1)
    kept = [Kept(NewLetter("e", "", b""), 0, tried=True)]
    await patiently(queue.open)
    with anyio.fail_after(SOON_S):
        if not leaves:
            assert await queue.known(kept, now_ms=0) == {0}
            return
        async with anyio.create_task_group() as group:
            group.start_soon(partial(queue.known, kept, now_ms=0))
            await began.wait()
            group.cancel_scope.cancel()
        await ended.wait()


async def test_a_service_opens_into_its_spool(nobody: str, tmp_path: Path) -> None:
    """A process can start while the service is away; its letters wait."""
    config = DeadLetterConfig(operation_timeout=0.2, spool_dir=str(tmp_path))
    async with DeadLetterQueue(nobody, config) as queue:
        assert await queue.add({}, event_id="e") == "spooled:e"


async def test_what_the_end_of_a_service_cuts_off_may_have_been_done(queues: Queues, place: Place) -> None:
    """It is said to be unavailable, so that a capture is repeated, or waits in the spool."""
    reached, certain = anyio.Event(), list[bool]()
    with Proxy(place.url) as proxy:
        truth = queues(proxy.redis, shards=1, operation_timeout=10.0, dedupe_window=0)
        routes = make_app(truth, stop=anyio.Event())

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") == "/v1/letters/batch":
                reached.set()
            await routes(scope, receive, send)

        async def capture(queue: DeadLetterQueue) -> None:
            with pytest.raises(StoreUnavailable, match="may have been done") as unknown:
                await queue.add({}, **NEVER)
            certain.append(unknown.value.certain)

        async with (
            AsyncExitStack() as stack,
            anyio.create_task_group() as group,
            Server(app, ServiceSettings(port=0), grace_s=0.1) as server,
        ):
            config = DeadLetterConfig(operation_timeout=5.0)
            queue = await stack.enter_async_context(DeadLetterQueue(server.url, config))
            proxy.silence()
            group.start_soon(capture, queue)
            await reached.wait()
        proxy.heal()
    assert certain == [False]


# -- tokens -----------------------------------------------------------------------------------------------


async def test_a_token_is_read_again_when_it_is_refused(queues: Queues, tmp_path: Path) -> None:
    """Rotated on both sides, no process is restarted; without the right one nothing is captured."""
    truth, mine = queues(shards=1), tmp_path / "token"
    old, new = tokens(tmp_path / "tokens", app=["capture", "read"])["app"], "uno_" + "n" * 43
    mine.write_text(old + "\n")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(service_of(truth, tokens_file=str(tmp_path / "tokens")))
        config = DeadLetterConfig(service_token_file=str(mine))
        async with DeadLetterQueue(url, config) as queue, DeadLetterQueue(url, config) as checking:
            await queue.add({}, **NEVER)
            async with DeadLetterQueue(url, DeadLetterConfig(service_token=old)) as stranger:
                tokens(tmp_path / "tokens", known={"app": new}, app=["capture", "read"])
                mine.write_text(new + "\n")

                async def is_refused() -> bool:
                    try:
                        await stranger.add({}, **NEVER)
                    except StoreUnavailable as refused:  # of an open queue: a rotation under way costs no letter
                        return refused.certain and old not in str(refused)
                    return False

                await eventually(is_refused)
            async with anyio.create_task_group() as group:  # each with the old one, and the first reads the new one
                for _ in range(5):
                    group.start_soon(partial(queue.add, {}, **NEVER))
            assert (await checking.verify()).clean  # its answer comes in lines
            with pytest.raises(PermissionDenied, match="admin"):
                await queue.reshard(4)


async def test_a_token_that_is_refused_costs_no_letter(queues: Queues, tmp_path: Path) -> None:
    """A rotation that has come to the service first: captures of a queue that is open wait on disk for the new one."""
    truth, mine, of_service = queues(shards=1), tmp_path / "token", tmp_path / "tokens"
    mine.write_text(tokens(of_service, app=["capture"])["app"])
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(service_of(truth, tokens_file=str(of_service)))
        config = DeadLetterConfig(
            service_token_file=str(mine), spool_dir=str(tmp_path / "spool"), operation_timeout=0.3, dedupe_window=60
        )
        queue = await stack.enter_async_context(DeadLetterQueue(url, config))
        await queue.add({"n": 0}, **NEVER)
        made = tokens(of_service, app=["capture"])

        async def is_spooled() -> bool:
            return (await queue.add({"n": 1}, **NEVER)).startswith("spooled:")

        await eventually(is_spooled)
        mine.write_text(made["app"])
        await all_sent(queue)
        assert set(await numbers(truth)) == {0, 1}


async def test_each_role_is_enough_for_its_verbs(queues: Queues, tmp_path: Path) -> None:
    """A queue that may only capture opens, and so does one that may only look."""
    made = tokens(tmp_path / "tokens", app=["capture"], watch=["read"], oncall=["operate"])
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(service_of(queues(shards=1), tokens_file=str(tmp_path / "tokens")))
        app, watch, oncall = [
            await stack.enter_async_context(DeadLetterQueue(url, DeadLetterConfig(service_token=made[name])))
            for name in ("app", "watch", "oncall")
        ]
        letter_id = await app.add({}, **NEVER)
        assert (await watch.get(letter_id)).id == letter_id
        await oncall.retry(letter_id)
        for denied in (app.get(letter_id), watch.retry(letter_id), oncall.add({}, **NEVER)):
            with pytest.raises(PermissionDenied, match="nothing was done"):
                await denied


async def test_a_file_that_is_not_there_is_named(nobody: str, tmp_path: Path) -> None:
    """With its variable, before anything is sent; so is one that holds no token."""
    (tmp_path / "token").write_bytes(b"uno_\0secret\n")
    queue = DeadLetterQueue(nobody, DeadLetterConfig(service_token_file=str(tmp_path / "token")))
    with pytest.raises(ConfigError, match=r"DLQ_SERVICE_TOKEN_FILE .*/token': its first line has control characters"):
        await queue.add({})
    queue = DeadLetterQueue(nobody, DeadLetterConfig(service_token_file="/nowhere/token"))
    with pytest.raises(ConfigError, match=r"DLQ_SERVICE_TOKEN_FILE .*'/nowhere/token': No such file"):
        await queue.add({})
    queue = DeadLetterQueue("https://localhost:1", DeadLetterConfig(service_ca_file="/nowhere/ca"))
    with pytest.raises(ConfigError, match=r"DLQ_SERVICE_CA_FILE .*'/nowhere/ca': No such file"):
        await queue.add({})


async def test_no_token_goes_into_a_log_line(far: Far, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is logged."""
    caplog.set_level(logging.DEBUG)
    queue = await far.queue(service_token="uno_verysecret")
    await queue.add({}, **NEVER)
    assert "verysecret" not in caplog.text + repr(queue.config)
