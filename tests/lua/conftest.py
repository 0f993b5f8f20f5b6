"""What script tests ask for: a look at the keys of `shard`, past the engine."""

import pytest

from tests.support.look import Look
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.shard import Shard


@pytest.fixture
def look(server: Server, shard: Shard) -> Look:
    """The keys of the test's shard, as they are."""
    return Look(server.client, shard)
