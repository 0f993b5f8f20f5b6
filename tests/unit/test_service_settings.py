"""Settings of the service: their variables, what others may call theirs, and what is not safe."""

import ast
import dataclasses
import inspect
from itertools import pairwise
from typing import Any

import pytest

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service import settings as module
from uno.event_bus.dead_letter.service.settings import ServiceSettings, is_loopback

FIELDS = [each.name for each in dataclasses.fields(ServiceSettings)]


def test_without_variables_it_listens_on_loopback_at_8000() -> None:
    made = ServiceSettings.from_env({})
    assert (made.host, made.port, made.tokens_file) == ("127.0.0.1", 8000, None)


def test_each_field_has_its_variable() -> None:
    variables = {
        "DLQ_SERVICE_HOST": "0.0.0.0",
        "DLQ_SERVICE_PORT": "8443",
        "DLQ_SERVICE_TOKENS_FILE": "/run/secrets/tokens",
        "DLQ_SERVICE_HOSTS": "dlq.example.com, 10.0.0.1,[::1]",
        "DLQ_SERVICE_CERT_FILE": "/tls/tls.crt",
        "DLQ_SERVICE_KEY_FILE": "/tls/tls.key",
        "DLQ_SERVICE_MAX_BODY_BYTES": "2048",
        "DLQ_SERVICE_REQUEST_TIMEOUT": "2.5",
        "DLQ_SERVICE_RATE": "0",
        "DLQ_SERVICE_MAX_CONNECTIONS": "7",
    }
    made = ServiceSettings.from_env(variables)
    assert set(ServiceSettings.variables().values()) == set(variables)
    assert dataclasses.astuple(made) == (
        "0.0.0.0",
        8443,
        "/run/secrets/tokens",
        ("dlq.example.com", "10.0.0.1", "::1"),
        "/tls/tls.crt",
        "/tls/tls.key",
        2048,
        2.5,
        0.0,
        7,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", ""),
        ("host", "http://x"),
        ("port", -1),
        ("port", 65_536),
        ("port", None),
        ("hosts", "dlq.example.com"),
        ("hosts", ("dlq:8000",)),
        ("hosts", (5,)),
        ("max_body_bytes", 1),
        ("request_timeout", 0),
        ("rate", -1),
        ("max_connections", 0),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        ServiceSettings(**{field: value})
    assert str(raised.value).startswith(f"DLQ_SERVICE_{field.upper()} ({field}) is ")


@pytest.mark.parametrize("text", ["tcp://10.96.0.1:8000", ""])
def test_what_kubernetes_writes_beside_a_service_of_that_name_is_no_port(text: str) -> None:
    assert ServiceSettings.from_env({"DLQ_SERVICE_PORT": text}).port == 8000


@pytest.mark.parametrize(
    "variable",
    [
        "DLQ_SERVICE_URL",
        "DLQ_SERVICE_TOKEN",
        "DLQ_SERVICE_TOKEN_FILE",
        "DLQ_SERVICE_CA_FILE",
        "DLQ_SERVICE_SERVICE_HOST",
        "DLQ_SERVICE_SERVICE_PORT",
        "DLQ_SERVICE_SERVICE_PORT_HTTP",
        "DLQ_SERVICE_PORT_8000_TCP",
        "DLQ_SERVICE_PORT_8000_TCP_ADDR",
        "DLQ_SERVICE_PORT_8000_TCP_PROTO",
        "DLQ_SERVICE_METRICS_SERVICE_HOST",
        "DLQ_SERVICE_METRICS_PORT",
    ],
)
def test_variables_of_clients_and_of_kubernetes_pass(variable: str) -> None:
    ServiceSettings.from_env({variable: "x"})
    DeadLetterConfig.from_env({variable: ""})


def test_a_client_beside_a_service_passes_over_all_that_is_the_service_s() -> None:
    DeadLetterConfig.from_env(dict.fromkeys(ServiceSettings.variables().values(), "x"))


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("DLQ_SERVICE_PROT", "PORT"),
        ("DLQ_SERVICE_TOKEN_FILES", "TOKENS_FILE"),
        ("DLQ_SERVICE_MAXBODYBYTES", "MAX_BODY_"),
    ],
)
def test_a_misspelt_variable_is_refused(misspelt: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean DLQ_SERVICE_{meant}"):
        ServiceSettings.from_env({misspelt: "1"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "dlq.example.com", "localhost.example.com"])
def test_an_address_that_others_reach_needs_tokens(host: str) -> None:
    with pytest.raises(ConfigError, match="there are no tokens: set DLQ_SERVICE_TOKENS_FILE") as raised:
        ServiceSettings(host=host)
    assert "\n" not in str(raised.value)
    assert ServiceSettings(host=host, tokens_file="tokens").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST.", "a.localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host) and ServiceSettings(host=host).host == host


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(ConfigError, match="DLQ_SERVICE_CERT_FILE"):
        ServiceSettings(key_file="key")


def test_each_field_says_what_it_is_for() -> None:
    tree = ast.parse(inspect.getsource(module))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ServiceSettings"]
    told = {
        first.target.id
        for first, second in pairwise(found.body)
        if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name) and isinstance(second, ast.Expr)
    }
    assert set(FIELDS) <= told
