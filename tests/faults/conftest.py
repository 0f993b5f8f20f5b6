"""Kill tests: real worker processes on a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kills import Kills
from tests.support.servers import Server


@pytest.fixture
def kills(server: Server, tmp_path: Path) -> Iterator[Kills]:
    """A queue, worker processes on it, and the check of all promises at the end."""
    with Kills(server, tmp_path) as made:
        yield made
