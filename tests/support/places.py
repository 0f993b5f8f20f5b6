"""Where tests run: on each server that `DLQ_TEST_SERVERS` asks for, alone and as a cluster of three primaries with
a replica each.

Both have the same small interface (`url`, `client`, `clients`, `connections` and so on), so that a test need not know.
A test runs on both unless it asks for one by name: for `server` if it is about one server's life, for `cluster` if
it is about that of several. Each is started when it is first asked for, and lives as long as the test process.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.servers import Server

__all__ = ["Place", "cluster", "parametrize_place", "place", "running_place", "server"]

type Place = Server | Cluster

FORMS: Final[dict[str, Callable[[str], Place]]] = {"server": Server, "cluster": Cluster}
"""The two forms, by the fixture that asks for one of them."""


def parametrize_place(metafunc: pytest.Metafunc) -> None:
    """Run a test on every server in both forms, or in that form alone which it, or a fixture of its, asks for."""
    if "place" in metafunc.fixturenames:
        asked = [form for form in FORMS if form in metafunc.fixturenames] or list(FORMS)
        places = [(name, form) for form in asked for name in binaries.chosen()]
        ids = [name if form == "server" else f"{name}-cluster" for name, form in places]
        metafunc.parametrize("place", places, indirect=True, ids=ids)


@pytest.fixture(scope="session")
def running_place() -> Iterator[Callable[[str, str], Place]]:
    """The places of this test process, by server and form: ``running_place("redis-7.0", "cluster")``."""
    places: dict[tuple[str, str], Place] = {}
    with ExitStack() as stack:

        def running(name: str, form: str) -> Place:
            if (name, form) not in places:
                made = FORMS[form](name)
                stack.enter_context(made)
                places[name, form] = made
            return places[name, form]

        yield running


@pytest.fixture
def place(request: pytest.FixtureRequest, running_place: Callable[[str, str], Place]) -> Place:
    """An empty server or cluster, whole and with the settings that all begin with."""
    found = running_place(*request.param)
    found.clean()
    return found


@pytest.fixture
def server(place: Place) -> Server:
    """The place, of a test that is about one server."""
    assert isinstance(place, Server)
    return place


@pytest.fixture
def cluster(place: Place) -> Cluster:
    """The place, of a test that is about a cluster."""
    assert isinstance(place, Cluster)
    return place
