"""Settings of the service: where it listens, who may come in, and how much."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, ClassVar, Final, override

from uno.event_bus.dead_letter.config import PATH
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.rules import Real, Rule, Text, Whole
from uno.event_bus.dead_letter.settings import Settings, refuses_unknown, setting

__all__ = ["ServiceSettings", "is_loopback"]

_OF_OTHERS: Final = re.compile(
    r"DLQ_SERVICE_(?:URL|TOKEN|TOKEN_FILE|CA_FILE"  # the client's
    # What Kubernetes writes into every pod for services called dlq, dlq-service, dlq-service-redis …
    r"|(?:\w+_)?SERVICE_(?:HOST|PORT(?:_\w+)?)|(?:\w+_)?PORT_\w+|\w+_PORT)"
)


class _Port(Whole):
    """A TCP port; 0 is any free one."""

    def __init__(self) -> None:
        super().__init__(0, 65_535, "port")
        self.allowed = "a port from 1 to 65535, or 0 for any free one"


class _Hosts(Rule):
    """Names of hosts, as texts separated by commas."""

    allowed = "host names or addresses without a port, separated by commas"
    _one: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[?[0-9A-Fa-f:.]{2,45}\]?")

    @override
    def parse(self, text: str) -> object:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    @override
    def check(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError
        if not all(isinstance(name, str) and self._one.fullmatch(name) for name in value):
            raise ValueError
        return tuple(name.strip("[]").lower() for name in value)


@refuses_unknown
@dataclass(frozen=True, kw_only=True, repr=False)
class ServiceSettings(Settings):
    """Settings of one process of the service; made once, checked, and never changed.

    Raises `ConfigError` with one line that names the field and its variable, the value and what is allowed; also for
    an address that others reach while there is no `tokens_file`, and for a key without a certificate.
    """

    PREFIX: ClassVar[str] = "DLQ_SERVICE_"

    host: str = setting("127.0.0.1", Text(r"[^\x00-\x20/@]{1,253}", "a host name or an address, without a port"))
    """Address to listen at. Loopback is for this machine alone; in a pod it has to be ``0.0.0.0``, or ``::``.

    Any other than loopback needs `tokens_file`: whoever reaches the service can read and remove letters.
    """

    port: int = setting(8000, _Port())
    """Port to listen at; 0: any free one, which the log names.

    A value like ``tcp://10.0.0.1:8000`` counts as not set: Kubernetes writes one into every pod beside a service that
    is called ``dlq-service``.
    """

    tokens_file: str | None = setting(None, PATH)
    """File of the tokens, hashed, and their roles (see `access`); None: whoever reaches the port may do anything."""

    hosts: tuple[str, ...] = setting((), _Hosts())
    """Names by which requests may call the service (``Host``), separated by commas, without ports.

    Empty: any, with tokens. Without tokens those of loopback and the address that it listens at: else a page in a
    browser of this machine could get at it by a name that its owner points here (DNS rebinding). Probes may use any.
    """

    cert_file: str | None = setting(None, PATH)
    """Certificate (PEM, with the chain) that makes it ``https``, TLS 1.2 at least; None: plain ``http``.

    Read anew within seconds of a change, for connections that come then.
    """

    key_file: str | None = setting(None, PATH)
    """Private key (PEM) of that certificate; None: it is in the same file."""

    max_body_bytes: int = setting(8_388_608, Whole(1024, 1_073_741_824, "bytes"))
    """Largest body of a request; larger ones are refused with 413, at once where they say how long they are.

    8 MiB take a hundred letters of 80 KiB, or five of the largest default (1 MiB) in base64; a remote queue's own
    batches have 5.6 MiB at most. Eight full bodies are what all requests together may hold at a time (the rest get
    503), and a body of nothing but the smallest events takes some 30 times its size while it is read: large values cost
    memory.
    """

    request_timeout: float = setting(10.0, Real(0.05, 600, "seconds"))
    """Seconds that the head of a request may take to arrive, and then its body; also a TLS handshake.

    Replies take as long as they do. Short: large bodies over slow lines are refused with 408.
    """

    rate: float = setting(2000.0, Real(0, 1_000_000, "requests a second", ", 0 for no bound"))
    """Requests a second that a caller gets answered, on average; one address, where nobody needs a token.

    One second's worth may come at once, the rest gets 429 with ``Retry-After``. It counts for each process of the
    service. A bound against a caller that has run wild; more than this is better sent in batches.
    """

    max_connections: int = setting(500, Whole(1, 100_000, "connections"))
    """Connections at a time. The next one takes the place of the one that has been idle for longest.

    While a request is under way on each, it is refused with 503. Each needs a file descriptor (``ulimit -n``).
    """

    def __post_init__(self) -> None:
        """Check each value, and those that belong together."""
        super().__post_init__()
        if self.key_file is not None and self.cert_file is None:
            raise ConfigError("DLQ_SERVICE_KEY_FILE (key_file) is set, DLQ_SERVICE_CERT_FILE (cert_file) is not")
        if self.tokens_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"DLQ_SERVICE_HOST (host) is {self.host!r}, which others reach, and there are no tokens: "
                "set DLQ_SERVICE_TOKENS_FILE (see `uno dead-letter token`), or listen at 127.0.0.1"
            )

    @classmethod
    @override
    def _read(cls, environ: Any, name: str) -> tuple[str, str]:
        variable, text = super()._read(environ, name)
        return variable, "" if name == "port" and text.startswith("tcp://") else text

    @classmethod
    @override
    def is_of_others(cls, variable: str) -> bool:
        return _OF_OTHERS.fullmatch(variable) is not None


def is_loopback(host: str) -> bool:
    """Answer whether only this machine calls itself by this name or address."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
