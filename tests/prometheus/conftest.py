"""What needs a minute is asked for by name: make prometheus."""

from pathlib import Path

import pytest

LIVE = "test_live.py"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the live tests alone, unless the command line names their file."""
    is_live = collection_path.name == LIVE and not any(LIVE in word for word in config.args)
    return True if is_live else None
