"""The shard, its actors and their calls: where snapshot, call and check come together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import sleep
from typing import Any, Final, NamedTuple

from tests.model.explorer import checks
from tests.model.explorer.model import COMMANDS, Books, Snapshot, Violation, commands, taken_apart
from tests.model.explorer.wire import Scripts, Wire, Word, is_error
from uno.event_bus.dead_letter.store.layout import SHARD_KEYS, shard_key
from uno.event_bus.dead_letter.store.scripts import PROTOCOL

__all__ = ["CALM", "LEASE_MS", "MAX_CRASHES", "WINDOW_MS", "Actor", "Call", "Chaos", "Held", "Worker", "World"]

QUEUE: Final = "explorer"
START_US: Final = 1_700_000_000_000_000
"""When each run begins. Time is passed in, so a run has the same tokens each time."""

LEASE_MS: Final = 60_000
WINDOW_MS: Final = 100_000
MAX_CRASHES: Final = 3
REMEMBERED: Final = 8
"""Scripts that a failover may roll back."""

_USED_KEYS: Final = tuple(name for name in SHARD_KEYS if name not in ("holds", "outcomes", "edits"))


class Chaos(NamedTuple):
    """What befalls one call."""

    twice: bool = False
    lost: bool = False
    """The reply."""
    die_at: int = 0
    """The write before which the script dies; 0: it lives."""


CALM: Final = Chaos()


class Call(NamedTuple):
    """One script that has run; `reply` is None when it died."""

    name: str
    args: tuple[Word, ...]
    """What follows protocol, epoch and time."""
    reply: Any
    before: Snapshot
    after: Snapshot
    now_us: int

    @property
    def now_ms(self) -> int:
        """By the server's clock."""
        return self.now_us // 1000

    @property
    def shard_ms(self) -> int:
        """By which letters are due."""
        return self.before.shard_ms(self.now_us)

    @property
    def lead_ms(self) -> int:
        """By how much that is ahead of the server's clock."""
        return self.before.lead_ms(self.now_us)

    @property
    def died(self) -> bool:
        return self.reply is None


@dataclass(slots=True)
class Actor:
    """One process, with the script protocol and the layout epoch that it knows."""

    protocol: int = PROTOCOL
    epoch: int = 1


class Held(NamedTuple):
    """A lease, as a worker remembers it."""

    id: str
    token: int
    suspect: bool = False


@dataclass(slots=True)
class Worker(Actor):
    """A worker: its consumer name, and the leases that it believes to hold."""

    letter: str = "A"
    life: int = 1
    leases: list[Held] = field(default_factory=list)
    seen: int = 0
    """The highest token that it was ever given."""

    @property
    def consumer(self) -> str:
        """The name; never used again by another life."""
        return f"{self.letter}{self.life}"


class Moment(NamedTuple):
    """A state that a failover may return to."""

    dumps: list[bytes | None]
    books: Books
    clock_us: int


class World:
    """One shard and everybody who touches it."""

    def __init__(self, wire: Wire, scripts: Scripts, *, keeps_history: bool = False) -> None:
        self.wire = wire
        self.scripts = scripts
        self.key = {name: shard_key(QUEUE, 0, name) for name in _USED_KEYS}
        self.clock_us = START_US
        self.moved_us = 0
        """How far somebody has moved the server's clock."""
        self.jumps_ms: list[int] = []
        """When that was ahead, by a clock that nobody moves."""
        self.workers = [Worker(letter="A"), Worker(letter="B")]
        self.operator = Actor()
        self.keeper = Actor()
        """The process that reclaims and repairs."""
        self.view: list[tuple[str, str, str]] = []
        """What the operator saw last: id, state, score."""
        self.reclaim_cursor: Word = "0-0"
        self.repair_cursor: Word = ""
        self.captured_keys: list[int] = []
        """The first capture key of each call."""
        self.books = Books()
        self.names: dict[str, str] = {}
        """Id → #1, #2, … in the order of capture, through all timelines."""
        self.tokens: set[tuple[str, int]] = set()
        """Every letter and token that was ever leased, in any timeline."""
        self.damage: set[str] = set()
        """Kinds of faults so far: each excuses something."""
        self.history: list[Moment] = []
        self._keeps_history = keeps_history
        self.wire.call("UNLINK", *self.key.values())
        self.shot = self.look()

    @property
    def shard_ms(self) -> int:
        return self.shot.shard_ms(self.clock_us)

    @property
    def true_ms(self) -> int:
        """By a clock that nobody moves."""
        return (self.clock_us - self.moved_us) // 1000

    def name(self, id: str) -> str:
        """Return a letter's name in the story."""
        return self.names.setdefault(id, f"#{len(self.names) + 1}")

    @staticmethod
    def token(token: int) -> str:
        """Return a token as the story tells it."""
        return f"t{token - START_US}" if token >= START_US else f"t={token}"

    def look(self) -> Snapshot:
        """Return the shard as it is."""
        self.shot = taken_apart(self.wire.send(commands(self.key)))
        return self.shot

    def do(self, *commands: Sequence[Word]) -> list[Any]:
        """Send commands that are not the engine's."""
        replies = self.wire.send(commands)
        self.look()
        checks.register_new_entries(self)
        return replies

    def call(self, name: str, args: Sequence[Word], actor: Actor, chaos: Chaos = CALM) -> Any:
        """Run a script, check what it did, and return its reply; None when the caller learns nothing."""
        reply = None
        for _ in range(2 if chaos.twice else 1):
            reply = self._execute(name, tuple(args), actor, chaos.die_at)
        return None if chaos.lost else reply

    def _execute(self, name: str, args: tuple[Word, ...], actor: Actor, die_at: int) -> Any:
        self.clock_us += 13
        keys = [self.key[key] for key in self.scripts.keys[name]]
        words = [actor.protocol, actor.epoch, self.clock_us, *args, *([die_at] if die_at else [])]
        sha = self.scripts.sha(name, mortal=die_at > 0)
        ask = [("EVALSHA", sha, len(keys), *keys, *words), *commands(self.key)]
        if self._keeps_history:
            ask += [("DUMP", key) for key in self.key.values()]
        reply, *rest = self.wire.send(ask)
        before, self.shot = self.shot, taken_apart(rest[:COMMANDS])
        if not checks.is_refused(self, actor, name, reply, before):
            if is_error(reply):
                self._must_have_died(name, reply, die_at)
                reply = None
            checks.check(self, Call(name, args, reply, before, self.shot, self.clock_us))
        else:
            reply = None
        if self._keeps_history:
            self.history = [*self.history[-REMEMBERED:], Moment(rest[COMMANDS:], self.books.copy(), self.clock_us)]
        return reply

    def _must_have_died(self, name: str, error: Any, die_at: int) -> None:
        if not die_at or "ABORTED" not in str(error):
            raise Violation("error", f"{name} raised {error}")
        self.damage.add("abort")

    def pass_time(self, ms: int, *, leases_age: bool) -> None:
        """Move the clock; leases age with it, unless their holders renewed them meanwhile."""
        self.clock_us += ms * 1000
        if leases_age:
            self.age_leases(ms)

    def move_clock(self, ms: int) -> None:
        """Move the server's clock; leases keep their age: no command makes one begin in the future."""
        self.clock_us += ms * 1000
        self.moved_us += ms * 1000
        if ms > 0:
            self.jumps_ms.append(self.true_ms)

    def age_leases(self, ms: int) -> None:
        """Make leases older. Not those whose entry is gone: XCLAIM would remove them."""
        self.do(
            *(
                ("XCLAIM", self.key["letters"], "workers", it.consumer, 0, id, "IDLE", it.idle_ms + ms, "JUSTID")
                for id, it in self.shot.pending.items()
                if id in self.shot.entries
            )
        )

    def roll_back(self, scripts: int) -> int:
        """Return to the state before the last scripts, as a failover to a lagging replica does."""
        scripts = min(scripts, len(self.history) - 1)
        if scripts < 1:
            return 0
        self.history = self.history[: len(self.history) - scripts]
        moment = self.history[-1]
        self.wire.call("UNLINK", *self.key.values())
        self.wire.send(
            ("RESTORE", key, 0, dump)
            for key, dump in zip(self.key.values(), moment.dumps, strict=True)
            if dump is not None
        )
        self.books = moment.books.copy()
        self.damage.add("failover")
        sleep(0.001)  # ids are of the server's ms: what comes now gets no id of a letter that was rolled back
        self.look()
        self.age_leases((self.clock_us - moment.clock_us) // 1000)
        return scripts
