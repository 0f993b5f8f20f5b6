"""What script tests ask for: a look at the keys of `shard`, past the engine."""

import pytest

from tests.support.look import Look
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.topology import Topology


@pytest.fixture
def topology(server: Server, topology: Topology) -> Topology:
    """Of one server: a shard lies on one node, whatever there is beside it."""
    return topology


@pytest.fixture
def look(server: Server, shard: Shard) -> Look:
    """The keys of the test's shard, as they are."""
    return Look(server.client, shard)
