"""A server that may evict letters: said when a queue opens, refused if strict, noticed while a worker runs."""

import logging

import pytest

from tests.integration.conftest import Queues
from tests.support.holding import Records
from tests.support.servers import Server
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import ConfigError
from uno.event_bus.dead_letter.worker import inspector


@pytest.fixture(autouse=True)
def evicting(server: Server) -> None:
    """A policy that may evict; the server is made as new after the test."""
    server.client.config_set("maxmemory-policy", "allkeys-lru")


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "allkeys-lru" in record.getMessage()]


async def test_a_queue_that_opens_says_so(queues: Queues, caplog: pytest.LogCaptureFixture) -> None:
    """One error line, what it does and what it must be; the queue works."""
    queue = queues()
    await queue.add({}, delay=60)
    [line] = complaints(caplog)
    assert "deletes whole streams of letters when memory is full; set it to noeviction" in line
    findings = {finding.check: finding for finding in await queue.health()}
    assert not findings["eviction"].ok


async def test_a_strict_queue_does_not_open(queues: Queues, server: Server) -> None:
    with pytest.raises(ConfigError, match="refused because DLQ_STRICT=true"):
        await queues(strict=True).add({}, delay=60)
    assert server.client.dbsize() == 0


async def test_a_running_worker_notices_that_the_policy_has_changed(
    queues: Queues, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error line, once, and a metric; likewise when it is mended."""
    monkeypatch.setattr(inspector, "LOOK_EVERY_S", 0.02)
    caplog.set_level(logging.INFO)
    server.client.config_set("maxmemory-policy", "noeviction")
    records = Records()
    queue = queues(recorder=records)
    told = records.of.setdefault("evicting_servers", [])
    async with running(queue):
        await eventually(lambda: told and told[-1] == 0)
        assert complaints(caplog) == []
        server.client.config_set("maxmemory-policy", "allkeys-lru")
        await eventually(lambda: told[-1] == 1)
        await eventually(lambda: told[-3:] == [1, 1, 1])
        assert len(complaints(caplog)) == 1
        server.client.config_set("maxmemory-policy", "noeviction")
        await eventually(lambda: told[-1] == 0)
    assert any("evicts no letters any more" in record.getMessage() for record in caplog.records)


async def test_what_opening_has_said_is_not_said_again(
    queues: Queues, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "LOOK_EVERY_S", 0.02)
    records = Records()
    async with running(queues(recorder=records)):
        await eventually(lambda: len(records.of.get("evicting_servers", [])) > 3)
    assert len(complaints(caplog)) == 1
