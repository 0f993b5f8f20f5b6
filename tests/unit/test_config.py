"""Settings: what is accepted, what is refused, and that no password is ever shown."""

import ast
import copy
import dataclasses
import inspect
import math
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uno.event_bus.dead_letter import config as module
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.rules import redact_url

FIELDS = [each.name for each in dataclasses.fields(DeadLetterConfig)]
SECRET = "hunter2"

BAD_VALUES: list[tuple[str, Any]] = [
    ("redis_url", 5),
    ("redis_url", "http://localhost:6379"),
    ("redis_url", "localhost:6379"),
    ("redis_url", "redis://"),
    ("redis_url", "redis:localhost"),
    ("redis_url", "redis://host:99999"),
    ("redis_url", "redis://host:0"),
    ("redis_url", "redis://host/name"),
    ("redis_url", "redis://host/0 "),
    ("redis_url", "unix://"),
    ("redis_url", "embedded"),
    ("redis_url", "embedded:path"),
    ("redis_url", "embedded://host/path"),
    ("redis_username", "two words"),
    ("redis_password", "two\nlines"),
    ("redis_ca_file", ""),
    ("service_url", "dlq-service:8000"),
    ("service_url", "redis://host"),
    ("service_url", "http://"),
    ("service_url", "http://user:hunter2@host"),
    ("service_url", "http://host:0"),
    ("service_url", "http://host/?x=1"),
    ("service_url", "http://host/?"),
    ("service_url", "http://host/#"),
    ("service_url", "http://host\\x"),
    ("service_url", "http://a..b"),
    ("service_url", "HTTP://host"),
    ("service_token", "uno_töken"),
    ("service_token", "two words"),
    ("queue", ""),
    ("queue", "Orders"),
    ("queue", "-orders"),
    ("queue", "orders\n"),
    ("queue", "a" * 65),
    ("queue", b"orders"),
    ("shards", 0),
    ("shards", 3),
    ("shards", 8192),
    ("max_retries", -1),
    ("max_retries", 1.5),
    ("max_retries", "5"),
    ("max_retries", True),
    ("max_retries", None),
    ("retry_delay", -0.1),
    ("retry_delay", "60"),
    ("retry_delay", 10**400),
    ("retry_delay", 1j),
    ("retry_for", 0),
    ("retention_days", 36_501),
    ("concurrency", 0),
    ("batch_size", 0),
    ("enabled", 1),
    ("enabled", "true"),
    ("strict", None),
    ("lease_seconds", 0.05),
    ("max_crashes", 0),
    ("app", "shop"),
    ("app", "shop:"),
    ("app", "shop/events.py:queue"),
    ("max_payload_bytes", 0),
    ("spool_dir", "relative/spool"),
    ("spool_dir", "/var/spool\nuno"),
    ("spool_max_bytes", 4095),
    ("metrics_port", -1),
    ("metrics_port", 65_536),
    ("metrics_port", "9464"),
    ("metrics_host", ""),
    ("metrics_host", "http://localhost"),
    ("metrics_host", "local host"),
    ("log_format", "xml"),
    ("log_level", "loud"),
    ("log_level", 10),
    ("operation_timeout", 0),
]

MALFORMED_URLS = [
    SECRET,
    f"redis:{SECRET}",
    f"redis://:{SECRET}",
    f"redis://user:{SECRET}",
    f"redis://:{SECRET}/x@host",
    f"redis://:{SECRET}#x@host:6379/0",
    f"redis://:{SECRET}?x@host",
    f"redis://:x/{SECRET}@host",
    f"redis:/user:{SECRET}@host",
    f"://{SECRET}",
    f"user:{SECRET}@host:6379",
    f"http://:{SECRET}@host",
    f"redis://host:port?password={SECRET}",
    f"redis://[::1?password={SECRET}",
    f"redis://:{SECRET}@ho\nst",
    f"1:{SECRET}://x",
]


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        DeadLetterConfig(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_env(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        DeadLetterConfig.from_env(environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_guide() -> None:
    """What the guide lists as defaults is what an empty environment gives."""
    config = DeadLetterConfig.from_env({})
    assert config == DeadLetterConfig()
    assert (config.max_retries, config.retry_delay, config.max_queue_size) == (5, 60, 100_000)
    assert (config.retention_days, config.concurrency, config.batch_size) == (7, 10, 100)


def test_recommended_configuration_of_the_guide_works() -> None:
    """The guide's snippet passes whole numbers where fractions are allowed."""
    config = DeadLetterConfig(max_retries=5, retry_delay=60, max_queue_size=100_000, retention_days=7)
    assert isinstance(config.retry_delay, float)
    assert isinstance(config.retention_days, float)


def test_every_field_is_documented() -> None:
    """Each field carries a docstring of its own."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "DeadLetterConfig").body
    documented = [
        field.target.id
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    ]
    assert documented == FIELDS


def test_variables_are_the_field_names_in_upper_case() -> None:
    """A field and its variable share one name."""
    assert list(DeadLetterConfig.variables()) == FIELDS
    assert all(variable == f"DLQ_{name.upper()}" for name, variable in DeadLetterConfig.variables().items())


def test_every_variable_sets_its_field() -> None:
    """Each variable is read, and the texts mean what the arguments mean."""
    texts = {
        "DLQ_REDIS_URL": "rediss://user:pw@host:6380/1?ssl_cert_reqs=none",
        "DLQ_REDIS_USERNAME": "uno",
        "DLQ_REDIS_PASSWORD": "hunter2",
        "DLQ_REDIS_PASSWORD_FILE": "/run/secrets/redis",
        "DLQ_REDIS_CA_FILE": "/etc/uno/ca.pem",
        "DLQ_REDIS_CERT_FILE": "/etc/uno/client.pem",
        "DLQ_REDIS_KEY_FILE": "/etc/uno/client.key",
        "DLQ_SERVICE_URL": "https://dlq-service:8000/",
        "DLQ_SERVICE_TOKEN": "uno_token",
        "DLQ_SERVICE_TOKEN_FILE": "/run/secrets/token",
        "DLQ_SERVICE_CA_FILE": "/etc/uno/service-ca.pem",
        "DLQ_QUEUE": "orders.v2",
        "DLQ_SHARDS": " 16 ",
        "DLQ_DURABILITY": "Replicated",
        "DLQ_DURABLE_REPLICAS": "2",
        "DLQ_READ_FROM": "Replica",
        "DLQ_MAX_RETRIES": "3",
        "DLQ_RETRY_DELAY": "1e1",
        "DLQ_RETRY_MAX_DELAY": "20.5",
        "DLQ_RETRY_FOR": "3600",
        "DLQ_MAX_QUEUE_SIZE": "1_000",
        "DLQ_RETENTION_DAYS": "0",
        "DLQ_CONCURRENCY": "8",
        "DLQ_BATCH_SIZE": "50",
        "DLQ_ENABLED": "False",
        "DLQ_WORKER_MODE": "TRUE",
        "DLQ_LEASE_SECONDS": "10",
        "DLQ_MAX_CRASHES": "1",
        "DLQ_APP": "shop.events:bus.queue",
        "DLQ_SHUTDOWN_GRACE": "0",
        "DLQ_MAX_PAYLOAD_BYTES": "1024",
        "DLQ_UNHANDLED_AFTER": "60",
        "DLQ_STRICT": "on",
        "DLQ_DEDUPE_WINDOW": "0",
        "DLQ_OPERATION_TIMEOUT": "2",
        "DLQ_SPOOL_DIR": "/var/lib/uno/spool",
        "DLQ_SPOOL_MAX_BYTES": "65536",
        "DLQ_AUDIT_LENGTH": "0",
        "DLQ_METRICS_PORT": "0",
        "DLQ_METRICS_HOST": "::1",
        "DLQ_LOG_FORMAT": "JSON",
        "DLQ_LOG_LEVEL": "Debug",
        "DLQ_CREATE_SPANS": "off",
    }
    assert set(texts) == set(DeadLetterConfig.variables().values())
    assert DeadLetterConfig.from_env(texts) == DeadLetterConfig(
        redis_url="rediss://user:pw@host:6380/1?ssl_cert_reqs=none",
        redis_username="uno",
        redis_password="hunter2",
        redis_password_file="/run/secrets/redis",
        redis_ca_file="/etc/uno/ca.pem",
        redis_cert_file="/etc/uno/client.pem",
        redis_key_file="/etc/uno/client.key",
        service_url="https://dlq-service:8000",
        service_token="uno_token",
        service_token_file="/run/secrets/token",
        service_ca_file="/etc/uno/service-ca.pem",
        queue="orders.v2",
        shards=16,
        max_retries=3,
        retry_delay=10,
        retry_max_delay=20.5,
        retry_for=3600,
        max_queue_size=1000,
        retention_days=0,
        concurrency=8,
        batch_size=50,
        enabled=False,
        worker_mode=True,
        lease_seconds=10,
        max_crashes=1,
        app="shop.events:bus.queue",
        shutdown_grace=0,
        max_payload_bytes=1024,
        unhandled_after=60,
        strict=True,
        dedupe_window=0,
        operation_timeout=2,
        durability="replicated",
        durable_replicas=2,
        read_from="replica",
        spool_dir="/var/lib/uno/spool",
        spool_max_bytes=65_536,
        audit_length=0,
        metrics_port=0,
        metrics_host="::1",
        log_format="json",
        log_level="debug",
        create_spans=False,
    )


def test_from_env_reads_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping, the process's own variables count."""
    monkeypatch.setenv("DLQ_MAX_RETRIES", "9")
    assert DeadLetterConfig.from_env().max_retries == 9


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"REDIS_URL": "redis://a"}, "redis://a"),
        ({"DLQ_REDIS_URL": "redis://b", "REDIS_URL": "redis://a"}, "redis://b"),
        ({"DLQ_REDIS_URL": "  ", "REDIS_URL": "redis://a"}, "redis://a"),
        ({"DLQ_REDIS_URL": "redis://b", "REDIS_URL": "nonsense"}, "redis://b"),
        ({}, None),
    ],
)
def test_dlq_redis_url_wins_over_redis_url(environ: dict[str, str], url: str | None) -> None:
    """The engine's own variable comes first, the common one second."""
    assert DeadLetterConfig.from_env(environ).redis_url == url


def test_bad_redis_url_is_blamed_on_the_variable_that_held_it() -> None:
    """A wrong `REDIS_URL` is not reported as `DLQ_REDIS_URL`."""
    assert refused_env({"REDIS_URL": "ftp://host"}).startswith("REDIS_URL (redis_url) is")


def test_missing_redis_url_is_one_line_that_names_both_variables() -> None:
    """Where a URL is needed and none is set, the error says how to set one."""
    with pytest.raises(ConfigError, match=r"DLQ_REDIS_URL or REDIS_URL") as caught:
        DeadLetterConfig().require_redis_url()
    assert "\n" not in str(caught.value)
    assert DeadLetterConfig(redis_url="embedded:").require_redis_url() == "embedded:"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://:password@localhost:6379/0",
        "redis://prod-redis",
        "redis://user:p%40ss@[::1]:6379/15?protocol=3",
        "rediss://host:6380",
        "unix:///run/redis.sock?db=1",
        "unix://user:pw@/run/redis.sock",
        "embedded:",
        "embedded:///var/lib/dlq",
    ],
)
def test_url_of_each_kind_is_accepted_as_it_is(url: str) -> None:
    """The four schemes, with and without the optional parts."""
    assert DeadLetterConfig(redis_url=url).redis_url == url


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_argument_is_refused_naming_variable_field_value_and_what_is_allowed(name: str, value: Any) -> None:
    """One line, the same shape for every field."""
    message = refused(**{name: value})
    assert message.startswith(f"{DeadLetterConfig.variables()[name]} ({name}) is ")
    assert ": allowed is " in message


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_everywhere(number: float) -> None:
    """NaN compares with nothing, so it must not slip through a bound."""
    defaults = DeadLetterConfig()
    for name in FIELDS:
        if type(getattr(defaults, name)) in (int, float) or name == "retry_for":
            refused(**{name: number})
            refused_env({DeadLetterConfig.variables()[name]: str(number)})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DLQ_MAX_RETRIES", "five"),
        ("DLQ_MAX_RETRIES", "5.0"),
        ("DLQ_MAX_RETRIES", "9" * 5000),
        ("DLQ_RETRY_DELAY", "60  # seconds"),
        ("DLQ_RETRY_DELAY", "1m"),
        ("DLQ_ENABLED", "maybe"),
        ("DLQ_SHARDS", "6"),
        ("DLQ_QUEUE", "My Queue"),
    ],
)
def test_bad_variable_is_refused_in_the_shape_of_arguments(variable: str, text: str) -> None:
    """The text is shown as it was set, shortened if it is long."""
    message = refused_env({variable: text})
    assert message.startswith(f"{variable} ({variable.removeprefix('DLQ_').lower()}) is {repr(text)[:40]}")
    assert ": allowed is " in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["true", "True", "1", "YES", "on"])
def test_words_for_true(text: str) -> None:
    """Five words mean yes, in any case."""
    assert DeadLetterConfig.from_env({"DLQ_STRICT": text}).strict is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no", "Off"])
def test_words_for_false(text: str) -> None:
    """Five words mean no, in any case."""
    assert DeadLetterConfig.from_env({"DLQ_ENABLED": text}).enabled is False


def test_empty_variable_counts_as_not_set() -> None:
    """Compose files set variables to nothing when the host has none."""
    assert DeadLetterConfig.from_env(dict.fromkeys(DeadLetterConfig.variables().values(), " ")) == DeadLetterConfig()


def test_override_beats_its_variable_even_a_bad_one() -> None:
    """What a caller says explicitly is not hindered by the environment; None says nothing."""
    environ = {"DLQ_MAX_RETRIES": "nonsense", "DLQ_CONCURRENCY": "3"}
    config = DeadLetterConfig.from_env(environ, max_retries=1, concurrency=None)
    assert (config.max_retries, config.concurrency) == (1, 3)


def test_unknown_field_is_refused_with_a_guess() -> None:
    """A misspelt argument is a ConfigError wherever it is passed."""
    guess = "did you mean max_retries?"
    assert guess in refused(max_retrys=3)
    with pytest.raises(ConfigError, match="did you mean"):
        DeadLetterConfig.from_env({}, max_retrys=3)
    with pytest.raises(ConfigError, match="did you mean"):
        dataclasses.replace(DeadLetterConfig(), max_retrys=3)  # type: ignore[call-arg]
    assert "did you mean" not in refused(colour="blue")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DLQ_MAX_RETRYS", "DLQ_MAX_RETRIES"),
        ("DLQ_RETRIES", "DLQ_MAX_RETRIES"),
        ("DLQ_RETENTION", "DLQ_RETENTION_DAYS"),
        ("DLQ_REDIS_URI", "DLQ_REDIS_URL"),
        ("DLQ_LEASE_SECOND", "DLQ_LEASE_SECONDS"),
        ("DLQ_SERVICE_URI", "DLQ_SERVICE_URL"),
        ("DLQ_SERVICE_TOKN", "DLQ_SERVICE_TOKEN"),
    ],
)
def test_misspelt_variable_is_refused_with_a_guess(variable: str, meant: str) -> None:
    """A setting that is silently passed over would cost letters."""
    assert refused_env({variable: "3"}).endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    "variable",
    [
        "DLQ_SERVICE_TOKENS_FILE",
        "DLQ_SERVICE_PORT",
        "DLQ_REDIS_SERVER",
        "DLQ_TEST_SERVERS",
        "DLQ_REDIS_SERVICE_HOST",
        "DLQ_REDIS_PORT",
        "DLQ_REDIS_PORT_6379_TCP_ADDR",
        "DLQ_WORKER_PORT",
        "DLQ_PORT",
        "DLQ_METRICS_PORT",
        "DLQ_METRICS_PORT_9464_TCP_ADDR",
        "DLQ_METRICS_SERVICE_HOST",
        "DLQ_ZEBRA",
        "DLQ_",
        "DLQMAX_RETRYS",
        "dlq_max_retrys",
    ],
)
def test_variable_of_another_part_is_left_alone(variable: str) -> None:
    """Later parts', Kubernetes' service links, and names like none of ours."""
    assert DeadLetterConfig.from_env({variable: "tcp://10.0.0.1:6379"}) == DeadLetterConfig()


def test_config_never_changes() -> None:
    """A field cannot be set after the config was made; replace makes a checked copy."""
    config = DeadLetterConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_retries = 3  # type: ignore[misc]
    assert dataclasses.replace(config, max_retries=3).max_retries == 3
    with pytest.raises(ConfigError):
        dataclasses.replace(config, max_retries=-3)


def test_config_can_be_copied_pickled_hashed_and_compared() -> None:
    """Blocking twins and process pools send configs around."""
    config = DeadLetterConfig(redis_url="redis://h", retry_for=5)
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert hash(other) == hash(config)


def test_signature_shows_the_fields() -> None:
    """`help()` and editors show what may be passed, all by keyword."""
    parameters = inspect.signature(DeadLetterConfig).parameters.values()
    assert [each.name for each in parameters] == FIELDS
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters)


def test_password_is_in_no_text_of_a_config() -> None:
    """repr, str, format and the report show the URL without its secrets."""
    config = DeadLetterConfig(redis_url=f"redis://user:{SECRET}@host:6379/0?password={SECRET}&protocol=3")
    for text in (repr(config), str(config), f"{config}", str(config.redacted())):
        assert SECRET not in text
        assert "redis://***@host:6379/0?password=***&protocol=3" in text


@pytest.mark.parametrize("url", MALFORMED_URLS)
def test_password_of_a_malformed_url_is_in_no_error(url: str) -> None:
    """A URL that does not parse may hide its password anywhere."""
    assert SECRET not in refused(redis_url=url)
    assert SECRET not in refused_env({"REDIS_URL": url})
    assert SECRET not in redact_url(url)


def test_password_in_another_field_is_in_no_error() -> None:
    """Values get swapped: a URL may stand where an app is expected."""
    assert SECRET not in refused(app=f"redis://:{SECRET}@host")
    assert SECRET not in refused(queue=f"user:{SECRET}@host")
    assert SECRET not in refused(redis_url=f"redis://:{SECRET}@host".encode())


def test_argument_that_cannot_be_printed_is_still_refused_in_one_line() -> None:
    """An error about a value does not depend on the value's own repr."""

    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "<Unprintable>" in refused(max_retries=Unprintable())


@given(st.text(alphabet=st.characters(exclude_characters="@"), min_size=1), st.sampled_from(["", "user"]))
@example("a/b#c?d", "")
def test_redacted_url_never_holds_its_password(password: str, user: str) -> None:
    """Whatever the password, everything before the last @ is gone."""
    marked = f"§{password}§"
    assert "§" not in redact_url(f"redis://{user}:{marked}@host:6379/0")


@given(st.text())
def test_redacting_never_raises(text: str) -> None:
    """It runs inside error handling."""
    redact_url(text)
    redact_url(f"redis://{text}")


@given(st.text(), st.sampled_from(sorted(DeadLetterConfig.variables().values())))
def test_any_text_in_a_variable_is_taken_or_refused_in_one_line(text: str, variable: str) -> None:
    """No text of a variable gives anything but a config or a ConfigError."""
    try:
        DeadLetterConfig.from_env({variable: text})
    except ConfigError:
        assert variable in refused_env({variable: text})
