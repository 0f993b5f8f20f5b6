"""Who a queue is to Redis, where a URL does not say: user, password and TLS files of the settings.

They hold for URLs alone. A client that users pass keeps its own options and its own provider of credentials.
"""

from typing import Any, Final, NamedTuple, Self, override

from redis.asyncio.connection import SSLConnection
from redis.credentials import CredentialProvider

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.store.tls import FILES, Contexts, TlsConnection, Unusable

__all__ = ["Access", "PasswordFile"]

LONGEST_PASSWORD: Final = 4096


def _named(field: str) -> str:
    """Return how an error names a setting."""
    return f"{DeadLetterConfig.variable(field)} ({field})"


class PasswordFile(CredentialProvider):
    """Gives each new connection the password that the file has then."""

    def __init__(self, username: str | None, path: str) -> None:
        self._username = username
        self._path = path

    def __repr__(self) -> str:
        return f"PasswordFile({self._path!r})"

    @override
    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return user and password. Raises `Unusable`."""
        password = self._password()
        return (self._username, password) if self._username else (password,)

    @override
    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        # Not in a thread: the application's own calls may have taken them all, and a heartbeat would wait for one.
        return self.get_credentials()

    def _password(self) -> str:
        try:
            with open(self._path, encoding="utf-8") as file:
                password = file.readline(LONGEST_PASSWORD + 2).rstrip("\r\n")
        except OSError as error:
            why = error.strerror or type(error).__name__
        except ValueError:
            why = "its first line is not UTF-8"
        else:
            if password and len(password) <= LONGEST_PASSWORD:
                return password
            why = f"its first line is no password: {len(password)} characters, allowed are 1 to {LONGEST_PASSWORD}"
        raise Unusable(f"{_named('redis_password_file')} is {self._path!r}: {why}") from None


class Access(NamedTuple):
    """What the settings say; nothing by default."""

    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @override
    def __repr__(self) -> str:
        return f"Access(username={self.username!r})"

    @classmethod
    def of(cls, config: DeadLetterConfig) -> Self:
        """Return what the settings of a queue say."""
        return cls(*(getattr(config, f"redis_{name}") for name in cls._fields))

    def refuse_for(self, scheme: str) -> None:
        """Raise `ConfigError` for what a server of our own (``embedded:``) has no use for."""
        for name, value in zip(self._fields, self, strict=True):
            if value is not None:
                raise ConfigError(
                    f"{_named(f'redis_{name}')} is set, but redis_url is {scheme}: a server without users and TLS"
                )

    def add_to(self, kind: type[Any], options: dict[str, Any], scheme: str) -> type[Any]:
        """Add it to a URL's options; return the class of connections. Raises `ConfigError` where the two disagree."""
        self._add_credentials(options)
        if issubclass(kind, SSLConnection):
            self._add_files(options)
            return TlsConnection
        for option, field in FILES.items():
            if getattr(self, field.removeprefix("redis_")) is not None:
                raise ConfigError(
                    f"{_named(field)} is set, but redis_url is {scheme}://…, without TLS: write rediss://"
                )
            if option in options:
                raise ConfigError(f"redis_url has {option}, but is {scheme}://…, without TLS: write rediss://")
        return kind

    def _add_credentials(self, options: dict[str, Any]) -> None:
        """Add user and password; a URL may have the one, and the settings the other."""
        if self.password is not None and self.password_file is not None:
            raise ConfigError(f"{_named('redis_password')} and {_named('redis_password_file')} are set: allowed is one")
        if options.get("username") not in (None, self.username) and self.username is not None:
            raise ConfigError(f"redis_url names one user, {_named('redis_username')} another: allowed is one")
        for field, value in (("redis_password", self.password), ("redis_password_file", self.password_file)):
            if value is not None and options.get("password") not in (None, self.password):
                raise ConfigError(f"redis_url has one password, {_named(field)} another: allowed is one")
        username = options.get("username") or self.username
        if self.password_file is not None:
            options.pop("username", None)
            options["credential_provider"] = PasswordFile(username, self.password_file)
        elif username is not None or self.password is not None:
            options["username"] = username
            options["password"] = options.get("password") or self.password

    def _add_files(self, options: dict[str, Any]) -> None:
        if options.get("ssl_check_hostname") is False:
            raise ConfigError(
                "redis_url has ssl_check_hostname=false: allowed is true; name the host as its certificate does"
            )
        named: dict[str, str] = {}
        for option, field in FILES.items():
            path = getattr(self, field.removeprefix("redis_"))
            if path is None:
                continue
            if options.get(option) not in (None, path):
                raise ConfigError(f"redis_url has {option}, {_named(field)} another file: allowed is one")
            options[option] = path
            named[option] = _named(field)
        if options.get("ssl_keyfile") and not options.get("ssl_certfile"):
            name = named.get("ssl_keyfile", "ssl_keyfile of redis_url")
            raise ConfigError(f"{name} is set, but no certificate: set {_named('redis_cert_file')}, too")
        options["contexts"] = Contexts(named)
