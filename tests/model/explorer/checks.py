"""What one call may have changed: its answer, and the shard before and after it.

Each verb has a function that checks the answer, keeps the books, and returns a `Permit`; what the permit does not
allow must not have happened.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from tests.model.explorer.model import Known, Place, Snapshot, Violation, text
from tests.model.explorer.wire import is_error
from uno.event_bus.dead_letter.letter import FIELDS

if TYPE_CHECKING:
    from tests.model.explorer.world import Actor, Call, World

__all__ = ["check", "is_refused", "not_before", "register_new_entries"]

LONGEST_DELAY_MS: Final = 150_000
"""That any action gives a letter."""
RECORDED_EVERY_MS: Final = 100
DUE: Final = ("schedule", "suspects")
READ_ONLY: Final = ("scan", "stats", "verify")
COUNTED: Final = (
    "resolved", "discarded", "expired", "retried", "parked", "released", "crashed", "redriven", "orphaned", "repeated",
)  # fmt: skip
OPERATORS: Final = {
    "reschedule": ("suspect", "scheduled", "held", "parked"),
    "park": ("suspect", "scheduled", "held"),
    "hold": ("scheduled",),
    "discard": ("leased", "suspect", "scheduled", "held", "parked"),
}


@dataclass(slots=True)
class Permit:
    """What a call may have changed beside the places of letters that stay."""

    adds: bool = False
    ends: dict[str, str] = field(default_factory=dict)
    """Letters that must have left the stream (that may have, when the script died), and how."""
    freed: set[str] = field(default_factory=set)
    """Letters whose lease may be over."""
    leased_by: str = ""
    """The consumer that may have new leases."""


def require(fact: object, code: str, words: str) -> None:
    """Raise `Violation` unless it is so."""
    if not fact:
        raise Violation(code, words)


def is_refused(world: "World", actor: "Actor", name: str, reply: Any, before: Snapshot) -> bool:
    """Whether the shard refused the caller: it must, when it knows a later protocol or layout, and only then."""
    later_protocol = int(before.meta.get("protocol", "0")) > actor.protocol
    later_epoch = int(before.meta.get("epoch", "0")) > actor.epoch
    code = str(reply).partition(" ")[0] if is_error(reply) else ""
    require(
        (code in ("UPGRADE", "LAYOUT")) == (later_protocol or later_epoch),
        "guard",
        f"{name} by protocol {actor.protocol}, epoch {actor.epoch} on {before.meta} was answered {reply}",
    )
    if not code or code not in ("UPGRADE", "LAYOUT"):
        return False
    difference = before.same_as(world.shot)
    require(not difference, "refused-but-wrote", f"{name}: {difference}")
    return True


def check(world: "World", call: "Call") -> None:
    """Check one call against everything that must be so."""
    register_new_entries(world)
    permit = VERBS[call.name](world, call)
    if call.name in READ_ONLY:
        difference = call.before.same_as(call.after)
        require(not difference, "read-that-wrote", f"{call.name}: {difference}")
        return
    _entries(world, call, permit)
    _leases(world, call, permit)
    _places(world, call)
    _totals(world, call)
    _due_times(world, call)


def register_new_entries(world: "World") -> None:
    """Enter entries in the books that were not there before."""
    for id, fields in world.shot.entries.items():
        if id not in world.books.letters:
            world.name(id)
            world.books.letters[id] = Known(fields, foreign="v" not in fields)


def _due_times(world: "World", call: "Call") -> None:
    """Nothing waits for longer than the delay that it was given, also when the server's clock was set back."""
    if world.damage & {"lost", "failover", "abort"}:
        return  # what the shard knew of the time may be lost
    due = [(float(score), id) for index in DUE for id, score in call.after.zsets[index].items()]
    due += [(not_before(call.after.entries[id]), id) for id in call.after.waiting]
    latest = call.after.shard_ms(call.now_us) + LONGEST_DELAY_MS + RECORDED_EVERY_MS
    late = {id for at, id in due if at > latest and not world.books.letters[id].foreign}
    require(not late, "too-late", f"after {call.name}, {_named(world, late)} would wait beyond the longest delay")


def _entries(world: "World", call: "Call", permit: Permit) -> None:
    added = call.after.entries.keys() - call.before.entries.keys()
    removed = call.before.entries.keys() - call.after.entries.keys()
    require(permit.adds or not added, "entry-added", f"{call.name} added {added}")
    unexplained = removed - permit.ends.keys()
    require(not unexplained, "letter-lost", f"{call.name} removed {_named(world, unexplained)}")
    for id in removed:
        world.books.end(id, "died" if call.died else permit.ends[id])
    if not call.died:
        left = (permit.ends.keys() & call.before.entries.keys()) - removed
        require(not left, "end-without-end", f"{call.name} ended {_named(world, left)}, which are there still")
    for id, fields in call.after.entries.items():
        require(fields == world.books.letters[id].fields, "entry-changed", f"{call.name} changed {world.name(id)}")


def _leases(world: "World", call: "Call", permit: Permit) -> None:
    before, after = call.before.leases, call.after.leases
    gone = {id for id in before if id not in after}
    new = {id for id in after if before.get(id) != after[id]}
    permitted = permit.freed | {id for id in before if id not in call.before.entries}
    unexplained = (gone | (new & before.keys())) - permitted
    require(not unexplained, "lease-ended", f"{call.name} ended or changed leases of {_named(world, unexplained)}")
    for id in new:
        consumer, token = after[id]
        require(consumer == permit.leased_by, "lease-made", f"{call.name} leased {world.name(id)} to {consumer}")
        if consumer != "reclaimer":
            # Tokens grow because time does: when both clock and `token` went back, one may come to another consumer.
            both = "clock" in world.damage and world.damage & {"failover", "lost"}
            require(both or (id, token) not in world.tokens, "token-twice", f"{world.name(id)} has token {token} again")
            world.tokens.add((id, token))
    for id in after.keys() & before.keys() - permitted - new:
        renewed = call.after.pending[id].idle_ms < call.before.pending[id].idle_ms
        require(not renewed or call.name == "extend", "lease-renewed", f"{call.name} renewed {world.name(id)}")


def _places(world: "World", call: "Call") -> None:
    before, after = call.before, call.after
    if "mark" in before.meta:
        orphans = after.orphans - before.orphans
        if call.died:  # the mark moves first
            orphans -= before.waiting
        require(not orphans, "orphaned", f"{call.name} left {_named(world, orphans)} in no place")
    ahead = after.ahead - before.rows
    require(
        not ahead or _went_back(world),
        "ahead",
        f"{call.name} recorded letters past the mark: {_named_rows(world, ahead)}",
    )
    if not call.died:
        # What a stranger has leased past the mark is recorded by the intake as well: a lease beats `schedule`.
        doubles = after.doubles - before.doubles - (before.waiting & before.pending.keys())
        if _went_back(world):
            doubles -= before.waiting
        where = {world.name(id): [place.state for place in after.places(id)] for id in doubles}
        require(not doubles, "two-places", f"{call.name} left letters in two places: {where}")
        # The weaker place of a letter that a dying script has left in two: swept up later.
        ghosts = {row for row in after.ghosts - before.ghosts if row[1] not in before.doubles}
        require(not ghosts, "ghost", f"{call.name} left rows of letters that are gone: {_named_rows(world, ghosts)}")


def _totals(world: "World", call: "Call") -> None:
    if world.damage & {"lost", "abort"}:
        return
    for name in COUNTED:
        total, expected = call.after.total(name), world.books.totals[name]
        require(total == expected, "total", f"{name} is {total} after {call.name}, and should be {expected}")
    if world.damage & {"stranger"}:
        return
    require(call.after.drift == 0, "drift", f"{call.name} left a drift of {call.after.drift}")
    captured = call.after.total("captured")
    require(captured == len(world.books.letters), "total", f"captured is {captured} of {len(world.books.letters)}")
    groups = {name: int(count) for name, count in call.after.hashes["groups"].items()}
    require(groups == _open_by_fingerprint(call.after), "groups", f"{call.name} left error groups {groups}")
    began = call.after.total("new_error_groups") - call.before.total("new_error_groups")
    new = groups.keys() - call.before.hashes["groups"].keys()
    require(began == len(new), "groups", f"{call.name} counted {began} new error groups, not {len(new)}")


def _open_by_fingerprint(shot: Snapshot) -> dict[str, int]:
    found: dict[str, int] = {}
    for fields in shot.entries.values():
        if fields.get("fingerprint"):
            found[fields["fingerprint"]] = found.get(fields["fingerprint"], 0) + 1
    return found


def _named(world: "World", ids: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(map(world.name, ids))) or "nothing"


def _named_rows(world: "World", rows: Iterable[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{world.name(id)} in {where}" for where, id in rows))


def rows_of(call: "Call", first: int, width: int) -> Iterator[tuple[str, ...]]:
    """Yield the call's repeated arguments, a row at a time."""
    words = [text(word) if isinstance(word, bytes) else str(word) for word in call.args]
    for i in range(first, len(words), width):
        yield tuple(words[i : i + width])


# ---------------------------------------------------------------------------------------------- capture


def _add(world: "World", call: "Call") -> Permit:
    limit, window = int(call.args[0]), int(call.args[1])
    if call.died:
        for id in call.after.entries.keys() - call.before.entries.keys():
            world.books.letters[id].uncounted = True
        return Permit(adds=True)
    room = limit - len(call.before.entries) if limit else len(call.args)
    added: list[str] = []
    for row, reply in zip(rows_of(call, 4, 18), call.reply, strict=True):
        id, key = text(reply), row[0]
        first = world.books.keys.get(key)
        if id == "FULL":
            require(len(added) >= room, "full", f"{key} was refused with room for {room}")
            require(not _is_remembered(world, key, call, window), "repeat-refused", f"{key} was refused, not recalled")
        elif id in call.before.entries or id in added or id not in call.after.entries:
            _check_repeat(world, call, key, id, window)
        else:
            if not world.damage & {"abort", "lost"}:
                remembered = _is_remembered(world, key, call, window)
                require(not remembered, "captured-twice", f"{key} is {id} now, and was {first}")
            added.append(id)
            world.books.keys[key] = (id, world.true_ms, str(call.args[2]))
            _check_entry(call, id, row)
    require(len(added) <= max(room, 0), "overfull", f"{len(added)} added with room for {room}")
    return Permit(adds=True)


def _is_remembered(world: "World", key: str, call: "Call", window: int) -> bool:
    """Whether a repeat must be known: for a window; past a clock set ahead by its producer, for half of one."""
    first = world.books.keys.get(key)
    if first is None or world.damage & {"lost", "abort"}:
        return False
    age, jumps = world.true_ms - first[1], sum(jump >= first[1] for jump in world.jumps_ms)
    if jumps:
        return jumps == 1 and age < window / 2 and first[2] == str(call.args[2])
    return age < window


def _check_repeat(world: "World", call: "Call", key: str, id: str, window: int) -> None:
    world.books.totals["repeated"] += 1
    first = world.books.keys.get(key)
    if first is None or (first[0] != id and "abort" in world.damage):  # an `add` died after its entry
        require("abort" in world.damage, "repeat-of-nothing", f"{key} is {id}, and was never captured")
        world.books.keys[key] = (id, world.true_ms, str(call.args[2]))
        return
    require(first[0] == id, "repeat", f"{key} is {id}, and was {first[0]}")
    age, is_own = world.true_ms - first[1], first[2] == str(call.args[2])
    recent = age < window if is_own else age < 1.5 * window or "clock" in world.damage
    require(recent or "lost" in world.damage, "repeat-too-late", f"{key} was captured {age} ms ago")


def _check_entry(call: "Call", id: str, row: tuple[str, ...]) -> None:
    values = dict(zip([name for name in FIELDS if name not in ("v", "not_before")], row[2:], strict=True))
    expected = values | {"v": "1", "not_before": str(call.shard_ms + int(row[1]))}
    if not expected["failed_at"]:
        expected["failed_at"] = str(call.now_ms)
    entry = call.after.entries[id]
    require(entry == expected, "entry", f"{id} is {entry}, and should be {expected}")
    require(list(entry) == list(FIELDS), "entry-order", f"{id} has its fields in the order {list(entry)}")


# ---------------------------------------------------------------------------------------------- workers


def _take(world: "World", call: "Call") -> Permit:
    consumer, wanted, alone, _, *ids = rows_of(call, 0, 1)
    permit = Permit(leased_by=consumer[0])
    if call.died:
        return permit
    token, now_ms, mark, more, next_due, _, _, suspect, new, retried = call.reply
    require(int(now_ms) == call.now_ms, "clock", f"take says {now_ms}")
    require(text(mark) == call.after.meta.get("mark"), "mark", f"take says {mark!r}")
    given = [text(row[0]) for row in [*new, *retried]]
    require(len(set(given)) == len(given) <= int(wanted[0]), "too-many", f"take of {wanted[0]} gave {given}")
    leased = {id for id, lease in call.after.leases.items() if call.before.leases.get(id) != lease}
    require(leased == set(given), "reply-differs", f"take gave {given} and leased {leased}")
    if suspect:
        require(alone[0] == "1" and len(given) <= 1, "not-alone", f"take gave a suspect among {given}")
    for row in [*new, *retried]:
        id = text(row[0])
        require(call.after.leases[id] == (consumer[0], int(token)), "lease-differs", f"take says token {token}")
        _may_be_taken(world, call, id, named=bool(ids), suspect=bool(suspect))
        _is_whole(world, call, row)
    if not ids and not suspect and int(wanted[0]) > 0:
        _leaves_nothing_behind(world, call, bool(more), text(next_due))
    return permit


def _may_be_taken(world: "World", call: "Call", id: str, *, named: bool, suspect: bool) -> None:
    name, end = world.name(id), world.books.letters[id].end
    require(not end, "run-after-end", f"take gave {name}, which was {end}")
    places = call.before.places(id)
    if call.before.is_ahead(id) and (not places or (_went_back(world) and id not in call.before.pending)):
        places = [*places, Place("waiting", str(not_before(call.before.entries[id])))]
    # A script has died, and left it in two: it may count as either until `repair` comes; but a lease is a lease.
    ways = places[:1] if places and places[0].state == "leased" else places
    allowed = ("scheduled", "parked", "waiting") if named else ("suspect",) if suspect else ("scheduled", "waiting")
    fine = any(place.state in allowed and (named or float(place.score) <= call.shard_ms) for place in ways)
    require(fine, "taken", f"take at {call.shard_ms} gave {name}, which was {places}")


def _went_back(world: "World") -> bool:
    """Whether the mark may have gone back, since both it and the group's position were lost.

    The intake then comes to letters again that are recorded already; those that are leased stay leased.
    """
    return world.damage >= {"lost", "group"}


def not_before(fields: dict[str, str]) -> float:
    """Return when an entry may run, as a stranger may have written it: 0 when it is no time."""
    try:
        found = float(fields.get("not_before", "0"))
    except ValueError:
        return 0.0
    return found if isfinite(found) else 0.0


def _is_whole(world: "World", call: "Call", row: list[Any]) -> None:
    id = text(row[0])
    known = world.books.letters[id]
    values = [None if value is None else text(value) for value in row[1]]
    require(values == list(map(known.fields.get, FIELDS)), "body", f"take gave {world.name(id)} with {values}")
    if world.damage & {"lost", "abort"}:
        return
    counters = [int(n) for n in row[2][:4]] if len(row) > 2 and row[2] else [0, 0, 0, 0]
    expected = [known.failures, known.crashes, known.releases, known.redrives]
    require(counters == expected, "counters", f"{world.name(id)} has {counters}, and should have {expected}")
    history = text(row[3]) if len(row) > 3 else ""
    require(history == known.history, "history", f"{world.name(id)} has {history!r}, not {known.history!r}")


def _leaves_nothing_behind(world: "World", call: "Call", more: bool, next_due: str) -> None:
    scores = sorted(map(float, call.after.zsets["schedule"].values()))
    first = scores[0] - call.lead_ms if scores else None
    require((float(next_due) if next_due else None) == first, "next-due", f"take says {next_due}, not {first}")
    if not more:
        require(not call.after.waiting, "left-behind", f"take saw no more of {_named(world, call.after.waiting)}")
        require(not scores or scores[0] > call.shard_ms, "left-behind", "take saw no more of those due")


def _settle(world: "World", call: "Call") -> Permit:
    consumer = str(call.args[0])
    permit, seen = Permit(), set()
    for i, row in enumerate(rows_of(call, 1, 5)):
        id, token, verb, *_ = row
        is_current = call.before.leases.get(id) == (consumer, int(token)) and id not in seen
        is_here = id in call.before.entries
        if is_current:
            seen.add(id)
            permit.freed.add(id)
            if verb in ("resolve", "discard"):
                permit.ends[id] = verb + ("ed" if verb == "discard" else "d")
        if not call.died:
            verdict = text(call.reply[i])
            expected = ["GONE" if not is_here else "OK" if is_current else "LOST"]
            if is_current and id in permit.ends:
                expected.append("OK")  # the lease of an entry that a stranger deleted: nothing is left to end
            require(verdict in expected, "fence", f"{consumer} settles {world.name(id)} by {token}: {verdict}")
            if verdict == "OK" and is_here:
                _count_settled(world, call, row)
    if not call.died and not permit.freed:
        difference = call.before.same_as(call.after)
        require(not difference, "stale-settle", f"{consumer}'s stale settle changed {difference}")
    return permit


TOTAL_OF: Final = {
    "resolve": "resolved", "retry": "retried", "park": "parked", "release": "released", "discard": "discarded",
}  # fmt: skip


def _count_settled(world: "World", call: "Call", row: tuple[str, ...]) -> None:
    id, _, verb, detail, history = row
    known = world.books.letters[id]
    world.books.totals[TOTAL_OF[verb]] += 1
    if verb in ("resolve", "discard"):
        return
    delay, failed, _ = detail.split(" ", 2)
    known.failures += int(failed)
    known.releases += verb == "release"
    known.history = history or known.history
    parked = Place("parked", str(call.now_ms))
    due = str(call.shard_ms + int(delay))
    expected = {parked} if verb == "park" else {Place("scheduled", due)}
    if verb == "release" and known.crashes:
        expected.add(Place("suspect", due))  # unless a redrive came after the crash
    places = call.after.places(id)
    require(expected & set(places), "settled", f"{world.name(id)} is {places} after {verb}")


def _extend(world: "World", call: "Call") -> Permit:
    if call.died:
        return Permit()
    consumer = str(call.args[0])
    named = [(id, int(token)) for id, token in rows_of(call, 1, 2)]
    lost, forgotten = call.reply
    own = {id: token for id, (holder, token) in call.before.leases.items() if holder == consumer}
    expected_lost = [id for id, token in named if own.get(id) != token]
    require([text(id) for id in lost] == expected_lost, "extend-lost", f"extend says {lost}, not {expected_lost}")
    answered = {text(forgotten[i]): int(forgotten[i + 1]) for i in range(0, len(forgotten), 2)}
    # What a stranger has read past the mark in this name is no lease of `take`: not for the worker to release.
    unnamed = {id: token for id, token in own.items() if id not in dict(named) and not call.before.is_ahead(id)}
    require(answered == unnamed, "extend-forgotten", f"extend says {answered}, not {unnamed}")
    for id, token in named:
        if own.get(id) == token and id in call.after.entries:
            idle = call.after.pending[id].idle_ms
            require(idle < 10_000, "not-extended", f"{world.name(id)} has been idle for {idle} ms after extend")
    return Permit()


# ---------------------------------------------------------------------------------------------- maintenance


def _reclaim(world: "World", call: "Call") -> Permit:
    lease_ms = int(call.args[1])
    permit = Permit(freed={id for id, lease in call.before.pending.items() if lease.idle_ms >= lease_ms})
    if call.died:
        permit.leased_by = "reclaimer"
        return permit
    cursor, suspects, stalled, *_ = call.reply
    for id in map(text, [*suspects, *stalled]):
        require(id in permit.freed, "reclaimed-alive", f"reclaim took {world.name(id)} from a lease that lives")
        world.books.letters[id].crashes += 1
        world.books.totals["crashed"] += 1
    world.books.totals["parked"] += len(stalled)
    for ids, state in ((suspects, "suspect"), (stalled, "parked")):
        for id in map(text, ids):
            place = call.after.place(id)
            require(place and place.state == state, "reclaimed", f"{world.name(id)} is {place}, not {state}")
    if str(call.args[0]) == "0-0" and text(cursor) == "0-0":
        left = permit.freed & call.after.pending.keys() & call.after.entries.keys()
        require(not left, "not-reclaimed", f"a whole walk of reclaim left {_named(world, left)}")
    return permit


def _repair(world: "World", call: "Call") -> Permit:
    if call.died:
        return Permit()
    _, orphaned, _, _, mark, _ = call.reply
    require(text(mark) == call.after.meta.get("mark"), "mark", f"repair says {mark!r}")
    for id in map(text, orphaned):
        place = call.after.place(id)
        require(place == Place("scheduled", str(call.now_ms)), "repaired", f"{world.name(id)} is {place}")
    world.books.totals["orphaned"] += len(orphaned)
    return Permit()


def _expire(world: "World", call: "Call") -> Permit:
    since = call.now_ms - int(call.args[0])
    old = {id for id, score in call.before.zsets["parked"].items() if float(score) <= since}
    expected = {id for id in old & call.before.entries.keys() if call.before.places(id)[0].state == "parked"}
    if not call.died:
        reply = set(map(text, call.reply))
        require(reply == expected, "expire", f"expire says {_named(world, reply)}, not {_named(world, expected)}")
        world.books.totals["expired"] += len(reply)
    return Permit(ends=dict.fromkeys(expected, "expired"))


# ---------------------------------------------------------------------------------------------- operators


def _operate(world: "World", call: "Call") -> Permit:
    rows = list(rows_of(call, 1, 3))
    expected = [_expected_answer(call, *row, intake=_reaches_past_the_mark(call, rows)) for row in rows]
    accepted = [row[0] for row, answer in zip(rows, expected, strict=True) if answer == "OK"]
    permit = Permit()
    if call.name == "discard":
        permit.ends = dict.fromkeys(accepted, "discarded")
        permit.freed = set(accepted)
    if call.died:
        return permit
    answers = list(map(text, call.reply))
    named = [(world.name(row[0]), *row[1:]) for row in rows]
    require(answers == expected, "operate", f"{call.name} of {named} says {answers}, not {expected}")
    for id in accepted:
        _count_operated(world, call, id)
    return permit


def _reaches_past_the_mark(call: "Call", rows: list[tuple[str, ...]]) -> bool:
    return any(call.before.is_ahead(row[0]) for row in rows)


def _expected_answer(call: "Call", id: str, seen: str, score: str, *, intake: bool) -> str:
    if id not in call.before.entries:
        return "GONE"
    place = call.before.place(id)
    if place is None:
        return "CHANGED"
    if (
        intake and call.before.is_ahead(id) and place.state in ("waiting", "scheduled")
    ):  # the intake of this call schedules it
        place = Place("scheduled", f"{max(not_before(call.before.entries[id]), call.shard_ms):.0f}")
    by_intake = seen == "waiting" and call.before.is_ahead(id)
    as_seen = place.state == seen and (seen == "leased" or place.score == score)
    if not as_seen and not by_intake:
        return "CHANGED"
    if place.state not in OPERATORS[call.name]:
        return "LEASED" if place.state == "leased" else "CHANGED"
    return "OK"


def _count_operated(world: "World", call: "Call", id: str) -> None:
    known, totals = world.books.letters[id], world.books.totals
    before, after = call.before.place(id), call.after.place(id)
    assert before is not None
    if call.name == "discard":
        totals["discarded"] += 1
        return
    due = str(call.shard_ms + int(call.args[0])) if call.name == "reschedule" else str(call.now_ms)
    state = {"park": "parked", "hold": "held", "reschedule": "scheduled"}[call.name]
    if call.name == "reschedule" and before.state == "suspect":
        state = "suspect"
    require(after == Place(state, due), "operated", f"{world.name(id)} is {after} after {call.name}")
    if call.name == "park":
        totals["parked"] += 1
    elif call.name == "reschedule" and before.state == "parked":
        totals["redriven"] += 1
        known.redrives += 1


def _scan(world: "World", call: "Call") -> Permit:
    _, _, page, _ = call.reply
    for row in page:
        id, state, score = text(row[0]), text(row[1]), text(row[2])
        expected = call.before.place(id) or Place("scheduled", "0")
        require((state, score) == expected, "scan", f"scan says that {world.name(id)} is {state}, not {expected}")
    return Permit()


def _stats(world: "World", call: "Call") -> Permit:
    said = dict(zip(map(text, call.reply[::2]), call.reply[1::2], strict=True))
    shot = call.before
    expected = {"open": len(shot.entries), "leased": len(shot.pending), "scheduled": len(shot.zsets["schedule"])}
    expected |= {"suspect": len(shot.zsets["suspects"]), "held": len(shot.zsets["held"])}
    expected |= {"parked": len(shot.zsets["parked"]), "error_groups": len(shot.hashes["groups"])}
    found = {name: said[name] for name in expected}
    require(found == expected, "stats", f"stats says {found}, not {expected}")
    return Permit()


def _verify(world: "World", call: "Call") -> Permit:
    _, violations, drift, _ = call.reply
    shot = call.before
    wrong = {
        "orphan": shot.orphans,
        "twice": {id for id in shot.doubles if not shot.is_ahead(id)},
        "row": {id for _, id in shot.ghosts},
    }
    for kind, id, _ in violations:
        if text(kind) in wrong:
            require(text(id) in wrong[text(kind)], "verify", f"verify says {kind!r} of {world.name(text(id))}")
    require(drift == shot.drift, "verify", f"verify says a drift of {drift}, not {shot.drift}")
    return Permit()


VERBS: Final[dict[str, Callable[["World", "Call"], Permit]]] = {
    "add": _add, "take": _take, "settle": _settle, "extend": _extend, "reclaim": _reclaim, "repair": _repair,
    "expire": _expire, "reschedule": _operate, "park": _operate, "hold": _operate, "discard": _operate,
    "scan": _scan, "stats": _stats, "verify": _verify,
}  # fmt: skip
