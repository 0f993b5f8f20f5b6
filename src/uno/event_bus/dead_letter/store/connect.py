"""Connections: one factory for every client, and one place that says what an error means.

redis-py's own retries are off (a timed-out command may have run: the engine repeats only what is safe to
repeat), replies are bytes, and reads that block have connections of their own, so that neither a flood of
commands nor a blocked read can keep a heartbeat waiting.
"""

from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)
from redis.maint_notifications import MaintNotificationsConfig

from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PermissionDenied, StoreError

__all__ = [
    "BLOCK_MARGIN_S",
    "Meaning",
    "NotConnected",
    "Redis",
    "Target",
    "classify",
    "describe",
    "refusal",
    "target_of",
]

BLOCK_MARGIN_S: Final = 3.0
"""A blocking read is given up this long after the server should have answered, seconds."""

CONNECT_TIMEOUT_S: Final = 1.0


class Meaning(Enum):
    """What an error of a call to Redis means for the caller; a handful of decisions."""

    NOT_SENT = "not sent"
    """No connection: certainly not executed; try again."""
    UNKNOWN = "outcome unknown"
    """The connection broke or the answer is late: it may have run; repeat only what is safe to repeat."""
    DEGRADED = "degraded"
    """The server refuses for now (loading, busy, read-only, disk full): not executed; try again, slower."""
    FULL = "full"
    """The server has no memory left for writes: not executed."""
    REFUSED = "refused"
    """The shard knows a later protocol or layout than the caller: not executed."""
    FATAL = "fatal"
    """Wrong credentials or rights, a key of another type, a bug: trying again does not help."""


_DEGRADED_CODES: Final = frozenset(
    {"LOADING", "BUSY", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED"}
)


class NotConnected(RedisConnectionError):
    """No connection was to be had: the command certainly did not run."""


def code_of(error: BaseException) -> str:
    """Return the first word of a server's error: its code."""
    return str(error).partition(" ")[0]


def classify(error: BaseException) -> Meaning:
    """Return what the error means; anything that is not known to be harmless is fatal."""
    code = code_of(error)
    if isinstance(error, NotConnected):
        return Meaning.NOT_SENT
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return Meaning.FATAL
    if isinstance(error, OutOfMemoryError) or code == "OOM" or "OOM command not allowed" in str(error):
        return Meaning.FULL
    if isinstance(error, BusyLoadingError) or code in _DEGRADED_CODES:
        return Meaning.DEGRADED
    if code in ("UPGRADE", "LAYOUT"):
        return Meaning.REFUSED
    if isinstance(error, ResponseError):
        return _meaning_of_text(str(error))
    # TypeError, AttributeError, RuntimeError: what a transport torn down under a caller raises (cpython#136234).
    if isinstance(
        error, RedisConnectionError | RedisTimeoutError | OSError | TypeError | AttributeError | RuntimeError
    ):
        return Meaning.UNKNOWN
    return Meaning.FATAL


def _meaning_of_text(text: str) -> Meaning:
    # Redis 6.2 wraps an error raised inside a script in a sentence of its own.
    if any(f"-{code}" in text or f": {code} " in text for code in _DEGRADED_CODES):
        return Meaning.DEGRADED
    return Meaning.FATAL


_NO_RIGHT: Final = ("ACL failure in script", "The user executing the script")
"""What Redis 7 and later, and 6.2, say when a script runs a command that its user may not run."""


def refusal(error: BaseException, address: str) -> DeadLetterError:
    """Return what a caller is told of a fatal error; no password is in it."""
    text = describe(error)
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError) or code_of(error) in (
        "NOAUTH",
        "WRONGPASS",
    ):
        return ConfigError(f"user or password of redis_url was refused at {address} ({text})")
    if (
        isinstance(error, AuthorizationError | NoPermissionError)
        or code_of(error) == "NOPERM"
        or any(words in text for words in _NO_RIGHT)
    ):
        return PermissionDenied(f"the Redis user of redis_url lacks a right at {address}: {text}")
    return StoreError(f"{text} at {address}")


class Target:
    """Where a server is and how to reach it; makes the pools of a node."""

    def __init__(self, connection_class: type[Any], options: dict[str, Any]) -> None:
        self._class = connection_class
        self._options = options

    def __repr__(self) -> str:
        return f"Target({self.address})"

    @property
    def address(self) -> str:
        """Host and port, or socket path; never a password."""
        if "path" in self._options:
            return str(self._options["path"])
        return f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"

    def pool(self, *, name: str, size: int, timeout_s: float) -> ConnectionPool:
        """Return a pool of at most `size` connections whose reads time out after `timeout_s` seconds.

        A caller waits for a free connection; the pool never refuses.
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
        return BlockingConnectionPool(max_connections=size, timeout=None, connection_class=self._class, **options)


_OURS: Final = ("himport_registry", "driver_info")
_OURS_PREFIXES: Final = ("maint_notifications_", "orig_")


def target_of(source: Redis | str) -> Target:
    """Return the target of a URL (``redis://``, ``rediss://``, ``unix://``) or of a user's own client.

    Raises `ConfigError` for a URL of another kind, or a client that is not `redis.asyncio.Redis`.
    """
    if isinstance(source, str):
        scheme = urlsplit(source).scheme
        if scheme not in ("redis", "rediss", "unix"):
            raise ConfigError(f"redis_url has the scheme {scheme!r}; allowed are redis, rediss, unix and embedded")
        try:
            source = Redis.from_url(source)
        except ValueError:
            raise ConfigError("redis_url cannot be read; it looks like redis://user:password@host:6379/0") from None
    if not isinstance(source, Redis):
        raise ConfigError(f"redis is a {type(source).__qualname__}; allowed are redis.asyncio.Redis and a URL")
    pool = source.connection_pool
    kept = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name not in _OURS and not name.startswith(_OURS_PREFIXES)
    }
    return Target(pool.connection_class, kept)


def describe(error: BaseException) -> str:
    """Return one line about an error of Redis, without addresses of objects or passwords."""
    text = str(error).splitlines()[0] if str(error) else ""
    kind = "" if isinstance(error, RedisError) and text else f"{type(error).__name__}: "
    return f"{kind}{text or 'no details'}"
