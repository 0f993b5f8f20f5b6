"""requirements.lock against pyproject.toml: `make lock` was not forgotten, and left no address behind."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "tests/support/servers.lock")


def pins(lock: str) -> dict[str, str]:
    text = (CHECKOUT / lock).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def wanted(lock: str) -> list[Requirement]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    if lock == "requirements.lock":
        lines = chain(
            PROJECT["build-system"]["requires"],
            project["dependencies"],
            *project["optional-dependencies"].values(),
            groups["dev"],
        )
    else:
        lines = chain(groups["servers"])
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_within_its_bounds(lock: str) -> None:
    pinned = pins(lock)
    stale = [
        str(want)
        for want in wanted(lock)
        if not want.specifier.contains(pinned.get(canonicalize_name(want.name), "0"), prereleases=True)
    ]
    assert stale == [], "run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_and_hashes_and_nothing_else(lock: str) -> None:
    line = re.compile(r"[a-z0-9-]+==[\w.]+( ; [^\\/:]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    strange = [text for text in (CHECKOUT / lock).read_text().splitlines() if not line.fullmatch(text)]
    assert strange == []
