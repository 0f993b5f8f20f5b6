"""What a request says: its body, within bounds, and its query, with typing errors named."""

from difflib import get_close_matches
from functools import cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import msgspec.inspect
import msgspec.structs
from starlette.requests import Request

from uno.event_bus.dead_letter.service.reply import JSON, Refused

__all__ = ["decoded", "media_type", "query_of", "read_body", "require_json"]

MOST_PARAMETERS: Final = 1000
"""Of a query string."""


def media_type(request: Request) -> str:
    """Return the content type of a request's body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Raise `Refused` unless the body is said to be JSON: browsers send no such thing to other sites unasked."""
    given = media_type(request)
    if given != JSON:
        why = f"content-type is {given!r}" if given else "the request has no content-type"
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", f"{why}; allowed is {JSON}")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body. Raises `Refused` as soon as it is known to be longer than `most` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "payload_too_large",
        f"the body has more than {most} bytes, which is the service's limit: nothing was done",
        headers={"connection": "close"},  # what is left of the body is not read
        size=most + 1,
        limit=most,
        part="body",
    )


def decoded[T](body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return what a body of JSON says. Raises `Refused`: 400 for what is no JSON, 422 for what is not as described."""
    try:
        # msgspec passes over the texts of `Raw` values, which are kept as they stand: so all is looked at here.
        body.decode()
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except msgspec.ValidationError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", f"body: {error}") from None
    except msgspec.DecodeError as error:
        raise _malformed(str(error)) from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None


def _malformed(why: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "malformed_request", f"the body is no JSON: {why}")


def query_of[T: msgspec.Struct](request: Request, kind: type[T]) -> T:
    """Return what the query string says. Raises `Refused` with one line that names the parameter."""
    try:
        text = request.scope["query_string"].decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError as error:  # also what is not UTF-8
        raise _wrong_query(f"it cannot be read ({type(error).__name__})") from None
    known = _parameters(kind)
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            meant = get_close_matches(name, known, 1)
            hint = f"; did you mean {meant[0]}?" if meant else f"; known are {', '.join(known) or 'none'}"
            raise _wrong_query(f"{name[:60]!r} is no parameter{hint}")
        if known[name]:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise _wrong_query(f"{name} is given twice")
        else:
            found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_query(str(error)) from None


def _wrong_query(why: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "invalid_request", f"query: {why}")


@cache
def _parameters(kind: type[msgspec.Struct]) -> dict[str, bool]:
    """Return the parameters, and whether each may be given several times."""
    return {
        field.encode_name: _is_list(msgspec.inspect.type_info(field.type)) for field in msgspec.structs.fields(kind)
    }


def _is_list(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.Metadata):
        return _is_list(info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        return any(_is_list(one) for one in info.types)
    return isinstance(info, msgspec.inspect.ListType)
