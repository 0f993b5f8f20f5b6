"""What else happens, by class: one class a run, or all of them mixed."""

from random import Random
from typing import Any, Final

from tests.model.explorer.actions import Action, Plan, draw_nothing, draw_restart, follow, restart
from tests.model.explorer.model import text
from tests.model.explorer.wire import Word, is_error
from tests.model.explorer.world import WINDOW_MS, World

__all__ = ["CLASSES", "FAULTS"]

STRANGER: Final = "stranger"


def _nth(world: World, number: int) -> str | None:
    ids = list(world.shot.entries)
    return ids[number % len(ids)] if ids else None


def _nth_leased(world: World, number: int) -> str | None:
    ids = list(world.shot.pending)
    return ids[number % len(ids)] if ids else None


# ---------------------------------------------------------------------------------------------- the group


def draw_group(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"how": rng.choice(["destroy", "destroy", "recreate", "setid"]), "to": rng.choice(["0", "$", "nth"]),
            "number": rng.randrange(1000)}  # fmt: skip


def group(world: World, *, how: str, to: str, number: int) -> str:
    """Somebody destroys, recreates or moves the consumer group."""
    letters = world.key["letters"]
    position = (_nth(world, number) or "0") if to == "nth" else to
    world.damage.add("group")
    if how == "setid":
        world.do(("XGROUP", "SETID", letters, "workers", position))
        return f"somebody sets the group to {position if to != 'nth' else world.name(position)}"
    world.do(("XGROUP", "DESTROY", letters, "workers"))
    if how == "recreate":
        world.do(("XGROUP", "CREATE", letters, "workers", position))
        return f"somebody makes the group anew at {position}"
    return "somebody destroys the group"


# ---------------------------------------------------------------------------------------------- strangers


def draw_stranger(rng: Random, plan: Plan) -> dict[str, Any]:
    hows = ["xack", "xack", "xdel", "xdel", "delconsumer", "xreadgroup", "xclaim", "xadd", "xadd"]
    return {"how": rng.choice(hows), "number": rng.randrange(1000), "variant": rng.randrange(1000)}


def stranger(world: World, *, how: str, number: int, variant: int) -> str:
    """A stranger works on the stream with plain commands."""
    world.damage.add("stranger")
    return STRANGERS[how](world, number, variant)


def _xack(world: World, number: int, variant: int) -> str:
    id = _nth_leased(world, number)
    if id is None:
        return "a stranger finds nothing to acknowledge"
    world.do(("XACK", world.key["letters"], "workers", id))
    return f"a stranger acknowledges {world.name(id)}"


def _xdel(world: World, number: int, variant: int) -> str:
    id = _nth(world, number)
    if id is None:
        return "a stranger finds nothing to delete"
    world.do(("XDEL", world.key["letters"], id))
    world.books.end(id, "deleted")
    return f"a stranger deletes {world.name(id)}"


def _delconsumer(world: World, number: int, variant: int) -> str:
    consumer = world.workers[number % 2].consumer
    world.do(("XGROUP", "DELCONSUMER", world.key["letters"], "workers", consumer))
    return f"a stranger deletes the consumer {consumer}"


def _xreadgroup(world: World, number: int, variant: int) -> str:
    reader = STRANGER if variant % 3 else world.workers[number % 2].consumer
    [reply] = world.do(
        ("XREADGROUP", "GROUP", "workers", reader, "COUNT", 1 + number % 2, "STREAMS", world.key["letters"], ">")
    )
    ids = [] if not reply or is_error(reply) else [world.name(text(row[0])) for row in reply[0][1]]
    return f"a stranger reads {', '.join(ids) or 'nothing'} in the group as {reader}"


def _xclaim(world: World, number: int, variant: int) -> str:
    id = _nth(world, number)
    if id is None:
        return "a stranger finds nothing to claim"
    options: list[Word] = [word for i, word in enumerate(["FORCE", "JUSTID"]) if variant >> i & 1]
    world.do(("XCLAIM", world.key["letters"], "workers", STRANGER, 0, id, *options))
    return f"a stranger claims {world.name(id)} {' '.join(map(str, options))}"


FOREIGN: Final = (
    {"type": "order", "payload": "p"},
    {"payload": "p", "not_before": "soon"},
    {"x": "y"},
    {"type": "order", "payload": "p", "not_before": "inf"},
    {"type": "order", "payload": "p", "not_before": "-1e400"},
    {"v": "1", "type": "order", "payload": "p", "fingerprint": "f9"},
    {"v": "9", "payload": ""},
    {"type": "order", "payload": "p", "not_before": "1800000000000.75"},
)


def _xadd(world: World, number: int, variant: int) -> str:
    fields = FOREIGN[variant % len(FOREIGN)]
    [id] = world.do(("XADD", world.key["letters"], "*", *(word for pair in fields.items() for word in pair)))
    known = world.books.letters[text(id)]
    known.foreign, known.uncounted = True, "v" in fields
    return f"a stranger adds {world.name(text(id))} with {fields}"


STRANGERS: Final = {
    "xack": _xack, "xdel": _xdel, "delconsumer": _delconsumer, "xreadgroup": _xreadgroup, "xclaim": _xclaim,
    "xadd": _xadd,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- lost state

FIELDS_OF_META: Final = (
    "mark",
    "token",
    "clock",
    "lead",
    "captured",
    "resolved",
    "epoch",
)
KEYS: Final = (
    "meta", "schedule", "suspects", "held", "parked", "state", "history", "groups", "group_info", "dedupe_a",
    "dedupe_b", "dedupe_c",
)  # fmt: skip


def draw_lose(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"what": rng.choice(["mark", "mark", "token", "meta", *FIELDS_OF_META, *KEYS])}


def lose(world: World, *, what: str) -> str:
    """An index, or a field of `meta`, is lost."""
    world.damage.add("lost")
    if what in KEYS:
        world.do(("UNLINK", world.key[what]))
    else:
        world.do(("HDEL", world.key["meta"], what))
    return f"{what} is lost"


# ---------------------------------------------------------------------------------------------- failover, upgrade


def draw_failover(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"scripts": rng.randint(1, 6)}


def failover(world: World, *, scripts: int) -> str:
    return f"a failover rolls back the last {world.roll_back(scripts)} scripts"


def draw_clock(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"ms": rng.choice([-50, -5_000, -3_600_000, WINDOW_MS, 3_600_000])}


def clock(world: World, *, ms: int) -> str:
    """As a step of the clock does, or a failover to a server whose clock differs."""
    if ms < 0:
        world.damage.add("clock")
    world.move_clock(ms)
    return f"the server's clock is set {'back' if ms < 0 else 'ahead'} by {abs(ms)} ms"


def draw_raise(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"what": rng.choice(["epoch", "protocol"])}


def raise_(world: World, *, what: str) -> str:
    """Another process raises the layout's epoch or the lowest protocol."""
    if not world.shot.meta:
        return f"no {what} to raise yet"
    world.do(("HINCRBY", world.key["meta"], what, 1))
    return f"another process raises the {what} to {world.shot.meta[what]}"


FAULTS: Final = {
    "restart": Action(4, draw_restart, restart),
    "group": Action(8, draw_group, group),
    "stranger": Action(10, draw_stranger, stranger),
    "lose": Action(5, draw_lose, lose),
    "failover": Action(6, draw_failover, failover),
    "clock": Action(5, draw_clock, clock),
    "raise": Action(4, draw_raise, raise_),
    "follow": Action(6, draw_nothing, follow),
}

CLASSES: Final = {
    "none": Plan(),
    "pauses": Plan(("restart",), pauses=True),
    "repeats": Plan(("restart",), repeats=True, pauses=True),
    "aborts": Plan(("restart",), aborts=True, pauses=True),
    "groups": Plan(("group", "restart"), pauses=True),
    "strangers": Plan(("stranger", "restart"), pauses=True),
    "lost": Plan(("lose", "restart"), pauses=True),
    "failover": Plan(("failover", "restart"), pauses=True),
    "clock": Plan(("clock", "restart"), pauses=True),
    "upgrade": Plan(("raise", "follow", "restart"), pauses=True),
    "mixed": Plan(tuple(FAULTS), repeats=True, aborts=True, pauses=True),
}
"""Every class of faults."""
