"""connect: what each error means, which target a source is, and what an error line tells."""

import inspect

import pytest
import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection

from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PermissionDenied, StoreError
from uno.event_bus.dead_letter.store.connect import Meaning, NotConnected, classify, describe, refusal, target_of

MEANINGS = {
    "AskError": Meaning.FATAL,
    "AuthenticationError": Meaning.FATAL,
    "AuthenticationWrongNumberOfArgsError": Meaning.FATAL,
    "AuthorizationError": Meaning.FATAL,
    "BusyLoadingError": Meaning.DEGRADED,
    "ChildDeadlockedError": Meaning.FATAL,
    "ClusterCrossSlotError": Meaning.FATAL,
    "ClusterDownError": Meaning.DEGRADED,
    "ClusterError": Meaning.FATAL,
    "ConnectionError": Meaning.UNKNOWN,
    "CrossSlotTransactionError": Meaning.FATAL,
    "DataError": Meaning.FATAL,
    "ExecAbortError": Meaning.FATAL,
    "ExternalAuthProviderError": Meaning.UNKNOWN,
    "IncorrectPolicyType": Meaning.FATAL,
    "InvalidPipelineStack": Meaning.FATAL,
    "InvalidResponse": Meaning.FATAL,
    "LockError": Meaning.FATAL,
    "LockNotOwnedError": Meaning.FATAL,
    "MasterDownError": Meaning.DEGRADED,
    "MaxConnectionsError": Meaning.UNKNOWN,
    "ModuleError": Meaning.FATAL,
    "MovedError": Meaning.FATAL,
    "NoPermissionError": Meaning.FATAL,
    "NoScriptError": Meaning.FATAL,
    "NoSuchFieldsetError": Meaning.FATAL,
    "OutOfMemoryError": Meaning.FULL,
    "PubSubError": Meaning.FATAL,
    "ReadOnlyError": Meaning.DEGRADED,
    "RedisClusterException": Meaning.FATAL,
    "RedisError": Meaning.FATAL,
    "ResponseError": Meaning.FATAL,
    "SlotNotCoveredError": Meaning.FATAL,
    "TimeoutError": Meaning.UNKNOWN,
    "TryAgainError": Meaning.DEGRADED,
    "WatchError": Meaning.FATAL,
}
"""Every exception class that redis-py exports, with the message its server sends where it has one.

Redirects (ASK, MOVED) and what only clusters say are fatal here: one node answers none of them.
"""

MESSAGES = {
    "AskError": "1 127.0.0.1:7000",
    "MovedError": "1 127.0.0.1:7000",
    "ClusterDownError": "CLUSTERDOWN The cluster is down",
    "MasterDownError": "MASTERDOWN Link with MASTER is down",
    "ReadOnlyError": "READONLY You can't write against a read only replica.",
    "TryAgainError": "TRYAGAIN Multiple keys request during rehashing of slot",
}


def exported() -> list[type[Exception]]:
    return [
        kind
        for name, kind in vars(redis.exceptions).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == redis.exceptions.__name__
    ]


def test_every_exception_class_of_redis_py_has_a_meaning_here() -> None:
    """A new release may bring a new one: somebody has to say what it means."""
    assert {kind.__name__ for kind in exported()} == set(MEANINGS)


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_an_exception_of_redis_py_means_what_the_table_says(kind: type[Exception]) -> None:
    """By class, or by the code that its message begins with."""
    assert classify(kind(MESSAGES.get(kind.__name__, "some text"))) is MEANINGS[kind.__name__]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (NotConnected("refused"), Meaning.NOT_SENT),
        (ConnectionResetError(), Meaning.UNKNOWN),
        (BrokenPipeError(), Meaning.UNKNOWN),
        (TimeoutError(), Meaning.UNKNOWN),
        (TypeError("'NoneType' object is not callable"), Meaning.UNKNOWN),
        (RuntimeError("unable to perform operation on a closed transport"), Meaning.UNKNOWN),
        (ValueError("a bug"), Meaning.FATAL),
        (redis.ResponseError("LOADING Redis is loading the dataset in memory"), Meaning.DEGRADED),
        (redis.ResponseError("BUSY Redis is busy running a script."), Meaning.DEGRADED),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), Meaning.DEGRADED),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), Meaning.DEGRADED),
        (redis.ResponseError("UNBLOCKED force unblock from blocking operation"), Meaning.DEGRADED),
        (redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), Meaning.FULL),
        (
            redis.ResponseError("ERR Error running script (call to f_1): @user_script: 9: -OOM command not allowed"),
            Meaning.FULL,
        ),
        (
            redis.ResponseError("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write"),
            Meaning.DEGRADED,
        ),
        (redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), Meaning.FATAL),
        (redis.ResponseError("NOPERM User x has no permissions to run the 'evalsha' command"), Meaning.FATAL),
        (redis.ResponseError("NOAUTH Authentication required."), Meaning.FATAL),
        (redis.ResponseError("UPGRADE 2"), Meaning.REFUSED),
        (redis.ResponseError("LAYOUT 3"), Meaning.REFUSED),
    ],
    ids=repr,
)
def test_other_errors_mean_what_their_codes_say(error: Exception, meaning: Meaning) -> None:
    """What a transport raises counts as an unknown outcome, all that is not known as fatal."""
    assert classify(error) is meaning


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://user:s3cr3t@example.org:7000/3", "example.org:7000"),
        ("rediss://:s3cr3t@example.org:7000", "example.org:7000"),
        ("unix://user:s3cr3t@/tmp/x.sock?db=1", "/tmp/x.sock"),
    ],
)
def test_a_target_shows_its_address_and_never_a_password(url: str, address: str) -> None:
    """Of a URL or of a client that was made of one."""
    for source in (url, Redis.from_url(url)):
        target = target_of(source)
        assert target.address == address
        assert "s3cr3t" not in repr(target)


def test_a_target_keeps_how_the_users_client_connects() -> None:
    """TLS stays TLS, a socket a socket, database and user what they were; retries and decoding do not."""
    pool = target_of("rediss://user:pw@h:1/2?ssl_cert_reqs=none").pool(name="n", size=3, timeout_s=2.5)
    assert pool.connection_class is SSLConnection
    assert isinstance(pool, BlockingConnectionPool)
    options = pool.connection_kwargs
    assert (options["username"], options["password"], options["db"], options["ssl_cert_reqs"]) == (
        "user",
        "pw",
        2,
        "none",
    )
    assert (options["socket_timeout"], options["socket_connect_timeout"], pool.max_connections) == (2.5, 1.0, 3)
    assert options["decode_responses"] is False
    assert (
        target_of("unix:///x.sock").pool(name="n", size=1, timeout_s=1).connection_class is UnixDomainSocketConnection
    )


@pytest.mark.parametrize("source", ["http://h", "localhost:6379", "", "redis+cluster://h", 6379, None, redis.Redis])
def test_what_is_no_server_is_refused(source: object) -> None:
    """In one line that says what is allowed, without the URL itself: it may be a password."""
    with pytest.raises(ConfigError) as refused:
        target_of(source)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert "allowed are" in str(refused.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (redis.ConnectionError("Connection closed by server."), "Connection closed by server."),
        (redis.TimeoutError(), "TimeoutError: no details"),
        (OSError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
    ids=repr,
)
def test_an_error_is_described_in_one_line(error: Exception, line: str) -> None:
    """With its class where the text alone would not tell."""
    assert describe(error) == line


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis.AuthenticationError("invalid username-password pair or user is disabled."), ConfigError),
        (redis.ResponseError("NOAUTH Authentication required."), ConfigError),
        (redis.exceptions.AuthenticationWrongNumberOfArgsError("wrong number of arguments"), ConfigError),
        (
            redis.exceptions.NoPermissionError("User x has no permissions to run the 'evalsha' command"),
            PermissionDenied,
        ),
        (redis.exceptions.AuthorizationError("no"), PermissionDenied),
        (redis.ResponseError("ACL failure in script: User x has no permissions to run 'xadd'"), PermissionDenied),
        (redis.ResponseError("The user executing the script can't run this command"), PermissionDenied),
        (redis.ResponseError("WRONGTYPE Operation against a key"), StoreError),
        (ValueError("a bug"), StoreError),
    ],
    ids=repr,
)
def test_a_fatal_error_is_told_by_what_would_mend_it(error: Exception, kind: type[DeadLetterError]) -> None:
    """The settings, the user's rights, or neither; each names the server."""
    told = refusal(error, "example.org:7000")
    assert type(told) is kind
    assert "example.org:7000" in str(told)
    assert "\n" not in str(told)
