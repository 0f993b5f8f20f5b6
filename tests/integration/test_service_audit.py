"""The audit stream over HTTP: who did what through the service, and in which request."""

import msgspec

from tests.integration.conftest import Queues
from tests.support.service import app_of, client_of, known_as
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.remote.wire import AuditPage, AuditRecord
from uno.event_bus.dead_letter.service.caller import ADMIN, Caller

ANN = Caller("ann", frozenset({ADMIN}))


async def records(queue: DeadLetterQueue, query: str = "") -> list[AuditRecord]:
    async with client_of(app_of(queue)) as client:
        page = msgspec.json.decode((await client.get(f"/v1/audit{query}")).content, type=AuditPage)
    return page.records


async def test_every_change_is_recorded_as_its_caller_s(queues: Queues) -> None:
    """Verb by verb, intent and outcome, with the request's id; also of streams, and of what was refused."""
    queue = queues()
    ids = await queue.add_many([{}] * 6, delay=60)
    lines = {"accept": "application/x-ndjson"}
    async with client_of(known_as(app_of(queue), ANN, "r-7")) as client:
        await client.post(f"/v1/letters/{ids[0]}/park", json={"why": "bad"})
        await client.post(f"/v1/letters/{ids[0]}/park", json={"why": "again"})
        await client.post(f"/v1/letters/{ids[0]}/retry")
        await client.post(f"/v1/letters/{ids[0]}/discard", json={"why": "old"})
        await client.post("/v1/letters/retry", json={"ids": ids[1:3]}, headers=lines)
        await client.post("/v1/letters/discard", json={"where": {}, "why": "all"})
        await client.post("/v1/letters/discard", json={"where": {}, "why": "all"}, headers=lines)
        await client.post("/v1/shards", json={"shards": 4})
        await client.post("/v1/letters/discard", json={"where": {}, "why": "none", "dry_run": True})
    told = list(reversed(await records(queue)))
    assert {(one.who, one.request_id) for one in told} == {("token:ann", "r-7")}
    assert [(one.verb, one.phase) for one in told] == [
        (verb, phase)
        for verb in ("park", "park", "retry", "discard", "retry", "discard", "discard", "reshard")
        for phase in ("intent", "outcome")
    ]
    assert [one.outcome for one in told[1::2]] == ["done", "letter_state_conflict", *["done"] * 6]
    assert [one.done for one in told[1::2]] == [1, 0, 1, 1, 2, 5, 0, 0]
    assert (told[0].why, told[0].which) == ("bad", f'{{"ids":["{ids[0]}"]}}')


async def test_the_audit_stream_is_read_page_by_page(queues: Queues) -> None:
    """The newest first; without tokens it was anyone. What is no cursor is 400."""
    queue = queues()
    async with client_of(app_of(queue)) as client:
        for id in await queue.add_many([{}] * 3, delay=60):
            await client.post(f"/v1/letters/{id}/discard", json={"why": "x"})
        everything = await records(queue)
        assert len(everything) == 6 and {one.who for one in everything} == {"anyone"}
        first = (await client.get("/v1/audit?limit=4")).json()
        assert [one["id"] for one in first["records"]] == [one.id for one in everything[:4]]
        rest = (await client.get("/v1/audit", params={"limit": 4, "cursor": first["cursor"]})).json()
        assert [one["id"] for one in rest["records"]] == [one.id for one in everything[4:]]
        assert (await client.get("/v1/audit?cursor=x")).status_code == 400
