"""Rules for settings and arguments: what values of each kind may be, and how an error shows one that may not.

No password is ever part of an error, a ``repr`` or a log line made here.
"""

import re
from math import isfinite
from operator import index
from typing import Any, Final, Protocol, override
from urllib.parse import urlsplit

from uno.event_bus.dead_letter.errors import ConfigError

__all__ = [
    "SHOWN_LENGTH",
    "Choice",
    "Flag",
    "Real",
    "RedisUrl",
    "Rule",
    "Secret",
    "ServiceUrl",
    "Shards",
    "Text",
    "Whole",
    "hidden",
    "redact_url",
    "require",
    "require_seconds",
    "require_service_url",
    "require_whole",
    "shown",
]

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
        for host in urlsplit(url).netloc.split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return True


def shown(value: object) -> str:
    """Return the value as an error may show it: one line, short, without a password."""
    looks_like_url = isinstance(value, str) and ("://" in value or "@" in value)
    try:
        text = repr(redact_url(str(value)) if looks_like_url else value)
    except Exception:  # an argument of the caller's, of any class
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split("\n"))
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


def hidden(text: str) -> str:
    """Return what is shown of a secret."""
    return "***"


# --- rules: one for each kind of value -------------------------------------------------------------------


class Rule(Protocol):
    """What values of one kind may be."""

    allowed: str

    def parse(self, text: str) -> object:
        """Return the value that a variable's text means; ValueError when it means none."""

    def check(self, value: object) -> object:
        """Return the value in its canonical type; ValueError or TypeError when it is not allowed."""


class Whole(Rule):
    """A whole number within bounds; texts as `int` takes them, ``100_000`` included."""

    def __init__(self, low: int, high: int, unit: str, special: str = "") -> None:
        self.low, self.high = low, high
        self.allowed = f"a whole number of {unit} from {low} to {high}{special}"

    @override
    def parse(self, text: str) -> object:
        return int(text)

    @override
    def check(self, value: object) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)  # type: ignore[arg-type]  # anything else raises TypeError, which is the answer
        if not self.low <= number <= self.high:
            raise ValueError
        return number


class Port(Whole):
    """A TCP port, or None; 0 is any free one."""

    def __init__(self) -> None:
        super().__init__(0, 65_535, "port")
        self.allowed = "a port from 1 to 65535, or 0 for any free one"

    @override
    def parse(self, text: str) -> object:
        # What Kubernetes writes into every pod beside a service that is called like the variable: not a setting.
        return None if text.startswith("tcp://") else super().parse(text)

    @override
    def check(self, value: object) -> int | None:  # type: ignore[override]  # None is allowed here alone
        return None if value is None else super().check(value)


class Shards(Whole):
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


class Real(Rule):
    """A finite number within bounds; texts as `float` takes them, ``1e3`` included."""

    def __init__(self, low: float, high: float, unit: str, special: str = "", *, optional: bool = False) -> None:
        self.low, self.high, self.optional = low, high, optional
        self.allowed = f"a number of {unit} from {low:.15g} to {high:.15g}{special}"

    @override
    def parse(self, text: str) -> object:
        return float(text)

    @override
    def check(self, value: object) -> float | None:
        if value is None and self.optional:
            return None
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # anything else raises TypeError, which is the answer
        if not (isfinite(number) and self.low <= number <= self.high):
            raise ValueError
        return number


class Flag(Rule):
    """Yes or no."""

    allowed = "true or false (also 1, 0, yes, no, on, off)"
    yes: Final = frozenset({"true", "1", "yes", "on"})
    no: Final = frozenset({"false", "0", "no", "off"})

    @override
    def parse(self, text: str) -> object:
        word = text.lower()
        if word not in self.yes | self.no:
            raise ValueError
        return word in self.yes

    @override
    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value


class Text(Rule):
    """A text of one form."""

    def __init__(self, pattern: str, allowed: str, *, optional: bool = False) -> None:
        self.pattern, self.allowed, self.optional = re.compile(pattern), allowed, optional

    @override
    def parse(self, text: str) -> object:
        return text

    @override
    def check(self, value: object) -> str | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, str):
            raise TypeError
        if not self.pattern.fullmatch(value):
            raise ValueError
        return value


def require(sound: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` naming argument, value and what is allowed, unless the value is sound."""
    if not sound:
        raise ConfigError(f"{name} is {shown(value)}: allowed is {allowed}")


def require_seconds(name: str, value: object, low: float = 0.0, high: float = 3_153_600_000.0) -> float:
    """Return an argument that must be a number of seconds within bounds, at most a hundred years.

    Raises `ConfigError` naming argument, value and what is allowed; so does `require_whole`.
    """
    return float(_require(name, value, Real(low, high, "seconds")))


def require_whole(name: str, value: object, unit: str, low: int, high: int) -> int:
    """Return an argument that must be a whole number within bounds."""
    return int(_require(name, value, Whole(low, high, unit)))


def _require(name: str, value: object, rule: Rule) -> Any:
    try:
        return rule.check(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {shown(value)}: allowed is {rule.allowed}") from None


class Choice(Rule):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.allowed = f"{', '.join(words[:-1])} or {words[-1]}"

    @override
    def parse(self, text: str) -> object:
        return text.lower()

    @override
    def check(self, value: object) -> str:
        if value not in self.words:
            raise ValueError
        return str(value)


class Url(Rule):
    """A URL of one kind, or None."""

    @override
    def parse(self, text: str) -> object:
        return text

    @override
    def check(self, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise TypeError
        return self.sound(value)

    def sound(self, url: str) -> str:
        """Return the URL as it is kept; ValueError for one that is not allowed."""
        raise ValueError


class RedisUrl(Url):
    """Where the server is, or a node of the cluster."""

    allowed = (
        "redis://[user:password@]host[:port][/database], rediss://… (TLS), redis://host:port,host:port/0?cluster=true, "
        "unix:///path.sock, embedded: or embedded:///path (in a password, write / ? # @ as %2F %3F %23 %40)"
    )

    @override
    def sound(self, url: str) -> str:
        if not _is_redis_url(url):
            raise ValueError
        return url


def _is_redis_url(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    parts = urlsplit(url)
    match parts.scheme:
        case "redis" | "rediss":
            hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
            servers = all(_is_server(host.hostname, host.port, parts.path) for host in hosts)
            return url.startswith(f"{parts.scheme}://") and servers
        case "unix":
            return url.startswith("unix://") and len(parts.path) > 1
        case "embedded":
            return not parts.netloc and (url == "embedded:" or parts.path.startswith("/"))
    return False


def _is_server(host: str | None, port: int | None, path: str) -> bool:
    """Answer whether these parts of a URL name a server: redis-py would pass over a database that is no number."""
    database = path.strip("/")
    return bool(host) and port != 0 and (not database or (database.isascii() and database.isdigit()))


class Secret(Text):
    """A password or a token, or None."""

    def __init__(self) -> None:
        super().__init__(r"[^\x00-\x1f]{1,4096}", "a text on one line, of at most 4096 characters", optional=True)


class ServiceUrl(Url):
    """Where a service is, or None."""

    allowed = "http://host[:port] or https://host[:port], and a path where a proxy wants one; a token is set by itself"

    @override
    def sound(self, url: str) -> str:
        parts = urlsplit(url)
        if not url.isprintable() or not url.startswith(("http://", "https://")) or set(url) & set(" ?#\\"):
            raise ValueError
        if not parts.hostname or parts.port == 0 or "@" in parts.netloc:
            raise ValueError
        parts.hostname.encode("idna")  # UnicodeError is a ValueError: no name of any host
        return url.rstrip("/")


def require_service_url(url: str) -> str:
    """Return an argument that must be a service's URL, without a slash at its end. Raises `ConfigError`."""
    try:
        return str(ServiceUrl().check(url))
    except ValueError:
        raise ConfigError(f"a service's URL is {shown(redact_url(url))}: allowed is {ServiceUrl.allowed}") from None
