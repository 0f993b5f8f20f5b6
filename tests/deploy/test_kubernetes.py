"""Kubernetes manifests: valid for every version that we name, and what they name of each other is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped] # has none, and one call needs none
from ruamel.yaml import YAML

from tests.support.deployments import (
    DEPLOY,
    MANIFESTS,
    REDIS_CONF,
    bytes_of,
    compose,
    containers,
    documents,
    environment,
    instructions,
    is_a_command,
    pods,
    redis_settings,
    unknown_settings,
)
from uno.event_bus.dead_letter import DeadLetterConfig

FOLDER = DEPLOY / "kubernetes"
KNOWN = [version for version in all_versions() if tuple(map(int, version.split(".")[:2])) >= (1, 29)]
VERSIONS = sorted({version.rpartition(".0")[0] for version in (KNOWN[0], KNOWN[len(KNOWN) // 2], KNOWN[-1])})
"""The first that the manifests are for, the last one whose schemas there are, and one between."""

OBJECTS = documents(*MANIFESTS)
PODS = dict(pods(OBJECTS))
CONTAINERS = dict(containers(OBJECTS))
WORKERS = {"dlq-worker/dlq-worker", "my-app/dlq-sidecar"}
OURS = WORKERS | {"dlq-service/dlq-service"}


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


def labels(pod: str) -> dict[str, str]:
    found: dict[str, str] = PODS[pod]["metadata"]["labels"]
    return found


def chosen_by(selector: dict[str, str]) -> list[str]:
    """Return the names of the workloads whose pods have these labels."""
    return [name for name in PODS if selector.items() <= labels(name).items()]


def validator(version: str, *paths: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kubernetes_validate", "-k", version, "--strict", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------ form


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_is_valid(version: str) -> None:
    """An unknown kind is a warning alone, so every object has to be named as passed."""
    run = validator(version, *MANIFESTS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" passed for resource ") == len(OBJECTS), run.stdout


@pytest.mark.parametrize(
    ("there", "broken"),
    [
        ("terminationGracePeriodSeconds", "terminationGraceSeconds"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: 1"),
        ("replicas: 3", 'replicas: "3"'),
    ],
)
def test_the_validator_refuses(there: str, broken: str, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text((FOLDER / file.name).read_text().replace(there, broken))
    run = validator(VERSIONS[-1], file)
    assert run.returncode != 0 and "did not validate" in run.stdout


def test_kustomization_names_files_that_are_there_and_only_one_has_redis_conf() -> None:
    top, conf = (YAML(typ="safe").load(folder / "kustomization.yaml") for folder in (FOLDER, REDIS_CONF.parent))
    assert all((FOLDER / path).exists() for path in top["resources"])
    assert "secrets.example.yaml" not in top["resources"]
    assert conf["configMapGenerator"] == [{"name": "dlq-redis-conf", "files": [REDIS_CONF.name]}]
    (mounted,) = (each["configMap"] for each in PODS["dlq-redis"]["spec"]["volumes"] if "configMap" in each)
    assert mounted["name"] == "dlq-redis-conf"
    assert {each["name"] for each in top["images"]} == {
        container["image"].partition(":")[0] for container in CONTAINERS.values() if "/" not in container["image"]
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine")
@pytest.mark.parametrize("other", [False, True], ids=["service", "sidecar"])
def test_kubectl_renders_either_deployment_with_redis_conf_as_it_is(other: bool, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    file = tmp_path / "deploy" / "kubernetes" / "kustomization.yaml"
    if other:
        text = file.read_text().replace("  - service.yaml", "").replace("  # - sidecar.yaml", "  - sidecar.yaml")
        file.write_text(text)
    run = subprocess.run(["kubectl", "kustomize", file.parent], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rendered = list(YAML(typ="safe").load_all(run.stdout))
    assert ("my-app" in {each["metadata"]["name"] for each in rendered}) is other
    (conf,) = (each for each in rendered if each["kind"] == "ConfigMap")
    assert conf["data"] == {REDIS_CONF.name: REDIS_CONF.read_text()}
    assert f"name: {conf['metadata']['name']}" in run.stdout.partition("kind: StatefulSet")[2]


# ------------------------------------------------------------------------------------------------ the guide


def test_names_commands_and_variables_of_the_guide_are_kept() -> None:
    pod = PODS["my-app"]["spec"]["containers"]
    assert [(each["name"], each["image"]) for each in pod] == [
        ("app", "my-app:latest"),
        ("dlq-sidecar", "my-app:latest"),
    ]
    app, sidecar = map(environment, pod)
    assert app.items() >= {"DLQ_ENABLED": "true", "DLQ_REDIS_URL": "redis://dlq-redis:6379/0"}.items()
    assert sidecar.items() >= {"DLQ_WORKER_MODE": "true", "DLQ_REDIS_URL": "redis://dlq-redis:6379/0"}.items()
    command = ["python", "-m", "uno.cli.main", "dead-letter"]
    assert pod[1]["command"] == CONTAINERS["dlq-worker/dlq-worker"]["command"] == [*command, "worker"]
    assert CONTAINERS["dlq-service/dlq-service"]["command"] == [*command, "service"]
    assert (
        named("Deployment")["my-app"]["spec"]["replicas"] == named("Deployment")["dlq-service"]["spec"]["replicas"] == 3
    )


@pytest.mark.parametrize("name", CONTAINERS)
def test_commands_are_commands_and_variables_are_read(name: str) -> None:
    container = CONTAINERS[name]
    assert unknown_settings(environment(container)) == ""
    if name in OURS:
        assert is_a_command(container["command"])


def test_all_are_of_one_queue_and_one_redis() -> None:
    settings = [environment(CONTAINERS[name]) for name in (*OURS, "my-app/app")]
    for variable in ("DLQ_QUEUE", "DLQ_REDIS_URL", "DLQ_REDIS_PASSWORD_FILE"):
        assert len({each[variable] for each in settings}) == 1, variable


# ------------------------------------------------------------------------------------------------ pods


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    for container in pod["containers"]:
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] and not confined["allowPrivilegeEscalation"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert {"memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_pods_of_ours_run_as_the_user_of_the_image() -> None:
    (user,) = (each.rest for each in instructions(DEPLOY / "Dockerfile") if each.name == "USER")
    for name in ("dlq-service", "dlq-worker", "my-app"):
        context = PODS[name]["spec"]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        assert context["fsGroup"] == context["runAsGroup"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_processes_may_drain_before_they_are_killed(name: str) -> None:
    container, pod = CONTAINERS[name], PODS[name.partition("/")[0]]["spec"]
    grace = DeadLetterConfig.from_env(environment(container)).shutdown_grace
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][-1]) if "lifecycle" in container else 0
    assert pod["terminationGracePeriodSeconds"] >= waits + grace + 5


def test_probes_ask_ports_that_are_served() -> None:
    for name in OURS:
        container = CONTAINERS[name]
        (port,) = container["ports"]
        variable = "DLQ_METRICS_PORT" if name in WORKERS else "DLQ_SERVICE_PORT"
        assert environment(container)[variable] == str(port["containerPort"])
        live, ready = container["livenessProbe"]["httpGet"], container.get("readinessProbe", {}).get("httpGet")
        assert live == {"path": "/livez" if name in WORKERS else "/healthz", "port": port["name"]}
        # A sidecar's would take the application out of its Service.
        assert ready == (None if name == "my-app/dlq-sidecar" else {"path": "/readyz", "port": port["name"]})
        # Bound to where the kubelet and Prometheus come from.
        assert environment(container)[variable.replace("PORT", "HOST")] == "0.0.0.0"


def test_mounts_are_of_volumes_and_files_that_are_read_are_mounted() -> None:
    secrets = {name: set(each["stringData"]) for name, each in named("Secret").items()}
    for name, template in PODS.items():
        pod = template["spec"]
        volumes = {each["name"]: each for each in pod.get("volumes", ())}
        volumes |= {each["metadata"]["name"]: {} for each in claims(name)}
        for container in pod["containers"]:
            mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
            assert not any("subPath" in each for each in container["volumeMounts"])  # or nothing is ever renewed
            read = {*environment(container).values(), *re.findall(r"/run/secrets/[\w/-]+", str(container))}
            for path in read:
                if path.startswith("/run/secrets/") and path not in mounts:
                    folder, _, key = path.rpartition("/")
                    assert key in secrets[mounts[folder]["secret"]["secretName"]], path
            if spool := environment(container).get("DLQ_SPOOL_DIR"):
                assert bytes_of(mounts[spool]["emptyDir"]["sizeLimit"]) > DeadLetterConfig().spool_max_bytes


def claims(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = named("StatefulSet").get(name, {}).get("spec", {}).get("volumeClaimTemplates", [])
    return found


def test_secrets_hold_no_value() -> None:
    assert {value for each in named("Secret").values() for value in each["stringData"].values()} == {""}


def test_memory_of_redis_is_twice_what_letters_may_take() -> None:
    limit = CONTAINERS["dlq-redis/redis"]["resources"]["limits"]["memory"]
    assert bytes_of(limit) >= 2 * bytes_of(redis_settings()["maxmemory"])


def test_redis_is_started_and_asked_as_by_compose() -> None:
    """Whose command a test runs (test_compose_prod.py)."""
    service = compose(DEPLOY / "docker-compose.prod.yml", DLQ_APP="a:b")["services"]["dlq-redis"]
    container = CONTAINERS["dlq-redis/redis"]
    assert container["image"] == service["image"] and container["command"] == service["entrypoint"]
    there, here = "/run/secrets/dlq_redis_password", "/run/secrets/dlq-redis/password"
    assert container["args"] == [service["command"][0].replace(there, here)]
    assert container["readinessProbe"]["exec"]["command"][-1] == service["healthcheck"]["test"][-1].replace(there, here)


# ------------------------------------------------------------------------------------------------ who finds whom


def test_selectors_choose_the_pods_of_their_name() -> None:
    for name, deployment in (named("Deployment") | named("StatefulSet")).items():
        assert chosen_by(deployment["spec"]["selector"]["matchLabels"]) == [name]
        for spread in PODS[name]["spec"].get("topologySpreadConstraints", ()):
            assert chosen_by(spread["labelSelector"]["matchLabels"]) == [name]
    for name, budget in named("PodDisruptionBudget").items():
        assert chosen_by(budget["spec"]["selector"]["matchLabels"]) == [name]
        assert budget["spec"]["maxUnavailable"] < named("Deployment")[name]["spec"]["replicas"]


def test_services_lead_to_ports_of_their_pods() -> None:
    for service in named("Service").values():
        (pod,) = chosen_by(service["spec"]["selector"])
        ports = {
            port["name"]: port["containerPort"]
            for container in PODS[pod]["spec"]["containers"]
            for port in container.get("ports", ())
        }
        (port,) = service["spec"]["ports"]
        assert ports[port["targetPort"]] == port["port"]


def test_urls_name_services() -> None:
    addresses = {f"{name}:{each['spec']['ports'][0]['port']}" for name, each in named("Service").items()}
    assert {"dlq-redis:6379", "dlq-service:8000"} <= addresses
    for container in CONTAINERS.values():
        if url := environment(container).get("DLQ_REDIS_URL"):
            assert url.removeprefix("redis://").removesuffix("/0") in addresses


def test_prometheus_asks_every_process_by_its_own_address() -> None:
    """By a Service without an address of its own; in compose the names are those of a service, and of an alias."""
    jobs = YAML(typ="safe").load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    asked = {(name, lookup["port"]) for job in jobs for lookup in job["dns_sd_configs"] for name in lookup["names"]}
    assert asked == {
        (name, each["spec"]["ports"][0]["port"])
        for name, each in named("Service").items()
        if each["spec"].get("clusterIP") == "None" and each["spec"]["publishNotReadyAddresses"]
    }
    assert asked == {("dlq-worker", 9464), ("my-app-dlq", 9464), ("dlq-service-replicas", 8000)}
    services = YAML(typ="safe").load(DEPLOY / "docker-compose.prod.yml")["services"]
    assert "dlq-worker" in services
    assert services["dlq-service"]["networks"]["back"]["aliases"] == ["dlq-service-replicas"]


def test_keda_scales_the_workers_from_as_many_as_there_are() -> None:
    spec = YAML(typ="safe").load(DEPLOY / "keda" / "scaledobject.yaml")["spec"]
    target = named("Deployment")[spec["scaleTargetRef"]["name"]]
    assert environment(target["spec"]["template"]["spec"]["containers"][0]).get("DLQ_APP")
    assert target["spec"]["replicas"] == spec["minReplicaCount"]


# ------------------------------------------------------------------------------------------------ policies


def admitted(policy: str, way: str, port: int) -> set[str]:
    """Return the workloads, or ``prometheus`` and ``dns``, that a policy lets through on a port."""
    found: set[str] = set()
    for rule in named("NetworkPolicy")[policy]["spec"].get(way, ()):
        if port in {each["port"] for each in rule["ports"]}:
            for peer in rule["from" if way == "ingress" else "to"]:
                wanted = peer["podSelector"]["matchLabels"]
                others = {"prometheus": "prometheus", "kube-dns": "dns"}
                found |= set(chosen_by(wanted)) or {others[value] for value in wanted.values()}
    return found


def test_whoever_has_an_address_of_redis_is_let_in_and_nobody_else() -> None:
    callers = {name.partition("/")[0] for name, each in CONTAINERS.items() if "DLQ_REDIS_URL" in environment(each)}
    assert admitted("allow-dlq-redis", "ingress", 6379) == callers == {"dlq-service", "dlq-worker", "my-app"}
    policy = named("NetworkPolicy")["allow-dlq-redis"]["spec"]
    assert chosen_by(policy["podSelector"]["matchLabels"]) == ["dlq-redis"]
    assert policy["egress"] == []


def test_the_service_is_called_by_applications_and_calls_redis_and_dns_alone() -> None:
    assert admitted("allow-dlq-service", "ingress", 8000) == {"my-app", "prometheus"}
    assert admitted("allow-dlq-service", "egress", 6379) == {"dlq-redis"}
    assert admitted("allow-dlq-service", "egress", 53) == {"dns"}
    assert len(named("NetworkPolicy")["allow-dlq-service"]["spec"]["egress"]) == 2


def test_a_worker_is_asked_by_prometheus_and_may_call_whom_its_handlers_need() -> None:
    assert admitted("allow-dlq-worker", "ingress", 9464) == {"prometheus"}
    assert named("NetworkPolicy")["allow-dlq-worker"]["spec"]["policyTypes"] == ["Ingress"]
