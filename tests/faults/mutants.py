"""Broken variants of the engine, each of which its rows must catch: a harness that lets one pass proves little.

A mutant is a change of one place of the sources. It runs in a copy of them that only producers and workers use; the
run's own eye is always whole. It is caught when one of its rows fails and says what `shows` expects: a variant that
does not even start would be caught by anything.

Orders of writes within a script that no process can tell from outside (a mark that is moved after the claim, say) are
caught by the explorer's own mutants: `tests/model/explorer/mutants.py`.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.harness.actors import ROOT

__all__ = ["MUTANTS", "Change", "Mutant", "broken"]

ENGINE: Final = "src/uno/event_bus/dead_letter"


class Change(NamedTuple):
    """A text that stands exactly once in a file, and what takes its place."""

    path: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A broken variant."""

    what: str
    rows: tuple[str, ...]
    """Those that must catch it; the first that does is enough."""
    shows: str
    """A pattern of what such a row says."""
    changes: tuple[Change, ...]

    def is_shown_by(self, note: str) -> bool:
        """Whether a failed row's note is what this variant should show."""
        return re.search(self.shows, note) is not None


@contextmanager
def broken(mutant: Mutant) -> Iterator[Path]:
    """Yield a folder whose `src` and `lua` are this variant's. `ValueError` when a text is not there exactly once."""
    with tempfile.TemporaryDirectory(prefix="uno-mutant-") as folder:
        tree = Path(folder)
        for part in ("src", "lua"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for change in mutant.changes:
            file = tree / change.path
            text = file.read_text("utf-8")
            if (found := text.count(change.old)) != 1:
                raise ValueError(f"{change.path} has {change.old!r} {found} times, not once: mend the mutant")
            file.write_text(text.replace(change.old, change.new), "utf-8")
        yield tree


MUTANTS: Final[dict[str, Mutant]] = {
    "no-fence": Mutant(
        "settle compares nothing: whoever names a letter ends it",
        ("F11-late",),
        "stale_settles is|double_terminal is",
        (Change("lua/lib/outcomes.lua", "not token or held_tokens[id] ~= token", "not token"),),
    ),
    "fence-by-consumer": Mutant(
        "settle compares the consumer alone: an earlier lease of the same worker will do",
        ("F11-own",),
        "stale_settles is|double_terminal is",
        (Change("lua/lib/outcomes.lua", "not token or held_tokens[id] ~= token", "not token or not held_tokens[id]"),),
    ),
    "no-cursor": Mutant(
        "reclaim begins at 0-0 each time: what lives hides what is dead behind it",
        ("F1-wide",),
        "behind 1,500 live leases: not within",
        (Change("lua/reclaim.lua", "lease_ms, cursor, 'COUNT'", "lease_ms, '0-0', 'COUNT'"),),
    ),
    "wait-elsewhere": Mutant(
        "WAIT goes over another connection, whose writes are none",
        ("F6-apart",),
        "lost is",
        (
            Change(
                f"{ENGINE}/store/node.py",
                "replies = await self._exchange([*asked, manner.confirm] if manner.confirm else asked, lane)",
                "replies = await self._exchange(asked, lane)\n"
                "        replies += await self._exchange([manner.confirm], 'heartbeats') if manner.confirm else []",
            ),
        ),
    ),
    "wait-unheard": Mutant(
        "what WAIT answers is not looked at",
        ("F6-apart",),
        "lost is",
        (Change(f"{ENGINE}/store/durability.py", "got = int(reply)", "got = wanted"),),
    ),
    "pel-first": Mutant(
        "settle acknowledges before it writes the index: a script that dies leaves the letter nowhere",
        ("F20-type",),
        "orphaned is",
        (
            Change("lua/settle.lua", "redis.call('XACK', letters, 'workers', unpack(settled))\n", ""),
            Change(
                "lua/settle.lua",
                "if #records > 0 then",
                "redis.call('XACK', letters, 'workers', unpack(settled))\nif #records > 0 then",
            ),
        ),
    ),
    "server-time": Mutant(
        "take asks by the server's clock what is due, also when that was set back",
        ("F16",),
        "stuck is",
        (Change("lua/take.lua", "index, '-inf', int(shard_ms)", "index, '-inf', int(now_ms)"),),
    ),
    "future-leases": Mutant(
        "a lease that begins in the future is left alone: it runs out when the clock is there again",
        ("F16",),
        "stuck is",
        (Change("lua/reclaim.lua", "if lead_ms > 0 then", "if false then"),),
    ),
    "retrying-client": Mutant(
        "the client sends a command again when no reply has come, as redis-py does by default",
        ("F17-once",),
        "captured .*by the histories",
        (
            Change(
                f"{ENGINE}/store/node.py",
                "replies = await self._exchange([*asked, manner.confirm] if manner.confirm else asked, lane)",
                "commands = [*asked, manner.confirm] if manner.confirm else asked\n"
                "        try:\n"
                "            replies = await self._exchange(commands, lane)\n"
                "        except (RedisConnectionError, RedisTimeoutError, OSError):\n"
                "            replies = await self._exchange(commands, lane)",
            ),
        ),
    ),
    "asking-apart": Mutant(
        "ASKING goes over another connection than the command that it is for",
        ("F9",),
        "does not start|errors is",
        (
            Change(
                f"{ENGINE}/store/node.py",
                "asked = [_ASKING, command] if manner.asking else [command]",
                "if manner.asking:\n"
                "            await self._exchange([_ASKING], 'heartbeats')\n"
                "        asked = [command]",
            ),
        ),
    ),
    "forgetful": Mutant(
        "capture keys are not remembered: a repeat is captured again",
        ("F17",),
        "several ids for",
        (Change("lua/add.lua", "  redis.call('HSET', youngest.name, unpack(new_keys))\n", ""),),
    ),
    "server-window": Mutant(
        "repeats are known by the server's clock alone, also when a node takes over that is ahead",
        ("F16-skew",),
        "several ids for",
        (Change("lua/lib/generations.lua", "if by == producer then", "if false then"),),
    ),
    "hasty-reclaimer": Mutant(
        "the reclaimer acts however short it has been in touch: an outage of Redis looks like the workers' death",
        ("F19-outage",),
        "crashed is",
        (
            Change(
                f"{ENGINE}/worker/reclaimer.py",
                "return now - self._in_touch_since >= self._session.lease_s",
                "return True",
            ),
        ),
    ),
    "loads-seldom": Mutant(
        "NOSCRIPT is followed every second time only",
        ("F19",),
        "errors is",
        (
            Change(
                f"{ENGINE}/store/node.py",
                "        except NoScriptError:\n",
                "        except NoScriptError:\n"
                "            self.__dict__['told'] = self.__dict__.get('told', 0) + 1\n"
                "            if self.__dict__['told'] > 20 and self.__dict__['told'] % 2:\n"
                "                raise\n",
            ),
        ),
    ),
    "late-reclaims": Mutant(
        "a reclaim that waited in the socket of a server that hung is served all the same",
        ("F27-hung",),
        "crashed is",
        (Change("lua/reclaim.lua", "if valid_until > 0 and now_ms > valid_until then", "if false then"),),
    ),
    "any-role": Mutant(
        "whoever is known may do everything: roles are not looked at",
        ("F24",),
        "an attack was answered|the audit stream tells|have come or gone",
        (Change(f"{ENGINE}/service/operation.py", "if caller.may(role):", "if caller.name:"),),
    ),
    "old-tokens": Mutant(
        "a token is good for ever",
        ("F24",),
        "an attack was answered .*expired",
        (Change(f"{ENGINE}/service/access.py", "found.until <= self._now()", "found.until <= 0"),),
    ),
    "patient-heads": Mutant(
        "a head may take as long as it likes: a slowloris keeps its connections",
        ("F24",),
        "slowloris",
        (
            Change(
                f"{ENGINE}/service/protocol.py",
                "self.loop.call_later(self._of.timeout_s, self._head_is_late)",
                "self.loop.call_later(600, self._head_is_late)",
            ),
        ),
    ),
    "tells-queries": Mutant(
        "log lines have what stands behind the question mark",
        ("F24",),
        "has logged",
        (
            Change(
                f"{ENGINE}/service/guard.py",
                'without_tokens(self._scope["path"])[:SHOWN_PATH]',
                "f\"{self._scope['path']}?{self._scope['query_string']}\"[:SHOWN_PATH]",
            ),
        ),
    ),
    "new-id-at-repeat": Mutant(
        "a remote client that repeats a capture makes a new event id",
        ("F31-cut",),
        "double_terminal is|captured .*by the histories",
        (
            Change(
                f"{ENGINE}/remote/client.py",
                "reply = await self._connections.ask(\n                        method, path, content,",
                "again = unsure and content is not None\n"
                '                    sent = content.replace(b\'"event_id":"\', b\'"event_id":"2-\') '
                "if again else content\n"
                "                    reply = await self._connections.ask(\n                        method, path, sent,",
            ),
        ),
    ),
    "own-event-ids": Mutant(
        "the service gives events ids of its own",
        ("F31-cut",),
        "double_terminal is|captured .*by the histories",
        (
            Change(
                f"{ENGINE}/service/incoming.py", "event_id=event.event_id or token_hex(16)", "event_id=token_hex(16)"
            ),
        ),
    ),
    "answers-first": Mutant(
        "the service acknowledges captures, and puts them a moment later",
        ("F31-cut",),
        "lost is",
        (
            Change(
                f"{ENGINE}/service/captures.py",
                "answers = iter(await queue.put([new for new in made if isinstance(new, NewLetter)]))",
                "import asyncio\n"
                "    wanted = [new for new in made if isinstance(new, NewLetter)]\n"
                "    loop = asyncio.get_running_loop()\n"
                "    loop.call_later(0.05, lambda: asyncio.ensure_future(queue.put(wanted)))\n"
                "    answers = iter(['0-0-0'] * len(wanted))",
            ),
        ),
    ),
}
