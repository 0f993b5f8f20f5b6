"""Transcripts in pages: blocks of ```console, whose commands run as they stand, and print what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["Step", "blocks", "differs", "play"]

PORT = 8000
"""At which the pages have the service; here it takes any free one, which it says when it is up."""

SEPARATOR = "\x1e"

START = r""": >service.log
{command} 2>service.log &
until port=$(sed -nE 's|.*service at https?://[^:]*:([0-9]+).*|\1|p' service.log); [ -n "$port" ]; do
  kill -0 $! 2>/dev/null || {{ cat service.log; exit 1; }}
  sleep 0.02
done"""

VOLATILE = (
    (re.compile(r"\d+-\d{13}-\d+"), "<letter>"),
    (re.compile(r"\d{13}-\d+"), "<entry>"),
    (re.compile(r"\b\d{13}\b"), "<ms>"),
    (re.compile(r'("request_id":)"[0-9a-f]{16}"'), r'\1"<request>"'),
    (re.compile(r'("call":)"[0-9a-f]{8}"'), r'\1"<call>"'),
)


class Step(NamedTuple):
    """A command, and what it is to print."""

    command: str
    lines: list[str]


def blocks(page: Path, test: str) -> list[Step]:
    """Return the steps of a page's transcripts, of those that say that this test runs them."""
    found = re.findall(
        rf"<!-- {re.escape(test)} runs this -->\n```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL
    )
    steps: list[Step] = []
    for line in "".join(found).splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        elif not steps[-1].lines and _goes_on(steps[-1].command):
            steps[-1] = Step(f"{steps[-1].command}\n{line}", [])
        else:
            steps[-1].lines.append(line)
    return steps


def _goes_on(command: str) -> bool:
    """Whether the next line is of the same command: a backslash, or a document that ends with END."""
    return command.endswith("\\") or ("<<'END'" in command and not command.endswith("\nEND"))


def play(steps: list[Step], folder: Path, replaced: dict[str, str], **variables: str) -> list[list[str]]:
    """Run commands one after another in one shell; return the lines that each printed, on either stream.

    A command that ends with ``&`` is a service: the next one runs when it is up. Whatever still runs is ended.
    """
    script = ["trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for step in steps:
        command = step.command
        for said, meant in replaced.items():
            command = command.replace(said, meant)
        command = command.replace(f"127.0.0.1:{PORT}", "127.0.0.1:$port")
        is_service = command.endswith("&")
        script += [f"printf '{SEPARATOR}'", START.format(command=command[:-1].strip()) if is_service else command]
    environ = os.environ | {"PATH": f"{_commands(folder)}:{os.environ['PATH']}", "HOME": str(folder)}
    environ |= {"DLQ_SERVICE_PORT": "0", **variables}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    return [told.splitlines() for told in done.stdout.split(SEPARATOR)[1:]]


def _commands(folder: Path) -> Path:
    """Return a folder with ``uno`` and ``python`` of this checkout."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, words in (("uno", "-m uno.cli.main"), ("python", "")):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        path.chmod(0o755)
    return commands


def differs(said: list[str], printed: list[str]) -> bool:
    """Whether a page says something else than was printed: ids, times and what ``…`` leaves out do not count."""
    said, printed = [_steady(line) for line in said if line], [_steady(line) for line in printed if line]
    if len(said) != len(printed):
        return True
    return not all(
        re.fullmatch(".*?".join(re.escape(part) for part in line.split("…")), told)
        for line, told in zip(said, printed, strict=True)
    )


def _steady(line: str) -> str:
    for pattern, name in VOLATILE:
        line = pattern.sub(name, line)
    return line.rstrip()
