"""connect: which servers a source names, and how they are reached."""

import pytest
import redis.exceptions
from redis.asyncio import ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.store.connect import Target, seeds_of


def target_of(source: Redis | str) -> Target:
    [target] = seeds_of(source).targets
    return target


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://user:s3cr3t@example.org:7000/3", "example.org:7000"),
        ("rediss://:s3cr3t@example.org:7000", "example.org:7000"),
        ("unix://user:s3cr3t@/tmp/x.sock?db=1", "/tmp/x.sock"),
    ],
)
def test_a_target_shows_its_address_and_never_a_password(url: str, address: str) -> None:
    """Of a URL or of a client that was made of one."""
    for source in (url, Redis.from_url(url)):
        target = target_of(source)
        assert target.name == address
        assert "s3cr3t" not in repr(target)


def test_a_target_keeps_how_the_users_client_connects() -> None:
    """TLS stays TLS, a socket a socket, database and user what they were; retries and decoding do not."""
    pool = target_of("rediss://user:pw@h:1/2?ssl_cert_reqs=none").pool(name="n", size=3, timeout_s=2.5)
    assert issubclass(pool.connection_class, SSLConnection)
    assert type(pool) is ConnectionPool
    options = pool.connection_kwargs
    assert (options["username"], options["password"], options["db"], options["ssl_cert_reqs"]) == (
        "user",
        "pw",
        2,
        "none",
    )
    assert (options["socket_timeout"], options["socket_connect_timeout"], pool.max_connections) == (2.5, 1.0, 3)
    assert options["decode_responses"] is False
    assert (
        target_of("unix:///x.sock").pool(name="n", size=1, timeout_s=1).connection_class is UnixDomainSocketConnection
    )


@pytest.mark.parametrize("source", ["http://h", "localhost:6379", "", "redis+cluster://h", 6379, None, redis.Redis])
def test_what_is_no_server_is_refused(source: object) -> None:
    """In one line that says what is allowed, without the URL itself: it may be a password."""
    with pytest.raises(ConfigError) as refused:
        seeds_of(source)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert "allowed are" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("redis://a:7000/0?cluster=true", ["a:7000"]),
        ("redis://user:s3cr3t@a:7000,b:7001,c/0?cluster=true", ["a:7000", "b:7001", "c:6379"]),
        ("rediss://a,b?cluster=1&ssl_cert_reqs=none", ["a:6379", "b:6379"]),
        ("redis://[::1]:7000,[::2]:7001?cluster=true", ["::1:7000", "::2:7001"]),
    ],
)
def test_a_cluster_may_be_named_by_several_nodes(url: str, names: list[str]) -> None:
    """User, password, database and TLS hold for each of them, and for those that they name."""
    seeds = seeds_of(url)
    assert seeds.is_cluster
    assert [target.name for target in seeds.targets] == names
    for target in (*seeds.targets, seeds.targets[0].at(("d", 7003))):
        options = target.pool(name="n", size=1, timeout_s=1).connection_kwargs
        assert options.get("password") == ("s3cr3t" if "s3cr3t" in url else None)
        assert options.get("ssl_cert_reqs") == ("none" if "ssl" in url else None)
        assert "cluster" not in options
        assert "s3cr3t" not in repr(target)


def test_a_users_cluster_client_is_read_for_its_nodes_and_how_it_connects() -> None:
    """Its own way of retrying, decoding and following is not taken over; its address map is."""
    nodes = [ClusterNode("a", 7000), ClusterNode("b", 7001)]
    client = RedisCluster(
        startup_nodes=nodes, password="s3cr3t", ssl=True, decode_responses=True, address_remap=lambda address: ("x", 1)
    )
    seeds = seeds_of(client)
    assert (seeds.is_cluster, [target.name for target in seeds.targets]) == (True, ["a:7000", "b:7001"])
    assert seeds.remap(("10.0.0.1", 7000)) == ("x", 1)
    pool = seeds.targets[0].pool(name="n", size=1, timeout_s=1)
    assert pool.connection_class is SSLConnection
    assert (pool.connection_kwargs["password"], pool.connection_kwargs["decode_responses"]) == ("s3cr3t", False)
    pool.make_connection()  # takes each of the options


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://a:7000,b:7001/0", "cluster=true"),
        ("redis://a:7000/0?cluster=maybe", "cluster=maybe"),
        ("unix:///x.sock?cluster=true", "TCP"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(url: str, words: str) -> None:
    """In one line that names the word that is wrong."""
    with pytest.raises(ConfigError, match=words):
        seeds_of(url)
