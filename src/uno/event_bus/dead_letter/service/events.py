"""``/v1/events``: CloudEvents come in."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw
from starlette.responses import Response

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.remote.wire import BATCH, Captured, Results
from uno.event_bus.dead_letter.service.caller import CAPTURE
from uno.event_bus.dead_letter.service.captures import FAILS, capture_all, capture_one
from uno.event_bus.dead_letter.service.cloudevents import (
    BATCHED,
    BINARY_MARK,
    STRUCTURED,
    event_of_binary,
    event_of_structured,
)
from uno.event_bus.dead_letter.service.incoming import letter_of, trace_of
from uno.event_bus.dead_letter.service.operation import Call, op
from uno.event_bus.dead_letter.service.reading import decoded, media_type, read_body
from uno.event_bus.dead_letter.service.reply import Refused

__all__ = ["OPERATIONS"]

type Members = Mapping[str, Raw]

_ONE: msgspec.json.Decoder[Members] = msgspec.json.Decoder(Mapping[str, Raw])
_MANY: msgspec.json.Decoder[list[Members]] = msgspec.json.Decoder(
    Annotated[list[Mapping[str, Raw]], Meta(max_length=BATCH)]
)


class CloudEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event in the JSON format of CloudEvents 1.0; extension attributes are further members."""

    specversion: Annotated[str, Meta(pattern="^1[.]0$")]
    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(pattern="^[^ ]+$")]
    type: Annotated[str, Meta(min_length=1, max_length=1024)]
    datacontenttype: str = "application/json"
    data: Any = None
    data_base64: bytes = b""
    subject: str = ""
    time: str = ""
    partitionkey: str = ""
    dlqreason: str = ""
    dlqattempts: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    dlqerrortype: str = ""
    dlqerrormsg: str = ""
    dlqfirstfailed: str = ""
    dlqsubscription: str = ""


@op(
    "POST",
    "/v1/events",
    role=CAPTURE,
    bodies={STRUCTURED: CloudEvent, BATCHED: list[CloudEvent], "*/*": bytes},
    out=Captured,
    status=HTTPStatus.CREATED,
    also={HTTPStatus.MULTI_STATUS: Results},
    fails=FAILS,
)
async def events(call: Call) -> Captured | Response:
    """Capture CloudEvents 1.0 that failed: binary, structured, or a batch of up to 1000.

    Binary: attributes in `ce-` headers, and any body. `source` and `id` together are what a repeated request is told
    by. The extensions `dlqreason`, `dlqattempts`, `dlqerrortype`, `dlqerrormsg`, `dlqfirstfailed` and `dlqsubscription`
    say how the event failed, `partitionkey` becomes the ordering key. A batch is answered as `/v1/letters/batch` is.
    """
    kind = media_type(call.request)
    is_binary = BINARY_MARK in call.request.headers
    if kind not in (STRUCTURED, BATCHED) and (not is_binary or kind.startswith("application/cloudevents")):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"content-type is {kind[:60]!r}, and there is no {BINARY_MARK}; allowed are {STRUCTURED}, {BATCHED}, and "
            "any other with ce- headers",
        )
    body = await read_body(call.request, call.service.most_body_bytes)
    trace = trace_of(call.request)
    if kind == BATCHED:
        made = [_letter(call, members, trace) for members in decoded(body, _MANY)]
        return await capture_all(call.queue, made, call.request_id)
    if kind == STRUCTURED:
        event = event_of_structured(decoded(body, _ONE))
    else:
        event = event_of_binary(call.request.headers, body)
    return await capture_one(call.queue, letter_of(call.queue, event, trace))


def _letter(call: Call, members: Members, trace: Mapping[str, str]) -> NewLetter | DeadLetterError:
    try:
        return letter_of(call.queue, event_of_structured(members), trace)
    except DeadLetterError as error:
        return error


OPERATIONS = (events,)
