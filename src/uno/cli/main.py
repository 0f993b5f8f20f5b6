"""Entry point of the command line: ``uno …`` and ``python -m uno.cli.main …``."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command that `sys.argv` names, and exit with its status.

    0 ok, 1 failure, 2 usage or settings, 3 not found, 4 refused or conflict, 5 Redis unreachable.
    """
    try:
        from uno.cli.group import uno
    except ModuleNotFoundError as missing:
        if missing.name != "click":
            raise
        sys.exit(_without_extra())
    uno.main(prog_name="uno")
    raise AssertionError  # `main` of the group always exits


def _without_extra() -> int:
    print("uno: error: the command line is an extra: pip install 'uno-dead-letter[cli]'", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
