"""What an error of a call to Redis means: the one place that knows codes and classes, and a handful of decisions."""

from enum import Enum
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    MovedError,
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

from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PermissionDenied, StoreError

__all__ = ["Meaning", "NotConnected", "classify", "describe", "refusal"]


class Meaning(Enum):
    """What an error of a call to Redis means for the caller."""

    NOT_SENT = "not sent"
    """No connection: certainly not executed; try again."""
    UNKNOWN = "outcome unknown"
    """The connection broke or the answer is late: it may have run; repeat only what is safe to repeat."""
    DEGRADED = "degraded"
    """The server refuses for now (loading, busy, read-only, disk full, half of a slot moved): not executed; try
    again, slower."""
    MOVED = "moved"
    """Another node serves the slot: not executed; go there from now on."""
    ASK = "ask"
    """The slot is on its way to another node, and the letters' keys are there: not executed; ask there once."""
    FULL = "full"
    """The server has no memory left for writes: not executed."""
    REFUSED = "refused"
    """The shard knows a later protocol or layout than the caller: not executed."""
    LOCKED_OUT = "locked out"
    """User or password are refused, so certainly not executed: when a queue is opened a setting to mend, later a
    rotation that may be under way; try again."""
    FATAL = "fatal"
    """Wrong rights, a key of another type, a bug: trying again does not help."""


_DEGRADED_CODES: Final = frozenset(
    {"LOADING", "BUSY", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED"}
)
_NO_LOGIN_CODES: Final = frozenset({"NOAUTH", "WRONGPASS"})


class NotConnected(RedisConnectionError):
    """No connection was to be had: the command certainly did not run."""


def _code_of(error: BaseException) -> str:
    """Return a server's error code; redis-py cuts those that it knows off the text."""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


def classify(error: BaseException) -> Meaning:
    """Return what the error means; anything that is not known to be harmless is fatal."""
    code = _code_of(error)
    if isinstance(error, NotConnected):
        return Meaning.NOT_SENT
    if isinstance(error, AskError):  # redis-py's MovedError is one, too
        return Meaning.MOVED if isinstance(error, MovedError) else Meaning.ASK
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError) or code in _NO_LOGIN_CODES:
        return Meaning.LOCKED_OUT
    if isinstance(error, AuthorizationError | NoPermissionError):
        return Meaning.FATAL
    if isinstance(error, OutOfMemoryError) or code == "OOM" or "OOM command not allowed" in str(error):
        return Meaning.FULL
    if isinstance(error, BusyLoadingError) or code in _DEGRADED_CODES:
        return Meaning.DEGRADED
    if code in ("UPGRADE", "LAYOUT", "GROWING"):
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
    if classify(error) is Meaning.LOCKED_OUT:
        return ConfigError(f"{text} at {address}")
    if (
        isinstance(error, AuthorizationError | NoPermissionError)
        or _code_of(error) == "NOPERM"
        or any(words in text for words in _NO_RIGHT)
    ):
        return PermissionDenied(f"the Redis user lacks a right at {address}: {text}")
    return StoreError(f"{text} at {address}")


def describe(error: BaseException) -> str:
    """Return one line about an error of Redis, without addresses of objects or passwords."""
    text = str(error).splitlines()[0] if str(error) else ""
    if classify(error) is Meaning.LOCKED_OUT:
        return f"user or password was refused ({text or 'no details'})"
    kind = "" if isinstance(error, RedisError) and text else f"{type(error).__name__}: "
    return f"{kind}{text or 'no details'}"
