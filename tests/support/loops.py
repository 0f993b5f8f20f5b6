"""Event loops: asyncio's own, and uvloop."""

import pytest

BOTH_LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
    scope="session",
)
"""Runs a test on both."""
