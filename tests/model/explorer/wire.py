"""The way to the server: one socket, pipelined; and the scripts, as they are, mutated, or made to die."""

import hashlib
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from uno.event_bus.dead_letter.store.scripts import script

__all__ = ["Replacement", "Scripts", "Wire", "is_error"]

type Word = str | bytes | int

_pack: Any = hiredis.pack_command

VERBS: Final = (
    "add", "take", "settle", "extend", "reclaim", "repair", "reschedule", "park", "hold", "discard", "expire",
    "scan", "stats", "verify",
)  # fmt: skip

# Counts the script's writes and dies before one of them: what was written stays, as Redis has it.
_PRELUDE: Final = """\
local server, die_at, writes = redis, tonumber(table.remove(ARGV)), 0
local WRITES = { XADD = 1, XDEL = 1, XACK = 1, XCLAIM = 1, XAUTOCLAIM = 1, XGROUP = 1, HSET = 1, HDEL = 1,
  HINCRBY = 1, ZADD = 1, ZREM = 1, UNLINK = 1 }
local redis = setmetatable({}, { __index = server })
local function mortal(call)
  return function(name, ...)
    writes = writes + (WRITES[name] or 0)
    if WRITES[name] and writes == die_at then
      error('ABORTED')
    end
    return call(name, ...)
  end
end
redis.call, redis.pcall = mortal(server.call), mortal(server.pcall)
"""


class Replacement(NamedTuple):
    """A change to a script's expanded source; `old` must be there."""

    verb: str
    """The script, or ``*``: all that have the text, at least one."""
    old: str
    new: str


def is_error(reply: object) -> bool:
    """Whether the server answered with an error."""
    return isinstance(reply, hiredis.ReplyError)


class Wire:
    """One connection; a pipeline is one write and as many replies, errors among them as values."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def close(self) -> None:
        self._socket.close()

    def send(self, commands: Iterable[Sequence[Word]]) -> list[Any]:
        packed = [_pack(tuple(command)) for command in commands]
        self._socket.sendall(b"".join(packed))
        replies: list[Any] = []
        while len(replies) < len(packed):
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(1 << 16))
            else:
                replies.append(reply)
        return replies

    def call(self, *words: Word) -> Any:
        [reply] = self.send([words])
        return reply


class Scripts:
    """Every verb's source as the store expands it, with replacements, loaded into the server.

    Raises `LookupError` when a text to replace is not there: a mutant that mutates nothing proves nothing.
    """

    def __init__(self, wire: Wire, replacements: Iterable[Replacement] = (), *, plain: bool = False) -> None:
        sources = {name: _source(name, plain) for name in VERBS}
        for change in replacements:
            verbs = [name for name in VERBS if change.verb in ("*", name) and change.old in sources[name]]
            if not verbs:
                raise LookupError(f"{change.verb}.lua has no text {change.old!r}")
            for name in verbs:
                sources[name] = sources[name].replace(change.old, change.new)
        self.keys = {name: script(name).keys for name in VERBS}
        self._shas: dict[tuple[str, bool], str] = {}
        for name, source in sources.items():
            self._load(wire, name, source, mortal=False)
            self._load(wire, name, _made_mortal(source), mortal=True)

    def _load(self, wire: Wire, name: str, source: str, *, mortal: bool) -> None:
        reply = wire.call("SCRIPT", "LOAD", source)
        if is_error(reply):
            raise SyntaxError(f"{name}.lua: {reply}")
        self._shas[name, mortal] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def sha(self, name: str, *, mortal: bool) -> str:
        """The script's hash; a mortal one takes the number of the write to die at as its last argument."""
        return self._shas[name, mortal]


def _source(name: str, plain: bool) -> str:
    found = script(name)
    return (found.plain_source if plain else found.source).decode()


def _made_mortal(source: str) -> str:
    first, _, rest = source.partition("\n")
    return f"{first}\n{_PRELUDE}{rest}" if first.startswith("#!") else _PRELUDE + source
