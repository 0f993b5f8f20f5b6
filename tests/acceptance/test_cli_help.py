"""Helps are for people, and cost next to nothing."""

import subprocess
import sys
from typing import Any

import click
import pytest

from uno.cli.dead_letter import options
from uno.cli.dead_letter.group import COMMANDS, dead_letter
from uno.event_bus.dead_letter import DeadLetterReason, LetterState, Where

HELPS = [[], ["dead-letter"], *(["dead-letter", name] for name in COMMANDS)]

ASK_ALL = """
import sys
from uno.cli.group import uno
for words in {helps!r}:
    try:
        uno.main([*words, "--help"], prog_name="uno")
    except SystemExit as end:
        assert end.code == 0, words
heavy = {{"redis", "asyncio", "anyio", "msgspec", "rich", "opentelemetry", "prometheus_client"}}
engine = [name for name in sys.modules if name.startswith("uno.event_bus")]
print(sorted(heavy & set(sys.modules)), engine, file=sys.stderr)
"""


def command(name: str) -> Any:
    return dead_letter.get_command(click.Context(dead_letter), name)


def test_no_help_imports_redis_asyncio_or_the_engine() -> None:
    script = ASK_ALL.format(helps=HELPS)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr == "[] []\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_in_one_line_what_it_does_and_shows_examples(name: str) -> None:
    found = command(name)
    assert found.name == name
    summary, _, rest = found.help.partition("\n")
    assert summary.endswith(".") and f"uno dead-letter {name}" in rest
    assert len(COMMANDS[name][1]) < 60, "the group's table shows it on one line"


def test_states_and_reasons_of_the_options_are_those_of_the_engine() -> None:
    assert set(options.STATES) == {state.value for state in LetterState}
    assert set(options.REASONS) == {reason.value for reason in DeadLetterReason}


def test_filters_are_fields_that_the_engine_filters_by() -> None:
    names = ("state", "type_", "subscription", "reason", "error_type", "fingerprint", "event_id")
    given = options.filters_of(dict.fromkeys(names, ("parked",)))
    assert Where.of(given).conditions() == {name.rstrip("_"): ("parked",) for name in names}


def test_without_the_extra_one_line_says_what_to_install() -> None:
    script = "import sys; sys.modules['click'] = None; from uno.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (
        2,
        "uno: error: the command line is an extra: pip install 'uno-dead-letter[cli]'\n",
    )
