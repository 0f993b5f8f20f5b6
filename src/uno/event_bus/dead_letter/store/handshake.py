"""Why a connection did not come about: one line that says what to mend, where TLS or its absence is the cause."""

import ssl
from collections.abc import Iterator
from typing import Any, Final

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from uno.event_bus.dead_letter.store.meaning import describe
from uno.event_bus.dead_letter.store.tls import Unusable

__all__ = ["why_not_connected"]

UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's codes (X509_V_ERR_…) for a chain that ends at nobody who is trusted."""

_ALERTS: Final = {
    "UNKNOWN_CA": "the server does not know who signed our certificate (redis_cert_file)",
    "BAD_CERTIFICATE": "the server refuses our certificate (redis_cert_file)",
    "CERTIFICATE_EXPIRED": "our certificate (redis_cert_file) has expired, says the server",
    "CERTIFICATE_REVOKED": "our certificate (redis_cert_file) is revoked, says the server",
    "CERTIFICATE_UNKNOWN": "the server refuses our certificate (redis_cert_file)",
    "CERTIFICATE_REQUIRED": "the server asks for a certificate of ours (redis_cert_file)",
    # Of TLS 1.2: what the server says to a client without one, and to one with other ciphers.
    "HANDSHAKE_FAILURE": "the server asks for a certificate of ours (redis_cert_file), or for other ciphers",
    "PROTOCOL_VERSION": "the server speaks no version from 1.2 on",
}
"""What the server has told by an alert, by the end of OpenSSL's name for it."""

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})


def why_not_connected(error: BaseException, kind: type[Any]) -> str:
    """Return the line about an error that came before a connection of this class was of use."""
    for cause in _causes(error):
        if isinstance(cause, Unusable):
            return str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _of_certificate(cause)
        if isinstance(cause, ssl.SSLError):
            return _of_handshake(cause)
    if issubclass(kind, SSLConnection):
        if isinstance(error, RedisTimeoutError):
            return "no connection, or no answer to the TLS handshake, in time (is that a port for TLS?)"
        if _was_cut_off(error):
            return (
                "TLS: the connection was closed in or after the handshake "
                "(does the server ask for a certificate of ours, redis_cert_file, or refuse it?)"
            )
    elif issubclass(kind, Connection) and (_was_cut_off(error) or isinstance(error, InvalidResponse)):
        return (
            "the connection was closed before the first answer (is that a port for TLS? then the URL begins rediss://)"
        )
    return describe(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(10):  # a chain may bite its tail
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_certificate(error: ssl.SSLCertVerificationError) -> str:
    hint = "; is redis_ca_file of the authority that signed it?" if error.verify_code in UNKNOWN_AUTHORITY else ""
    return f"TLS: the server's certificate is refused ({error.verify_message.rstrip('.')}{hint})"


def _of_handshake(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    if reason in _NO_TLS:
        return f"TLS: what answers is no TLS, it may be a port without ({reason})"
    told = next((text for name, text in _ALERTS.items() if reason.endswith(f"ALERT_{name}")), None)
    return f"TLS: {told} ({reason})" if told else f"TLS: the handshake failed ({reason})"


def _was_cut_off(error: BaseException) -> bool:
    """Whether the server has closed the connection, without a word of why."""
    return isinstance(error, RedisConnectionError) and (
        "closed by server" in str(error)
        or any(isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in _causes(error))
    )
