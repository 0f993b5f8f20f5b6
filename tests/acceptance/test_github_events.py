"""The main job on 264 real payloads: what goes in comes out, to the byte."""

import gzip
import json
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Letter
from uno.event_bus.dead_letter.demo.events import Publication, from_file

FILE = Path(__file__).parents[3] / "shared/data/github-webhooks.ndjson.gz"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"the real payloads are not here: {FILE}")


@pytest.fixture(scope="module")
def events() -> list[Publication]:
    return from_file(FILE)


def test_the_reader_keeps_the_bytes_of_the_file(events: list[Publication]) -> None:
    """Each payload is a slice of its line, as it stands there."""
    with gzip.open(FILE, "rb") as lines:
        for event, line in zip(events, lines, strict=True):
            assert event.payload in line
            assert json.loads(event.payload) == json.loads(line)["payload"]
    assert len(events) == 264


async def test_real_payloads_come_back_to_the_byte(redis_url: str, events: list[Publication]) -> None:
    """264 letters fail at first, then succeed or are parked: every handler sees the bytes that were captured."""
    sent = {event.event_id: sha256(event.payload).digest() for event in events}
    seen: dict[str, bytes] = {}
    dlq = DeadLetterQueue(redis_url, DeadLetterConfig(queue="github", retry_delay=0, max_retries=2, batch_size=50))

    @dlq.handler()
    async def consume(event: bytes, letter: Letter) -> None:
        assert sha256(event).digest() == sent[letter.event_id]
        assert letter.payload == event
        if letter.attempt < 2 or letter.event_id.endswith("-0"):
            raise RuntimeError("a downstream service answered 503")
        seen[letter.event_id] = sha256(event).digest()

    async with dlq:
        for event in events:
            await dlq.add(event.event, type=event.type, event_id=event.event_id, error="503", delay=0)
        while (stats := await dlq.stats()).open > stats.parked:
            await dlq.process()
            await anyio.sleep(0.01)
        parked = {letter.event_id: sha256(letter.payload).digest() async for letter in dlq.letters()}
        report = await dlq.verify()
    assert seen | parked == sent
    assert not seen.keys() & parked.keys() and seen and parked
    assert report.clean, report.violations
    assert report.captured == 264 == report.resolved + len(parked)


async def test_json_payloads_reach_a_handler_as_objects(redis_url: str, events: list[Publication]) -> None:
    """Captured as JSON, the same bytes are decoded for a handler that wants a dict, and still kept as they are."""
    event = events[100]
    got: list[object] = []
    dlq = DeadLetterQueue(redis_url, DeadLetterConfig(queue="github-json", retry_delay=0))
    dlq.add_handler(got.append, type=event.type)
    async with dlq:
        letter_id = await dlq.add(json.loads(event.payload), type=event.type, error="503", delay=0)
        assert json.loads((await dlq.get(letter_id)).payload) == json.loads(event.payload)
        await dlq.process()
        assert (await dlq.verify()).clean
    assert got == [json.loads(event.payload)]
