"""Verbs over HTTP: on one letter, on many, as lines, and what ends them early."""

import logging
from typing import Any

import anyio
import msgspec
import pytest

from tests.integration.conftest import Queues
from tests.support.service import Streamed, app_of, client_of
from tests.support.waiting import SOON_S
from uno.event_bus.dead_letter import bulk
from uno.event_bus.dead_letter.remote.wire import Answers, BulkResult
from uno.event_bus.dead_letter.service import lines as lines_module

LINES = {"accept": "application/x-ndjson"}


async def test_a_letter_is_retried_parked_and_discarded(queues: Queues) -> None:
    """Each tells what was done; a retry has its delay, and a parked letter a new budget."""
    queue = queues()
    id = await queue.add({}, delay=60)
    async with client_of(app_of(queue)) as client:
        answer = await client.post(f"/v1/letters/{id}/park", json={"why": "looks bad"})
        assert answer.json() == {"id": id, "verb": "park"}
        assert (await queue.get(id)).counters.reason == "looks bad"
        assert (await client.post(f"/v1/letters/{id}/retry", json={"delay_ms": 90_000})).json()["verb"] == "retry"
        letter = await queue.get(id)
        assert (letter.state, letter.counters.redrives) == ("scheduled", 1)
        now_ms = (await queue.stats()).now_ms
        assert 80_000 < letter.due_ms - now_ms <= 90_000
        assert (await client.post(f"/v1/letters/{id}/retry")).status_code == 200  # no body: no delay
        assert (await client.post(f"/v1/letters/{id}/discard", json={"why": "done"})).json()["verb"] == "discard"
        assert (await client.post(f"/v1/letters/{id}/discard", json={"why": "done"})).status_code == 404


async def test_a_verb_that_does_not_fit_is_409(queues: Queues) -> None:
    """With the state, and what the verb takes; who is to say why has to."""
    queue = queues()
    id = await queue.add({}, delay=60)
    async with client_of(app_of(queue)) as client:
        await client.post(f"/v1/letters/{id}/park", json={"why": ""})
        again = await client.post(f"/v1/letters/{id}/park", json={"why": ""})
        assert (again.status_code, again.json()["code"]) == (409, "letter_state_conflict")
        assert again.json()["facts"]["state"] == "parked"
        assert (await client.post(f"/v1/letters/{id}/park", json={})).status_code == 422
        assert (await client.post(f"/v1/letters/{id}/park")).status_code == 415


@pytest.mark.parametrize("body", [{}, {"ids": ["0-1-0"], "where": {}}, {"ids": []}, {"where": {"sate": ["parked"]}}])
async def test_letters_are_named_in_one_way(queues: Queues, body: dict[str, Any]) -> None:
    """Neither, both, none at all, or by a field that there is not: refused, and nothing is done."""
    queue = queues()
    await queue.add({}, delay=60)
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/letters/discard", json=body | {"why": "all"})
    assert answer.status_code in (400, 422)
    assert (await queue.stats()).open == 1


async def test_many_letters_are_named_by_ids(queues: Queues) -> None:
    """Each has its answer; those that are gone are no error."""
    queue = queues()
    ids = await queue.add_many([{}] * 5, delay=60)
    async with client_of(app_of(queue)) as client:
        dry = await client.post("/v1/letters/discard", json={"ids": ids, "why": "old", "dry_run": True})
        assert (dry.json()["dry_run"], dry.json()["done"], (await queue.stats()).open) == (True, 5, 5)
        answer = await client.post("/v1/letters/discard", json={"ids": [*ids[:3], "0-1-0", "x"], "why": "old"})
    told = msgspec.json.decode(answer.content, type=BulkResult)
    assert (told.done, told.not_found, told.queue) == (3, 2, queue.config.queue)
    assert told.answers == dict.fromkeys(ids[:3], "OK") | {"0-1-0": "GONE", "x": "GONE"}
    assert (await queue.stats()).open == 2


async def test_many_letters_are_named_by_a_filter(queues: Queues) -> None:
    """Also every letter, which takes an empty filter."""
    queue = queues()
    await queue.add_many([{}] * 7, type="a", delay=60)
    await queue.add_many([{}] * 4, type="b", delay=60)
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/letters/retry", json={"where": {"type": ["a"]}, "delay_ms": 5000})
        assert answer.json() == {"queue": queue.config.queue, "done": 7}
        answer = await client.post("/v1/letters/discard", json={"where": {}, "why": "all of them"})
        assert answer.json()["done"] == 11


async def test_answers_come_as_lines_and_the_report_last(queues: Queues) -> None:
    """One that was refused has its problem; the report has no answers again."""
    queue = queues()
    ids = await queue.add_many([{}] * 5, delay=60)
    async with client_of(app_of(queue)) as client:
        body = {"ids": [*ids, "0-1-0"], "why": "old"}
        answer = await client.post("/v1/letters/discard", json=body, headers=LINES)
    *lines, last = [msgspec.json.decode(line, type=Answers) for line in answer.content.splitlines()]
    answers = {one.id: one for line in lines for one in line.answers}
    assert {id: one.answer for id, one in answers.items()} == dict.fromkeys(ids, "OK") | {"0-1-0": "GONE"}
    assert answers[ids[0]].problem is None
    problem = answers["0-1-0"].problem
    assert problem is not None and problem.code == "letter_not_found"
    assert last.report is not None and (last.report.done, last.report.not_found, last.report.answers) == (5, 1, {})


async def test_a_stream_that_is_silent_tells_how_far_it_is(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no proxy takes the connection for dead."""
    monkeypatch.setattr(lines_module, "SILENCE_S", 0.001)
    queue = queues()
    ids = await queue.add_many([{}] * 5, delay=60)
    retry_many = queue.retry_many

    async def slow(*args: Any, on_answers: Any, **how: Any) -> Any:
        report = await retry_many(*args, on_answers=on_answers, **how)
        await told.wait()
        return report

    monkeypatch.setattr(queue, "retry_many", slow)
    told = anyio.Event()
    stream = Streamed(app_of(queue), "POST", "/v1/letters/retry", msgspec.json.encode({"ids": ids}))
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        while b'"progress":1.0' not in (await stream.piece() or b""):
            pass
        told.set()
        last = msgspec.json.decode((await stream.rest()).splitlines()[-1], type=Answers)
    assert last.report is not None and last.report.done == 5
    stream.close()


# -- early ends ---------------------------------------------------------------------------------------------


@pytest.mark.timed(0.5)
@pytest.mark.parametrize("end", ["the client leaves", "the service stops"])
@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
async def test_a_verb_on_many_letters_ends_with_its_request(
    queues: Queues, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str, accept: str
) -> None:
    """Log and audit stream say how far it came; the others are as they were, and a client that is there hears of it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(bulk, "BATCH", 10)
    queue, stop = queues(shards=1), anyio.Event()
    await queue.add_many([{}] * 100, delay=60)
    begun = anyio.Event()
    act = bulk.Bulk._do

    async def held(self: bulk.Bulk, *args: Any) -> None:
        if self.report.done >= 20:
            begun.set()
            await anyio.sleep_forever()
        await act(self, *args)

    monkeypatch.setattr(bulk.Bulk, "_do", held)
    body = msgspec.json.encode({"where": {}, "why": "all"})
    stream = Streamed(app_of(queue, stop), "POST", "/v1/letters/discard", body, accept=accept)
    rest = b""
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        with anyio.move_on_after(SOON_S):
            group.start_soon(_end, begun, stop.set if end == "the service stops" else stream.leave)
            rest = await stream.rest()
    assert "cancelled: 20 done" in caplog.text
    assert (await queue.stats()).open == 80
    outcome = (await queue.audit_page()).entries[0]
    assert (outcome.phase, outcome.outcome, outcome.done) == ("outcome", "cancelled", 20)
    if end == "the service stops":
        told = msgspec.json.decode(rest.splitlines()[-1])
        assert told.get("problem", told)["code"] == "store_unavailable"
        assert stream.complete
    else:
        assert not stream.complete
    stream.close()


async def _end(begun: anyio.Event, act: Any) -> None:
    await begun.wait()
    act()


async def test_answers_wait_for_a_client_that_does_not_read(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb goes no further than what is buffered: memory stays flat, however many letters match."""
    monkeypatch.setattr(bulk, "BATCH", 1)
    queue = queues(shards=1)
    await queue.add_many([{}] * 60, delay=60)
    body = msgspec.json.encode({"where": {}, "why": "all"})
    stream = Streamed(app_of(queue), "POST", "/v1/letters/discard", body)
    async with anyio.create_task_group() as group:
        group.start_soon(stream.run)
        assert await stream.piece()
        for _ in range(100):
            await queue.stats()
        assert (await queue.stats()).open > 30
        await stream.rest()
    assert (await queue.stats()).open == 0
    stream.close()
