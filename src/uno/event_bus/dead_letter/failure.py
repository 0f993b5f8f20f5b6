"""What a letter keeps of an error: class, message, traceback, and a fingerprint that equal causes share.

Describing an error never raises and never grows without bound: an exception may be of any class, carry a
message of megabytes, refer to itself, or refuse to be printed, and its letter must be captured all the same.

The fingerprint is ``1:`` (the version of the recipe below) and 16 hex digits of BLAKE2b over, in Sentry's order:
the event's type; the error's class, and the classes of its explicit causes; then where it happened. Where: module
and function, without line numbers, of the last `FINGERPRINT_FRAMES` distinct frames that belong to the
application, not to the standard library, installed packages or this engine; of all frames if none does. An error
without a traceback is told by its message, with numbers, ids, dates, addresses and quoted texts taken out.
"""

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from linecache import getline
from pathlib import Path
from sysconfig import get_path
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple

__all__ = [
    "FINGERPRINT_VERSION",
    "MESSAGE_BYTES",
    "TRACEBACK_BYTES",
    "Failure",
    "describe",
    "describe_texts",
    "normalised",
    "sole_error",
    "stable_module",
]

FINGERPRINT_VERSION: Final = "1"
"""Raised when the recipe changes, so that old and new fingerprints never look alike."""

MESSAGE_BYTES: Final = 2048
"""Longest message kept, bytes of UTF-8; its start is kept."""

TRACEBACK_BYTES: Final = 8192
"""Longest traceback kept, bytes of UTF-8; its end is kept, with the innermost frames."""

TYPE_LENGTH: Final = 200
"""Longest class name kept, characters."""

FRAMES: Final = 25
"""Innermost frames that the traceback shows of each error."""

CHAIN: Final = 8
"""Errors that are followed from one to its cause, and leaves that are listed of a group."""

FINGERPRINT_FRAMES: Final = 8
"""Innermost distinct frames that the fingerprint covers: recursion of any depth counts once."""

QUOTED_CHARACTERS: Final = 500
"""Start of each message that a traceback quotes, and that a fingerprint reads."""


class Failure(NamedTuple):
    """What a letter keeps of an error; all texts are bounded and can be written as UTF-8."""

    error_type: str
    """Module and qualified name of the class, builtins without module; empty when there was no exception."""
    message: str
    traceback: str
    """As Python prints it, shortened; empty when the error was never raised."""
    fingerprint: str


def describe(error: BaseException | str | None, *, event_type: str, reason: str = "") -> Failure:
    """Return what a letter of this type keeps of this error; about 40 µs for an ordinary exception.

    A group that holds one single error is described as that error. A text is a message without a class. None
    leaves all empty but the fingerprint, which then covers type and reason. Never raises.
    """
    if error is None:
        return Failure("", "", "", _fingerprint(event_type, "", reason))
    if isinstance(error, str):
        message = _cut(error, MESSAGE_BYTES)
        return Failure("", message, "", _fingerprint(event_type, "", normalised(message)))
    try:
        return _describe(error, event_type)
    except Exception:  # the exception's own code; a letter must not be lost for a bad description
        name = type(error).__name__
        return Failure(_cut(name, TYPE_LENGTH), "", "", _fingerprint(event_type, name))


def describe_texts(
    error_type: str, message: str, traceback: str, *, event_type: str, reason: str = "", fingerprint: str = ""
) -> Failure:
    """Return what a letter keeps of an error that another process has said in texts; bounded as `describe` does it.

    Without a fingerprint of theirs it covers class and message; about 5 µs.
    """
    if fingerprint and not (error_type or message or traceback):
        return Failure("", "", "", fingerprint)
    error_type, message = _cut(error_type, TYPE_LENGTH), _cut(message, MESSAGE_BYTES)
    if not fingerprint:
        told = (error_type, normalised(message)) if error_type or message else ("", reason)
        fingerprint = _fingerprint(event_type, *told)
    return Failure(error_type, message, _cut_start(traceback, TRACEBACK_BYTES), fingerprint)


def sole_error(error: BaseException) -> BaseException:
    """Return the error that a group holds if it holds one single error, else the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _describe(error: BaseException, event_type: str) -> Failure:
    sole = sole_error(error)
    message = _message(sole)
    where = _where(sole.__traceback__) or [normalised(message)]
    fingerprint = _fingerprint(event_type, *_kinds(sole), *where)
    return Failure(_type_name(type(sole)), message, _traceback(sole), fingerprint)


# --- texts -----------------------------------------------------------------------------------------------


def _cut(text: str, limit: int) -> str:
    """Return the start of the text that fits into so many bytes of UTF-8; what UTF-8 cannot say becomes ``?``."""
    if len(text) <= limit and text.isascii():
        return text
    return text[:limit].encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _message(error: BaseException) -> str:
    try:
        return _cut(str(error), MESSAGE_BYTES)
    except Exception:  # a __str__ of the application's
        return f"<unprintable {type(error).__name__}>"


def _type_name(kind: type) -> str:
    module = getattr(kind, "__module__", None)
    name = kind.__qualname__ if module in ("builtins", None) else f"{module}.{kind.__qualname__}"
    return _cut(name, TYPE_LENGTH)


# --- traceback -------------------------------------------------------------------------------------------

_HEADER: Final = "Traceback (most recent call last):\n"
_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"
_CUT_OFF: Final = "… (the start is cut off)\n"


def _traceback(error: BaseException) -> str:
    """Return the traceback much as Python prints it, without its start if it is long; empty if there is none.

    Written here because `traceback` asks the file system about every source file and parses every line to
    place its carets: half a millisecond an error instead of a few µs.
    """
    text = "".join(_block(one) + link for one, link in reversed(list(_chain(error))))
    return _cut_start(text, TRACEBACK_BYTES) if _HEADER in text else ""


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield the error, then what it came from, each with the text that follows it; bounded, cycles or not."""
    one: BaseException | None = error
    link = ""
    seen: set[int] = set()
    while one is not None and id(one) not in seen and len(seen) < CHAIN:
        seen.add(id(one))
        yield one, link
        if one.__cause__ is not None:
            one, link = one.__cause__, _CAUSE
        else:
            one, link = None if one.__suppress_context__ else one.__context__, _CONTEXT


def _block(error: BaseException) -> str:
    """Return one error of a chain: its frames, its last line, its notes, and what it holds if it is a group."""
    text = _frames(error.__traceback__) + _last_line(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = list(islice(_leaves(error), CHAIN))
        for number, leaf in enumerate(leaves, 1):
            text += f"--- error {number} of the group ---\n{_frames(leaf.__traceback__)}{_last_line(leaf)}"
    return text


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    """Yield the errors in a group and in its groups that are no groups themselves."""
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(reversed(error.exceptions))
        else:
            yield error


def _frames(top: TracebackType | None) -> str:
    """Return the innermost frames, outermost first, each with its source line."""
    if top is None:
        return ""
    count = 0
    kept: deque[tuple[CodeType, int | None]] = deque(maxlen=FRAMES)
    while top is not None:
        kept.append((top.tb_frame.f_code, top.tb_lineno))
        count += 1
        top = top.tb_next
    left_out = f"  … {count - FRAMES} frames\n" if count > FRAMES else ""
    return _HEADER + left_out + "".join(_frame(code, line) for code, line in kept)


@lru_cache(4096)
def _frame(code: CodeType, line: int | None) -> str:
    source = getline(code.co_filename, line or 0).strip()[:QUOTED_CHARACTERS]
    return f'  File "{code.co_filename}", line {line}, in {code.co_qualname}\n' + (f"    {source}\n" if source else "")


def _last_line(error: BaseException) -> str:
    message = _message(error)[:QUOTED_CHARACTERS]
    text = _type_name(type(error)) + (f": {message}\n" if message else "\n")
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        text += "".join(f"{note[:QUOTED_CHARACTERS]}\n" for note in notes[-CHAIN:] if isinstance(note, str))
    return text


def _cut_start(text: str, limit: int) -> str:
    """Return the end of the text, from the start of a line, that fits into so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    marker = _CUT_OFF.encode()
    end = data[len(marker) - limit :]
    return _CUT_OFF + end.partition(b"\n")[2].decode("utf-8", "ignore")


# --- fingerprint -----------------------------------------------------------------------------------------


def _fingerprint(*parts: str) -> str:
    digest = blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8)
    return f"{FINGERPRINT_VERSION}:{digest.hexdigest()}"


def _kinds(error: BaseException) -> Iterator[str]:
    """Yield the class of the error, then those of its explicit causes, or of the errors that it groups.

    Causes are in, because a common wrapper (`raise PaymentFailed from error`) would make one group of all
    its callers' troubles; the implicit context is not, because it is often mere coincidence.
    """
    yield _stable_type(error)
    if isinstance(error, BaseExceptionGroup):
        yield from sorted({_stable_type(leaf) for leaf in islice(_leaves(error), CHAIN)})
    for cause, link in islice(_chain(error), 1, None):
        if link != _CAUSE:
            return
        yield _stable_type(cause)


def _where(top: TracebackType | None) -> list[str]:
    """Return ``module:function`` of the last distinct frames of the application, innermost first."""
    # A dict keeps the order of insertion: taken out and put back, a function stands where it was last entered.
    modules: dict[CodeType, str] = {}
    while top is not None:
        frame = top.tb_frame
        modules.pop(frame.f_code, None)
        modules[frame.f_code] = str(frame.f_globals.get("__name__", ""))
        top = top.tb_next
    codes = list(reversed(modules))
    codes = [code for code in codes if _is_application(code.co_filename)] or codes
    return [f"{stable_module(modules[code])}:{code.co_qualname}" for code in codes[:FINGERPRINT_FRAMES]]


_NOT_APPLICATION: Final = tuple(
    f"{path}{os.sep}" for path in (get_path("stdlib"), get_path("platstdlib"), Path(__file__).parents[1])
)


@lru_cache(4096)
def _is_application(filename: str) -> bool:
    if filename.startswith(("<frozen ", *_NOT_APPLICATION)):
        return False
    return not {"site-packages", "dist-packages"}.intersection(Path(filename).parts)


def _stable_type(error: BaseException) -> str:
    module, dot, name = _type_name(type(error)).partition("__main__.")
    return f"{stable_module('__main__')}.{name}" if dot and not module else module + dot + name


def stable_module(name: str) -> str:
    """Return the module's name, for ``__main__`` the one under which a worker would import it."""
    if name != "__main__":
        return name
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return str(getattr(spec, "name", "") or Path(getattr(main, "__file__", None) or "__main__").stem)


_VARIABLE: Final = re.compile(
    r"""
      (?P<email>  (?<![\w.+-]) [\w.+-]{1,64} @ [\w-]{1,64} (?: \. [\w-]{1,64} )+ )
    | (?P<id>     \b [0-9a-f]{8} - (?: [0-9a-f]{4} - ){3} [0-9a-f]{12} \b )
    | (?P<date>   \b \d{4}-\d\d-\d\d (?: [T\ ] \d\d:\d\d (?: :\d\d (?: [.,]\d+ )? )? (?: Z | [+-]\d\d:?\d\d )? )? )
    | (?P<time>   \b \d\d:\d\d (?: :\d\d (?: [.,]\d+ )? )? )
    | (?P<text>   (?<!\w) ' [^'\n]* ' (?!\w) | " [^"\n]* " )
    | (?P<hex>    \b 0x [0-9a-f]+ \b | \b (?= [a-f]* \d ) [0-9a-f]{8,} \b )
    | (?P<number> (?<!\w) [-+]? \d+ (?: [.,]\d+ )* (?: e[-+]?\d+ )? | \d+ )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def normalised(message: str) -> str:
    """Return the message with what varies between equal failures taken out: ``order <number> of <email>``."""
    return _VARIABLE.sub(lambda found: f"<{found.lastgroup}>", message[:QUOTED_CHARACTERS])
