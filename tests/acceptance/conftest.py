"""What tests of commands ask for: `cli`, which runs them, and a folder with an application."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import APP, Cli


@pytest.fixture
def cli(redis_url: str) -> Cli:
    """Commands on the test's own server."""
    return Cli(redis_url)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT ends processes that are started now; jobs that a shell runs in the background, it would not."""
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, was)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the application ``shop:queue``."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path
