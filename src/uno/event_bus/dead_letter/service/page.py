"""The readable page of the service's description: plain HTML, made once, without scripts or assets."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Any, Final

__all__ = ["HEADERS", "page_of"]

STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--accent:#0b6bcb}
@media(prefers-color-scheme:dark){:root{--accent:#7ab8f5}}
body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1.25rem}
h1{font-size:1.75rem;margin:0 0 .25rem}h2{margin:2.5rem 0 .5rem;text-transform:capitalize}
code,pre{font:.875em/1.5 ui-monospace,monospace}code{background:var(--soft);padding:.1em .3em;border-radius:.25em}
pre{background:var(--soft);padding:.75rem;overflow:auto;border-radius:.4rem}pre code{background:none;padding:0}
details{border:1px solid var(--line);border-radius:.5rem;margin:.5rem 0}summary{padding:.6rem .8rem;cursor:pointer}
details>div{padding:.25rem 1rem 1rem;border-top:1px solid var(--line)}
summary b{display:inline-block;min-width:3.5rem;color:var(--accent)}
summary code{background:none;font-weight:600}summary span{float:right;opacity:.75}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line)}
nav a{margin-right:1rem}a{color:var(--accent)}h4{margin:1rem 0 .25rem}
@media(max-width:40rem){summary span{float:none;display:block}}
"""

_HASH: Final = b64encode(sha256(STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def page_of(description: bytes) -> bytes:
    """Return the page of a description in OpenAPI."""
    told = json.loads(description)
    return "".join(_page(told)).encode()


def _page(told: Mapping[str, Any]) -> Iterator[str]:
    info, schemas = told["info"], told["components"]["schemas"]
    title = escape(info["title"])
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
    yield f"<h1>{title}</h1><p>version {escape(info['version'])} · "
    yield '<a href="/openapi.json">OpenAPI 3.1</a></p>'
    yield _prose(info["description"])
    names = [tag["name"] for tag in told["tags"]]
    yield "<nav>" + "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in [*names, "bodies"]) + "</nav>"
    for name in names:
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        for path, methods in told["paths"].items():
            for method, one in methods.items():
                if name in one["tags"]:
                    yield from _operation(method, path, one)
    yield '<h2 id="bodies">bodies</h2>'
    for name, schema in schemas.items():
        yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary><div>'
        yield _prose(schema.get("description", ""))
        yield from _properties(schema)
        yield "</div></details>"
    yield "</body></html>"


def _operation(method: str, path: str, one: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><b>{escape(method.upper())}</b> <code>{escape(path)}</code> "
    yield f"<span>{escape(one['summary'])}</span></summary><div>{_prose(one['description'])}"
    if "parameters" in one:
        yield "<h4>Parameters</h4><table>"
        for told in one["parameters"]:
            yield f"<tr><td><code>{escape(told['name'])}</code></td><td>{escape(told['in'])}</td>"
            yield f"<td>{_type(told['schema'])}</td><td>{_inline(told.get('description', ''))}</td></tr>"
        yield "</table>"
    if "requestBody" in one:
        yield f"<h4>Body</h4>{_contents(one['requestBody']['content'])}"
    yield "<h4>Responses</h4><table>"
    for status, told in one["responses"].items():
        yield f"<tr><td><code>{escape(status)}</code></td><td>{_inline(told['description'])}</td>"
        yield f"<td>{_contents(told['content'])}</td></tr>"
    yield "</table></div></details>"


def _contents(contents: Mapping[str, Any]) -> str:
    shown = []
    for media, told in contents.items():
        kind = f"{_type(told['x-line'])} a line" if "x-line" in told else _type(told["schema"])
        shown.append(f"<code>{escape(media)}</code> {kind}")
    return "<br>".join(shown)


def _properties(schema: Mapping[str, Any]) -> Iterator[str]:
    if not schema.get("properties"):
        return
    required = schema.get("required", ())
    yield "<table>"
    for name, one in schema["properties"].items():
        must = "required" if name in required else ""
        default = f"default <code>{escape(json.dumps(one['default']))}</code>" if "default" in one else must
        what = _inline(one.get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_type(one)}</td><td>{default}</td><td>{what}</td></tr>"
    yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    kind = escape(str(schema.get("type", "any")))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[name]}"
        for name, sign in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "≤ length"), ("maxItems", "≤ items"))
        if name in schema
    ]
    more = [*(["base64"] if schema.get("contentEncoding") == "base64" else []), *bounds]
    return kind + (f" ({escape(', '.join(more))})" if more else "")


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    """Return a text with what stands in backquotes as code."""
    parts = escape(" ".join(text.split()).replace("``", "`")).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
