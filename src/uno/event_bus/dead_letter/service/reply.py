"""Replies: JSON bodies, problems, and how they are kept out of caches and browsers' guesses."""

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.remote.problems import problem_of
from uno.event_bus.dead_letter.remote.wire import PROBLEM, Problem

__all__ = ["GUARDS", "JSON", "Refused", "problem", "problem_for", "reply", "reply_problem"]

logger = logging.getLogger(__name__)

JSON: Final = "application/json"

GUARDS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Headers of every reply."""


class Refused(Exception):
    """Raised when a request is refused by the service itself, before the queue hears of it."""

    def __init__(
        self, status: HTTPStatus, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **facts: Any
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
        self.facts = facts
        super().__init__(detail)


def problem(status: HTTPStatus, code: str, detail: str, request_id: str = "", **facts: Any) -> Problem:
    """Return a problem of the service's own."""
    return Problem(f"urn:uno:dead-letter:{code}", status.phrase, status.value, detail, code, request_id, facts)


def problem_for(error: Exception, request_id: str) -> Problem:
    """Return what a client is told of an error; of one that nobody expected nothing, it stands in the log.

    The log has its class and where it was raised, and not its message, which may quote a payload.
    """
    if isinstance(error, Refused):
        return problem(error.status, error.code, error.detail, request_id, **error.facts)
    if isinstance(error, DeadLetterError):
        return problem_of(error, request_id)
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error(
        "request %s failed: %s, raised at\n%s", request_id, type(error).__name__, where, extra={"request": request_id}
    )
    detail = f"the service failed; its log says why, under request id {request_id}"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail, request_id)


def reply(body: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """Return a body as JSON."""
    return Response(msgspec.json.encode(body), status, {**GUARDS, **(headers or {})}, JSON)


def reply_problem(told: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as the reply to a request."""
    return Response(msgspec.json.encode(told), told.status, {**GUARDS, **(headers or {})}, PROBLEM)
