"""Settings of the engine: documented fields, from arguments or from ``DLQ_*`` variables.

A field and its variable share one name (``max_retries`` is ``DLQ_MAX_RETRIES``), one rule and one shape of
error: what was set, to which value, what is allowed. Values are checked when the config is made, and a config
never changes afterwards. No password is ever part of an error, a ``repr`` or a log line made here.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from math import isfinite
from operator import index
from types import MappingProxyType
from typing import Any, Final, Protocol, Self, override
from urllib.parse import urlsplit

from uno.event_bus.dead_letter.errors import ConfigError

__all__ = ["VARIABLES", "DeadLetterConfig", "redact_url", "require_seconds", "require_whole"]

SHOWN_LENGTH: Final = 80
"""Longest part of a refused value that an error shows, characters."""


# --- passwords -------------------------------------------------------------------------------------------

_SECRET_PARAMETER: Final = re.compile(r"(?i)([?&;][^=&;#\s]*(?:pass|secret|token)[^=&;#\s]*=)[^&;#\s]*")
_HARMLESS_HOST: Final = re.compile(r"(?:embedded:|(?:redis|rediss)://)?[A-Za-z0-9._-]+:\d{1,5}(?:/\d*)?")


def redact_url(url: str) -> str:
    """Return the URL with its user information and secret query values as ``***``; never raises.

    Everything up to the last ``@`` counts as user information, because a password with an unescaped ``/``
    or ``#`` makes a URL parser see it as something else. Without an ``@``, a text that does not parse as a
    URL may itself be a password, so nothing but its scheme is shown.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if "@" in url:
            return "***@" + _without_secret_parameters(url.rpartition("@")[2])
        return url if _HARMLESS_HOST.fullmatch(url) or url == "embedded:" else "***"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,20}", scheme):
        return "***"
    if "@" in rest:
        return f"{scheme}://***@{_without_secret_parameters(rest.rpartition('@')[2])}"
    return f"{scheme}://{_without_secret_parameters(rest)}" if _port_is_sound(url) else f"{scheme}://***"


def _without_secret_parameters(text: str) -> str:
    return _SECRET_PARAMETER.sub(r"\1***", text)


def _port_is_sound(url: str) -> bool:
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    """Return the value as an error may show it: one line, short, without a password."""
    looks_like_url = isinstance(value, str) and ("://" in value or "@" in value)
    try:
        text = repr(redact_url(str(value)) if looks_like_url else value)
    except Exception:  # an argument of the caller's, of any class
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split("\n"))
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


# --- rules: one for each kind of value -------------------------------------------------------------------


class _Rule(Protocol):
    allowed: str

    def parse(self, text: str) -> object:
        """Return the value that a variable's text means; ValueError when it means none."""

    def check(self, value: object) -> object:
        """Return the value in its canonical type; ValueError or TypeError when it is not allowed."""


class _Whole:
    """A whole number within bounds; texts as `int` takes them, ``100_000`` included."""

    def __init__(self, low: int, high: int, unit: str, special: str = "") -> None:
        self.low, self.high = low, high
        self.allowed = f"a whole number of {unit} from {low} to {high}{special}"

    def parse(self, text: str) -> object:
        return int(text)

    def check(self, value: object) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)  # type: ignore[arg-type]  # anything else raises TypeError, which is the answer
        if not self.low <= number <= self.high:
            raise ValueError
        return number


class _Shards(_Whole):
    """A power of two, or None: what the queue has."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(low, high, "shards")
        self.allowed = f"a power of two from {low} to {high}"

    @override
    def check(self, value: object) -> int | None:  # type: ignore[override]  # None is allowed here alone
        if value is None:
            return None
        number = super().check(value)
        if number & (number - 1):
            raise ValueError
        return number


class _Real:
    """A finite number within bounds; texts as `float` takes them, ``1e3`` included."""

    def __init__(self, low: float, high: float, unit: str, special: str = "", *, optional: bool = False) -> None:
        self.low, self.high, self.optional = low, high, optional
        self.allowed = f"a number of {unit} from {low:.15g} to {high:.15g}{special}"

    def parse(self, text: str) -> object:
        return float(text)

    def check(self, value: object) -> float | None:
        if value is None and self.optional:
            return None
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # anything else raises TypeError, which is the answer
        if not (isfinite(number) and self.low <= number <= self.high):
            raise ValueError
        return number


class _Flag:
    allowed = "true or false (also 1, 0, yes, no, on, off)"
    yes: Final = frozenset({"true", "1", "yes", "on"})
    no: Final = frozenset({"false", "0", "no", "off"})

    def parse(self, text: str) -> object:
        word = text.lower()
        if word not in self.yes | self.no:
            raise ValueError
        return word in self.yes

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value


class _Text:
    """A text of one form."""

    def __init__(self, pattern: str, allowed: str, *, optional: bool = False) -> None:
        self.pattern, self.allowed, self.optional = re.compile(pattern), allowed, optional

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, str):
            raise TypeError
        if not self.pattern.fullmatch(value):
            raise ValueError
        return value


def require_seconds(name: str, value: object, low: float = 0.0, high: float = 3_153_600_000.0) -> float:
    """Return an argument that must be a number of seconds within bounds, at most a hundred years.

    Raises `ConfigError` naming argument, value and what is allowed; so does `require_whole`.
    """
    return float(_require(name, value, _Real(low, high, "seconds")))


def require_whole(name: str, value: object, unit: str, low: int, high: int) -> int:
    """Return an argument that must be a whole number within bounds."""
    return int(_require(name, value, _Whole(low, high, unit)))


def _require(name: str, value: object, rule: _Rule) -> Any:
    try:
        return rule.check(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {_shown(value)}: allowed is {rule.allowed}") from None


class _RedisUrl:
    allowed = (
        "redis://[user:password@]host[:port][/database], rediss://… (TLS), unix:///path.sock, embedded: "
        "or embedded:///path (in a password, write / ? # @ as %2F %3F %23 %40)"
    )

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise TypeError
        if not _is_redis_url(value):
            raise ValueError
        return value


def _is_redis_url(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    parts = urlsplit(url)
    match parts.scheme:
        case "redis" | "rediss":
            return url.startswith(f"{parts.scheme}://") and _is_server(parts.hostname, parts.port, parts.path)
        case "unix":
            return url.startswith("unix://") and len(parts.path) > 1
        case "embedded":
            return not parts.netloc and (url == "embedded:" or parts.path.startswith("/"))
    return False


def _is_server(host: str | None, port: int | None, path: str) -> bool:
    """Answer whether these parts of a URL name a server: redis-py would pass over a database that is no number."""
    database = path.strip("/")
    return bool(host) and port != 0 and (not database or (database.isascii() and database.isdigit()))


# --- the settings ----------------------------------------------------------------------------------------

SECONDS_OF_A_YEAR: Final = 31_536_000
LARGEST_VALUE: Final = 536_870_912
"""Bytes of the largest value that a Redis server takes with its default ``proto-max-bulk-len``."""


def _setting(default: object, rule: _Rule) -> Any:
    """Return a dataclass field with this default and rule; `Any`, as `dataclasses.field` pretends too."""
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeadLetterConfig:
    """Settings of one queue in one process; made once, checked, and never changed (`dataclasses.replace` copies).

    Raises `ConfigError` with one line that names the field and its variable, the value and what is allowed.
    """

    redis_url: str | None = _setting(None, _RedisUrl())
    """Where the letters live. ``DLQ_REDIS_URL``, else ``REDIS_URL``; None when a client is passed instead.

    ``redis://``, ``rediss://`` (TLS), ``unix://``, ``embedded:`` (a server of our own, in a directory of the
    user's) or ``embedded:///path``. Any node of a cluster will do.
    """

    queue: str = _setting(
        "default",
        _Text(r"[a-z0-9][a-z0-9._-]{0,63}", "1 to 64 of a-z 0-9 . _ - and a letter or digit first"),
    )
    """Name of the queue; one service usually owns one. Queues share nothing but the server."""

    shards: int | None = _setting(None, _Shards(1, 4096))
    """Slices of the queue, a power of two; counts only when the queue is created, growth is a verb of its own.

    None: 4 for a new queue, else as many as the queue has. A value that the queue never had is `LayoutMismatch`.

    One shard is one hash slot: more shards spread over more cluster nodes, and cost each worker a connection
    and an idle poll per shard it serves. 1 keeps everything on one node; above 256 few deployments gain.
    """

    max_retries: int = _setting(5, _Whole(0, 1_000_000, "retries"))
    """Retries after the capture, that is attempts by the queue, before a letter is parked; redrive counts anew.

    0: one attempt as soon as it is captured, and its failure parks. Above about 20, with the default delays, a
    true bug is retried for most of a day before anybody sees it parked.
    """

    retry_delay: float = _setting(60.0, _Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Seconds before the first retry; the next ones wait 2, 4, 8 … times as long (see `retry`).

    0: every retry at once, so that all retries may burn within one outage of a second.
    """

    retry_max_delay: float = _setting(3600.0, _Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Longest wait between two retries, seconds, before jitter; never shorter than ``retry_delay`` itself."""

    retry_for: float | None = _setting(None, _Real(0.001, 10 * SECONDS_OF_A_YEAR, "seconds", optional=True))
    """Seconds after the capture beyond which no retry is scheduled: the letter is parked instead. None: no bound.

    Shorter than the sum of the delays, it ends retries before ``max_retries`` does.
    """

    max_queue_size: int = _setting(100_000, _Whole(0, 10**12, "letters", ", 0 for no bound"))
    """Letters that the queue holds at most; the next `add` raises `QueueFull`, and nothing is trimmed.

    0: no bound but the server's memory, which other users of that server share.
    """

    retention_days: float = _setting(7.0, _Real(0, 36_500, "days", ", 0 to keep for ever"))
    """Days that a parked letter is kept, from when it was parked. 0: for ever, so the queue fills in the end."""

    concurrency: int = _setting(10, _Whole(1, 10_000, "handlers"))
    """Handlers that one worker runs at a time. High values hold many leases and what the handlers open."""

    batch_size: int = _setting(100, _Whole(1, 1000, "letters"))
    """Letters taken, settled or replayed in one round trip.

    Small ones cost a round trip a letter; above about 500 one script keeps its node from others for milliseconds.
    """

    enabled: bool = _setting(True, _Flag())
    """False: `add` raises `Disabled` and the event bus lets errors through."""

    worker_mode: bool = _setting(False, _Flag())
    """True: the ``service`` command runs a worker too; ``worker`` implies it."""

    lease_seconds: float = _setting(30.0, _Real(0.1, 86_400, "seconds"))
    """Seconds that a worker may be out of touch before its letters go to others; the queue keeps its first value.

    Heartbeats go out every third of it. Short: a pause of the process costs a crash count and a second run;
    long: what a dead worker held waits that long.
    """

    max_crashes: int = _setting(3, _Whole(1, 1000, "crashes"))
    """Leases of one letter that may run out before it is parked as STALLED; redrive counts anew.

    1: one killed process parks what it ran. High: a letter that kills its process kills that many.
    """

    app: str | None = _setting(
        None,
        _Text(
            r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*",
            "module:attribute, for example shop.events:queue",
            optional=True,
        ),
    )
    """Where commands find the handlers: ``module:attribute`` of a `DeadLetterQueue`."""

    shutdown_grace: float = _setting(25.0, _Real(0, 86_400, "seconds"))
    """Seconds that running handlers get to finish after SIGTERM. 0: cancelled at once.

    Keep it under the supervisor's patience (Kubernetes: 30 s), or SIGKILL ends them and their leases run out.
    """

    max_payload_bytes: int = _setting(1_048_576, _Whole(1, LARGEST_VALUE, "bytes"))
    """Largest event, bytes as serialised; a larger one is `PayloadTooLarge` before any I/O.

    Large ones make every script that reads them slow for all: keep big bodies elsewhere, capture a reference.
    """

    unhandled_after: float = _setting(3600.0, _Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Seconds that a letter without a handler in any worker waits before it is parked as UNHANDLED.

    0: parked at the first sight, also in the middle of a rolling upgrade that is about to bring its handler.
    """

    strict: bool = _setting(False, _Flag())
    """True: refuse to start on a server that may lose letters (an evicting ``maxmemory-policy``)."""

    dedupe_window: float = _setting(600.0, _Real(0, 604_800, "seconds", ", 0 to remember nothing"))
    """Seconds, up to twice that, in which a repeated capture answers the first one's id; 0: never.

    Costs about 122 bytes a letter captured within it.
    """

    operation_timeout: float = _setting(5.0, _Real(0.05, 300, "seconds"))
    """Seconds that one round trip to Redis may take; then `StoreUnavailable`.

    Too short: a slow moment of the server becomes an error. Longer than a third of ``lease_seconds``: one
    stuck heartbeat may cost leases.
    """

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = getattr(self, name)
            try:
                canonical = rule.check(value)
            except (TypeError, ValueError, OverflowError):
                raise _refused(name, VARIABLES[name], value, rule) from None
            object.__setattr__(self, name, canonical)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Return the settings that the variables give; an override that is not None beats its variable.

        An empty variable counts as not set. ``environ`` defaults to the process's. Raises `ConfigError` on a
        bad value, and on an unknown ``DLQ_*`` name that looks like a typing error of a known one; any other
        unknown name is ignored.
        """
        environ = os.environ if environ is None else environ
        _refuse_misspelt(environ)
        values = {name: value for name, value in overrides.items() if value is not None}
        for name in VARIABLES.keys() - values.keys():
            variable, text = _read(environ, name)
            if text:
                values[name] = _parse(name, variable, text)
        return cls(**values)

    def require_redis_url(self) -> str:
        """Return the Redis URL; `ConfigError` with one line that names both variables when there is none."""
        if self.redis_url is None:
            raise ConfigError(
                "no Redis URL is set: set DLQ_REDIS_URL or REDIS_URL, for example redis://localhost:6379/0, "
                "or embedded: for a server of its own"
            )
        return self.redis_url

    def redacted(self) -> dict[str, object]:
        """Return field name → value, as logs and reports may show them: without the URL's password."""
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.redis_url is not None:
            shown["redis_url"] = redact_url(self.redis_url)
        return shown

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.redacted().items())
        return f"{type(self).__name__}({inner})"


_RULES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {each.name: each.metadata["rule"] for each in fields(DeadLetterConfig)}
)

VARIABLES: Final[Mapping[str, str]] = MappingProxyType({name: f"DLQ_{name.upper()}" for name in _RULES})
"""Field name → the variable that sets it; ``redis_url`` also comes from ``REDIS_URL``."""


def _refuse_unknown_fields(init: Callable[..., None]) -> Callable[..., None]:
    """Return the dataclass's ``__init__``, raising `ConfigError` for a name that it does not know."""

    @wraps(init)
    def checked(self: DeadLetterConfig, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in _RULES:
                hint = _did_you_mean(name, _RULES)
                raise ConfigError(f"{name[:SHOWN_LENGTH]!r} is no field of DeadLetterConfig{hint}")
        init(self, *args, **values)

    return checked


# Wrapped after the fact: the dataclass writes __init__ itself, and type checkers keep its signature this way.
DeadLetterConfig.__init__ = _refuse_unknown_fields(DeadLetterConfig.__init__)  # type: ignore[method-assign]


def _refused(name: str, variable: str, value: object, rule: _Rule) -> ConfigError:
    # A URL is redacted whatever it looks like: without "://" or "@" it may be nothing but the password.
    shown = _shown_url(value) if name == "redis_url" else _shown(value)
    return ConfigError(f"{variable} ({name}) is {shown}: allowed is {rule.allowed}")


def _shown_url(value: object) -> str:
    return _shown(redact_url(value)) if isinstance(value, str) else f"of type {type(value).__name__}"


def _read(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the variable that sets this field, and its text; an empty text when nothing sets it."""
    variable = VARIABLES[name]
    text = environ.get(variable, "").strip()
    if name == "redis_url" and not text:
        return "REDIS_URL", environ.get("REDIS_URL", "").strip()
    return variable, text


def _parse(name: str, variable: str, text: str) -> object:
    rule = _RULES[name]
    try:
        return rule.check(rule.parse(text))
    except (TypeError, ValueError, OverflowError):
        raise _refused(name, variable, text, rule) from None


# --- names that are nearly right -------------------------------------------------------------------------

SIMILARITY: Final = 0.75
"""How alike two names are (difflib's ratio) before one is taken for a typing error of the other."""

_OF_OTHER_PARTS: Final = re.compile(
    r"DLQ_(?:(?:SERVICE|TEST|SPOOL)_\w*|READ_FROM|REDIS_SERVER)"
    # What Kubernetes writes into every pod for services called dlq, dlq-redis, dlq-worker …
    r"|DLQ_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Raise on a ``DLQ_*`` name that is nearly a known one: passed over in silence, it would cost letters."""
    known = {variable.removeprefix("DLQ_"): variable for variable in VARIABLES.values()}
    for name in sorted(environ):
        if not name.startswith("DLQ_") or name in known.values() or _OF_OTHER_PARTS.fullmatch(name):
            continue
        hint = _did_you_mean(name.removeprefix("DLQ_"), known, "DLQ_")
        if hint:
            raise ConfigError(f"{name[:SHOWN_LENGTH]!r} is no variable of the dead-letter queue{hint}")


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = get_close_matches(name, known, n=1, cutoff=SIMILARITY)
    return f": did you mean {prefix}{close[0]}?" if close else ""
