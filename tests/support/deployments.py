"""The files under deploy/, as the programs see them that they are for: compose, Kubernetes, a build of the image."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from ruamel.yaml import YAML

from uno.cli.group import uno
from uno.event_bus.dead_letter import DeadLetterConfig
from uno.event_bus.dead_letter.service.settings import ServiceSettings

__all__ = [
    "CHECKOUT",
    "DEPLOY",
    "MANIFESTS",
    "REDIS_CONF",
    "Instruction",
    "bytes_of",
    "compose",
    "compose_files_refused",
    "containers",
    "documents",
    "environment",
    "instructions",
    "is_a_command",
    "known_variables",
    "pods",
    "redis_settings",
    "unknown_settings",
]

CHECKOUT: Final = Path(__file__).parents[2]
DEPLOY: Final = CHECKOUT / "deploy"
REDIS_CONF: Final = DEPLOY / "redis" / "redis.conf"
MANIFESTS: Final = tuple(
    DEPLOY / "kubernetes" / f"{name}.yaml"
    for name in ("redis", "service", "sidecar", "networkpolicy", "secrets.example")
)

# ------------------------------------------------------------------------------------------------ settings, commands


def known_variables() -> frozenset[str]:
    """Return the variables that the engine and its service read."""
    return frozenset([*DeadLetterConfig.variables().values(), *ServiceSettings.variables().values()])


def unknown_settings(environment: Mapping[str, str]) -> str:
    """Say which variable nobody reads, or what the engine has against a value; nothing if all is well."""
    strangers = sorted(name for name in environment if name.startswith("DLQ_") and name not in known_variables())
    if strangers:
        return f"nobody reads {strangers}"
    DeadLetterConfig.from_env(environment)
    ServiceSettings.from_env(environment)
    return ""


def is_a_command(words: Sequence[str]) -> bool:
    """Answer whether the command line takes these words: ``python -m uno.cli.main …``, or ``uno …``."""
    if list(words[:3]) == ["python", "-m", "uno.cli.main"]:
        words = words[3:]
    elif words[:1] == ["uno"]:
        words = words[1:]
    else:
        return False
    command: click.Command | None = uno
    context = click.Context(uno)
    while isinstance(command, click.Group) and words:
        command, words = command.get_command(context, words[0]), words[1:]
    if command is None or isinstance(command, click.Group):
        return False
    try:
        command.make_context("uno", list(words))
    except click.UsageError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ redis.conf


def redis_settings() -> dict[str, str]:
    """Return what redis.conf says; several lines of one name as one, as CONFIG GET has them."""
    settings: dict[str, str] = {}
    for line in REDIS_CONF.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            settings[name] = f"{settings[name]} {value}" if name in settings else value
    return settings


def bytes_of(text: str) -> int:
    """Return a size as Redis (2gb), compose (4G) and Kubernetes (4Gi) write it."""
    match = re.fullmatch(r"(\d+)([kmg])?(?:i|b|ib)?", text.lower())
    assert match, text
    return int(match[1]) << {None: 0, "k": 10, "m": 20, "g": 30}[match[2]]


# ------------------------------------------------------------------------------------------------ compose


def compose(path: Path, **variables: str) -> Any:
    """Return the file as compose reads it: variables replaced in its texts, ``$$`` by ``$``.

    Raises `LookupError` with the file's own words for a variable that it demands.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, how, text = found["name"], found["how"], found["text"]
        assert name, f"{path.name}: a $ that compose would refuse"
        if how == ":?" and not variables.get(name):
            raise LookupError(f"{name}: {text}")
        return variables.get(name) or (text if how == ":-" else "")

    def interpolated(node: Any) -> Any:
        if isinstance(node, str):
            return re.sub(r"\$\$|\$(?:\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<text>[^}]*))?\})?", value, node)
        if isinstance(node, dict):
            return {key: interpolated(inner) for key, inner in node.items()}
        return [interpolated(inner) for inner in node] if isinstance(node, list) else node

    return interpolated(YAML(typ="safe").load(path))


def compose_files_refused(*paths: Path) -> str:
    """Say what the compose specification has against files; nothing if they fit it."""
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, paths)]
    run = subprocess.run(checker, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr if run.returncode else ""


# ------------------------------------------------------------------------------------------------ Kubernetes


def documents(*paths: Path) -> list[dict[str, Any]]:
    """Return the objects of manifests."""
    return [each for path in paths for each in YAML(typ="safe").load_all(path)]


def pods(objects: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and template of whatever makes pods."""
    for each in objects:
        if "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]


def containers(objects: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each container, by ``<workload>/<name>``."""
    for name, template in pods(objects):
        for container in template["spec"]["containers"]:
            yield f"{name}/{container['name']}", container


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return what a container of a manifest sets."""
    return {each["name"]: each["value"] for each in container.get("env", ())}


# ------------------------------------------------------------------------------------------------ Dockerfile


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its name, and the rest of its line, which may have been several."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest without its flags."""
        return [word for word in self.rest.split() if not word.startswith("--")]

    def flag(self, name: str) -> str:
        """The value of a flag; empty without it."""
        match = re.search(rf"--{name}=(\S+)", self.rest)
        return match[1] if match else ""


def instructions(path: Path) -> list[Instruction]:
    """Return what a Dockerfile says, line after line."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(None, 1)) for line in text.splitlines() if line.strip()]
