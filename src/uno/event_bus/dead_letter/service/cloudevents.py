"""CloudEvents 1.0 over HTTP become events: binary, structured and in batches.

==========================  ===============================================================================
attribute                   becomes
==========================  ===============================================================================
``source`` and ``id``       the event's id, ``<source> <id>``: only the pair is unique, and no source has a space
``type``                    the type
``datacontenttype``         the content type; without it JSON, in binary mode ``application/octet-stream``
``data``                    the payload: JSON as it stands; of another content type the text that it is
``data_base64``, a body     the payload
``partitionkey``            the ordering key
``traceparent``             header ``traceparent``; likewise ``tracestate``
``correlationid``           header ``correlation_id``
``dlqreason``               the reason
``dlqattempts``             attempts before the capture
``dlqerrortype``            the error's class
``dlqerrormsg``             the error's message
``dlqfirstfailed``          when it failed; without it: now
``dlqsubscription``         the subscription
all others, and id, source  headers named as HTTP has them: ``ce-id``, ``ce-source``, ``ce-subject``, ``ce-time`` …
==========================  ===============================================================================
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from uno.event_bus.dead_letter.codec import BYTES, JSON, is_json
from uno.event_bus.dead_letter.errors import InvalidEvent
from uno.event_bus.dead_letter.remote.wire import Event

__all__ = ["BATCHED", "BINARY_MARK", "STRUCTURED", "event_of_binary", "event_of_structured"]

STRUCTURED: Final = "application/cloudevents+json"
BATCHED: Final = "application/cloudevents-batch+json"

PREFIX: Final = "ce-"
BINARY_MARK: Final = "ce-specversion"
"""The header that makes a request a CloudEvent in binary mode."""

VERSION: Final = "1.0"

type Attributes = dict[str, Any]


def event_of_binary(headers: Mapping[str, str], body: bytes) -> Event:
    """Return the event of headers and body. Raises `InvalidEvent`."""
    attributes: Attributes = {
        name.removeprefix(PREFIX): _percent_decoded(name, value)
        for name, value in headers.items()
        if name.startswith(PREFIX)
    }
    event = _event(attributes, headers.get("content-type") or BYTES)
    event.payload_base64 = body
    return event


def event_of_structured(members: Mapping[str, Raw]) -> Event:
    """Return the event of a JSON object, whose members were left as they stand. Raises `InvalidEvent`."""
    attributes: Attributes = {
        name: _attribute(name, value) for name, value in members.items() if name not in ("data", "data_base64")
    }
    attributes = {name: value for name, value in attributes.items() if value is not None}
    event = _event(attributes, str(attributes.get("datacontenttype", JSON)))
    data, encoded = members.get("data"), members.get("data_base64")
    if data is not None and encoded is not None:
        raise InvalidEvent(event.type, "it has data and data_base64: one of the two")
    if encoded is not None:
        event.payload_base64 = _decoded(event.type, "data_base64", encoded, bytes)
    elif data is None:
        event.payload_base64 = b""
        event.content_type = str(attributes.get("datacontenttype", BYTES))
    elif is_json(event.content_type):
        event.payload = data
    else:
        event.payload_base64 = _decoded(event.type, "data", data, str).encode()
    return event


def _percent_decoded(name: str, value: str) -> str:
    """Return the text of a header: percent-encoded UTF-8, as the HTTP binding has it."""
    try:
        return unquote(value.encode("latin-1").decode(), errors="strict")
    except UnicodeDecodeError:
        raise InvalidEvent("", "it is not percent-encoded UTF-8", field=name) from None


def _attribute(name: str, value: Raw) -> Any:
    found = _decoded("", name, value, str | int | float | bool | None)
    return str(found).lower() if isinstance(found, bool) else found


def _decoded(event_type: str, name: str, value: Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidEvent(event_type, str(error).partition(" - at")[0], field=name) from None


# --- attributes ------------------------------------------------------------------------------------------


def _count(value: Any) -> int:
    return int(value)


def _moment_ms(value: Any) -> int:
    moment = datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError("it has no time zone")
    return int(moment.timestamp() * 1000)


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "partitionkey": ("ordering_key", str),
    "dlqreason": ("reason", str),
    "dlqattempts": ("attempts", _count),
    "dlqerrortype": ("error_type", str),
    "dlqerrormsg": ("error", str),
    "dlqfirstfailed": ("failed_at_ms", _moment_ms),
    "dlqsubscription": ("subscription", str),
}
"""Extension → field of the event, and what reads it."""

_HEADERS: Final = {"traceparent": "traceparent", "tracestate": "tracestate", "correlationid": "correlation_id"}
"""Extension → header of a name that the engine, or OpenTelemetry, knows."""

_CORE: Final = ("specversion", "type", "datacontenttype")


def _event(attributes: Attributes, content_type: str) -> Event:
    """Return the event of its attributes, which has no payload yet. Raises `InvalidEvent`."""
    kind = str(attributes.get("type", ""))
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise InvalidEvent(kind, "a CloudEvent needs specversion, id, source and type", field=name)
    if str(attributes["specversion"]) != VERSION:
        raise InvalidEvent(kind, f"only CloudEvents of version {VERSION} are read", field="specversion")
    source = str(attributes["source"])
    if " " in source:
        raise InvalidEvent(kind, "a URI has no space", field="source")
    said: dict[str, Any] = {
        "type": kind,
        "content_type": content_type,
        "event_id": f"{source} {attributes['id']}",
        "headers": {
            _HEADERS.get(name, f"{PREFIX}{name}"): value
            for name, value in attributes.items()
            if name not in _FIELDS and name not in _CORE
        },
    }
    for name, (field, read) in _FIELDS.items():
        if name in attributes:
            try:
                said[field] = read(attributes[name])
            except (ValueError, OverflowError):
                raise InvalidEvent(kind, f"it is {str(attributes[name])[:60]!r}", field=name) from None
    try:
        return msgspec.convert(said, Event)  # the bounds of every event
    except msgspec.ValidationError as error:
        raise InvalidEvent(kind, str(error)) from None
