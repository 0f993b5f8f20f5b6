"""The service's description: OpenAPI 3.1, made of the operations and the structs of their bodies."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final, get_args

import msgspec
import msgspec.structs

from uno.event_bus.dead_letter.remote.wire import NDJSON, PREFIX, PROBLEM, QUEUE_HEADER, Problem
from uno.event_bus.dead_letter.service.caller import ANY_ROLE
from uno.event_bus.dead_letter.service.field_notes import notes_of
from uno.event_bus.dead_letter.service.operation import NoQuery, Operation
from uno.event_bus.dead_letter.service.reply import JSON

__all__ = ["description"]

REF: Final = "#/components/schemas/{name}"

WHAT: Final = """\
A dead-letter queue: events that failed come in, wait, are tried again, and are looked at and acted on.

Where tokens are asked for, a request names its bearer: `Authorization: Bearer uno_…`. Every problem is
`application/problem+json`; its `code` is stable.

Payloads are given in one of two ways: `payload`, any JSON, kept as it stands, or `payload_base64`, any bytes. Durations
are ms, moments Unix time in ms. Fields are only added: pass over those that you do not know."""

MEANS: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.BAD_REQUEST: "The request is malformed, or its query, a filter or a setting is wrong",
    HTTPStatus.UNAUTHORIZED: "There is no token that the service knows",
    HTTPStatus.FORBIDDEN: "The token's roles do not allow it",
    HTTPStatus.NOT_FOUND: "No open letter has this id",
    HTTPStatus.CONFLICT: "The request means another queue, or the letter's state does not allow the verb",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body, a payload or headers are over the limit",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body has another content type",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The body is not as described",
    HTTPStatus.TOO_MANY_REQUESTS: "There are too many requests; see `Retry-After`",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The service, or Redis, failed",
    HTTPStatus.SERVICE_UNAVAILABLE: "Redis is away, the queue is switched off, or the service stops",
    HTTPStatus.GATEWAY_TIMEOUT: "It is captured, and no replica has confirmed it yet",
    HTTPStatus.INSUFFICIENT_STORAGE: "The queue is full",
}

BASE64: Final = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

OF_JSON: Final = {"pattern": "^(application/json|text/json|[^;]*[+]json)(;.*)?$"}

EITHER: Final[Mapping[str, list[dict[str, Any]]]] = {
    "Event": [
        {"required": ["payload"], "properties": {"content_type": OF_JSON}},
        {"required": ["payload_base64"]},
    ],
    "RetryMany": [{"required": ["ids"]}, {"required": ["where"]}],
    "DiscardMany": [{"required": ["ids"]}, {"required": ["where"]}],
}
"""Struct → ways to say the same, of which a request has exactly one."""

OF_ANY: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""What any operation that asks for a role may answer."""


def description(operations: Iterable[Operation]) -> bytes:
    """Return the description as JSON."""
    operations = list(operations)
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    for kind in map(_struct_of, kinds):
        _describe(kind, components)
    for name, ways in EITHER.items():
        components[name]["oneOf"] = ways
    components["CloudEvent"]["additionalProperties"] = {"type": ["string", "number", "boolean", "null"]}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schema_of, components)
    told = {
        "openapi": "3.1.0",
        "info": {"title": "uno dead-letter queue", "version": _version(), "description": WHAT, "license": _LICENSE},
        "servers": [{"url": "/"}],
        "security": [{"token": list[str]()}],
        "tags": [{"name": name} for name in dict.fromkeys(map(_tag, operations))],
        "paths": paths,
        "components": {
            "schemas": _plain(components),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Roles: capture, read, operate (includes read), admin (includes all).",
                }
            },
        },
    }
    return msgspec.json.encode(told)


_LICENSE: Final = {"name": "MIT", "identifier": "MIT"}


def _version() -> str:
    try:
        return metadata.version("uno-dead-letter")
    except metadata.PackageNotFoundError:
        return "0"


def _kinds(operations: Iterable[Operation]) -> list[Any]:
    """Return every type that a body is of, each once."""
    kinds: dict[str, Any] = {repr(Problem): Problem}
    for one in operations:
        for kind in (one.body, *one.bodies.values(), one.out, *one.also.values(), one.lines, one.query):
            if kind not in (None, bytes, NoQuery):
                kinds.setdefault(repr(kind), kind)
    return list(kinds.values())


def _struct_of(kind: Any) -> type[msgspec.Struct]:
    """Return the struct that a body is, or is a list of."""
    found: type[msgspec.Struct] = kind if isinstance(kind, type) else get_args(kind)[0]
    return found


def _describe(kind: type[msgspec.Struct], components: dict[str, Any]) -> None:
    """Add to a struct's schema, and to those of the structs within it, what the source says of their fields."""
    told = components[kind.__name__]
    for name, note in notes_of(kind).items():
        if name in told["properties"]:
            told["properties"][name] = {"description": note, **told["properties"][name]}
    for field in msgspec.structs.fields(kind):
        for part in _structs_in(field.type):
            if "description" not in str(components[part.__name__]["properties"]):
                _describe(part, components)


def _structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from _structs_in(part)


def _operation(one: Operation, schema_of: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    role = "Needs no token."
    if one.role:
        role = "Needs a token of `any` role." if one.role == ANY_ROLE else f"Needs the role `{one.role}`."
    told: dict[str, Any] = {
        "operationId": _id_of(one),
        "tags": [_tag(one)],
        "summary": one.summary,
        "description": "\n\n".join(filter(None, (one.description, role))),
        "responses": _responses(one, schema_of),
    }
    parameters = [*_path_parameters(one), *_query_parameters(one, components), *_header_parameters(one)]
    if parameters:
        told["parameters"] = parameters
    if one.body is not None:
        content = {JSON: {"schema": _schema(one.body, schema_of)}}
        told["requestBody"] = {"required": not one.body_may_be_missing, "content": content}
    elif one.bodies:
        content = {kind: {"schema": _schema(body, schema_of)} for kind, body in one.bodies.items()}
        told["requestBody"] = {"required": True, "content": content}
    if one.role is None:
        told["security"] = list[str]()
    return told


def _id_of(one: Operation) -> str:
    words = re.findall(r"[a-z]+", one.path.removeprefix(PREFIX))
    return "_".join([one.method.lower(), *words])


def _tag(one: Operation) -> str:
    return one.path.removeprefix(PREFIX).split("/")[1] if one.role and one.path.startswith(PREFIX) else "probes"


def _schema(kind: Any, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    # Any bytes: OpenAPI 3.1 has no schema for what is no JSON.
    return {} if kind is bytes else _plain(schema_of[repr(kind)])


def _responses(one: Operation, schema_of: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for status, kind in ({one.status: one.out} | dict(one.also)).items():
        content: dict[str, Any] = {one.media or JSON: {"schema": _schema(kind, schema_of)}}
        if one.lines is not None:
            # Of a stream: the schema of each line.
            content[NDJSON] = {"schema": {"type": "string"}, "x-line": _schema(one.lines, schema_of)}
        told[str(status.value)] = {"description": status.phrase, "content": content}
    fails = {*one.fails, *(OF_ANY if one.role else ())}
    if "{id}" in one.path:
        fails.add(HTTPStatus.NOT_FOUND)
    if one.query is not NoQuery or not one.role:
        fails.add(HTTPStatus.BAD_REQUEST)
    for status in sorted(fails):
        kind = one.out if one.role is None and status is HTTPStatus.SERVICE_UNAVAILABLE else Problem
        media = PROBLEM if kind is Problem else JSON
        schema = _schema(kind, schema_of)
        told[str(status.value)] = {"description": MEANS[status], "content": {media: {"schema": schema}}}
    return told


def _path_parameters(one: Operation) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1, "maxLength": 64, "examples": ["2-1718000000000-0"]}
    return [
        {"name": name, "in": "path", "required": True, "description": "The letter's id.", "schema": schema}
        for name in re.findall(r"{(\w+)}", one.path)
    ]


def _query_parameters(one: Operation, components: Mapping[str, Any]) -> list[dict[str, Any]]:
    if one.query is NoQuery:
        return []
    properties = components[one.query.__name__]["properties"]
    told = []
    for name, schema in properties.items():
        schema = _plain(schema)
        what = {"description": schema.pop("description")} if "description" in schema else {}
        told.append({"name": name, "in": "query", **what, "schema": schema, "style": "form", "explode": True})
    return told


def _header_parameters(one: Operation) -> list[dict[str, Any]]:
    if one.role is None:
        return []
    what = "The queue that is meant; 409 if the service serves another one."
    return [{"name": QUEUE_HEADER, "in": "header", "description": what, "schema": {"type": "string"}}]


def _plain(schema: Any) -> Any:
    """Return a schema with what the service asks for, and msgspec's does not say: that base64 is base64."""
    if isinstance(schema, Mapping):
        said = {"pattern": BASE64} if schema.get("contentEncoding") == "base64" else {}
        return {name: _plain(value) for name, value in schema.items()} | said
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [_plain(value) for value in schema]
    return schema
