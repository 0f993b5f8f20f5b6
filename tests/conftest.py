"""What every test may ask for: a place to run, a fresh shard on it, and the check that it stays whole."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clean import assert_clean
from tests.support.places import Place, cluster, parametrize_place, place, running_place, server
from tests.support.servers import Server
from tests.support.standstill import TIMED, pytest_runtest_protocol, pytest_terminal_summary
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.layout import FORMAT
from uno.event_bus.dead_letter.store.layout_record import Layout
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["cluster", "place", "pytest_runtest_protocol", "pytest_terminal_summary", "running_place", "server"]

NOW_MS = 1_800_000_000_000
"""The time that scripts are told, where a test passes one in."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", TIMED)
    config.addinivalue_line("markers", "unclean(why): the test leaves its `shard` broken on purpose")
    # How long an example takes is the machine's affair.
    settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("no clock")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_place(metafunc)


@pytest.fixture(scope="session")
def anyio_backend() -> Any:
    """Async tests run on asyncio; `tests.support.loops.BOTH_LOOPS` runs one on uvloop, too."""
    return "asyncio"


@pytest.fixture
def redis_url(server: Server) -> str:
    """URL of an empty server, ``unix:///…``."""
    return server.url


@pytest.fixture
async def topology(place: Place) -> AsyncIterator[Topology]:
    """The engine's connections to the place."""
    topology = Topology(seeds_of(place.url), timeout_s=20.0, client_name="uno-test")
    await topology.open()
    yield topology
    await topology.close()


@pytest.fixture
def new_shard(topology: Topology) -> Callable[..., Shard]:
    """Make a shard: ``new_shard(index, queue=…, now_us=…)``; without a time it has the server's."""

    def make(index: int = 0, *, queue: str = "default", shards: int = 1, now_us: int | None = None) -> Shard:
        return Shard(queue, index, topology, Layout(FORMAT, shards, shards, 30_000, 1), now_us=now_us)

    return make


@pytest.fixture
async def shard(request: pytest.FixtureRequest, new_shard: Callable[..., Shard]) -> AsyncIterator[Shard]:
    """An empty shard that is told the time (`now_us`, which the test moves); at the end it must be clean."""
    shard = new_shard(now_us=NOW_MS * 1000)
    yield shard
    if request.node.get_closest_marker("unclean") is None:
        await assert_clean(shard)
