"""One shard as a plain-Python model: what each verb answers and what it leaves, without faults.

Written from the design, letter by letter; no key, no index, no Lua. `tests/model/test_stateful.py` drives it beside
a real shard.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from uno.event_bus.dead_letter.letter import Counters, LetterState, Verb
from uno.event_bus.dead_letter.store.values import Answer, Outcome, Verdict

__all__ = ["PlainLetter", "PlainShard"]

LOOKED_AT: Final = 500
"""New letters that one call passes at most."""

_TOTAL: Final = {
    Verb.RESOLVE: "resolved",
    Verb.RETRY: "retried",
    Verb.PARK: "parked",
    Verb.RELEASE: "released",
    Verb.DISCARD: "discarded",
}


@dataclass(slots=True)
class PlainLetter:
    """One letter."""

    payload: bytes
    fingerprint: str
    since_ms: int
    """Waiting: not before; scheduled, suspect: due; held, parked: since when; leased: 0."""
    state: LetterState = LetterState.WAITING
    lease: tuple[str, int] | None = None
    runs_out: bool = False
    """The lease has aged."""
    counters: Counters = field(default_factory=Counters)
    history: bytes = b""

    def move(self, state: LetterState, since_ms: int) -> None:
        self.state, self.since_ms, self.lease, self.runs_out = state, since_ms, None, False


class PlainShard:
    """A shard of the model; letters by id, in the order of capture."""

    def __init__(self, *, window_ms: int, max_crashes: int) -> None:
        self.letters: dict[str, PlainLetter] = {}
        self.totals: Counter[str] = Counter()
        self._window_ms = window_ms
        self._max_crashes = max_crashes
        self._captured: dict[str, tuple[str, int]] = {}

    def in_state(self, *states: LetterState) -> list[str]:
        return [id for id, letter in self.letters.items() if letter.state in states]

    def by_fingerprint(self) -> dict[str, int]:
        return dict(Counter(letter.fingerprint for letter in self.letters.values() if letter.fingerprint))

    # ------------------------------------------------------------------------------------------ capture

    def recalled(self, key: str, now_ms: int) -> tuple[str | None, bool]:
        """Return the id that the capture key has, and whether it must still be known (else it only may be)."""
        id, at_ms = self._captured.get(key, (None, 0))
        age = now_ms - at_ms
        return (None, False) if age >= 1.5 * self._window_ms else (id, id is not None and age < self._window_ms)

    def capture(self, id: str, key: str, letter: PlainLetter, now_ms: int) -> None:
        self.letters[id] = letter
        self._captured[key] = (id, now_ms)
        self.totals["captured"] += 1

    # ------------------------------------------------------------------------------------------ workers

    def take(self, count: int, *, alone: bool, now_ms: int, token: int) -> tuple[list[str], bool]:
        """Return what `take` gives, new letters first, and whether it is a suspect; they are not leased yet.

        A quarter of the places is kept for new letters; of fewer than four places it is drawn by the token.
        """
        suspects = self._due(LetterState.SUSPECT, now_ms) if alone else []
        if suspects:
            return suspects[:1], True
        due = self._due(LetterState.SCHEDULED, now_ms)[: count + 1] if count else []
        kept_for_new = ceil(count / 4) if count >= 4 else int(token % 4 < count)
        kept_for_due = min(len(due), count - kept_for_new)
        new = self._intake(count - kept_for_due, max(count, LOOKED_AT), now_ms) if count else []
        return new + due[: count - len(new)], False

    def _due(self, state: LetterState, now_ms: int) -> list[str]:
        ids = [id for id in self.in_state(state) if self.letters[id].since_ms <= now_ms]
        return sorted(ids, key=lambda id: (self.letters[id].since_ms, id))

    def _intake(self, want: int, limit: int, now_ms: int) -> list[str]:
        ready: list[str] = []
        for id in self.in_state(LetterState.WAITING)[:limit]:
            if len(ready) == want:
                break
            letter = self.letters[id]
            if letter.since_ms > now_ms:
                letter.move(LetterState.SCHEDULED, letter.since_ms)
            else:
                ready.append(id)
        return ready

    def take_named(self, ids: Iterable[str], now_ms: int) -> list[str]:
        self._take_all_in(now_ms)
        return [
            id
            for id in dict.fromkeys(ids)
            if id in self.letters and self.letters[id].state in (LetterState.SCHEDULED, LetterState.PARKED)
        ]

    def _take_all_in(self, now_ms: int) -> None:
        for id in self.in_state(LetterState.WAITING)[:LOOKED_AT]:
            letter = self.letters[id]
            letter.move(LetterState.SCHEDULED, max(letter.since_ms, now_ms))

    def lease(self, ids: Iterable[str], consumer: str, token: int) -> None:
        for id in ids:
            self.letters[id].move(LetterState.LEASED, 0)
            self.letters[id].lease = (consumer, token)

    def settle(self, consumer: str, outcomes: Sequence[Outcome], now_ms: int) -> list[Verdict]:
        return [self._settle_one(consumer, outcome, now_ms) for outcome in outcomes]

    def _settle_one(self, consumer: str, outcome: Outcome, now_ms: int) -> Verdict:
        letter = self.letters.get(outcome.letter_id)
        if letter is None:
            return Verdict.GONE
        if letter.lease != (consumer, outcome.token):
            return Verdict.LOST
        self.totals[_TOTAL[outcome.verb]] += 1
        if outcome.verb in (Verb.RESOLVE, Verb.DISCARD):
            del self.letters[outcome.letter_id]
            return Verdict.OK
        counters = letter.counters._replace(failures=letter.counters.failures + outcome.failed)
        if outcome.verb is Verb.RELEASE:
            counters = counters._replace(releases=counters.releases + 1)
        else:
            counters = counters._replace(reason=outcome.reason)
        letter.counters = counters
        letter.history = outcome.history or letter.history
        if outcome.verb is Verb.PARK:
            letter.move(LetterState.PARKED, now_ms)
        elif outcome.verb is Verb.RELEASE and counters.crashes > counters.crashes_at_redrive:
            letter.move(LetterState.SUSPECT, now_ms + outcome.delay_ms)
        else:
            letter.move(LetterState.SCHEDULED, now_ms + outcome.delay_ms)
        return Verdict.OK

    def held_by(self, consumer: str) -> dict[str, int]:
        return {id: it.lease[1] for id, it in self.letters.items() if it.lease and it.lease[0] == consumer}

    def extend(self, consumer: str, leases: Sequence[tuple[str, int]]) -> tuple[list[str], list[tuple[str, int]]]:
        held = self.held_by(consumer)
        for id, token in leases:
            if held.get(id) == token:
                self.letters[id].runs_out = False
        named = dict(leases)
        lost = [id for id, token in leases if held.get(id) != token]
        return lost, [(id, token) for id, token in held.items() if id not in named]

    # ------------------------------------------------------------------------------------------ maintenance

    def reclaim(self, now_ms: int) -> tuple[list[str], list[str]]:
        suspects: list[str] = []
        parked: list[str] = []
        for id, letter in self.letters.items():
            if not letter.runs_out:
                continue
            counters = letter.counters._replace(crashes=letter.counters.crashes + 1)
            stalled = counters.crashes - counters.crashes_at_redrive >= self._max_crashes
            letter.counters = counters._replace(reason="stalled") if stalled else counters
            letter.move(LetterState.PARKED if stalled else LetterState.SUSPECT, now_ms)
            (parked if stalled else suspects).append(id)
        self.totals["crashed"] += len(suspects) + len(parked)
        self.totals["parked"] += len(parked)
        return suspects, parked

    def expire(self, retention_ms: int, now_ms: int) -> list[str]:
        old = [id for id in self.in_state(LetterState.PARKED) if self.letters[id].since_ms <= now_ms - retention_ms]
        for id in old:
            del self.letters[id]
        self.totals["expired"] += len(old)
        return old

    # ------------------------------------------------------------------------------------------ operators

    def operate(
        self, verb: str, seen: Sequence[tuple[str, LetterState, int]], now_ms: int, *, delay_ms: int = 0
    ) -> list[Answer]:
        waited = {id for id, _, _ in seen if id in self.letters and self.letters[id].state is LetterState.WAITING}
        if waited:
            self._take_all_in(now_ms)
        return [self._operate_one(verb, *row, row[0] in waited, now_ms, delay_ms) for row in seen]

    def _operate_one(
        self, verb: str, id: str, state: LetterState, since_ms: int, waited: bool, now_ms: int, delay_ms: int
    ) -> Answer:
        letter = self.letters.get(id)
        if letter is None:
            return Answer.GONE
        as_seen = letter.state is state and (letter.since_ms == since_ms or state is LetterState.LEASED)
        if not as_seen and not (waited and state is LetterState.WAITING):
            return Answer.CHANGED
        if letter.state not in _ALLOWED[verb]:
            return Answer.LEASED if letter.state is LetterState.LEASED else Answer.CHANGED
        getattr(self, f"_{verb}")(id, letter, now_ms, delay_ms)
        return Answer.OK

    def _reschedule(self, id: str, letter: PlainLetter, now_ms: int, delay_ms: int) -> None:
        if letter.state is LetterState.PARKED:
            it = letter.counters
            letter.counters = it._replace(
                redrives=it.redrives + 1, failures_at_redrive=it.failures, crashes_at_redrive=it.crashes
            )
            self.totals["redriven"] += 1
        suspect = letter.state is LetterState.SUSPECT
        letter.move(LetterState.SUSPECT if suspect else LetterState.SCHEDULED, now_ms + delay_ms)

    def _park(self, id: str, letter: PlainLetter, now_ms: int, delay_ms: int) -> None:
        letter.counters = letter.counters._replace(reason="because")
        letter.move(LetterState.PARKED, now_ms)
        self.totals["parked"] += 1

    def _hold(self, id: str, letter: PlainLetter, now_ms: int, delay_ms: int) -> None:
        letter.move(LetterState.HELD, now_ms)

    def _discard(self, id: str, letter: PlainLetter, now_ms: int, delay_ms: int) -> None:
        del self.letters[id]
        self.totals["discarded"] += 1


_ALLOWED: Final = {
    "reschedule": (LetterState.SUSPECT, LetterState.SCHEDULED, LetterState.HELD, LetterState.PARKED),
    "park": (LetterState.SUSPECT, LetterState.SCHEDULED, LetterState.HELD),
    "hold": (LetterState.SCHEDULED,),
    "discard": tuple(state for state in LetterState if state is not LetterState.WAITING),
}
