"""handlers: registration, choice and call, without a store."""

import functools
import threading
from typing import Any

import anyio
import msgspec
import pytest

from tests.support.holding import held
from uno.event_bus.dead_letter.backoff import FixedDelay
from uno.event_bus.dead_letter.errors import ConfigError, InvalidEvent
from uno.event_bus.dead_letter.handlers import Handlers, HandlerTimeout
from uno.event_bus.dead_letter.letter import Letter


class Order(msgspec.Struct):
    n: int


async def plain(event: Order) -> None: ...


async def with_letter(event: dict, letter: Letter) -> None: ...


async def only_keyword(event: Any, *, letter: Letter) -> None: ...


def variadic(*args: Any) -> None: ...


def letter_first(letter: Letter, event: Order) -> None: ...


async def unresolvable(event: "NoSuchClass") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class CallableObject:
    async def __call__(self, event: Order, letter: Letter) -> None: ...


@pytest.mark.parametrize(
    ("fn", "target", "wants_letter", "is_async"),
    [
        (plain, Order, False, True),
        (with_letter, dict, True, True),
        (only_keyword, None, True, True),
        (variadic, None, False, False),
        (letter_first, Order, True, False),
        (unresolvable, None, False, True),
        (CallableObject(), Order, True, True),
        (functools.partial(plain), None, False, True),
        (print, None, False, False),
        (lambda event: None, None, False, False),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_a_handler_says_by_its_signature_what_it_wants(
    fn: Any, target: Any, wants_letter: bool, is_async: bool
) -> None:
    """The annotation of its first parameter, and one named ``letter``."""
    handlers = Handlers()
    handler = handlers.get(handlers.add(fn))
    assert handler is not None
    if not isinstance(fn, functools.partial):
        assert handler.target is target
    assert (handler.wants_letter, handler.is_async) == (wants_letter, is_async)


@pytest.mark.parametrize("fn", [lambda: None, lambda letter: None, lambda *, event: None], ids=["none", "letter", "kw"])
def test_a_handler_that_takes_no_event_is_refused(fn: Any) -> None:
    """At registration."""
    with pytest.raises(ConfigError, match="takes no event"):
        Handlers().add(fn)


def test_a_target_that_nothing_can_be_decoded_into_is_refused() -> None:
    """At registration, not at the first letter."""

    async def handle(event: threading.Lock) -> None: ...

    class Odd: ...

    async def odd(event: Odd) -> None: ...

    with pytest.raises(ConfigError):
        Handlers().add(odd)


@pytest.mark.parametrize(
    ("type", "subscription", "chosen"),
    [
        ("Order", "s", "both"),
        ("Order", "other", "type"),
        ("Order", None, "type"),
        ("Paid", "s", "subscription"),
        ("Paid", None, "neither"),
        ("", None, "neither"),
    ],
)
def test_the_most_specific_handler_is_found_again_and_again(type: str, subscription: str | None, chosen: str) -> None:
    """Also when it was found before; a new or removed handler is seen at once."""
    handlers = Handlers()
    ids = {
        "both": handlers.add(plain, "Order", "s"),
        "subscription": handlers.add(plain, None, "s"),
        "type": handlers.add(plain, "Order"),
        "neither": handlers.add(plain),
    }
    fields = {"type": type.encode()} | ({} if subscription is None else {"subscription": subscription.encode()})
    letter = held(1, **fields).letter  # type: ignore[arg-type]
    for _ in range(2):
        found = handlers.find(letter)
        assert found is not None
        assert found.id == ids[chosen]
    handlers.remove(ids[chosen])
    found = handlers.find(letter)
    assert found is None or found.id != ids[chosen]
    handlers.clear()
    assert handlers.find(letter) is None


def test_types_that_come_from_outside_do_not_grow_the_memory() -> None:
    """The cache of found handlers is bounded."""
    handlers = Handlers()
    handlers.add(plain)
    for n in range(12_000):
        handlers.find(held(n, type=str(n).encode()).letter)
    assert len(handlers._found) <= 10_000


async def test_a_timeout_is_told_apart_from_the_handlers_own() -> None:
    """Only the engine's bound is `HandlerTimeout`."""
    handlers = Handlers()

    async def slow(event: Any) -> None:
        await anyio.sleep(60)

    async def own(event: Any) -> None:
        raise TimeoutError("upstream")

    letter = held(1).letter
    for fn, kind in ((slow, HandlerTimeout), (own, TimeoutError)):
        handler = handlers.get(handlers.add(fn, fn.__name__, timeout=0.01))
        assert handler is not None
        with pytest.raises(TimeoutError) as raised:
            await handler.run({}, letter)
        assert type(raised.value) is kind


@pytest.mark.parametrize("error", [GeneratorExit(), StopIteration(), SystemExit(1), KeyError("k")], ids=repr)
async def test_whatever_a_thread_raises_comes_back_as_it_was(error: BaseException) -> None:
    """Only StopIteration, which no coroutine may raise, comes as the RuntimeError that Python makes of it."""

    def fail(event: Any) -> None:
        raise error

    handlers = Handlers()
    handler = handlers.get(handlers.add(fail))
    assert handler is not None
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        await handler.run({}, held(1).letter)


async def test_bytes_that_do_not_fit_are_the_letters_fault() -> None:
    """`InvalidEvent`, naming its type."""
    handlers = Handlers()
    handler = handlers.get(handlers.add(plain))
    assert handler is not None
    assert handler.decode(held(1, payload=b'{"n":1}', content_type=b"application/json").letter) == Order(1)
    with pytest.raises(InvalidEvent, match="'t' at n"):
        handler.decode(held(1, payload=b'{"n":"x"}', content_type=b"application/json").letter)


def test_a_policy_is_made_of_what_people_write() -> None:
    """A number, a list, None."""
    handlers = Handlers()
    fixed = handlers.get(handlers.add(plain, "a", retry=5))
    assert fixed is not None
    assert fixed.policy == FixedDelay(5)
