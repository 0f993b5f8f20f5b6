"""Events that a service may well let in, and that mean no good to workers, or to those who look at letters."""

import json
from typing import Final

__all__ = ["HOSTILE_EVENT", "PAYLOADS", "SECRET", "event_of"]

SECRET: Final = "the-payload-of-an-attacker"
"""What is in bodies, queries and headers, and in no log line."""

PAYLOADS: Final = {
    "a script": '"</script><script>alert(1)</script>"',
    "NULs": '"\\u0000\\u0000"',
    "half a surrogate": '"\\ud800"',
    "controls": '"\\u001b[2J\\u0007\\u202e"',
    "a number of 5,000 digits": "9" * 5000,
    "a number of 200,000 digits": "9" * 200_000,
    "a number beyond every number": "1e999999",
    "a number that is none below 2^53": "9007199254740993",
    "nested 400 deep": "[" * 400 + "]" * 400,
    "nested 900 deep": "[" * 900 + "]" * 900,
    "nested 990 deep": "[" * 990 + "]" * 990,
    "nested 5,000 deep": "[" * 5000 + "]" * 5000,
    "10,000 keys of one name": "{" + '"__proto__": 1, ' * 9999 + '"__proto__": 1}',
}
"""Values that a payload may be, byte for byte: refused, or a letter that does a worker no harm."""

HOSTILE_EVENT: Final = "hostile."
"""What the ids of such events begin with."""


def event_of(name: str) -> tuple[str, bytes]:
    """An event of such a payload, whose other texts mean no good either; its id, and the body."""
    id = f"{HOSTILE_EVENT}{list(PAYLOADS).index(name)}"
    payload = f'{{"id": "{id}", "do": "ok", "ms": 1, "x": {PAYLOADS[name]}, "note": "{SECRET}"}}'
    texts = {"reason": "<img src=x onerror=alert(1)>", "error": "\x1b[2J\n<script>", "error_type": "../../\u202e"}
    head_ = {"type": "<script>alert(1)</script>", "event_id": id, "delay_ms": 0, **texts}
    return id, f'{json.dumps(head_)[:-1]}, "payload": {payload}}}'.encode()
