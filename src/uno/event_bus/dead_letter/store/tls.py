"""TLS to Redis: what a server's certificate is checked by, and which certificate is shown to it.

redis-py makes a context for each connection object, once: so certificates that were renewed would reach only new
objects, and the system's authorities would be trusted beside those of ``redis_ca_file``. Here the nodes of a queue
share one context, which is made anew when a file has changed; with a file of authorities only those count.
"""

import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, override

from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = ["FILES", "Contexts", "TlsConnection", "Unusable"]

logger = logging.getLogger(__name__)

FILES: Final = {"ssl_ca_certs": "redis_ca_file", "ssl_certfile": "redis_cert_file", "ssl_keyfile": "redis_key_file"}
"""redis-py's option of each file, and the setting that gives it."""


class Unusable(RedisConnectionError):
    """A file that a connection needs cannot be used: nothing was sent.

    While a queue is opened it is a setting to mend, later a rotation that is under way.
    """


class Contexts:
    """Gives the context of new connections. `named` says how people set a file: option of redis-py → setting."""

    def __init__(self, named: Mapping[str, str]) -> None:
        self._named = named
        self._made: ssl.SSLContext | None = None
        self._made_of: tuple[tuple[str | int, ...], ...] = ()
        self._has_warned = False

    def get(self, settings: RedisSSLContext) -> ssl.SSLContext:
        """Return the context of these settings, with the files as they are now. Raises `Unusable`."""
        found = self._look(settings)
        if self._made is None or found != self._made_of:
            self._made = self._make(settings)
            self._made_of = found
        return self._made

    def _look(self, settings: RedisSSLContext) -> tuple[tuple[str | int, ...], ...]:
        """Return what would be different if a file had been renewed."""
        looks: list[tuple[str | int, ...]] = []
        for option, path in _paths(settings).items():
            with self._told(option, path):
                state = os.stat(path)
                looks.append((path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(looks)

    def _make(self, settings: RedisSSLContext) -> ssl.SSLContext:
        for option, path in _paths(settings).items():
            with self._told(option, path), open(path, "rb") as file:
                file.read(1)  # OpenSSL does not say which of two files it may not read
        with self._told("ssl_ca_certs", settings.ca_certs):
            context = ssl.create_default_context(
                cafile=settings.ca_certs, capath=settings.ca_path, cadata=settings.ca_data
            )
        context.check_hostname = settings.check_hostname
        context.verify_mode = settings.cert_reqs
        for flag in settings.include_verify_flags or ():
            context.verify_flags |= flag
        for flag in settings.exclude_verify_flags or ():
            context.verify_flags &= ~flag
        context.minimum_version = max(ssl.TLSVersion.TLSv1_2, settings.min_version or ssl.TLSVersion.TLSv1_2)
        if settings.ciphers is not None:
            context.set_ciphers(settings.ciphers)
        if settings.certfile:
            with self._told("ssl_certfile", settings.certfile):
                # Without a function OpenSSL would ask on the terminal.
                context.load_cert_chain(settings.certfile, settings.keyfile, settings.password or _no_password)
        if context.verify_mode is ssl.CERT_NONE and not self._has_warned:
            logger.warning(
                "redis_url has ssl_cert_reqs=none: whoever answers is taken for Redis, and gets the password"
            )
            self._has_warned = True
        return context

    @contextmanager
    def _told(self, option: str, path: str | None) -> Iterator[None]:
        """Raise what goes wrong with a file as one line that names the setting, the path and the reason."""
        try:
            yield
        except (OSError, ValueError) as error:
            name = self._named.get(option, f"{option} of redis_url")
            raise Unusable(f"{name} is {path!r}: {_reason(error)}") from None


def _paths(settings: RedisSSLContext) -> dict[str, str]:
    files = {"ssl_ca_certs": settings.ca_certs, "ssl_certfile": settings.certfile, "ssl_keyfile": settings.keyfile}
    return {option: path for option, path in files.items() if path}


def _no_password() -> str:
    raise ValueError("the private key is encrypted, and there is no password for it")


def _reason(error: Exception) -> str:
    match error:
        case ssl.SSLError(reason="KEY_VALUES_MISMATCH"):
            return "the private key is not of this certificate"
        case ssl.SSLError(reason="NO_CERTIFICATE_OR_CRL_FOUND"):
            return "it has no certificate (PEM)"
        case ssl.SSLError():
            return f"no certificate with its private key can be read from it ({error.reason or 'PEM'})"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return str(error)


class TlsConnection(SSLConnection):
    """A connection by TLS 1.2 or later, with the context that the nodes of a queue share."""

    def __init__(self, *, contexts: Contexts, **options: Any) -> None:
        super().__init__(**options)
        self._contexts = contexts

    def check(self) -> None:
        """Look whether its files can be used. Raises `Unusable`."""
        self._contexts.get(self.ssl_context)

    @override
    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**Connection._connection_arguments(self), "ssl": self._contexts.get(self.ssl_context)}

    @override
    async def disconnect(self, *args: Any, **how: Any) -> None:
        writer = self._writer
        await super().disconnect(*args, **how)
        if writer is not None:
            writer.transport.abort()  # a good-bye of TLS that nobody waits for would outlive the event loop
