"""Connections: one factory for every client of the engine.

redis-py's own retries are off (a timed-out command may have run: the engine repeats only what is safe to
repeat), replies are bytes, and reads that block have connections of their own, so that neither a flood of
commands nor a blocked read can keep a heartbeat waiting.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.store.access import Access, PasswordFile
from uno.event_bus.dead_letter.store.tls import TlsConnection, Unusable

__all__ = ["BLOCK_MARGIN_S", "Access", "Address", "Client", "Redis", "RedisCluster", "Seeds", "Target", "seeds_of"]

BLOCK_MARGIN_S: Final = 3.0
"""A blocking read is given up this long after the server should have answered, seconds."""

CONNECT_TIMEOUT_S: Final = 1.0

type Address = tuple[str, int]
"""Host and port of a node; a server behind a unix socket has its path, and port 0."""

type Client = Redis | RedisCluster
"""What users pass; it is only read for where it connects to."""


class Target:
    """Where a server is and how to reach it; makes the pools of a node."""

    def __init__(self, connection_class: type[Any], options: dict[str, Any]) -> None:
        self._class = connection_class
        self._options = options

    def __repr__(self) -> str:
        return f"Target({self.name})"

    @property
    def address(self) -> Address:
        """Host and port, or socket path and 0."""
        if "path" in self._options:
            return str(self._options["path"]), 0
        return str(self._options.get("host", "localhost")), int(self._options.get("port", 6379))

    @property
    def name(self) -> str:
        """The address as one word, for messages; never a password."""
        host, port = self.address
        return f"{host}:{port}" if port else host

    def at(self, address: Address) -> Self:
        """Return the target of another node of the same cluster: reached alike, with the same credentials."""
        return type(self)(self._class, self._options | {"host": address[0], "port": address[1]})

    def check(self) -> None:
        """Look whether the files that its connections need can be used now. Raises `ConfigError`."""
        provider = self._options.get("credential_provider")
        try:
            if isinstance(provider, PasswordFile):
                provider.get_credentials()
            if issubclass(self._class, TlsConnection):
                self._class(**self._options).check()
        except Unusable as error:
            raise ConfigError(str(error)) from None

    def pool(self, *, name: str, size: int, timeout_s: float, readonly: bool = False) -> ConnectionPool:
        """Return a pool of at most `size` connections whose reads time out after `timeout_s` seconds.

        Callers wait for their turn before they ask it: it makes no more. With `readonly` they may be of a replica.
        """
        options = self._options | {
            "decode_responses": False,
            "protocol": self._options.get("protocol") or 3,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": min(CONNECT_TIMEOUT_S, timeout_s),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "health_check_interval": 0,
            "client_name": name,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if readonly:
            options["redis_connect_func"] = _connect_readonly
        return ConnectionPool(max_connections=size, connection_class=self._class, **options)


async def _connect_readonly(connection: Connection) -> None:
    await connection.on_connect()
    await connection.send_command("READONLY")
    await connection.read_response()


class Seeds(NamedTuple):
    """The servers that a queue is told of; those of a cluster know the others."""

    targets: tuple[Target, ...]
    is_cluster: bool
    """Whether the user said so; one who did not is asked when connecting."""
    remap: Callable[[Address], Address] = lambda address: address
    """The user's way from an address that nodes tell to one that can be reached from here."""

    def check(self) -> None:
        """Look whether the files that connections need can be used now. Raises `ConfigError`."""
        self.targets[0].check()  # the others are reached alike


_OURS: Final = ("himport_registry", "driver_info", "response_callbacks", "max_connections", "connection_class")
_OURS_PREFIXES: Final = ("maint_notifications_", "orig_", "oss_cluster_")


NO_ACCESS: Final = Access()


def _target(connection_class: type[Any], options: dict[str, Any]) -> Target:
    kept = {name: value for name, value in options.items() if name not in _OURS and not name.startswith(_OURS_PREFIXES)}
    return Target(connection_class, kept)


def seeds_of(source: Client | str, access: Access = NO_ACCESS) -> Seeds:
    """Return where a URL (``redis://``, ``rediss://``, ``unix://``) or a user's own client leads.

    A cluster's URL may name several nodes: ``redis://user:password@a:7000,b:7000/0?cluster=true``. `access` is added
    to a URL; a client has its own.

    Raises `ConfigError` for a URL of another kind, or one that `access` contradicts, or a client that is neither
    `redis.asyncio.Redis` nor `redis.asyncio.cluster.RedisCluster`.
    """
    if isinstance(source, str):
        return _seeds_of_url(source, access)
    if isinstance(source, RedisCluster):
        nodes = source.nodes_manager
        targets = [_target(node.connection_class, node.connection_kwargs) for node in nodes.startup_nodes.values()]
        seeds = Seeds(tuple(targets), is_cluster=True)
        return seeds if nodes.address_remap is None else seeds._replace(remap=nodes.address_remap)
    if isinstance(source, Redis):
        pool = source.connection_pool
        return Seeds((_target(pool.connection_class, pool.connection_kwargs),), is_cluster=False)
    kind = type(source).__qualname__
    raise ConfigError(
        f"redis is a {kind}; allowed are redis.asyncio.Redis, redis.asyncio.cluster.RedisCluster and a URL"
    )


def _seeds_of_url(url: str, access: Access) -> Seeds:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(f"redis_url has the scheme {parts.scheme!r}; allowed are redis, rediss, unix and embedded")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    said = options.pop("cluster", "false").lower()
    if said not in ("true", "false", "1", "0"):
        raise ConfigError(f"redis_url has cluster={said}; allowed are true and false")
    is_cluster = said in ("true", "1")
    user, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts and not is_cluster:
        raise ConfigError("redis_url names several hosts; allowed only for a cluster, with ?cluster=true")
    if is_cluster and parts.scheme == "unix":
        raise ConfigError("redis_url has cluster=true and the scheme unix; nodes of a cluster are reached by TCP")
    targets: list[Target] = []
    for host in hosts.split(","):
        one = urlunsplit((parts.scheme, f"{user}{at}{host}", parts.path, urlencode(options), ""))
        try:
            pool = Redis.from_url(one).connection_pool
        except ValueError:
            raise ConfigError("redis_url cannot be read; it looks like redis://user:password@host:6379/0") from None
        found = dict(pool.connection_kwargs)
        target = _target(access.add_to(pool.connection_class, found, parts.scheme), found)
        targets.append(targets[0].at(target.address) if targets else target)
    return Seeds(tuple(targets), is_cluster)
