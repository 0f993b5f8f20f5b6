"""Settings of the engine: one queue in one process."""

import re
from dataclasses import dataclass
from typing import Final, Literal, override

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.rules import (
    Choice,
    Flag,
    Port,
    Real,
    RedisUrl,
    Secret,
    ServiceUrl,
    Shards,
    Text,
    Whole,
    hidden,
    redact_url,
)
from uno.event_bus.dead_letter.settings import Settings, refuses_unknown, setting

__all__ = ["DeadLetterConfig"]

PATH: Final = Text(r"[^\x00-\x1f]{1,4096}", "a path of a file", optional=True)

SECONDS_OF_A_YEAR: Final = 31_536_000
LARGEST_VALUE: Final = 536_870_912
"""Bytes of the largest value that a Redis server takes with its default ``proto-max-bulk-len``."""


_OF_OTHERS: Final = re.compile(
    r"DLQ_(?:TEST_\w*|REDIS_SERVER)"
    r"|DLQ_SERVICE_(?:HOSTS?|PORT|TOKENS_FILE|CERT_FILE|KEY_FILE|MAX_BODY_BYTES|REQUEST_TIMEOUT|RATE|MAX_CONNECTIONS)"
    # What Kubernetes writes into every pod for services called dlq, dlq-redis, dlq-worker …
    r"|DLQ_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""Variables of the service (`service.settings`), of tests, of the embedded server."""


@refuses_unknown
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeadLetterConfig(Settings):
    """Settings of one queue in one process; made once, checked, and never changed (`dataclasses.replace` copies).

    Raises `ConfigError` with one line that names the field and its variable, the value and what is allowed.
    """

    redis_url: str | None = setting(None, RedisUrl(), also="REDIS_URL", redact=redact_url)
    """Where the letters live. ``DLQ_REDIS_URL``, else ``REDIS_URL``; None when a client is passed instead.

    ``redis://``, ``rediss://`` (TLS), ``unix://``, ``embedded:`` (a server of our own, in a directory of the
    user's) or ``embedded:///path``. Any node of a cluster will do.
    """

    redis_username: str | None = setting(None, Text(r"[^\x00-\x20]{1,256}", "a name of an ACL user", optional=True))
    """User of Redis's ACL, for a `redis_url` that names none; None: the default user.

    This, the password and the files below are for URLs: a client that is passed keeps what it has. Where a URL and one
    of them say different things, neither wins: `ConfigError`.
    """

    redis_password: str | None = setting(None, Secret(), redact=hidden)
    """Password of that user, for a `redis_url` without one; `redis_password_file` keeps it out of the environment."""

    redis_password_file: str | None = setting(None, PATH)
    """File whose first line is that password; read when connections are made, so that it may be rotated.

    One that cannot be read, or is empty: `ConfigError` when the queue is opened, later `StoreUnavailable` of new
    connections. So it is with the next three files, which are looked at for each connection, too.
    """

    redis_ca_file: str | None = setting(None, PATH)
    """Certificates (PEM) of the authorities that Redis's certificate is checked by, with ``rediss://``.

    None: those of the system. That the certificate is of the host's name is always checked, and TLS is 1.2 or later.
    With ``redis://`` this and the next two are `ConfigError`: nothing is sent in the clear by mistake. A URL with
    ``?ssl_cert_reqs=none`` checks nothing, and logs a warning.
    """

    redis_cert_file: str | None = setting(None, PATH)
    """Certificate (PEM) that this process shows to Redis (``tls-auth-clients``); None: none."""

    redis_key_file: str | None = setting(None, PATH)
    """Private key (PEM) of that certificate; None: it is in the same file."""

    service_url: str | None = setting(None, ServiceUrl(), redact=redact_url)
    """Service through which the queue is reached, in place of Redis: ``http://dlq-service:8000``. None: Redis itself.

    It goes before ``redis_url``. Such a remote queue captures and has the operators' verbs; it runs no handlers.
    """

    service_token: str | None = setting(
        None, Text(r"[\x21-\x7e]{1,4096}", "printable ASCII without spaces", optional=True), redact=hidden
    )
    """Token that the service knows this process by; `service_token_file` keeps it out of the environment."""

    service_token_file: str | None = setting(None, PATH)
    """File whose first line is that token; read anew when the service refuses it, so that it may be rotated."""

    service_ca_file: str | None = setting(None, PATH)
    """Certificates (PEM) of the authorities that the service's certificate is checked by, with ``https://``.

    None: those of the system.
    """

    queue: str = setting(
        "default",
        Text(r"[a-z0-9][a-z0-9._-]{0,63}", "1 to 64 of a-z 0-9 . _ - and a letter or digit first"),
    )
    """Name of the queue; one service usually owns one. Queues share nothing but the server."""

    shards: int | None = setting(None, Shards(1, 4096))
    """Slices of the queue, a power of two; counts only when the queue is created, growth is a verb of its own.

    None: 4 for a new queue, else as many as the queue has. A value that the queue never had is `LayoutMismatch`.

    One shard is one hash slot: more shards spread over more cluster nodes, and cost each worker a connection
    and an idle poll per shard it serves. 1 keeps everything on one node; above 256 few deployments gain.
    """

    max_retries: int = setting(5, Whole(0, 1_000_000, "retries"))
    """Retries after the capture, that is attempts by the queue, before a letter is parked; redrive counts anew.

    0: one attempt as soon as it is captured, and its failure parks. Above about 20, with the default delays, a
    true bug is retried for most of a day before anybody sees it parked.
    """

    retry_delay: float = setting(60.0, Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Seconds before the first retry; the next ones wait 2, 4, 8 … times as long (see `retry`).

    0: every retry at once, so that all retries may burn within one outage of a second.
    """

    retry_max_delay: float = setting(3600.0, Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Longest wait between two retries, seconds, before jitter; never shorter than ``retry_delay`` itself."""

    retry_for: float | None = setting(None, Real(0.001, 10 * SECONDS_OF_A_YEAR, "seconds", optional=True))
    """Seconds after the capture beyond which no retry is scheduled: the letter is parked instead. None: no bound.

    Shorter than the sum of the delays, it ends retries before ``max_retries`` does.
    """

    max_queue_size: int = setting(100_000, Whole(0, 10**12, "letters", ", 0 for no bound"))
    """Letters that the queue holds at most; the next `add` raises `QueueFull`, and nothing is trimmed.

    0: no bound but the server's memory, which other users of that server share.
    """

    retention_days: float = setting(7.0, Real(0, 36_500, "days", ", 0 to keep for ever"))
    """Days that a parked letter is kept, from when it was parked. 0: for ever, so the queue fills in the end."""

    concurrency: int = setting(10, Whole(1, 10_000, "handlers"))
    """Handlers that one worker runs at a time. High values hold many leases and what the handlers open."""

    batch_size: int = setting(100, Whole(1, 1000, "letters"))
    """Letters taken, settled or replayed in one round trip.

    Small ones cost a round trip a letter; above about 500 one script keeps its node from others for milliseconds.
    """

    enabled: bool = setting(True, Flag())
    """False: `add` raises `Disabled` and the event bus lets errors through."""

    worker_mode: bool = setting(False, Flag())
    """True: the ``service`` command runs a worker too; ``worker`` implies it."""

    lease_seconds: float = setting(30.0, Real(0.1, 86_400, "seconds"))
    """Seconds that a worker may be out of touch before its letters go to others; the queue keeps its first value.

    Heartbeats go out every third of it. Short: a pause of the process costs a crash count and a second run;
    long: what a dead worker held waits that long.
    """

    max_crashes: int = setting(3, Whole(1, 1000, "crashes"))
    """Leases of one letter that may run out before it is parked as STALLED; redrive counts anew.

    1: one killed process parks what it ran. High: a letter that kills its process kills that many.
    """

    app: str | None = setting(
        None,
        Text(
            r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*",
            "module:attribute, for example shop.events:queue",
            optional=True,
        ),
    )
    """Where commands find the handlers: ``module:attribute`` of a `DeadLetterQueue`."""

    shutdown_grace: float = setting(25.0, Real(0, 86_400, "seconds"))
    """Seconds that running handlers get to finish after SIGTERM. 0: cancelled at once.

    Keep it under the supervisor's patience (Kubernetes: 30 s), or SIGKILL ends them and their leases run out.
    """

    max_payload_bytes: int = setting(1_048_576, Whole(1, LARGEST_VALUE, "bytes"))
    """Largest event, bytes as serialised, and largest headers; larger ones are `PayloadTooLarge` before any I/O.

    Large ones make every script that reads them slow for all: keep big bodies elsewhere, capture a reference.
    """

    unhandled_after: float = setting(3600.0, Real(0, SECONDS_OF_A_YEAR, "seconds"))
    """Seconds that a letter without a handler in any worker waits before it is parked as UNHANDLED.

    0: parked at the first sight, also in the middle of a rolling upgrade that is about to bring its handler.
    """

    strict: bool = setting(False, Flag())
    """True: refuse to start on a server that may lose letters (an evicting ``maxmemory-policy``)."""

    dedupe_window: float = setting(600.0, Real(0, 604_800, "seconds", ", 0 to remember nothing"))
    """Seconds, up to half as many again, in which a repeated capture answers the first one's id; 0: never.

    By the server's clock; what a process repeats itself, by its own, for just that long. So when a node takes over
    whose clock is ahead, it is still known, for half of the window at least. The same in all processes of a queue: a
    shorter one makes captures be forgotten sooner for all. Costs 70 to 130 bytes a letter captured within it.
    """

    operation_timeout: float = setting(5.0, Real(0.05, 300, "seconds"))
    """Seconds that one round trip to Redis may take; then `StoreUnavailable`.

    While servers are silent, a queue's opening is tried again until then.

    Too short: a slow moment of the server becomes an error. Longer than a third of ``lease_seconds``: one
    stuck heartbeat may cost leases.
    """

    durability: Literal["memory", "replicated", "fsynced"] = setting(
        "memory", Choice("memory", "replicated", "fsynced")
    )
    """What a capture waits for before it is acknowledged.

    ``memory``: the primary has it; a failover, or a crash without AOF, may lose the last ones. ``replicated``:
    `durable_replicas` have it too (WAIT), so that no failover to one of them loses it. ``fsynced``: it is also on the
    primary's disk, and on theirs (WAITAOF: Redis 7.2 or Valkey 8, with AOF on). Each costs a round trip to a replica
    or a disk; what is not confirmed within half of ``operation_timeout`` raises `NotReplicated`.

    The disk of ``appendfsync always`` answers at once. With ``everysec`` it takes up to a second, with replicas two:
    an ``operation_timeout`` below 3 or 5 is refused, and so are Redis 7.4.0 to 7.4.2 and Valkey from 8.0 on, whose
    WAITAOF does not wait for it (redis/redis#13793). Primaries are asked for it when a queue is opened; their replicas
    are to be like them. Who may not ask (``CONFIG GET``) is warned.
    """

    durable_replicas: int = setting(1, Whole(0, 100, "replicas"))
    """Replicas that must confirm a capture, for ``durability`` above ``memory``.

    Failover may choose any replica of the primary: only with all of them a capture survives every failover. 0 with
    ``fsynced``: the primary's disk is enough.
    """

    read_from: Literal["primary", "replica"] = setting("primary", Choice("primary", "replica"))
    """Whom `get`, `letters` and `stats` ask in a Redis Cluster.

    ``replica``: another one each time, which spares the primaries and is behind them by what replication takes: a
    letter that was captured just now may be missing. Where a shard has none that answers, its primary is asked.
    Whatever changes letters, and `verify`, asks the primaries in any case.
    """

    spool_dir: str | None = setting(
        None, Text(r"/[^\x00-\x1f]*", "an absolute path of a directory, for example /var/lib/uno/spool", optional=True)
    )
    """Where captures wait while Redis is away; None: they raise `StoreUnavailable`.

    Made when it is missing, for its user alone. Processes of one machine share it, and send what dead ones have left:
    so it must outlive the process (a volume, not a container's own disk), on a disk whose fsync is honest. Letters
    that wait there are on one disk only. For every queue there is one directory within it, and one Redis.
    """

    spool_max_bytes: int = setting(268_435_456, Whole(4096, 10**13, "bytes"))
    """Bytes of this queue's files in ``spool_dir``, of all processes that share it; the next capture is refused.

    Processes that write at the same moment may pass it by one capture each. Small: a short outage fills it. Large: a
    long one's letters take as long to be sent (some 8,000 a second) before later ones are.
    """

    audit_length: int = setting(100_000, Whole(0, 10**9, "entries", ", 0 to keep all"))
    """Entries that the audit stream keeps, about: two for each call of an operator's verb; the oldest go first.

    An entry costs about 150 bytes of the server's memory, and one that names many letters by id up to 6 KiB.
    """

    metrics_port: int | None = setting(None, Port())
    """Port of a worker's ``/metrics``, ``/livez`` and ``/readyz``. None: it has none. 0: any free one, which it logs.

    A value like ``tcp://10.0.0.1:9464`` counts as not set: Kubernetes writes one into pods beside a service that is
    called ``dlq-metrics``.
    """

    metrics_host: str = setting(
        "127.0.0.1", Text(r"[^\x00-\x20/@]{1,253}", "a host name or an address, without a port")
    )
    """Address that this port is bound to. Loopback is for this machine alone: in a pod it has to be ``0.0.0.0``.

    Whoever reaches it reads names of queues, event types and subscriptions, and no letter.
    """

    log_format: Literal["auto", "json", "plain"] = setting("auto", Choice("auto", "json", "plain"))
    """What a worker's log lines on stderr look like; ``auto``: plain on a terminal, else one JSON object a line.

    An application that has set up logging of its own has its own lines.
    """

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", Choice("debug", "info", "warning", "error")
    )
    """Least important lines that a worker logs. ``debug`` is for the engine alone: other loggers stay at ``info``."""

    create_spans: bool = setting(True, Flag())
    """With tracing on, `add_many` makes a span ``create`` for each letter: its place in a trace of its own.

    False: all letters of a call share the context of its one span, ``send``; cheaper by a span a letter.
    """

    @classmethod
    @override
    def is_of_others(cls, variable: str) -> bool:
        return _OF_OTHERS.fullmatch(variable) is not None

    def require_url(self) -> str:
        """Return where the queue is reached: the service's URL, else Redis's. Raises `ConfigError` without any."""
        return self.service_url or self.require_redis_url()

    def require_redis_url(self) -> str:
        """Return the Redis URL; `ConfigError` with one line that names both variables when there is none."""
        if self.redis_url is None:
            raise ConfigError(
                "no Redis URL is set: set DLQ_REDIS_URL or REDIS_URL, for example redis://localhost:6379/0, "
                "or embedded: for a server of its own"
            )
        return self.redis_url
