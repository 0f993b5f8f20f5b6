"""The application: every operation at its path, the service's description, and problems for what is none."""

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.service import audit, captures, events, letters, page, probes, queue, verbs
from uno.event_bus.dead_letter.service.openapi import description
from uno.event_bus.dead_letter.service.operation import Call, Operation, Resource, Service, op
from uno.event_bus.dead_letter.service.reply import GUARDS, JSON, problem, reply_problem
from uno.event_bus.dead_letter.telemetry.registry import Exposed, registry_for

__all__ = ["BODY_BYTES", "OPERATIONS", "make_app"]

BODY_BYTES = 8 * 1024 * 1024
"""Longest body of a request, unless the caller says otherwise."""

OPERATIONS: tuple[Operation, ...] = (
    *captures.OPERATIONS,
    *events.OPERATIONS,
    *letters.OPERATIONS,
    *verbs.OPERATIONS,
    *queue.OPERATIONS,
    *audit.OPERATIONS,
    *probes.OPERATIONS,
)


def make_app(
    queue: DeadLetterQueue,
    *,
    stop: anyio.Event,
    exposed: Exposed | None = None,
    most_body_bytes: int = BODY_BYTES,
    open_to_all: bool = False,
) -> Starlette:
    """Return the application that serves a queue: routes alone, without limits of time and rate, and without tokens.

    Args:
        queue: What is served; opened and closed by the caller.
        stop: Set it when the service is to end: streams end then, after a whole line.
        exposed: What ``/metrics`` shows; None: a registry of its own, see `registry_for`.
        most_body_bytes: Longest body of a request.
        open_to_all: Whoever is not known (``scope["state"]["caller"]``) may do anything. False: nothing.
    """
    service = Service(
        queue=queue,
        exposed=exposed or registry_for(queue),
        stop=stop,
        most_body_bytes=most_body_bytes,
        open_to_all=open_to_all,
    )
    app = Starlette(
        routes=[Route(path, Resource(service, own)) for path, own in _paths([*OPERATIONS, *_about()]).items()],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False
    return app


def _paths(operations: Iterable[Operation]) -> dict[str, dict[str, Operation]]:
    """Return path → method → operation; paths without parameters first, which would match them."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in sorted(operations, key=lambda one: "{" in one.path):
        paths.setdefault(operation.path, {})[operation.method] = operation
    return paths


@cache
def _texts() -> tuple[bytes, bytes]:
    """Return the description and its page: made once a process, in some 50 ms."""
    told = description(OPERATIONS)
    return told, page.page_of(told)


def _about() -> tuple[Operation, ...]:
    """Return the operations that tell of the others, and are not described themselves."""
    told, shown = _texts()

    @op("GET", "/openapi.json", role=None)
    async def openapi(call: Call) -> Response:
        return Response(told, headers=GUARDS, media_type=JSON)

    @op("GET", "/docs", role=None)
    async def docs(call: Call) -> Response:
        return Response(shown, headers={**GUARDS, **page.HEADERS}, media_type="text/html")

    @op("GET", "/", role=None)
    async def root(call: Call) -> Response:
        return RedirectResponse("/docs", HTTPStatus.TEMPORARY_REDIRECT, GUARDS)

    return openapi, docs, root


def _refused(request: Request, error: Exception) -> Response:
    """Return the problem for what Starlette refuses: no route matches."""
    assert isinstance(error, HTTPException)
    request_id = str(request.scope.get("state", {}).get("request_id", ""))
    status = HTTPStatus(error.status_code)
    code = "not_found" if status is HTTPStatus.NOT_FOUND else "refused"
    return reply_problem(problem(status, code, "there is no such path; /docs shows those that there are", request_id))
