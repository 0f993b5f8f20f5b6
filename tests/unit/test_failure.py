"""What a letter keeps of an error: bounded texts, and a fingerprint that equal causes share."""

import sys
import textwrap
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter.failure import (
    MESSAGE_BYTES,
    TRACEBACK_BYTES,
    Failure,
    describe,
    normalised,
    sole_error,
)


class PaymentFailed(Exception):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def caught(function: Callable[..., Any], *arguments: Any) -> Exception:
    """The exception that this call raises, with its traceback."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def fail(message: object = "boom") -> None:
    raise ValueError(message)


def fail_elsewhere() -> None:
    raise ValueError("boom")


def fail_deep(depth: int) -> None:
    if depth:
        fail_deep(depth - 1)
    raise ValueError(depth)


def fail_because(cause: BaseException) -> None:
    raise PaymentFailed("no payment") from cause


def fail_meanwhile(first: type[Exception]) -> None:
    try:
        raise first("first")
    except first:
        raise PaymentFailed("second")  # noqa: B904 - the implicit context is what is tested


def fingerprint(error: BaseException | str | None, event_type: str = "order", reason: str = "") -> str:
    return describe(error, event_type=event_type, reason=reason).fingerprint


# --- texts -----------------------------------------------------------------------------------------------


def test_exception_is_described_by_class_message_and_traceback() -> None:
    """The ordinary case reads as Python prints it."""
    failure = describe(caught(fail), event_type="order")
    assert (failure.error_type, failure.message) == ("ValueError", "boom")
    lines = failure.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: boom"
    assert lines[-3].endswith(", in fail")
    assert lines[-2] == "    raise ValueError(message)"


def test_class_is_qualified_unless_builtin() -> None:
    """Module and qualified name, so that two classes of one name stay apart."""

    class Local(Exception):
        pass

    assert describe(PaymentFailed(), event_type="").error_type == f"{__name__}.PaymentFailed"
    assert describe(Local(), event_type="").error_type.endswith("test_class_is_qualified_unless_builtin.<locals>.Local")
    assert describe(KeyboardInterrupt(), event_type="").error_type == "KeyboardInterrupt"


def test_text_is_a_message_without_a_class() -> None:
    """Callers in other processes have no exception at hand."""
    failure = describe("card 17 expired", event_type="order")
    assert failure[:3] == ("", "card 17 expired", "")
    assert failure.fingerprint == fingerprint("card 18 expired")


def test_nothing_is_told_apart_by_type_and_reason() -> None:
    """Without an error, the group is all letters of a type and reason."""
    assert describe(None, event_type="order")[:3] == ("", "", "")
    assert fingerprint(None, "order", "timeout") == fingerprint(None, "order", "timeout")
    prints = {
        fingerprint(None, "order", "timeout"),
        fingerprint(None, "order", "x"),
        fingerprint(None, "user", "timeout"),
    }
    assert len(prints) == 3


def test_error_that_was_never_raised_has_no_traceback() -> None:
    """`error=ValueError(…)` is allowed."""
    assert describe(ValueError("x"), event_type="order")[:3] == ("ValueError", "x", "")


@pytest.mark.parametrize("letter", ["x", "é", "😀", "\ud800", "\n", "\0"])
def test_texts_are_bounded_in_bytes_and_whole_in_characters(letter: str) -> None:
    """A message of megabytes costs a letter two KiB, and all can be written as UTF-8."""
    for error in (letter * 3_000_000, ValueError(letter * 3_000_000), caught(fail, letter * 3_000_000)):
        failure = describe(error, event_type=letter)
        assert MESSAGE_BYTES - 4 < len(failure.message.encode()) <= MESSAGE_BYTES
        assert len(failure.traceback.encode()) <= TRACEBACK_BYTES


def test_long_traceback_keeps_its_end_and_the_innermost_frames() -> None:
    """What failed is at the end; how one got there is cut first."""
    failure = describe(caught(fail_deep, 900), event_type="order")
    assert "frames" in failure.traceback
    assert failure.traceback.endswith("raise ValueError(depth)\nValueError: 0\n")
    chained = caught(fail_because, caught(fail_because, caught(fail_deep, 50)))
    traceback = describe(chained, event_type="order").traceback
    assert traceback.endswith("PaymentFailed: no payment\n")
    assert len(traceback.encode()) <= TRACEBACK_BYTES


def test_cut_traceback_says_so_and_starts_with_a_whole_line() -> None:
    """Nobody should take the first line for the outermost frame."""

    def outer(depth: int) -> None:
        if depth:
            outer(depth - 1)
        error: BaseException = ValueError("x" * 500)
        for _ in range(7):
            error = caught(fail_because, error)
            error.add_note("ü" * 500)
        raise error

    traceback = describe(caught(outer, 20), event_type="order").traceback
    assert TRACEBACK_BYTES - 1500 < len(traceback.encode()) <= TRACEBACK_BYTES
    assert traceback.splitlines()[0].startswith("… (")


def test_cause_context_and_notes_are_shown() -> None:
    """As Python does: the cause first, the error last; a suppressed context not at all."""
    cause = caught(fail_because, caught(fail))
    cause.add_note("while paying")
    traceback = describe(cause, event_type="order").traceback
    assert traceback.index("ValueError: boom") < traceback.index("direct cause") < traceback.index("while paying")
    assert "During handling" in describe(caught(fail_meanwhile, KeyError), event_type="order").traceback
    hidden = caught(fail_meanwhile, KeyError)
    hidden.__suppress_context__ = True
    assert "KeyError" not in describe(hidden, event_type="order").traceback


def test_group_shows_the_errors_that_it_holds() -> None:
    """All leaves of all levels, up to eight."""
    group = ExceptionGroup("several", [caught(fail), ExceptionGroup("inner", [TypeError("t"), KeyError("k")])])
    failure = describe(group, event_type="order")
    assert failure.error_type == "ExceptionGroup"
    for text in ("several (2 sub-exceptions)", "ValueError: boom", "TypeError: t", "KeyError: 'k'"):
        assert text in failure.traceback
    many = ExceptionGroup("many", [ValueError(str(n)) for n in range(1000)] + [caught(fail)])
    assert len(describe(many, event_type="order").traceback) < 1000


def test_group_of_one_is_described_as_the_one() -> None:
    """Task groups wrap what their tasks raise; grouping by the wrapper would tell nothing."""
    error = caught(fail)
    nested = BaseExceptionGroup("outer", [ExceptionGroup("inner", [error])])
    assert sole_error(nested) is error
    assert describe(nested, event_type="order") == describe(error, event_type="order")
    two = ExceptionGroup("two", [ValueError(), ValueError()])
    assert sole_error(two) is two


# --- robustness ------------------------------------------------------------------------------------------


def test_error_that_cannot_be_printed_is_described_all_the_same() -> None:
    """A broken `__str__` must not cost the letter."""
    failure = describe(caught(lambda: (_ for _ in ()).throw(Unprintable())), event_type="order")
    assert failure.message == "<unprintable Unprintable>"
    assert failure.traceback.endswith(".Unprintable: <unprintable Unprintable>\n")


def test_chains_that_bite_their_tail_end() -> None:
    """Causes may form a circle, and a group may hold what it caused."""
    first, second = caught(fail), caught(fail_elsewhere)
    first.__cause__, second.__cause__ = second, first
    assert describe(first, event_type="order").traceback.count("ValueError: boom") == 2
    group = ExceptionGroup("g", [ValueError("a"), ValueError("b")])
    group.exceptions[0].__cause__ = group
    group.__context__ = group.exceptions[0]
    assert describe(group, event_type="order").message == "g (2 sub-exceptions)"


def test_real_recursion_error_is_described() -> None:
    """A thousand frames are walked, not printed."""

    def endless() -> None:
        endless()

    failure = describe(caught(endless), event_type="order")
    assert failure.error_type == "RecursionError"
    assert len(failure.traceback) < TRACEBACK_BYTES


def test_hostile_exceptions_never_raise_out_of_describe() -> None:
    """Odd modules, odd notes, odd names, properties that raise."""

    class Odd(Exception):
        __module__ = 5  # type: ignore[assignment]
        __notes__ = ("not", "a list")  # type: ignore[assignment]

        def __getattribute__(self, name: str) -> Any:
            if name in {"__cause__", "__traceback__"}:
                raise RuntimeError(name)
            return super().__getattribute__(name)

    failure = describe(caught(lambda: (_ for _ in ()).throw(Odd("x"))), event_type="order")
    assert failure.error_type
    assert failure.fingerprint.startswith("1:")
    noted = ValueError("x")
    noted.__notes__ = [5, "fine"]  # type: ignore[list-item]
    assert describe(caught(fail_because, noted), event_type="order").error_type.endswith("PaymentFailed")


@given(st.text(), st.text())
def test_any_text_is_described(message: str, event_type: str) -> None:
    """Also lone surrogates and controls."""
    for error in (message, ValueError(message), caught(fail, message)):
        failure = describe(error, event_type=event_type)
        for text in failure:
            text.encode()


def test_description_takes_less_than_a_tenth_of_a_millisecond() -> None:
    """A burst of failures must not be slowed down by being described."""

    def frames(depth: int) -> None:
        frames(depth - 1) if depth else fail()

    error = caught(frames, 6)
    describe(error, event_type="order")
    best = min(_timed(lambda: describe(error, event_type="order")) for _ in range(200))
    assert best < 100e-6


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


# --- fingerprint -----------------------------------------------------------------------------------------


def module_of(source: str, name: str = "shop", filename: str = "/srv/shop/app.py") -> types.ModuleType:
    """A module of the application's, made from source."""
    module = types.ModuleType(name)
    exec(compile(textwrap.dedent(source), filename, "exec"), module.__dict__)  # a stand-in for a deployed version
    return module


PAY = """
def pay(amount):
    {padding}
    raise ValueError(f"cannot pay {{amount}}")
"""


def test_fingerprint_has_a_version_and_sixteen_hex_digits() -> None:
    """So that a later recipe can never be mistaken for this one."""
    version, _, digest = fingerprint(caught(fail)).partition(":")
    assert version == "1"
    assert len(digest) == 16
    assert int(digest, 16) >= 0


def test_same_failure_has_the_same_fingerprint_whatever_its_message_and_line() -> None:
    """Values and line numbers change with every event and every release."""
    old, new = module_of(PAY.format(padding="")), module_of(PAY.format(padding="unused = 1\n    unused += 1"))
    assert fingerprint(caught(old.pay, 1)) == fingerprint(caught(new.pay, 99))


def test_type_class_place_and_cause_tell_failures_apart() -> None:
    """Each of them alone makes another group."""
    prints = [
        fingerprint(caught(fail)),
        fingerprint(caught(fail), "refund"),
        fingerprint(caught(fail_elsewhere)),
        fingerprint(caught(fail_because, ValueError())),
        fingerprint(caught(fail_because, KeyError())),
        fingerprint(ExceptionGroup("g", [ValueError(), KeyError()])),
        fingerprint(ExceptionGroup("g", [ValueError(), TypeError()])),
        fingerprint(ValueError("boom")),
        fingerprint(TypeError("boom")),
        fingerprint("boom"),
        fingerprint(None),
    ]
    assert len(set(prints)) == len(prints)


def test_implicit_context_does_not_tell_failures_apart() -> None:
    """What happened to be handled meanwhile is often coincidence."""
    assert fingerprint(caught(fail_meanwhile, KeyError)) == fingerprint(caught(fail_meanwhile, OSError))


def test_depth_of_recursion_does_not_tell_failures_apart() -> None:
    """A tree of another depth fails for the same cause."""
    assert len({fingerprint(caught(fail_deep, depth)) for depth in (1, 2, 30, 900)}) == 1


def test_frames_of_libraries_and_of_the_engine_do_not_count() -> None:
    """Another version of a library, or the worker in place of the service, is the same failure."""
    source = "def call(f, *a):\n    return f(*a)\n"
    shop = module_of(PAY.format(padding=""))

    def through(filename: str) -> str:
        return fingerprint(caught(module_of(source, "between", filename).call, shop.pay, 1))

    direct = through("/venv/lib/python3.13/site-packages/lib/a.py")
    assert direct == through(f"{sys.prefix}/lib/site-packages/lib/b.py")
    assert direct == through(textwrap.__file__)
    assert direct == through("<frozen importlib._bootstrap>")
    assert direct == through(sys.modules[describe.__module__].__file__ or "")
    assert direct != through("/srv/shop/other.py")


def test_library_frames_count_when_there_are_no_others() -> None:
    """An error wholly inside of a library still says where."""
    libraries = [module_of(PAY.format(padding=""), name, "/x/site-packages/a.py") for name in ("one", "two")]
    errors = [caught(library.pay, 1) for library in libraries]
    for error in errors:
        assert error.__traceback__ is not None
        error.__traceback__ = error.__traceback__.tb_next  # without the frame of this test module
    assert fingerprint(errors[0]) != fingerprint(errors[1])


@pytest.mark.parametrize(("spec", "name"), [(None, "run"), (ModuleSpec("shop.run", None), "shop.run")])
def test_module_that_runs_as_main_counts_as_itself(
    monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None, name: str
) -> None:
    """The service ran it as a script or by `-m`, the worker imports it."""
    source = "class Refused(Exception): pass\ndef pay(): raise Refused"
    imported, as_main = module_of(source, name), module_of(source, "__main__", "/srv/shop/run.py")
    as_main.__file__, as_main.__spec__ = "/srv/shop/run.py", spec
    monkeypatch.setitem(sys.modules, "__main__", as_main)
    assert fingerprint(caught(imported.pay)) == fingerprint(caught(as_main.pay))
    assert describe(caught(as_main.pay), event_type="order").error_type == "__main__.Refused"


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        ("order 17 of 3 items", "order <number> of <number> items"),
        ("retry in -1.5e3 s, 1,000 left", "retry in <number> s, <number> left"),
        ("host worker12 is down", "host worker<number> is down"),
        ("no user 4f2b1c9a-0d3e-4a7b-8c6d-1e2f3a4b5c6d", "no user <id>"),
        ("object at 0x7f0e3c2c08", "object at <hex>"),
        ("commit deadbeef01 is gone", "commit <hex> is gone"),
        ("the facade is added", "the facade is added"),
        ("mail to ann.b+c@mail.example.com failed", "mail to <email> failed"),
        ("since 2026-01-02T03:04:05.678+01:00", "since <date>"),
        ("since 2026-01-02 03:04", "since <date>"),
        ("at 03:04:05", "at <time>"),
        ("key 'a b' is no \"c d\"", "key <text> is no <text>"),
        ("can't and won't", "can't and won't"),
        ("it's 'x'", "it's <text>"),
        ("", ""),
    ],
)
def test_message_is_normalised(message: str, pattern: str) -> None:
    """What varies between equal failures is taken out, words stay."""
    assert normalised(message) == pattern
    assert fingerprint(message) == fingerprint(pattern) or message != pattern


@pytest.mark.parametrize("unit", ["a.b+", "'\"", "1,", "0x", "-", "a@b.", "2026-01-02T", "\\", "aaaa", "1e+"])
def test_no_message_makes_normalising_slow(unit: str) -> None:
    """No text can make the expression backtrack for long."""
    text = unit * 100_000
    assert min(_timed(lambda: normalised(text)) for _ in range(5)) < 5e-3


def test_fingerprints_of_the_recipe_are_stable() -> None:
    """Stored groups live for months: whoever changes these raises the version."""
    raised = caught(module_of(PAY.format(padding="")).pay, 1)
    assert raised.__traceback__ is not None
    raised.__traceback__ = raised.__traceback__.tb_next  # without the frame of this module
    assert fingerprint(None, "order", "timeout") == "1:c1a81bc19b13aa63"
    assert fingerprint("card 17 expired") == "1:3f3c7834f1ca3b3f"
    assert fingerprint(ValueError("card 17 expired")) == "1:2c813ba56ff60b87"
    assert fingerprint(raised) == "1:3dcc8d9f78994a35"


def test_failure_is_a_plain_tuple() -> None:
    """Four texts, in the order of the wire format."""
    assert Failure._fields == ("error_type", "message", "traceback", "fingerprint")
