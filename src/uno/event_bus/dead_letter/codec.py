"""Events to bytes and back.

An event may be a msgspec struct, a pydantic model (2.11 or later), a dataclass, an attrs instance, a dict, or any
value that JSON can say; it becomes JSON. Bytes stay as they are.

What is written must come back as it was, or be refused when it is captured: `InvalidEvent` names the type and the
field, in place of the ``null`` that JSON writers put for NaN and infinity, of the asterisks that pydantic
puts for secrets, and of the private attributes that msgspec leaves out of attrs classes.

An event's type is a name (`type_name`), and decoding goes by the handler's annotation: never by pickle, never by a
class path out of a message. Into a class, everything comes back in its declared type; into plain objects, as JSON
knows it: texts for datetimes, UUIDs, decimals, keys and base64 of bytes, lists for sets and tuples. Integers keep
all digits (up to Python's 4300). A dict whose keys differ only as Python objects (``{1: …, "1": …}``) is written
whole, and read with the last of them.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from inspect import Parameter
from typing import Any, Final, NamedTuple, cast

import msgspec
import msgspec.inspect

from uno.event_bus.dead_letter.errors import ConfigError, InvalidEvent
from uno.event_bus.dead_letter.parts import LIST_LIKE, attributes, is_model, private_attributes, shown_path, walk
from uno.event_bus.dead_letter.unwritable import may_have_lost_something, refuse_loss, why_unwritable

__all__ = [
    "BYTES",
    "JSON",
    "Encoded",
    "decode",
    "decoder_for",
    "encode",
    "is_json",
    "type_name",
]

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

type Decoder = Callable[[bytes], Any]


class Encoded(NamedTuple):
    """An event as a letter carries it."""

    type: str
    content_type: str
    payload: bytes


# --- names -----------------------------------------------------------------------------------------------


@lru_cache(4096)
def type_name(kind: type[Any]) -> str:
    """Return the type of events of this class: its ``__event_type__`` or ``event_type`` if it is a text, else its name.

    The attribute is asked of the class, not of the event, so that a handler registered for the class and
    the letters of its events always agree.
    """
    for attribute in ("__event_type__", "event_type"):
        name = getattr(kind, attribute, None)
        if isinstance(name, str) and name:
            return str(name)
    return kind.__name__


# --- encoding --------------------------------------------------------------------------------------------


def encode(event: object, *, type_name: str | None = None, content_type: str | None = None) -> Encoded:
    """Return the event's type, content type and bytes.

    Args:
        event: What failed. bytes, bytearray and memoryview stay as they are, type ``bytes`` unless named.
        type_name: The event's type; None: by its class, see `type_name`.
        content_type: For bytes only: what they are, default ``application/octet-stream``.

    Raises `InvalidEvent` naming type and field when the event, or a part of it, cannot be written so that it
    comes back as it was.
    """
    name = _name_of(event, type_name)
    if isinstance(event, bytes | bytearray | memoryview):
        return Encoded(name, content_type or BYTES, bytes(event))
    if event is None:
        raise InvalidEvent(name, "None is not an event")
    try:
        return Encoded(name, JSON, _to_json(event, name))
    except InvalidEvent:
        raise
    except Exception as error:  # the event's own code runs here: serialisers, properties, __iter__
        raise why_unwritable(event, name, error, _ENCODER.encode) from error


def _to_json(event: Any, name: str) -> bytes:
    kind: Any = type(event)
    if is_model(kind):
        # Field names, not aliases: `by_name` reads them back whatever the model's aliases are.
        payload: bytes = event.model_dump_json(round_trip=True, by_alias=False).encode()
    else:
        event = _with_private_attributes(event)
        payload = _ENCODER.encode(event)
    if may_have_lost_something(payload):
        refuse_loss(event, name)
    return payload


def _name_of(event: object, given: str | None) -> str:
    """Return the name that was given, else the class's; InvalidEvent unless it can be stored."""
    kind: Any = type(event)
    if given is None:
        given = "bytes" if kind in (bytearray, memoryview) else type_name(kind)
    try:
        if given.encode():
            return given
    except (AttributeError, UnicodeEncodeError):
        pass
    raise InvalidEvent(kind.__name__, "the name of an event's type must be a text that is not empty")


def _with_private_attributes(event: Any) -> object:
    """Return an attrs instance with private attributes as a dict, because msgspec would leave those out."""
    kind: Any = type(event)
    if not private_attributes(kind):
        return event
    return {name: getattr(event, name) for name in attributes(kind)}


def _to_plain(value: Any) -> object:
    """Return what msgspec can write in place of a value that it cannot: its ``enc_hook``."""
    kind: Any = type(value)
    if is_model(kind):
        return value.model_dump(mode="json", round_trip=True, by_alias=False)
    # Subclasses of builtins (numpy's float64 is one); their own __str__ or __float__ is not asked.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if kind in (dict, list, tuple):  # known, so it stood as a key: turned into itself it would come again for ever
        raise NotImplementedError
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, LIST_LIKE):
        return list(value)
    raise NotImplementedError


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_plain)


# --- decoding --------------------------------------------------------------------------------------------


@lru_cache(1024)
def is_json(content_type: str) -> bool:
    """Answer whether bytes of this content type are JSON; a missing one counts as JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("", JSON, "text/json") or media_type.endswith("+json")


def decode(payload: bytes, content_type: str, target: Any = None, *, event_type: str = "") -> Any:
    """Return the event that these bytes are, as the target; about 0.4 µs beside msgspec's own time.

    Args:
        payload: The letter's bytes.
        content_type: JSON (``application/json``, ``…+json``, or missing) is decoded; others stay bytes.
        target: The type that the handler asks for; None, `Any` and `object` mean plain objects, bytes mean the
            bytes as they are, whatever their content type.
        event_type: The letter's type, for the error.

    Raises `InvalidEvent` when the bytes are not JSON, do not fit the target, or are of another content type than
    the target can be made of; `ConfigError` when nothing can ever be decoded into the target.
    """
    decoder = decoder_for(target)
    if not is_json(content_type):
        if decoder in (_as_bytes, _PLAIN):
            return payload
        why = f"bytes of {content_type[:100]!r} cannot become {_target_name(target)}: annotate the event as bytes"
        raise InvalidEvent(event_type, why)
    try:
        return decoder(payload)
    except Exception as error:  # msgspec's, pydantic's, or what the target's own code raises
        raise _undecodable(event_type or _target_name(target), error) from error


def decoder_for(target: Any) -> Decoder:
    """Return the function that makes a target out of JSON bytes; made once a type and kept.

    Asked when a handler is added, it raises `ConfigError` for a type that nothing can be decoded into.
    """
    try:
        return _decoder_for(target)
    except TypeError:  # cannot be hashed, as `Annotated[int, []]`
        return _make_decoder(target)


@lru_cache(1024)
def _decoder_for(target: Any) -> Decoder:
    return _make_decoder(target)


def _make_decoder(target: Any) -> Decoder:
    if target in (None, Any, object, Parameter.empty):
        return _PLAIN
    if target in (bytes, bytearray, memoryview):
        return _as_bytes
    if isinstance(target, type) and is_model(target):
        return partial(target.model_validate_json, by_alias=True, by_name=True)  # type: ignore[attr-defined]
    try:
        _refuse_unknown_classes(msgspec.inspect.type_info(target))
        return msgspec.json.Decoder(target, dec_hook=_from_plain).decode
    except (TypeError, NameError, AttributeError) as error:
        raise ConfigError(f"events cannot be decoded into {_target_name(target)}: {error}") from error


def _refuse_unknown_classes(info: msgspec.inspect.Type) -> None:
    """Raise TypeError if a class that nobody can make stands anywhere in a type; msgspec would find out at run time."""
    for _, part in walk(info, frozenset()):  # msgspec describes types by structs, which may refer to themselves
        if isinstance(part, msgspec.inspect.CustomType) and part.cls is not object and not is_model(part.cls):
            raise TypeError(
                f"{part.cls.__qualname__} is no struct, model, dataclass, attrs class or builtin type; "
                "annotate the event with one, or as bytes"
            )


def _as_bytes(payload: bytes) -> bytes:
    return payload


def _from_plain(target: Any, value: Any) -> Any:
    """Return a part of an event whose class msgspec does not know: its ``dec_hook``."""
    if target is object:
        return value
    if is_model(target):
        return target.model_validate(value, by_alias=True, by_name=True)
    raise NotImplementedError(f"no event can hold a {target.__qualname__}")


_PLAIN: Final[Decoder] = msgspec.json.Decoder().decode


def _target_name(target: Any) -> str:
    return target.__qualname__ if isinstance(target, type) else str(target)[:100]


def _undecodable(event_type: str, error: Exception) -> InvalidEvent:
    """Return the error as ours: one line, with the field that it names, and without the payload."""
    if isinstance(error, msgspec.MsgspecError):
        why, _, path = str(error).partition(" - at `$")
        if error.__cause__ is not None:  # raised by code of the target's, which may quote the payload
            why = _undecodable(event_type, cast("Exception", error.__cause__)).why
        return InvalidEvent(event_type, why, field=path.rstrip("`").removeprefix(".") or None)
    if isinstance(error, UnicodeDecodeError):
        return InvalidEvent(event_type, f"its text is not UTF-8 (byte {error.start})")
    if isinstance(error, RecursionError):
        return InvalidEvent(event_type, "it is nested too deeply")
    details = getattr(error, "errors", None)
    if type(error).__module__.startswith("pydantic") and callable(details):
        first = details(include_url=False, include_context=False, include_input=False)[0]
        return InvalidEvent(event_type, str(first["msg"]), field=shown_path(first["loc"]))
    return InvalidEvent(event_type, f"its class refuses it ({type(error).__name__})")
