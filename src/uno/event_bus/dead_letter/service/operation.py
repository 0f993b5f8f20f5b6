"""Operations: one method on one path, what it takes, gives and asks for, and the function that does it.

A module of routes declares its operations with `op`; the application serves them, and the description (OpenAPI) is made
of them. In order: the caller's role, the queue that is meant, the query, the body; then the function.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from uno.event_bus.dead_letter.actor import acting_as
from uno.event_bus.dead_letter.errors import PermissionDenied
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.remote.wire import NDJSON, QUEUE_HEADER
from uno.event_bus.dead_letter.service.caller import ANYONE, NOBODY, Caller
from uno.event_bus.dead_letter.service.reading import decoded, query_of, read_body, require_json
from uno.event_bus.dead_letter.service.reply import Refused, problem, problem_for, reply, reply_problem
from uno.event_bus.dead_letter.telemetry.registry import Exposed

__all__ = ["Call", "Operation", "Resource", "Service", "as_caller", "op"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What all operations work with."""

    queue: DeadLetterQueue
    exposed: Exposed
    """What ``/metrics`` and ``/readyz`` tell."""
    stop: anyio.Event
    """Set when the service is to end: streams end with it."""
    most_body_bytes: int
    open_to_all: bool
    """Whoever is not known may do anything: without tokens."""
    streams: set[object] = field(default_factory=set)
    """Replies in lines that are under way."""
    lookup: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while kept letters are looked for: that reads many letters, and captures must not wait for it."""


class NoQuery(msgspec.Struct):
    """An operation without parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one operation."""

    service: Service
    request: Request
    caller: Caller
    request_id: str
    query: Any = None
    body: Any = None

    @property
    def queue(self) -> DeadLetterQueue:
        """The queue that is served."""
        return self.service.queue

    @property
    def id(self) -> str:
        """The letter's id in the path."""
        return str(self.request.path_params["id"])

    @property
    def wants_lines(self) -> bool:
        """Whether the client asks for a stream of JSON lines."""
        accepted = "".join(self.request.headers.get("accept", "").lower().split())
        return any(part.partition(";")[0] == NDJSON and not part.endswith(";q=0") for part in accepted.split(","))


def as_caller(call: Call) -> AbstractContextManager[None]:
    """Have what is done inside recorded as the caller's: every change of letters, or of the queue, runs in one."""
    who = call.caller.name if call.caller == ANYONE else f"token:{call.caller.name}"
    return acting_as(who, call.request_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path."""

    method: str
    path: str
    role: str | None
    """What the caller must be allowed; None: nothing."""
    handle: Callable[[Call], Awaitable[object]]
    """Returns a response, or the body of one."""
    summary: str
    description: str
    query: type[msgspec.Struct] = NoQuery
    body: type[msgspec.Struct] | None = None
    body_may_be_missing: bool = False
    """No body means the same as an empty object."""
    bodies: Mapping[str, Any] = field(default_factory=dict)
    """Of one that reads the body by itself: content type → schema."""
    out: Any = None
    status: HTTPStatus = HTTPStatus.OK
    also: Mapping[HTTPStatus, Any] = field(default_factory=dict)
    """Further statuses of success, and their bodies."""
    lines: Any = None
    """What one line is, for clients that ask for a stream of them."""
    media: str = ""
    """Content type of a body that is not JSON."""
    fails: tuple[HTTPStatus, ...] = ()
    """Statuses of problems, beside those that any operation may answer."""


def op(
    method: str, path: str, *, role: str | None, **how: Any
) -> Callable[[Callable[[Call], Awaitable[object]]], Operation]:
    """Declare the decorated function an operation; its docstring is its description. Arguments as of `Operation`."""

    def declare(handle: Callable[[Call], Awaitable[object]]) -> Operation:
        text = inspect.getdoc(handle) or ""
        summary, _, more = text.partition("\n\n")
        return Operation(
            method=method,
            path=path,
            role=role,
            handle=handle,
            summary=" ".join(summary.split()).rstrip("."),
            description=more,
            **how,
        )

    return declare


class Resource:
    """The operations of one path, as an ASGI application."""

    def __init__(self, service: Service, operations: Mapping[str, Operation]) -> None:
        self._service = service
        self._operations = dict(operations)
        if "GET" in operations:
            self._operations["HEAD"] = operations["GET"]
        self._allowed = {"allow": ", ".join(sorted(self._operations))}
        self._decoders = {o.body: msgspec.json.Decoder(o.body) for o in operations.values() if o.body is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await self._respond(Request(scope, receive, send))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        request_id = str(request.scope.get("state", {}).get("request_id", ""))
        operation = self._operations.get(request.method)
        if operation is None:
            detail = f"{request.method[:20]} is not allowed here; allowed are {self._allowed['allow']}"
            told = problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", detail, request_id)
            return reply_problem(told, self._allowed)
        try:
            answer = await operation.handle(await self._call(operation, request, request_id))
        except ClientDisconnect:
            raise
        except Exception as error:
            return reply_problem(problem_for(error, request_id), getattr(error, "headers", None))
        return answer if isinstance(answer, Response) else reply(answer, operation.status)

    async def _call(self, operation: Operation, request: Request, request_id: str) -> Call:
        caller = self._caller(request)
        if operation.role is not None:
            _require(caller, operation.role)
            self._require_queue(request)
        query = query_of(request, operation.query)
        body = None
        if operation.body is not None:
            raw = await read_body(request, self._service.most_body_bytes)
            if raw or not operation.body_may_be_missing:
                require_json(request)
            body = decoded(raw or b"{}" if operation.body_may_be_missing else raw, self._decoders[operation.body])
        return Call(self._service, request, caller, request_id, query, body)

    def _caller(self, request: Request) -> Caller:
        known = request.scope.get("state", {}).get("caller")
        if isinstance(known, Caller):
            return known
        return ANYONE if self._service.open_to_all else NOBODY

    def _require_queue(self, request: Request) -> None:
        meant, ours = request.headers.get(QUEUE_HEADER), self._service.queue.config.queue
        if meant is not None and meant != ours:
            raise Refused(
                HTTPStatus.CONFLICT,
                "config_invalid",
                f"the service serves queue {ours!r}, the request means {meant[:64]!r} (DLQ_QUEUE): nothing was done",
            )


_UNKNOWN: Final = "the request has no token that the service knows (Authorization: Bearer …)"


def _require(caller: Caller, role: str) -> None:
    """Raise unless the caller may do what the role allows: 401 for nobody that is known, else 403."""
    if caller.may(role):
        return
    if not caller.name:
        headers = {"www-authenticate": "Bearer"}
        raise Refused(HTTPStatus.UNAUTHORIZED, "unauthenticated", _UNKNOWN, headers=headers)
    has = ", ".join(sorted(caller.roles)) or "none"
    raise PermissionDenied(f"{caller.name} has the roles: {has}; this needs {role}: nothing was done")
