"""The end of each run: the faults stop, and every letter must come to its end within a bounded number of rounds."""

from typing import Final

from tests.model.explorer.actions import extend, follow, mend, operate_on, reclaim_walk, settle_leases, view
from tests.model.explorer.checks import not_before
from tests.model.explorer.model import ENDS, Violation, text
from tests.model.explorer.world import CALM, LEASE_MS, Held, Worker, World

__all__ = ["drain"]

ROUNDS: Final = 2
"""Rounds of mending, reclaiming and taking until nothing is left but what a live worker holds."""


def drain(world: World) -> int:
    """Work off everything; A lives and keeps its leases to the last, B is dead. Returns the rounds it took."""
    follow(world)
    alive = world.workers[0]
    drainer = Worker(letter="D")
    drainer.protocol, drainer.epoch = alive.protocol, alive.epoch
    rounds = 0
    while not rounds or not _is_worked_off(world, alive):
        if rounds == ROUNDS:
            raise Violation("stuck", f"after {ROUNDS} rounds there are {_where(world)}")
        rounds += 1
        world.pass_time(max(LEASE_MS + 10_000, _until_all_are_due(world)), leases_age=True)
        extend(world, who=0, stubborn=False, chaos=CALM)
        mend(world)
        reclaim_walk(world)
        _send_all_back(world)
        _work_off(world, drainer)
    settle_all(world, alive)
    mend(world)
    if world.shot.entries or world.shot.pending:
        raise Violation("stuck", f"the last worker leaves {_where(world)}")
    _account(world)
    return rounds


def _is_worked_off(world: World, alive: Worker) -> bool:
    """Whether nothing is left but what the live worker holds."""
    leases = world.shot.leases
    return world.shot.entries.keys() == leases.keys() and all(it[0] == alive.consumer for it in leases.values())


def _where(world: World) -> str:
    return ", ".join(f"{world.name(id)} {world.shot.place(id)}" for id in world.shot.entries) or "ghosts"


def _send_all_back(world: World) -> None:
    """The operator sends back every letter that would stay where it is."""
    view(world)
    rows = [row for row in world.view if row[1] in ("held", "parked")]
    if rows:
        operate_on(world, "reschedule", rows)


def _until_all_are_due(world: World) -> int:
    shot = world.shot
    due = [float(score) for key in ("schedule", "suspects") for score in shot.zsets[key].values()]
    due += [not_before(shot.entries[id]) for id in shot.waiting]
    left_ms = max(due, default=0) + 1 - world.shard_ms
    return int(left_ms * 8 / 7) + 1  # so long when the shard gives a lead back


def _work_off(world: World, drainer: Worker) -> None:
    """Take and resolve until nothing is due."""
    for _ in range(3 * len(world.shot.entries) + 5):
        drainer.leases = []
        reply = world.call("take", [drainer.consumer, 4, 1, drainer.seen], drainer)
        given = [text(row[0]) for row in [*reply[8], *reply[9]]]
        drainer.leases = [Held(id, int(reply[0])) for id in given]
        settle_all(world, drainer)
        if not given and not reply[3]:
            return
    raise Violation("stuck", f"take gives again and again: {_where(world)}")


def settle_all(world: World, worker: Worker) -> None:
    """Resolve every lease that the worker holds."""
    if worker.leases:
        settle_leases(world, worker, [(lease, "resolve", 0, 0) for lease in worker.leases])


def _account(world: World) -> None:
    """Every letter has one end, and the totals say so."""
    shot, books = world.shot, world.books
    unaccounted = [world.name(id) for id, known in books.letters.items() if not known.end]
    if unaccounted:
        raise Violation("unaccounted", f"{unaccounted} are gone, and nobody ended them")
    left = {name: rows for name, rows in {**shot.zsets, **shot.hashes}.items() if rows and name in LEAVE_NOTHING}
    if left:
        raise Violation("left-over", f"{left}")
    if shot.drift:
        raise Violation("drift", f"{shot.drift} at the end")
    if "lost" in world.damage:
        return
    ends = {name: shot.total(name) for name in ENDS}
    captured, letters = shot.total("captured"), len(books.letters)
    # A stranger's entry that was deleted before anybody saw it is in no total. One that the intake does not count
    # (no mark yet, or it looks like the engine's own), and one whose `add` died, is counted with the next balance,
    # and there another's loss may make up for it.
    never_counted = letters - captured
    deleted, died = books.ended("deleted"), books.ended("died")
    unseen = sum(it.uncounted or it.foreign for it in books.letters.values())
    if not 0 <= never_counted <= min(unseen, deleted + died):
        raise Violation("totals", f"captured {captured} of {letters} letters")
    lost = ends.pop("lost_externally") + never_counted
    if not deleted <= lost <= deleted + died:
        raise Violation("totals", f"lost_externally is {lost}; {deleted} were deleted, {died} ended in dying scripts")
    for name, total in ends.items():
        if not books.ended(name) <= total <= books.ended(name) + died:
            raise Violation("totals", f"{name} is {total}, and {books.ended(name)} were")


LEAVE_NOTHING: Final = ("schedule", "suspects", "held", "parked", "state", "history")
