"""docker-compose.prod.yml: valid, closed where it should be, and its Redis starts by the file's own command."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import binaries
from tests.support.deployments import (
    DEPLOY,
    REDIS_CONF,
    bytes_of,
    compose,
    compose_files_refused,
    instructions,
    is_a_command,
    redis_settings,
    unknown_settings,
)
from uno.event_bus.dead_letter import DeadLetterConfig
from uno.event_bus.dead_letter.store.local_node import free_port

FILE = DEPLOY / "docker-compose.prod.yml"
PROXY = DEPLOY / "haproxy" / "haproxy.cfg"
OURS = {"dlq-service", "dlq-worker"}
SECRETS = "/run/secrets/"


@pytest.fixture(scope="module")
def file() -> Any:
    return compose(FILE, DLQ_APP="shop.events:queue")


@pytest.fixture(scope="module")
def services(file: Any) -> Any:
    return file["services"]


def test_it_fits_the_compose_specification_which_refuses_an_unknown_field(tmp_path: Path) -> None:
    assert compose_files_refused(FILE) == ""
    broken = tmp_path / FILE.name
    broken.write_text(FILE.read_text().replace("stop_grace_period:", "stop_grace_seconds:", 1))
    assert "stop_grace_seconds" in compose_files_refused(broken)


def test_its_variables_have_defaults_but_the_one_that_nobody_can_guess() -> None:
    with pytest.raises(LookupError, match=r"DLQ_APP: the queue with the handlers, module:attribute"):
        compose(FILE)
    changed = compose(FILE, DLQ_APP="a:b", DLQ_QUEUE="orders", APP_IMAGE="shop:7", UNO_IMAGE="uno:2", SECRETS_DIR="/s")
    services = changed["services"]
    queues = {name: each["environment"]["DLQ_QUEUE"] for name, each in services.items() if "environment" in each}
    assert queues == dict.fromkeys(("app", *OURS), "orders")
    images = {name: each["image"] for name, each in services.items()}
    assert (images["app"], images["dlq-worker"], images["dlq-service"]) == ("shop:7", "shop:7", "uno:2")
    assert {each["file"] for each in changed["secrets"].values()} == {"/s/redis_password", "/s/app_token"}
    assert services["dlq-service"]["volumes"][0]["source"] == "/s/service"


def test_names_commands_and_figures_of_the_guide_are_kept(file: Any, services: Any) -> None:
    command = ["python", "-m", "uno.cli.main", "dead-letter"]
    assert services["dlq-service"]["command"] == [*command, "service"]
    assert services["dlq-service"]["deploy"]["replicas"] == 3
    assert services["dlq-worker"]["command"] == [*command, "worker"]
    assert services["app"]["environment"]["DLQ_SERVICE_URL"] == "http://dlq-service:8000"
    assert services["app"]["image"] == services["dlq-worker"]["image"] == "my-app:latest"
    assert services["dlq-redis"]["volumes"] == ["dlq-data:/data"] and "dlq-data" in file["volumes"]
    assert services["dlq-redis"]["deploy"]["resources"]["limits"]["memory"] == "4G"


def test_every_variable_is_read_and_every_value_allowed(services: Any) -> None:
    for name, service in services.items():
        assert unknown_settings(service.get("environment", {})) == "", name
    assert "DLQ_TYPO" in unknown_settings({"DLQ_TYPO": "1"})


def test_every_command_is_one(services: Any) -> None:
    for name in OURS:
        assert is_a_command(services[name]["command"])
        how, *check = services[name]["healthcheck"]["test"]
        assert how == "CMD" and is_a_command(check)
    assert not is_a_command(["uno", "dead-letter", "health", "--prot", "1"])
    assert not is_a_command(["python", "-m", "uno.cli.main", "dead-letter", "serve"])


def test_health_is_asked_at_the_port_that_is_served(services: Any) -> None:
    for name, variable in (("dlq-service", "DLQ_SERVICE_PORT"), ("dlq-worker", "DLQ_METRICS_PORT")):
        port = services[name]["environment"][variable]
        assert services[name]["healthcheck"]["test"][-1] == port
        exposed = next(each for each in instructions(DEPLOY / "Dockerfile") if each.name == "EXPOSE")
        assert port in exposed.words


def test_processes_may_drain_before_they_are_killed(services: Any) -> None:
    for name in OURS:
        grace = DeadLetterConfig.from_env(services[name]["environment"]).shutdown_grace
        assert seconds(services[name]["stop_grace_period"]) >= grace + 5


def test_memory_of_redis_is_twice_what_letters_may_take(services: Any) -> None:
    limit = bytes_of(services["dlq-redis"]["deploy"]["resources"]["limits"]["memory"])
    assert limit >= 2 * bytes_of(redis_settings()["maxmemory"])
    assert all("memory" in each["deploy"]["resources"]["limits"] for each in services.values())


def test_an_application_reaches_the_proxy_by_the_services_name_and_no_redis(services: Any) -> None:
    networks = {name: set(each["networks"]) for name, each in services.items()}
    assert networks == {
        "app": {"front"},
        "dlq-proxy": {"front", "back"},
        "dlq-service": {"back"},
        "dlq-worker": {"back"},
        "dlq-redis": {"back"},
    }
    assert services["dlq-proxy"]["networks"]["front"]["aliases"] == ["dlq-service"]
    # An alias of the replicas alone: the proxy would find itself by the other name.
    (alias,) = services["dlq-service"]["networks"]["back"]["aliases"]
    assert re.search(rf"server-template \S+ \d+ {alias}:8000\n", PROXY.read_text())


def test_one_port_is_published_by_the_proxy_on_loopback(services: Any) -> None:
    assert {name: each["ports"] for name, each in services.items() if "ports" in each} == {
        "dlq-proxy": ["127.0.0.1:8000:8000"]
    }
    assert "bind :8000\n" in PROXY.read_text()


def test_secrets_are_files_that_are_mounted_where_they_are_read(file: Any, services: Any) -> None:
    for name, service in services.items():
        mounted = {f"{SECRETS}{secret}" for secret in service.get("secrets", ())}
        text = str(service.get("environment", "")) + str(service.get("command", "")) + str(service.get("healthcheck"))
        assert set(re.findall(rf"{SECRETS}\w+", text)) == mounted, name
        assert {path.removeprefix(SECRETS) for path in mounted} <= file["secrets"].keys()
    # Of the tokens the directory, so that the file may be replaced.
    (tokens,) = services["dlq-service"]["volumes"]
    assert services["dlq-service"]["environment"]["DLQ_SERVICE_TOKENS_FILE"] == f"{tokens['target']}/tokens"
    assert tokens["type"] == "bind" and tokens["read_only"] and not tokens["bind"]["create_host_path"]
    # No value of a secret stands in a variable.
    assert not {"DLQ_REDIS_PASSWORD", "DLQ_SERVICE_TOKEN"} & {
        variable for service in services.values() for variable in service.get("environment", ())
    }


def test_files_that_it_mounts_are_beside_it(file: Any, services: Any) -> None:
    assert {name: (DEPLOY / each["file"]).resolve() for name, each in file["configs"].items()} == {
        "haproxy": PROXY,
        "redis": REDIS_CONF,
    }
    for service in services.values():
        assert {each["source"] for each in service.get("configs", ())} <= file["configs"].keys()
    build = services["dlq-service"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_all_but_the_application_are_hardened(services: Any) -> None:
    for name, service in services.items():
        if name != "app":
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_haproxy_takes_the_configuration(tmp_path: Path) -> None:
    run = haproxy("-c", "-f", str(PROXY))
    assert run.returncode == 0, run.stdout + run.stderr
    broken = tmp_path / PROXY.name
    broken.write_text(PROXY.read_text().replace("retry-on", "retry-at"))
    assert haproxy("-c", "-f", str(broken)).returncode != 0


@pytest.mark.parametrize("name", binaries.chosen())
def test_redis_starts_by_the_files_command_and_keeps_its_letters(name: str, services: Any, tmp_path: Path) -> None:
    """With its password, and everything that redis.conf says; the health check passes with that password alone."""
    (tmp_path / "dlq_redis_password").write_text('a "b" \\c\n')
    with running(services, name, tmp_path) as client:
        said = {setting: client.config_get(setting)[setting] for setting in redis_settings()}
        wanted = redis_settings() | {"maxmemory": str(bytes_of(redis_settings()["maxmemory"]))}
        assert said == wanted
        client.set("letter", "here")
        assert health_of(services, client, tmp_path) == "PONG\n"
        (tmp_path / "dlq_redis_password").write_text("other\n")
        assert "PONG" not in health_of(services, client, tmp_path)
    (tmp_path / "dlq_redis_password").write_text('a "b" \\c\n')
    with running(services, name, tmp_path) as client:
        assert client.get("letter") == "here"


# ------------------------------------------------------------------------------------------------ helpers


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|m)", text)
    assert match, text
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def haproxy(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run Debian's HAProxy; without it the test fails in CI, and is skipped elsewhere."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing = "haproxy is not on this machine (Debian's package haproxy)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=50, check=False)


def here(text: str, place: Path) -> str:
    """Return a text of the file with this machine's paths in place of the container's."""
    return text.replace(SECRETS, f"{place}/").replace("/etc/valkey/redis.conf", str(REDIS_CONF))


@contextmanager
def running(services: Any, name: str, place: Path) -> Iterator[Any]:
    """Run the file's command on a server of this machine, and stop it as compose would."""
    service = services["dlq-redis"]
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    if not (programs / "valkey-server").exists():
        (programs / "valkey-server").symlink_to(binaries.binary(name))
    port = free_port()
    (script,) = service["command"]
    script = here(script, place).replace("--dir /data", f"--dir {place} --bind 127.0.0.1 --port {port}")
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *service["entrypoint"], script],
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    password = 'a "b" \\c'
    once = Retry(NoBackoff(), 0)
    client = redis.Redis(port=port, password=password, decode_responses=True, retry=once)
    try:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert server.poll() is None
                time.sleep(0.005)
        with redis.Redis(port=port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        yield client
        server.terminate()
        assert server.wait(40) == 0
    finally:
        client.close()
        server.kill()
        server.wait()


def health_of(services: Any, client: Any, place: Path) -> str:
    """Run the health check with Debian's redis-cli, and return what it says."""
    link = place / "bin" / "valkey-cli"
    if not link.exists():
        found = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if found is None:
            pytest.skip("neither valkey-cli nor redis-cli is on this machine (Debian's package redis-tools)")
        link.symlink_to(found)
    how, check = services["dlq-redis"]["healthcheck"]["test"]
    assert how == "CMD-SHELL"
    port = client.connection_pool.connection_kwargs["port"]
    check = here(check, place).replace("-e ping", f"-e -p {port} ping")
    path = {"PATH": f"{link.parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", check], env=path, capture_output=True, text=True, check=False).stdout
