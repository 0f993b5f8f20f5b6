"""The table of roles, verb by verb: a real server, a token of each role, one that has expired, and none."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import msgspec
import pytest

from tests.integration.conftest import Queues, queues_on
from tests.support.requests_of_roles import REQUESTS, Sound
from tests.support.running_service import service_of, tokens
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.service.access import line_of, new_token
from uno.event_bus.dead_letter.service.app import OPERATIONS
from uno.event_bus.dead_letter.service.caller import ADMIN, ANY_ROLE, CAPTURE, OPERATE, READ

MAY = {
    CAPTURE: {None, ANY_ROLE, CAPTURE},
    READ: {None, ANY_ROLE, READ},
    OPERATE: {None, ANY_ROLE, READ, OPERATE},
    ADMIN: {None, ANY_ROLE, CAPTURE, READ, OPERATE, ADMIN},
}
"""Role → of which operations."""

STRANGERS = ("nobody", "unknown", "expired")


class Guarded:
    """A queue, the service in front of it, and a token of each kind."""

    def __init__(self, truth: DeadLetterQueue, client: httpx2.AsyncClient, of: dict[str, str]) -> None:
        self.truth = truth
        self._client = client
        self._tokens = of

    async def state(self) -> object:
        """All that a request might change."""
        letters = [(letter.id, letter.state, letter.due_ms) async for letter in self.truth.letters(whole=False)]
        audited = [entry.id async for entry in self.truth.audited()]
        return letters, (await self.truth.stats()).totals, self.truth.config.shards, audited

    async def ask(self, name: str, sound: Sound, who: str, letter: str) -> httpx2.Response:
        """Send an operation's request as somebody."""
        method, path = name.split(" ")
        headers = {"content-type": sound.content_type} if sound.body is not None else {}
        if self._tokens[who]:
            headers["authorization"] = f"Bearer {self._tokens[who]}"
        body = None if sound.body is None else msgspec.json.encode(sound.body)
        return await self._client.request(method, path.replace("{id}", letter), content=body, headers=headers)


@pytest.fixture
async def guarded(server: Server, tmp_path: Path) -> AsyncIterator[Guarded]:
    async with AsyncExitStack() as stack:
        queues: Queues = await stack.enter_async_context(queues_on(server))
        truth = queues()
        file, expired = tmp_path / "tokens", new_token()
        of = tokens(file, known=None, **{role: [role] for role in MAY})
        with file.open("a") as lines:
            lines.write(line_of("expired", frozenset({ADMIN}), expired, until=1) + "\n")
        of |= {"nobody": "", "unknown": new_token(), "expired": expired}
        url = await stack.enter_async_context(service_of(truth, tokens_file=str(file)))
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, trust_env=False))
        yield Guarded(truth, client, of)


def test_each_operation_has_its_row() -> None:
    """A new one needs a role that somebody has thought about, and a request to try it with."""
    declared = {f"{operation.method} {operation.path}": operation.role for operation in OPERATIONS}
    assert declared == {name: sound.role for name, sound in REQUESTS.items()}


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_operation_is_for_those_who_have_its_role(guarded: Guarded, name: str) -> None:
    """401 without a token that is known and good, 403 without the role, and nothing is done; else it is done."""
    sound = REQUESTS[name]
    letter = await guarded.truth.add({}, delay=3600)
    before = await guarded.state()
    for who in (*STRANGERS, *(role for role, may in MAY.items() if sound.role not in may)):
        refused = await guarded.ask(name, sound, who, letter)
        if sound.role is None:
            assert refused.status_code == sound.status
            continue
        expected = (401, "unauthenticated") if who in STRANGERS else (403, "permission_denied")
        assert (refused.status_code, refused.json()["code"]) == expected, who
        assert ("www-authenticate" in refused.headers) == (who in STRANGERS)
    assert await guarded.state() == before
    for role in (role for role, may in MAY.items() if sound.role in may):
        allowed = await guarded.ask(name, sound, role, await guarded.truth.add({}, delay=3600))
        assert allowed.status_code == sound.status, (role, allowed.text)
