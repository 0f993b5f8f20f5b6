"""What a server's version tells."""

import pytest

from uno.event_bus.dead_letter.store.server import ServerFacts


@pytest.mark.parametrize(
    ("name", "version", "early"),
    [
        ("redis", "7.2.6", False),
        ("redis", "7.4.0", True),
        ("redis", "7.4.2", True),
        ("redis", "7.4.1-alpine", True),
        ("redis", "7.4.3", False),
        ("redis", "8.2.1", False),
        ("valkey", "7.2.7", False),
        ("valkey", "8.0.0", True),
        ("valkey", "8.0.0-rc1", True),
        ("valkey", "9.1.2", True),
        ("another", "8.0.0", False),
        ("redis", "", False),
    ],
)
def test_servers_whose_waitaof_confirms_early_are_known(name: str, version: str, early: bool) -> None:
    """From where to where redis/redis#13793 was in them."""
    assert ServerFacts(name, version, "", 0, 0, is_cluster=False).confirms_early is early
