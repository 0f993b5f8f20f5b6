"""process(): works off what is due, all of it."""

import pytest

from tests.integration.conftest import Queues


@pytest.mark.parametrize("shards", [1, 4])
async def test_letters_that_fail_and_are_due_at_once_are_worked_to_their_end(queues: Queues, shards: int) -> None:
    """A retry that becomes due while a take of its shard is on its way is not overlooked."""
    for _ in range(5):
        queue = queues(shards=shards, retry_delay=0, max_retries=30)

        @queue.handler("order")
        async def fail(event: object) -> None:
            raise ValueError("a true bug")

        await queue.add_many([{"n": n} for n in range(7)], type="order", delay=0)
        report = await queue.process()
        assert report.parked == 7
        stats = await queue.stats()
        assert (stats.open, stats.scheduled) == (stats.parked, 0)
