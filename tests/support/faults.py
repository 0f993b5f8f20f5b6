"""Scripts whose n-th call of Redis fails: what a wrong type, a kill or a bug does in the middle of one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from uno.event_bus.dead_letter.store import shard as shard_module
from uno.event_bus.dead_letter.store.scripts import Script, script

# `redis` is shadowed for the whole script, includes too. Line numbers of errors move by this one line.
PREFIX = """\
local redis = (function(real, fails) local calls = 0; local function next_fails() calls = calls + 1; \
return calls == fails end; return setmetatable({ call = function(...) if next_fails() then \
error('ERR injected fault') end; return real.call(...) end, pcall = function(...) if next_fails() then \
return { err = 'ERR injected fault' } end; return real.pcall(...) end }, { __index = real }) end)(redis, %d)
"""


def failing_at(name: str, call: int) -> Script:
    """The script of this verb, with its `call`-th call of Redis (from 1) failing instead of running."""
    whole = script(name)
    shebang, _, body = whole.source.decode().partition("\n")
    assert shebang.startswith("#!lua")
    plain = (PREFIX % call + body).encode()
    source = f"{shebang}\n".encode() + plain

    def sha(text: bytes) -> str:
        return hashlib.sha1(text, usedforsecurity=False).hexdigest()

    return replace(whole, source=source, sha=sha(source), plain_source=plain, plain_sha=sha(plain))


@contextmanager
def fault(name: str, call: int) -> Iterator[None]:
    """In its scope the shard's verb `name` fails at its `call`-th call of Redis; the others are whole."""
    broken = failing_at(name, call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_module, "script", lambda verb: broken if verb == name else script(verb))
        yield
