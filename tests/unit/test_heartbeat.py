"""The heartbeat: a lease that cannot be renewed is given up before it ends."""

from time import monotonic
from typing import Any

import anyio
import pytest

from tests.support.holding import held, session
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.store.values import Extended
from uno.event_bus.dead_letter.worker.heartbeat import Heartbeat

pytestmark = pytest.mark.timed(0.1)

LEASE_S = 1.2


class FallsSilent:
    """A shard that answers so many heartbeats, and then none."""

    tag = "fake"
    index = 0

    def __init__(self, answers: int) -> None:
        self.answers = answers

    async def extend(self, consumer: str, leases: list[tuple[str, int]]) -> Extended:
        if not self.answers:
            await anyio.sleep_forever()
        self.answers -= 1
        return Extended([], [])


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_a_lease_is_given_up_a_sixth_of_its_length_before_it_ends(answers: int) -> None:
    """Also while a heartbeat waits for its answer: another worker may start the letter when the lease has ended."""
    shard: Any = FallsSilent(answers)
    made = session(shard, lease_s=LEASE_S)
    letter = held(1, lease_s=LEASE_S, shard=shard)
    made.holdings.hold(0, [letter])
    async with anyio.create_task_group() as group:
        group.start_soon(Heartbeat(made, shard).run)
        await eventually(lambda: letter.lease.lost, within_s=2 * LEASE_S)
        left_s = letter.lease.expires_at - monotonic()
        group.cancel_scope.cancel()
    assert 0 < left_s <= LEASE_S / 6


async def test_with_nothing_to_lose_an_answer_may_take_longer() -> None:
    """A connection over a slow network that is given up before it stands would never be made."""
    answered = anyio.Event()

    class Slow(FallsSilent):
        async def extend(self, consumer: str, leases: list[tuple[str, int]]) -> Extended:
            await anyio.sleep(LEASE_S * 2 / 3)
            answered.set()
            return Extended([], [])

    shard: Any = Slow(0)
    async with anyio.create_task_group() as group:
        group.start_soon(Heartbeat(session(shard, lease_s=LEASE_S), shard).run)
        with anyio.fail_after(2 * LEASE_S):
            await answered.wait()
        group.cancel_scope.cancel()
