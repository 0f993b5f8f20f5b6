"""The pages about the service say nothing that is not so: transcripts run, tables are those of the code."""

import os
import re
import shutil
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.acceptance.test_readme import ROOT, shown
from tests.support.transcripts import Step, blocks, differs, play
from uno.event_bus.dead_letter.remote.problems import STATUS
from uno.event_bus.dead_letter.service.app import OPERATIONS
from uno.event_bus.dead_letter.service.caller import ANY_ROLE
from uno.event_bus.dead_letter.service.settings import ServiceSettings

SERVICE = ROOT / "docs/service.md"
PAGES = (SERVICE, ROOT / "docs/remote.md", ROOT / "README.md")


def steps_of(page: Path) -> list[Step]:
    return blocks(page, "tests/acceptance/test_service_docs.py")


def rows(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading of docs/service.md, without its head."""
    section = SERVICE.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def needs_curl() -> None:
    """A machine may lack it; CI may not."""
    if shutil.which("curl") is None:
        assert not os.environ.get("CI"), "curl is missing: .ci/run installs it"
        pytest.skip("curl is missing, which the transcripts use")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("needs_curl")
def test_transcripts_run_as_they_stand(page: Path, redis_url: str, tmp_path: Path) -> None:
    """From the first command to the last, in one shell, with a service of their own on a real server."""
    steps = steps_of(page)
    assert len(steps) > 3
    printed = play(steps, tmp_path, {"embedded:": redis_url})
    assert len(printed) == len(steps), printed[-1]
    wrong = [(step.command, told) for step, told in zip(steps, printed, strict=True) if differs(step.lines, told)]
    assert wrong == []


def test_the_table_of_settings_is_complete() -> None:
    """Every field of `ServiceSettings`, in its order, with its default."""
    expected = [
        [f"`{ServiceSettings.variable(each.name)}`", "" if each.default == () else shown(each.default)]
        for each in fields(ServiceSettings)
    ]
    assert [row[:2] for row in rows("Settings")] == expected
    assert all(len(row) == 3 and row[2] for row in rows("Settings"))


def test_the_table_of_roles_is_complete() -> None:
    """Each operation once, beside the role that it asks for."""
    expected: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        name = {None: "no token", ANY_ROLE: "any of them"}.get(operation.role, f"`{operation.role}`")
        expected.setdefault(name, set()).add(f"{operation.method} {operation.path}")
    assert {row[0]: set(re.findall(r"`([A-Z]+ [^`]+)`", row[2])) for row in rows("Access")} == expected


def test_the_table_of_problems_is_complete() -> None:
    """The engine's codes with their statuses, and those that the service has of its own."""
    told = {(int(row[0]), code) for row in rows("Problems") for code in re.findall(r"`(\w+)`", row[1])}
    # A partial capture is told by the results of a 207; 409 is another queue than the one that the request means.
    engines = {(status.value, code) for code, status in STATUS.items() if code != "partial_capture"}
    assert told == engines | _codes_of_the_service()
    assert all(row[2] for row in rows("Problems"))


def _codes_of_the_service() -> set[tuple[int, str]]:
    """Return what stands in its sources as the status and the code of a refusal."""
    sources = (ROOT / "src/uno/event_bus/dead_letter/service").rglob("*.py")
    text = "\n".join(path.read_text("utf-8") for path in sources)
    found = re.findall(r"\b(?:Refusal|Refused|problem)\(\s*(?:HTTPStatus\.([A-Z_]+)|(\d{3})),\s*\"(\w+)\"", text)
    assert len(found) > 15
    # What Starlette refuses is a path that there is not.
    return {(HTTPStatus[name].value if name else int(number), code) for name, number, code in found} | {
        (404, "not_found")
    }
