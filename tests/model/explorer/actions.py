"""What workers, operator and maintenance do: how a step is drawn, and what it does to the world.

A step names letters and leases by their position in what the actor knows, so it means something in every run,
also when the steps before it were left out.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple

from tests.model.explorer.model import Violation, text
from tests.model.explorer.wire import Word
from tests.model.explorer.world import CALM, LEASE_MS, MAX_CRASHES, WINDOW_MS, Actor, Chaos, Held, Worker, World
from uno.event_bus.dead_letter.letter import FIELDS

__all__ = ["ACTIONS", "Action", "Plan", "Step", "draw", "follow", "mend", "reclaim_walk"]


class Step(NamedTuple):
    """One step of a run: a small value."""

    name: str
    args: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.args.items() if value)})"


class Plan(NamedTuple):
    """What a class of faults makes of the ordinary steps."""

    faults: tuple[str, ...] = ()
    """Names of the steps that are faults of this class."""
    repeats: bool = False
    aborts: bool = False
    pauses: bool = False
    """Leases run out, and workers go on with them; else they are always renewed in time."""


class Action(NamedTuple):
    """A kind of step."""

    weight: int
    draw: Callable[[Random, Plan], dict[str, Any]]
    perform: Callable[..., str]


def chaos(rng: Random, plan: Plan) -> Chaos:
    """Draw what befalls a call."""
    if plan.aborts and rng.random() < 0.35:
        return Chaos(die_at=rng.randint(1, 9))
    if plan.repeats and rng.random() < 0.4:
        return Chaos(twice=rng.random() < 0.5, lost=rng.random() < 0.6)
    return CALM


def picks(rng: Random, most: int) -> list[int]:
    """Draw positions in a list whose length is not known yet."""
    return [rng.randrange(1000) for _ in range(rng.randint(1, most))]


def picked[T](things: Sequence[T], positions: Sequence[int]) -> list[T]:
    """Return the things at these positions, each once."""
    found = {position % len(things): None for position in positions} if things else {}
    return [things[i] for i in found]


# ---------------------------------------------------------------------------------------------- capture


def draw_add(rng: Random, plan: Plan) -> dict[str, Any]:
    return {
        "key": rng.randrange(16),
        "again": rng.randrange(3) if rng.random() < 0.4 else -1,
        "count": rng.randint(1, 4),
        "delay_ms": rng.choice([0, 0, 0, 20_000, 150_000]),
        "limit": rng.choice([0, 0, 0, 8]),
        "producer": rng.randrange(2),
        "chaos": chaos(rng, plan),
    }


def add(
    world: World, *, key: int, again: int, count: int, delay_ms: int, limit: int, producer: int, chaos: Chaos
) -> str:
    """Capture letters: new ones, or (`again`) those of one of the last three calls."""
    key = world.captured_keys[-1 - again] if 0 <= again < len(world.captured_keys) else key
    world.captured_keys.append(key)
    args: list[Word] = [limit, WINDOW_MS, f"p{producer}", world.true_ms + producer * 10**10]
    for number in range(key, key + count):
        values = dict.fromkeys(FIELDS, "") | {
            "event_id": f"e{number}",
            "type": "order",
            "fingerprint": f"f{number % 3}" if number % 4 else "",
            "payload": f"body of e{number}",
            "attempts": "1",
            "headers": "{}",
        }
        args += [f"k{number}", delay_ms, *(values[name] for name in FIELDS if name not in ("v", "not_before"))]
    reply = world.call("add", args, world.workers[0], chaos)
    if reply is None:
        return f"captures k{key}…k{key + count - 1}, and learns nothing"
    ids = ["FULL" if id == b"FULL" else world.name(text(id)) for id in reply]
    return f"captures k{key}…k{key + count - 1} as {', '.join(ids)}"


# ---------------------------------------------------------------------------------------------- workers


def draw_worker(rng: Random) -> int:
    return rng.randrange(2)


def draw_take(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"who": draw_worker(rng), "count": rng.randint(1, 6), "chaos": chaos(rng, plan)}


def take(world: World, *, who: int, count: int, chaos: Chaos) -> str:
    worker = world.workers[who]
    if any(lease.suspect for lease in worker.leases):
        return f"{worker.consumer} has a suspect, and takes nothing else"
    return _take(world, worker, count, [], chaos)


def draw_take_named(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"who": draw_worker(rng), "letters": picks(rng, 3), "chaos": chaos(rng, plan)}


def take_named(world: World, *, who: int, letters: list[int], chaos: Chaos) -> str:
    worker = world.workers[who]
    ids = picked(list(world.books.letters), letters)
    return _take(world, worker, len(ids), ids, chaos) if ids else "nothing to name"


def _take(world: World, worker: Worker, count: int, ids: list[str], chaos: Chaos) -> str:
    alone = int(not worker.leases)
    reply = world.call("take", [worker.consumer, count, alone, worker.seen, *ids], worker, chaos)
    what = f"{worker.consumer} takes {', '.join(map(world.name, ids)) or count}"
    if reply is None:
        return f"{what}, and learns nothing"
    token, suspect = int(reply[0]), bool(reply[7])
    worker.seen = max(worker.seen, token)
    given = [text(row[0]) for row in [*reply[8], *reply[9]]]
    worker.leases += [Held(id, token, suspect) for id in given]
    return f"{what} and gets {', '.join(map(world.name, given)) or 'nothing'} by {world.token(token)}"


VERBS: Final = ("resolve", "resolve", "resolve", "retry", "retry", "park", "release", "discard")


def draw_settle(rng: Random, plan: Plan) -> dict[str, Any]:
    outcomes = [
        (rng.randrange(1000), rng.choice(VERBS), rng.choice([0, 10_000, 120_000]), rng.randrange(2))
        for _ in range(rng.randint(1, 4))
    ]
    return {"who": draw_worker(rng), "outcomes": outcomes, "chaos": chaos(rng, plan)}


def settle(world: World, *, who: int, outcomes: list[tuple[int, str, int, int]], chaos: Chaos) -> str:
    worker = world.workers[who]
    if not worker.leases:
        return f"{worker.consumer} has nothing to settle"
    chosen = {outcome[0] % len(worker.leases): outcome for outcome in reversed(outcomes)}
    rows = [(worker.leases[i], verb, delay_ms, failed) for i, (_, verb, delay_ms, failed) in sorted(chosen.items())]
    return settle_leases(world, worker, rows, chaos)


def settle_leases(world: World, worker: Worker, outcomes: list[tuple[Held, str, int, int]], chaos: Chaos = CALM) -> str:
    """Settle leases, and forget those that were answered."""
    args: list[Word] = [worker.consumer]
    for lease, verb, delay_ms, failed in outcomes:
        known = world.books.letters.get(lease.id)
        fingerprint = known.fields.get("fingerprint", "") if known else ""
        history = f"h{lease.token}" if failed else ""
        detail = fingerprint if verb in ("resolve", "discard") else f"{delay_ms} {failed} {verb} it"
        args += [lease.id, lease.token, verb, detail, history]
    reply = world.call("settle", args, worker, chaos)
    what = ", ".join(f"{verb} {world.name(lease.id)} by {world.token(lease.token)}" for lease, verb, *_ in outcomes)
    if reply is None:
        return f"{worker.consumer} settles ({what}), and learns nothing"
    settled = {lease for lease, *_ in outcomes}
    worker.leases = [lease for lease in worker.leases if lease not in settled]
    return f"{worker.consumer} settles ({what}): {', '.join(map(text, reply))}"


def draw_extend(rng: Random, plan: Plan) -> dict[str, Any]:
    return {
        "who": draw_worker(rng),
        "stubborn": plan.pauses and rng.random() < 0.5,
        "chaos": chaos(rng, plan),
    }


def extend(world: World, *, who: int, stubborn: bool, chaos: Chaos) -> str:
    """Renew every lease; give up what is lost (unless stubborn), release what a lost reply has left behind."""
    worker = world.workers[who]
    newest = {lease.id: lease for lease in worker.leases}
    words: list[Word] = [word for lease in newest.values() for word in (lease.id, lease.token)]
    reply = world.call("extend", [worker.consumer, *words], worker, chaos)
    if reply is None:
        return f"{worker.consumer} extends its leases, and learns nothing"
    lost, forgotten = set(map(text, reply[0])), list(map(int_or_text, reply[1]))
    if not stubborn:
        worker.leases = [lease for lease in worker.leases if lease.id not in lost]
    what = f"{worker.consumer} extends {len(newest)} leases, has lost {', '.join(map(world.name, lost)) or 'none'}"
    strays = [Held(forgotten[i], forgotten[i + 1]) for i in range(0, len(forgotten), 2)]
    if strays:
        what += "; " + settle_leases(world, worker, [(lease, "release", 0, 0) for lease in strays])
    return what


def int_or_text(word: bytes | int) -> Any:
    """Return a token as a number and an id as text."""
    if isinstance(word, int):
        return word
    return int(word) if word.isdigit() else text(word)


def draw_restart(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"who": draw_worker(rng)}


def restart(world: World, *, who: int) -> str:
    worker = world.workers[who]
    worker.life += 1
    worker.leases = []
    return f"{worker.letter} dies, and starts again as {worker.consumer}"


# ---------------------------------------------------------------------------------------------- operator


def draw_nothing(rng: Random, plan: Plan) -> dict[str, Any]:
    return {}


def view(world: World) -> str:
    rows: list[tuple[str, str, str]] = []
    cursor: Word = "-"
    while cursor:
        reply = world.call("scan", [cursor, 100, 0], world.operator)
        if reply is None:
            return "the operator is refused a view"
        cursor = reply[0]
        rows += [(text(row[0]), text(row[1]), text(row[2])) for row in reply[2]]
    world.view = rows
    return f"the operator sees {', '.join(f'{world.name(id)} {state}' for id, state, _ in rows) or 'nothing'}"


def draw_operate(rng: Random, plan: Plan) -> dict[str, Any]:
    return {
        "verb": rng.choice(["reschedule", "reschedule", "park", "hold", "hold", "discard"]),
        "letters": picks(rng, 3),
        "delay_ms": rng.choice([0, 0, 100_000]),
        "fresh": rng.random() < 0.6,
        "chaos": chaos(rng, plan),
    }


def operate(world: World, *, verb: str, letters: list[int], delay_ms: int, fresh: bool, chaos: Chaos) -> str:
    if fresh:
        view(world)
    rows = picked(world.view, letters)
    if not rows:
        return "the operator sees nothing to act on"
    return operate_on(world, verb, rows, delay_ms, chaos)


def operate_on(
    world: World, verb: str, rows: list[tuple[str, str, str]], delay_ms: int = 0, chaos: Chaos = CALM
) -> str:
    """Run an operator's verb on letters as they were seen."""
    value: Word = delay_ms if verb == "reschedule" else "because"
    reply = world.call(verb, [value, *(word for row in rows for word in row)], world.operator, chaos)
    what = ", ".join(f"{world.name(id)} seen {state}" for id, state, _ in rows)
    answers = "nothing learnt" if reply is None else ", ".join(map(text, reply))
    return f"the operator's {verb} of {what}: {answers}"


# ---------------------------------------------------------------------------------------------- maintenance


def draw_expire(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"retention_ms": rng.choice([0, 100_000, 100_000]), "chaos": chaos(rng, plan)}


def expire(world: World, *, retention_ms: int, chaos: Chaos) -> str:
    reply = world.call("expire", [retention_ms], world.keeper, chaos)
    what = f"what has been parked for {retention_ms} ms expires"
    return f"{what}: {'nothing learnt' if reply is None else ', '.join(world.name(text(id)) for id in reply)}"


def draw_part(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"walk": rng.random() < 0.4, "chaos": chaos(rng, plan)}


def reclaim(world: World, *, walk: bool, chaos: Chaos) -> str:
    if walk and chaos == CALM:
        return reclaim_walk(world)
    reply = world.call("reclaim", [world.reclaim_cursor, LEASE_MS, MAX_CRASHES, 0], world.keeper, chaos)
    if reply is None:
        return "reclaim, and nothing learnt"
    world.reclaim_cursor = text(reply[0])
    return f"reclaim: {_reclaimed(world, reply)}"


def reclaim_walk(world: World) -> str:
    """Reclaim to the end of the walk, as each tick does."""
    told, cursor = [], "0-0"
    for _ in range(len(world.shot.pending) + 5):
        reply = world.call("reclaim", [cursor, LEASE_MS, MAX_CRASHES, 0], world.keeper)
        if reply is None:
            return "reclaim is refused"
        cursor = text(reply[0])
        told.append(_reclaimed(world, reply))
        if cursor == "0-0":
            world.reclaim_cursor = cursor
            return f"a walk of reclaim: {'; '.join(told)}"
    raise Violation("endless", f"reclaim does not come to the end of {len(world.shot.pending)} leases")


def _reclaimed(world: World, reply: list[Any]) -> str:
    suspects, stalled = (", ".join(world.name(text(id)) for id in ids) for ids in reply[1:3])
    return f"{suspects or 'nobody'} suspect, {stalled or 'nobody'} stalled"


def draw_repair(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"idle_ms": rng.choice([-1, 3_600_000]), "chaos": chaos(rng, plan)}


def repair(world: World, *, idle_ms: int, chaos: Chaos) -> str:
    """Repair the next part of the shard; -1 removes every consumer that holds nothing."""
    reply = world.call("repair", [world.repair_cursor, idle_ms], world.keeper, chaos)
    if reply is None:
        return "repair, and nothing learnt"
    world.repair_cursor = text(reply[0])
    return f"repair: {_repaired(world, reply)}"


def _repaired(world: World, reply: list[Any]) -> str:
    orphaned, doubled = (", ".join(world.name(text(id)) for id in ids) for ids in reply[1:3])
    return f"{orphaned or 'nobody'} orphaned, {doubled or 'nobody'} doubled, {reply[3]} rows removed"


def mend(world: World) -> str:
    """Repair to the end of the walk; then the shard must be clean."""
    told = _walk(world, "repair", [-1])
    if told is None:
        return "repair is refused"
    shot = world.shot
    for wrong, ids in (("in no place", shot.orphans), ("in two places", shot.doubles)):
        if ids:
            raise Violation("unmended", f"{', '.join(map(world.name, ids))} {wrong} after a whole repair")
    rows = shot.ghosts | {(state, id) for state, id in shot.ahead if state != "leased"}
    if rows:
        raise Violation("unmended", f"rows {[(state, world.name(id)) for state, id in rows]} after a whole repair")
    if shot.drift > 0 or (shot.drift and not shot.waiting):
        raise Violation("unmended", f"a drift of {shot.drift} after a whole repair")
    verified = _walk(world, "verify", [])
    if verified is None:
        return "verify is refused"
    for _, found, drift, _ in verified:
        # When the clock went back, and `token` did or a stranger's XCLAIM raised one in the pending list (it counts a
        # delivery), the next token may be below those of leases: then verify is right.
        both = "clock" in world.damage and world.damage & {"failover", "lost", "stranger"}
        violations = [violation for violation in found if not (both and text(violation[0]) == "token")]
        if violations or (drift and not shot.waiting):
            raise Violation("unclean", f"verify after a whole repair says {violations}, drift {drift}")
    return "a whole repair: " + "; ".join(_repaired(world, reply) for reply in told)


def _walk(world: World, name: str, args: list[Word]) -> list[Any] | None:
    replies: list[Any] = []
    cursor: Word = ""
    for _ in range(4 * len(world.shot.entries) + 50):
        reply = world.call(name, [cursor, *args], world.keeper)
        if reply is None:
            return None
        replies.append(reply)
        cursor = reply[0]
        if not cursor:
            return replies
    raise Violation("endless", f"{name} does not come to the end of its walk")


def draw_look(rng: Random, plan: Plan) -> dict[str, Any]:
    return {"verb": rng.choice(["verify", "stats"])}


def look(world: World, *, verb: str) -> str:
    if verb == "stats":
        world.call("stats", [], world.operator)
    else:
        _walk(world, "verify", [])
    return verb


# ---------------------------------------------------------------------------------------------- time


def draw_wait(rng: Random, plan: Plan) -> dict[str, Any]:
    ms = rng.choice([10_000, 30_000, 70_000, 130_000, 300_000, 650_000])
    return {"ms": ms, "renewed": not plan.pauses or rng.random() < 0.3}


def wait(world: World, *, ms: int, renewed: bool) -> str:
    world.pass_time(ms, leases_age=not renewed)
    return f"{ms // 1000} s pass{', every lease is renewed' if renewed else ''}"


def follow(world: World) -> str:
    """Every process upgrades and re-reads the layout."""
    actors: list[Actor] = [*world.workers, world.operator, world.keeper]
    for actor in actors:
        actor.protocol = max(actor.protocol, int(world.shot.meta.get("protocol", "0")))
        actor.epoch = max(actor.epoch, int(world.shot.meta.get("epoch", "0")))
    return "every process follows"


ACTIONS: Final = {
    "add": Action(12, draw_add, add),
    "take": Action(14, draw_take, take),
    "take_named": Action(3, draw_take_named, take_named),
    "settle": Action(16, draw_settle, settle),
    "extend": Action(5, draw_extend, extend),
    "view": Action(3, draw_nothing, view),
    "operate": Action(9, draw_operate, operate),
    "expire": Action(2, draw_expire, expire),
    "reclaim": Action(5, draw_part, reclaim),
    "repair": Action(4, draw_repair, repair),
    "mend": Action(1, draw_nothing, mend),
    "look": Action(2, draw_look, look),
    "wait": Action(9, draw_wait, wait),
}
"""What happens without faults."""


def draw(rng: Random, plan: Plan, actions: dict[str, Action]) -> Step:
    """Draw one step."""
    names = list(actions)
    [name] = rng.choices(names, [actions[name].weight for name in names])
    return Step(name, actions[name].draw(rng, plan))
