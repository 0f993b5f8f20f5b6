"""What drills of commands ask for."""

from tests.acceptance.conftest import cli

__all__ = ["cli"]
