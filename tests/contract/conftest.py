"""Queues of both kinds: on Redis itself, and remote, behind a service."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.conftest import SETTINGS, Queues, queues_on
from tests.support.places import Place
from tests.support.running_service import service_of
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue


@dataclass
class Sides:
    """One queue, twice: as the caller has it, and as it is."""

    queue: DeadLetterQueue
    """Under test."""
    truth: DeadLetterQueue
    """On Redis itself, to look at what the other has done."""


type MakeSides = Callable[..., Awaitable[Sides]]


@pytest.fixture
async def queues(place: Place) -> AsyncIterator[Queues]:
    """As in tests/integration: at the end every letter is accounted for, and nothing is left."""
    async with queues_on(place) as made:
        yield made


@pytest.fixture(params=["local", "remote"])
async def sides(request: pytest.FixtureRequest, queues: Queues) -> AsyncIterator[MakeSides]:
    """Make a queue, for example with ``max_queue_size=10``; settings hold on both sides of a service."""
    async with AsyncExitStack() as stack:

        async def make(*, tracer_provider: Any = None, **settings: Any) -> Sides:
            truth = queues(**settings)
            if request.param == "local":
                return Sides(queues(tracer_provider=tracer_provider, **settings), truth)
            url = await stack.enter_async_context(service_of(truth))
            config = DeadLetterConfig(**(SETTINGS | settings))
            remote = DeadLetterQueue(url, config, tracer_provider=tracer_provider)
            return Sides(await stack.enter_async_context(remote), truth)

        yield make
