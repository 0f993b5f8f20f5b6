"""The README says nothing that is not so: its examples run, its tables are complete, its paths exist."""

import ast
import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from uno.event_bus.dead_letter import DeadLetterConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"<!-- tests/acceptance/test_readme\.py runs this -->\n```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading, without its head."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_ten_lines_run_as_they_stand(tmp_path: Path) -> None:
    """In a new process, with an embedded server in an empty home."""
    example = EXAMPLES[0]
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 11, "ten lines, and the import of anyio"
    environ = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", example], env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "attempt 1, after 'the warehouse hung up': {'order': 7}"
    assert second.startswith("resolved 1, ")


async def test_the_bus_of_the_second_example_dead_letters(redis_url: str) -> None:
    """A subscription that fails becomes a letter with its id."""
    definitions = EXAMPLES[0].replace("embedded:", redis_url).replace("anyio.run(main)", "")
    names: dict[str, Any] = {}
    exec(definitions, names)
    async with names["dlq"] as dlq:
        code = compile(EXAMPLES[1], "README", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        assert inspect.isawaitable(result)
        await result
        letters = [letter async for letter in dlq.letters()]
        assert [(each.type, each.subscription) for each in letters] == [("OrderPlaced", "send-receipt")]
        assert (await dlq.verify()).clean


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_there(target: str) -> None:
    """`make` knows them; what they do is what .ci/run and the acceptance tests run."""
    assert f"    make {target} " in README
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_settings_is_complete() -> None:
    """Every field of `DeadLetterConfig`, in its order, with its default."""
    expected = [[f"`{DeadLetterConfig.variable(each.name)}`", shown(each.default)] for each in fields(DeadLetterConfig)]
    assert [row[:2] for row in rows("Settings")] == expected
    assert all(len(row) == 3 and row[2] for row in rows("Settings"))


def shown(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:.15g}"
    return str(default)


def test_the_table_of_commands_is_complete() -> None:
    """Every command of `uno dead-letter`, and no other."""
    named = {name for row in rows("Commands") for name in re.findall(r"`([a-z]+)`", row[0])}
    listed = subprocess.run(
        [sys.executable, "-m", "uno.cli.main", "dead-letter", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^  ([a-z]+)  +", listed.partition("Commands")[2], re.MULTILINE)
    assert named == set(commands)


def leads_somewhere(page: Path, path: str, heading: str) -> bool:
    """Whether a link of a page does: to a file, and to the heading there that it names."""
    target = page.parent / path if path else page
    if not heading:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if target.exists() else []
    return heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_pages_name_exist(page: Path) -> None:
    """Links to files and to headings of theirs, and paths of tests."""
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    named = re.findall(r"`(tests/[^`]*)`", text)
    missing = [link for link in links if not leads_somewhere(page, *link.partition("#")[::2])]
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_every_word_of_the_glossary_is_used() -> None:
    """A word that nothing uses is a word too many."""
    words = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "lua").rglob("*.lua"), ROOT / "docs/how-a-letter-lives.md"]
    text = " ".join(path.read_text("utf-8").lower() for path in sources).replace("_", " ")
    assert [word for word in words if word not in text] == []
