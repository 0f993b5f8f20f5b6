"""The users of Redis that docs/security.md recommends: what the engine does, they may do, and no more."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import DeadLetterQueue, PermissionDenied
from uno.event_bus.dead_letter.store.scripts import script

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
PASSWORD = "s3cr3t-word"
RULES = {
    words[2]: words[3:] for words in map(str.split, re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE))
}

CAPTURING = ("layout", "add", "recall", "adopt", "grow")
"""What a process calls that only captures: it may have to end a growth."""


@pytest.fixture
def users_url(place: Place) -> Iterator[Callable[[str], str]]:
    """Make a user of the page, and return its URL. At the end: nothing was refused it but redis-py's own name."""
    made: list[str] = []

    def make(name: str) -> str:
        for client in place.clients():
            client.execute_command(
                "ACL", "SETUSER", name, "reset", *(rule.replace("PASSWORD", PASSWORD) for rule in RULES[name])
            )
            client.execute_command("ACL", "LOG", "RESET")
        made.append(name)
        return place.url_of(name, PASSWORD)

    yield make
    for client in place.clients():
        for name in made:
            client.execute_command("ACL", "DELUSER", name)


def denied(place: Place) -> set[str]:
    """Commands, keys and so on that users were refused."""
    rows = [row for client in place.clients() for row in client.execute_command("ACL", "LOG")]
    return {str(_dict(row)["object"]).lower() for row in rows} - {"client|setinfo", "client"}


def _dict(row: Any) -> dict[str, Any]:
    pairs = row.items() if isinstance(row, dict) else zip(row[::2], row[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


async def _work(queue: DeadLetterQueue) -> None:
    """Fail, retry, park, and everything an operator does."""

    @queue.handler("good")
    async def good(event: object) -> None: ...

    @queue.handler("bad")
    async def bad(event: object) -> None:
        raise ValueError

    async with running(queue):
        await queue.add_many([{"n": n} for n in range(5)], type="good", delay=0)
        parked = await queue.add({}, type="bad", delay=0)

        async def is_parked() -> bool:
            return (await queue.get(parked)).state == "parked"

        await eventually(is_parked)
        assert len(await queue.workers()) == 1
    held, gone = [await queue.add({}, type="good", delay=60) for _ in range(2)]
    await queue.retry(parked, delay=60)
    await queue.park(held, "seen")
    await queue.discard(gone, "seen")
    assert len([letter async for letter in queue.letters()]) == 2
    assert (await queue.stats()).open == 2
    assert (await queue.verify()).clean


async def test_the_user_of_workers_and_operators_may_do_all_that_they_do(
    place: Place, queues: Queues, users_url: Callable[[str], str]
) -> None:
    """From the first capture to the last look; and touches no key of others."""
    queue = queues(users_url("dlq"), max_retries=1)
    await _work(queue)
    assert denied(place) == set()
    client = place.clients()[0]
    for words in (("SET", "other", "1"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*")):
        with pytest.raises(NoPermissionError):
            _as_user(client, "dlq").execute_command(*words)


def _as_user(client: Any, user: str) -> Any:
    options = client.connection_pool.connection_kwargs | {"username": user, "password": PASSWORD}
    pool = type(client.connection_pool)(connection_class=client.connection_pool.connection_class, **options)
    return type(client)(connection_pool=pool)


async def test_the_user_of_captures_may_capture_and_read_nothing(
    place: Place, queues: Queues, users_url: Callable[[str], str]
) -> None:
    """Into a queue that is new, that knows the key, and that has grown."""
    url = users_url("dlq-capture")
    queue = queues(url)
    first = await queue.add({"n": 1}, event_id="one", error=ValueError("x"))
    assert await queue.add({"n": 1}, event_id="one") == first
    await queues(place.url).reshard(4)
    assert len(set(await queue.add_many([{"n": n} for n in range(20)]))) == 20
    assert denied(place) == set()
    with pytest.raises(PermissionDenied):
        await queue.get(first)


def test_the_user_of_captures_may_run_every_command_of_its_scripts() -> None:
    """Also those that no test comes by."""
    wanted = {
        name.decode().lower()
        for verb in CAPTURING
        for name in re.findall(rb"redis\.p?call\('(\w+)'", script(verb).source)
    }
    rights = {rule[1:] for rule in RULES["dlq-capture"] if rule.startswith("+")}
    assert wanted - rights == set()
