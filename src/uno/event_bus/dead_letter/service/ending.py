"""Long work of a request: it ends when its client leaves, and when the service stops."""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from http import HTTPStatus

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from uno.event_bus.dead_letter.remote.wire import Problem
from uno.event_bus.dead_letter.service.operation import Call
from uno.event_bus.dead_letter.service.reply import Refused, problem

__all__ = ["Ending", "run_until_ended", "stopping", "while_wanted"]


class Ending(Enum):
    """Why long work has ended."""

    BY_ITSELF = auto()
    CLIENT_LEFT = auto()
    SERVICE_STOPS = auto()


async def run_until_ended(stop: anyio.Event, receive: Receive, work: Callable[[], Awaitable[object]]) -> Ending:
    """Run work whose request has been read; cancel it when the client leaves, or `stop` is set. Raises what it does."""
    ending = Ending.BY_ITSELF
    failure: Exception | None = None

    async def watch() -> None:
        nonlocal ending
        while (await receive())["type"] != "http.disconnect":
            pass
        ending = Ending.CLIENT_LEFT
        group.cancel_scope.cancel()

    async def heed() -> None:
        nonlocal ending
        await stop.wait()
        ending = Ending.SERVICE_STOPS
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        group.start_soon(heed)
        try:
            await work()
        except Exception as error:  # raised outside of the group, which would wrap it
            failure = error
        else:
            ending = Ending.BY_ITSELF
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return ending


async def while_wanted[T](call: Call, work: Callable[[], Awaitable[T]]) -> T:
    """Return what work gives, unless its client leaves (`ClientDisconnect`) or the service stops (`Refused`) before."""
    results: list[T] = []

    async def run() -> None:
        results.append(await work())

    ending = await run_until_ended(call.service.stop, call.request.receive, run)
    if ending is Ending.CLIENT_LEFT:
        raise ClientDisconnect
    if ending is Ending.SERVICE_STOPS:
        told = stopping(call.request_id)
        raise Refused(HTTPStatus(told.status), told.code, told.detail, **told.facts)
    return results[0]


def stopping(request_id: str) -> Problem:
    """Return what a client is told whose request is ended by the end of the service."""
    why = "the service stops"
    detail = f"{why}: what was done so far is done, and to repeat the request is safe"
    facts: Mapping[str, object] = {"why": why, "certain": False}
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "store_unavailable", detail, request_id, **facts)
