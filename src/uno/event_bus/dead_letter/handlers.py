"""Handlers: what an application registers, and which of them a letter goes to."""

import inspect
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_type_hints

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.codec import Decoder, decode, decoder_for
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.retry import PolicyLike, RetryPolicy, as_policy
from uno.event_bus.dead_letter.rules import require_seconds, require_whole

__all__ = ["Handler", "HandlerTimeout", "Handlers", "InThread", "caught", "in_thread"]

type InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function in a thread, and returns or raises what it does."""


class HandlerTimeout(TimeoutError):
    """The handler ran longer than its timeout; a `TimeoutError` of the handler's own is not this."""


@dataclass(slots=True)
class Handler:
    """A registered handler, with all that is known about calling it."""

    id: str
    fn: Callable[..., Any]
    type: str | None = None
    subscription: str | None = None
    timeout_s: float | None = None
    """An attempt that runs longer is cancelled and counts as failed; None: no bound but the lease's heartbeat."""
    concurrency: int | None = None
    """Attempts of this handler at a time in one worker; None: as many as the worker runs."""
    policy: RetryPolicy | None = None
    """None: the queue's."""
    target: Any = None
    """What the payload is decoded into: the annotation of the handler's first parameter."""
    wants_letter: bool = False
    is_async: bool = True
    is_plain: bool = field(init=False)
    """An async function of the event alone, without bounds: may be awaited directly."""
    _decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        self._decoder = decoder_for(self.target)
        self.is_plain = self.is_async and not (self.wants_letter or self.timeout_s or self.concurrency)

    def decode(self, letter: Letter) -> Any:
        """Return the letter's event as the handler wants it; raises `InvalidEvent`."""
        if letter.is_plain_json:
            try:
                return self._decoder(letter.payload)
            except Exception:  # told properly below
                pass
        return decode(letter.payload, letter.content_type, self.target, event_type=letter.type)

    async def run(self, event: Any, letter: Letter | None, thread: InThread | None = None) -> None:
        """Call the handler; raises what it raises, and `HandlerTimeout`. Its `concurrency` is the worker's to keep.

        A plain function is called by `thread`; None: in a thread of anyio's, as many as its limiter allows.
        """
        if self.timeout_s is None:
            await self._call(event, letter, thread or in_thread)
            return
        with anyio.move_on_after(self.timeout_s) as scope:
            await self._call(event, letter, thread or in_thread)
        if scope.cancelled_caught:
            raise HandlerTimeout(f"the handler ran longer than its timeout of {self.timeout_s:g} s")

    async def _call(self, event: Any, letter: Letter | None, thread: InThread) -> None:
        call = partial(self.fn, event, letter=letter) if self.wants_letter else partial(self.fn, event)
        if self.is_async:
            await call()
            return
        # A thread cannot be stopped: one that runs past its timeout or lease goes on, and settles nothing.
        result = await thread(call)
        if inspect.isawaitable(result):
            await result


async def in_thread(call: Callable[[], Any]) -> Any:
    """Call a function in a thread of anyio's; a cancellation does not wait for it."""
    result, error = await anyio.to_thread.run_sync(caught, call, abandon_on_cancel=True)
    if error is not None:
        raise error
    return result


def caught(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return a call's result and its error: some (GeneratorExit) would do harm on their way through a future."""
    try:
        return call(), None
    except BaseException as error:
        return None, error


def _is_async(fn: Callable[..., Any]) -> bool:
    while isinstance(fn, partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _signature(fn: Callable[..., Any]) -> tuple[Any, bool]:
    """Return what the event is decoded into, and whether the handler asks for the letter."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return None, False
    wants_letter = any(p.name == "letter" for p in parameters)
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "letter"
    ]
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ConfigError(f"handler {fn!r} takes no event; allowed is a first parameter for it, and one named 'letter'")
    if not positional:
        return None, wants_letter
    hints: dict[str, Any] = {}
    with suppress(Exception):  # an annotation that cannot be resolved here: the event comes undecoded
        hints = get_type_hints(fn if inspect.isroutine(fn) else type(fn).__call__)
    target = hints.get(positional[0].name)
    return (None if target in (Any, object, inspect.Parameter.empty) else target), wants_letter


class Handlers:
    """The handlers of a queue, by type and subscription of the letters they take.

    None matches all; the most specific wins: type and subscription, then subscription, then type, then neither.
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[str | None, str | None], Handler] = {}
        self._found: dict[tuple[bytes | None, bytes | None], Handler | None] = {}
        self._numbers = itertools.count(1)
        self.left: set[object] = set()
        """Calls of plain functions that have outlived their timeout, lease or worker and run on in their threads."""

    def __len__(self) -> int:
        return len(self._by_key)

    def all(self) -> list[Handler]:
        """Return the handlers in the order of their registration."""
        return list(self._by_key.values())

    @property
    def all_need_threads(self) -> bool:
        """Whether there are handlers, and none of them is async."""
        return bool(self._by_key) and not any(handler.is_async for handler in self._by_key.values())

    def add(
        self,
        fn: Callable[..., Any],
        type: str | None = None,
        subscription: str | None = None,
        *,
        timeout: float | None = None,
        concurrency: int | None = None,
        retry: PolicyLike | RetryPolicy = None,
        max_retries: int | None = 5,
    ) -> str:
        """Register a handler and return its id; `max_retries` is for a `retry` that is a number of seconds.

        Raises `ConfigError` when one is registered for the same type and subscription, when it takes no event,
        and when `timeout` (seconds) or `concurrency` is no number above 0.
        """
        key = (type, subscription)
        if key in self._by_key:
            raise ConfigError(
                f"type {type!r} with subscription {subscription!r} has a handler already ({self._by_key[key].id}); "
                "remove it first"
            )
        if timeout is not None:
            timeout = require_seconds("timeout", timeout, 0.001)
        if concurrency is not None:
            concurrency = require_whole("concurrency", concurrency, "attempts", 1, 1_000_000)
        target, wants_letter = _signature(fn)
        name = getattr(fn, "__qualname__", fn.__class__.__qualname__)
        handler = Handler(
            f"{name}#{next(self._numbers)}",
            fn,
            type,
            subscription,
            timeout,
            concurrency,
            None if retry is None else as_policy(retry, max_retries=max_retries),
            target,
            wants_letter,
            _is_async(fn),
        )
        self._by_key[key] = handler
        self._found.clear()
        return handler.id

    def get(self, handler_id: str) -> Handler | None:
        """Return the handler of this id."""
        return next((handler for handler in self._by_key.values() if handler.id == handler_id), None)

    def remove(self, handler_id: str) -> bool:
        """Remove a handler; answer whether there was one. Attempts that run go on."""
        handler = self.get(handler_id)
        if handler is not None:
            del self._by_key[handler.type, handler.subscription]
            self._found.clear()
        return handler is not None

    def clear(self) -> None:
        """Remove all handlers."""
        self._by_key.clear()
        self._found.clear()

    def find(self, letter: Letter) -> Handler | None:
        """Return the most specific handler for the letter."""
        key = letter.route
        try:
            return self._found[key]
        except KeyError:
            pass
        handler = self.most_specific(letter.type, letter.subscription or None)
        if len(self._found) < 10_000:  # types come from outside: the cache must not grow with them
            self._found[key] = handler
        return handler

    def most_specific(self, type: str, subscription: str | None) -> Handler | None:
        """Return the handler that letters of this type and subscription go to."""
        for key in ((type, subscription), (None, subscription), (type, None), (None, None)):
            if key in self._by_key:
                return self._by_key[key]
        return None
