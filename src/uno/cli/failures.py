"""Errors of the command line: one line for people, one JSON object for programs, and the exit status."""

import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import click

__all__ = ["Failure", "Status", "report", "status_of"]


class Status(IntEnum):
    """Exit status of a command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """Wrong arguments, or a wrong or missing setting."""
    NOT_FOUND = 3
    REFUSED = 4
    """The queue, the letter's state or the operator said no."""
    UNREACHABLE = 5
    """Redis, or the service, did not answer."""


INTERRUPTED: Final = 130
"""As a shell reports a process that SIGINT ended."""

BROKEN_PIPE: Final = 141
"""As a shell reports a process that SIGPIPE ended: the reader had enough."""

_BY_CODE: Final = {
    "config_invalid": Status.USAGE,
    "disabled": Status.REFUSED,
    "layout_mismatch": Status.REFUSED,
    "lease_lost": Status.REFUSED,
    "letter_not_found": Status.NOT_FOUND,
    "letter_state_conflict": Status.REFUSED,
    "permission_denied": Status.REFUSED,
    "queue_full": Status.REFUSED,
    "queue_not_found": Status.NOT_FOUND,
    "spool_full": Status.UNREACHABLE,
    "store_unavailable": Status.UNREACHABLE,
}
"""Code of a `DeadLetterError` → status; any other is a failure."""


class Failure(Exception):
    """What a command itself gives up with; `detail` is shown with ``--debug``."""

    def __init__(self, message: str, status: Status, code: str = "", *, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code or status.name.lower()
        self.detail = detail


class Ended(Exception):
    """The command was interrupted, or nobody reads its output any more: its cause says which."""


def report(error: BaseException, words: Sequence[str] = ()) -> int:
    """Say on stderr what went wrong, and return the exit status.

    `words` is the command line: it says whether the caller wants JSON, and a traceback.
    """
    error = _sole(error)
    if isinstance(error, Ended) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(Status.FAILURE)
    if isinstance(error, BrokenPipeError):
        # What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    status = status_of(error)
    if "--debug" in words:
        _print_traceback(error)
    _print(_message(error), _code(error, status), status, as_json=_wants_json(words))
    return status


def status_of(error: BaseException) -> int:
    """Return the exit status of an error."""
    if isinstance(error, Failure):
        return int(error.status)
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    return int(_BY_CODE.get(getattr(error, "code", ""), Status.FAILURE))


def _sole(error: BaseException) -> BaseException:
    """Return what a task group wrapped, when it is one single error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted"
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "uno"
        return f"{error.format_message().rstrip('.')} (see {where} --help)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, Failure) or _is_ours(error):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _code(error: BaseException, status: int) -> str:
    found = getattr(error, "code", None)
    if isinstance(found, str):
        return found
    if isinstance(error, click.UsageError):
        return "usage"
    return "interrupted" if status == INTERRUPTED else "failure"


def _is_ours(error: BaseException) -> bool:
    # By the mark of `DeadLetterError`, so that a wrong option costs no import of the engine.
    return isinstance(getattr(type(error), "code", None), str)


def _wants_json(words: Sequence[str]) -> bool:
    """Answer whether the command line asks for JSON; also one that cannot be parsed."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        chosen = following if word in ("-o", "--output") else word.removeprefix("-o").removeprefix("--output=")
        if chosen in ("json", "jsonl") and word.startswith("-"):
            return True
    return False


def _print(message: str, code: str, status: int, *, as_json: bool) -> None:
    from uno.cli.text import one_line

    if as_json:
        import json

        line = json.dumps({"error": {"code": code, "message": message, "status": int(status)}})
    else:
        line = f"uno: error: {one_line(message)}"
    if status == INTERRUPTED and sys.stderr.isatty():
        line = f"\n{line}"  # after the terminal's ^C
    print(line, file=sys.stderr)


def _print_traceback(error: BaseException) -> None:
    import traceback

    from uno.cli.text import lines

    detail = getattr(error, "detail", "") or "".join(traceback.format_exception(error))
    print(lines(detail), file=sys.stderr)
