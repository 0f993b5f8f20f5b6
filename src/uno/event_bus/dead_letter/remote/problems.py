"""Errors as problem details, and back: both sides name them by the codes of the one tree in `errors`."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import msgspec

from uno.event_bus.dead_letter import errors
from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.remote.wire import Problem

__all__ = ["STATUS", "RequestRefused", "error_of", "problem_of"]

STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "backup_invalid": HTTPStatus.BAD_REQUEST,
        "config_invalid": HTTPStatus.BAD_REQUEST,
        "dead_letter_error": HTTPStatus.INTERNAL_SERVER_ERROR,
        "disabled": HTTPStatus.SERVICE_UNAVAILABLE,
        "invalid_event": HTTPStatus.UNPROCESSABLE_ENTITY,
        "layout_mismatch": HTTPStatus.CONFLICT,
        "lease_lost": HTTPStatus.CONFLICT,
        "letter_not_found": HTTPStatus.NOT_FOUND,
        "letter_state_conflict": HTTPStatus.CONFLICT,
        "not_replicated": HTTPStatus.GATEWAY_TIMEOUT,
        "partial_capture": HTTPStatus.MULTI_STATUS,
        "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "permission_denied": HTTPStatus.FORBIDDEN,
        "queue_full": HTTPStatus.INSUFFICIENT_STORAGE,
        "queue_not_found": HTTPStatus.NOT_FOUND,
        "spool_full": HTTPStatus.SERVICE_UNAVAILABLE,
        "store_error": HTTPStatus.INTERNAL_SERVER_ERROR,
        "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
"""Code → HTTP status; a test compares it with the tree."""

_KINDS: Final[Mapping[str, type[DeadLetterError]]] = MappingProxyType(
    {kind.code: kind for kind in (getattr(errors, name) for name in errors.__all__)}
)


def problem_of(error: DeadLetterError, request_id: str = "") -> Problem:
    """Return an error of the tree as a problem; its facts go along, so that the other side can raise the same."""
    status = STATUS[error.code]
    facts = {name: fact for name, fact in vars(error).items() if not name.startswith("__")}
    return Problem(
        type=f"urn:uno:dead-letter:{error.code}",
        title=type(error).__name__,
        status=status.value,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        facts=msgspec.to_builtins(facts, str_keys=True, enc_hook=str),
    )


class RequestRefused(errors.StoreError):
    """Raised when a service refuses a request as it was sent: nothing was done, and to send it again does not help."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.args = (f"the service refused the request ({why}): nothing was done",)


def error_of(problem: Problem) -> DeadLetterError:
    """Return the error that a problem tells of: same class, message and facts.

    A code that this version does not know, or that is the service's own, is told by its status: what the service
    cannot do now is a `StoreUnavailable`, and whether it was done is not known; what it refuses is a `RequestRefused`.
    """
    kind = _KINDS.get(problem.code)
    if kind is not None:
        return _restored(kind, problem.detail, problem.facts)
    why = f"{problem.detail} ({problem.code})"
    if problem.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestRefused(why)
    return errors.StoreError(why) if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR else StoreUnavailable(why)


def _restored(kind: type[DeadLetterError], message: str, facts: dict[str, Any]) -> DeadLetterError:
    """Make it by message and facts, as a copy is made: the constructors take facts, and build the message."""
    if issubclass(kind, StoreUnavailable):  # others act on these two, whatever another version tells of it
        facts = {**facts, "why": str(facts.get("why", message)), "certain": facts.get("certain") is True}
    error = kind.__new__(kind, message)
    error.__dict__.update({name: tuple(fact) if isinstance(fact, list) else fact for name, fact in facts.items()})
    return error
