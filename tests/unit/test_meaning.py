"""meaning: what each error of redis-py or of a server means, and what an error line tells."""

import inspect

import pytest
import redis.exceptions
from redis._parsers.base import BaseParser

from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PermissionDenied, StoreError
from uno.event_bus.dead_letter.store.meaning import Meaning, NotConnected, classify, describe, refusal

MEANINGS = {
    "AskError": Meaning.ASK,
    "AuthenticationError": Meaning.LOCKED_OUT,
    "AuthenticationWrongNumberOfArgsError": Meaning.LOCKED_OUT,
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
    "MovedError": Meaning.MOVED,
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
"""Every exception class that redis-py exports, with the message its server sends where it has one."""

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
        (redis.ResponseError("NOAUTH Authentication required."), Meaning.LOCKED_OUT),
        (redis.ResponseError("UPGRADE 2"), Meaning.REFUSED),
        (redis.ResponseError("LAYOUT 3"), Meaning.REFUSED),
    ],
    ids=repr,
)
def test_other_errors_mean_what_their_codes_say(error: Exception, meaning: Meaning) -> None:
    """What a transport raises counts as an unknown outcome, all that is not known as fatal."""
    assert classify(error) is meaning


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        ("MOVED 3999 127.0.0.1:6381", Meaning.MOVED),
        ("ASK 3999 127.0.0.1:6381", Meaning.ASK),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Meaning.DEGRADED),
        ("CLUSTERDOWN Hash slot not served", Meaning.DEGRADED),
        ("READONLY You can't write against a read only replica.", Meaning.DEGRADED),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Meaning.DEGRADED),
        ("LOADING Redis is loading the dataset in memory", Meaning.DEGRADED),
        ("OOM command not allowed when used memory > 'maxmemory'.", Meaning.FULL),
        ("NOPERM User x has no permissions to run the 'evalsha' command", Meaning.FATAL),
        ("CROSSSLOT Keys in request don't hash to the same slot", Meaning.FATAL),
        ("LAYOUT 3", Meaning.REFUSED),
    ],
)
def test_a_reply_of_a_server_means_what_its_code_says(reply: str, meaning: Meaning) -> None:
    """As redis-py's parser makes an exception of it: the codes that it knows are cut off the text."""
    assert classify(BaseParser.parse_error(reply)) is meaning


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
