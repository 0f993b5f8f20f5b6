"""A shard and a plain-Python model side by side: the same random calls, the same answers, the same letters."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model.plain import PlainLetter, PlainShard
from tests.support.clean import verified
from tests.support.places import Place
from uno.event_bus.dead_letter.letter import Letter, LetterState, NewLetter, Verb
from uno.event_bus.dead_letter.store.browse import scan, stats
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.layout import FORMAT
from uno.event_bus.dead_letter.store.layout_record import Layout
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.topology import Topology
from uno.event_bus.dead_letter.store.values import Outcome, Seen, Verdict

EXAMPLES = int(os.environ.get("DLQ_STATEFUL_EXAMPLES", "60"))
START_MS = 1_800_000_000_000
LEASE_MS = 60_000
WINDOW_MS = 100_000
MAX_CRASHES = 2

WORKERS = st.sampled_from(["A", "B"])
DELAYS = st.sampled_from([0, 0, 20_000, 90_000])
ANY = st.integers(0, 1_000_000)
"""A position in a list whose length is not known: it wraps around."""


class ShardBesideModel(RuleBasedStateMachine):
    """The real shard, driven by its typed methods, and the model."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.place.flush()
        self.runner = asyncio.Runner()
        self.topology = Topology(seeds_of(self.place.url), timeout_s=20.0)
        self.now_ms = START_MS
        self.shard = Shard("default", 0, self.topology, Layout(FORMAT, 1, 1, LEASE_MS, 1), now_us=START_MS * 1000)
        self.model = PlainShard(window_ms=WINDOW_MS, max_crashes=MAX_CRASHES)
        self.given: list[tuple[str, str, int]] = []
        """Every lease that was ever given: worker, letter id, token."""
        self.seen: list[tuple[str, LetterState, int]] = []
        """What the operator saw last, perhaps long ago."""

    def teardown(self) -> None:
        self.runner.run(self.topology.close())
        self.runner.close()

    def run[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call at the model's time; no two calls have the same µs, as on a real server."""
        assert self.shard.now_us is not None
        self.shard.now_us += 1
        return self.runner.run(call)

    # ------------------------------------------------------------------------------------------ capture

    @initialize(count=st.integers(0, 9))
    def begin(self, count: int) -> None:
        """Most shards have letters to begin with."""
        self.add(list(range(count)), 0, 0)

    @rule(keys=st.lists(st.integers(0, 9), min_size=1, max_size=4), delay_ms=DELAYS, limit=st.sampled_from([0, 0, 6]))
    def add(self, keys: list[int], delay_ms: int, limit: int) -> None:
        """New letters get ids; those that were captured within the window get the first one's."""
        new = [
            NewLetter(f"e{key}", "order", f"body of {key}".encode(), fingerprint=f"f{key % 3}", delay_ms=delay_ms)
            for key in keys
        ]
        ids = self.run(self.shard.add(new, limit=limit, window_ms=WINDOW_MS))
        for letter, id in zip(new, ids, strict=True):
            known, must_be = self.model.recalled(letter.capture_key, self.now_ms)
            if id is None:
                assert not must_be and limit and len(self.model.letters) >= limit
            elif id == known:
                pass
            else:
                assert not must_be and id not in self.model.letters
                entry = PlainLetter(letter.payload, letter.fingerprint, self.now_ms + delay_ms)
                self.model.capture(id, letter.capture_key, entry, self.now_ms)

    # ------------------------------------------------------------------------------------------ workers

    @rule(who=WORKERS, count=st.integers(0, 6))
    def take(self, who: str, count: int) -> None:
        """What is due and what is new is given fairly, and a suspect only alone."""
        alone = not self.model.held_by(who)
        taken = self.run(self.shard.take(who, count, alone=alone))
        token = next((letter.lease.token for letter in taken.letters if letter.lease), 0)
        expected, suspect = self.model.take(count, alone=alone, now_ms=self.now_ms, token=token)
        assert taken.suspect == suspect
        self._are_given(who, expected, taken.letters)
        assert taken.more or suspect or not count or not self.model.in_state(LetterState.WAITING)

    @rule(who=WORKERS, places=st.lists(ANY, min_size=1, max_size=3))
    def take_named(self, who: str, places: list[int]) -> None:
        """Scheduled and parked letters are given by name, due or not."""
        if ids := self._ids(places):
            expected = self.model.take_named(ids, self.now_ms)
            self._are_given(who, expected, self.run(self.shard.take(who, len(ids), ids=ids)).letters)

    def _are_given(self, who: str, expected: list[str], letters: list[Letter]) -> None:
        assert [letter.id for letter in letters] == expected
        for letter in letters:
            known = self.model.letters[letter.id]
            assert letter.lease is not None and letter.payload == known.payload
            assert (letter.counters, letter.packed_history) == (known.counters, known.history)
            lease = (who, letter.id, letter.lease.token)
            assert lease[1:] not in [given[1:] for given in self.given]
            self.given.append(lease)
            self.model.lease([letter.id], who, letter.lease.token)

    @precondition(lambda self: self.given)
    @rule(
        back=st.integers(0, 9),
        verbs=st.lists(st.sampled_from(Verb), min_size=1, max_size=3),
        delay_ms=DELAYS,
        failed=st.booleans(),
        history=st.binary(max_size=8),
    )
    def settle(self, back: int, verbs: list[Verb], delay_ms: int, failed: bool, history: bytes) -> None:
        """Leases, current or long over, are settled; one that is named twice only once."""
        who, id, token = self.given[-1 - back % len(self.given)]
        fingerprint = self.model.letters[id].fingerprint if id in self.model.letters else ""
        first, *others = verbs
        outcomes = [
            Outcome(id, token, first, delay_ms, failed, "why", history, fingerprint),
            Outcome(id, token, Verb.RETRY, 0, True, "again", b"again", fingerprint),
        ]
        was_here = id in self.model.letters
        own = [own for own in self.model.held_by(who).items() if own[0] != id]
        for (other, its_token), verb in zip(own, others, strict=False):
            fingerprint = self.model.letters[other].fingerprint
            outcomes.append(Outcome(other, its_token, verb, delay_ms, failed, "too", b"", fingerprint))
        expected = self.model.settle(who, outcomes, self.now_ms)
        if was_here and expected[1] == "GONE":
            expected[1] = Verdict.LOST  # within one call the entry is there until the end
        assert self.run(self.shard.settle(who, outcomes)) == expected

    @precondition(lambda self: self.given)
    @rule(who=WORKERS, back=st.integers(0, 9), all_own=st.booleans())
    def extend(self, who: str, back: int, all_own: bool) -> None:
        """A worker learns which leases it has lost, and which it has forgotten."""
        _, id, token = self.given[-1 - back % len(self.given)]
        named = {id: token} | (self.model.held_by(who) if all_own else {})
        lost, forgotten = self.model.extend(who, list(named.items()))
        assert self.run(self.shard.extend(who, list(named.items()))) == (lost, forgotten)

    # ------------------------------------------------------------------------------------------ maintenance

    @rule(places=st.lists(ANY, min_size=0, max_size=4))
    def reclaim(self, places: list[int]) -> None:
        """Some leases run out: they are suspected, or parked at their last crash; what lives stays."""
        leased = self.model.in_state(LetterState.LEASED)
        for id in {leased[place % len(leased)] for place in places if leased}:
            letter = self.model.letters[id]
            assert letter.lease is not None
            letter.runs_out = True
            key, name = self.shard.key("letters"), self.shard.stream_id(id)
            self.place.client.xclaim(key, "workers", letter.lease[0], 0, [name], idle=LEASE_MS + 1, justid=True)
        suspects, parked = self.model.reclaim(self.now_ms)
        found = self.run(self.shard.reclaim(lease_ms=LEASE_MS, max_crashes=MAX_CRASHES))
        assert found == (b"0-0", suspects, parked, self.now_ms, 0)

    @rule(retention_ms=st.sampled_from([0, 50_000]))
    def sweep(self, retention_ms: int) -> None:
        """Parked letters end when they are too old; there is nothing to repair."""
        expected = self.model.expire(retention_ms, self.now_ms)
        assert sorted(self.run(self.shard.expire(retention_ms))) == sorted(expected)
        found = self.run(self.shard.repair(idle_ms=-1))
        assert (found.cursor, found.orphaned, found.doubled, found.rows_removed) == (b"", [], [], 0)

    @rule(ms=st.sampled_from([1000, 20_000, 50_000, 130_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        assert self.shard.now_us is not None
        self.shard.now_us += ms * 1000

    # ------------------------------------------------------------------------------------------ operators

    @rule(
        verb=st.sampled_from(["reschedule", "park", "hold", "discard"]),
        places=st.lists(ANY, min_size=1, max_size=3),
        fresh=st.booleans(),
        delay_ms=DELAYS,
    )
    def operate(self, verb: str, places: list[int], fresh: bool, delay_ms: int) -> None:
        """A verb acts on what is as the operator saw it, and on nothing else."""
        rows = self._seen() if fresh else self.seen
        self.seen = self.seen if self.seen and not fresh else self._seen()
        if not rows:
            return
        chosen = [Seen(*rows[place]) for place in dict.fromkeys(place % len(rows) for place in places)]
        expected = self.model.operate(verb, chosen, self.now_ms, delay_ms=delay_ms)
        match verb:
            case "reschedule":
                answers = self.run(self.shard.reschedule(chosen, delay_ms=delay_ms))
            case "park":
                answers = self.run(self.shard.park(chosen, reason="because"))
            case "hold":
                answers = self.run(self.shard.hold(chosen))
            case _:
                answers = self.run(self.shard.discard(chosen, why="because"))
        assert answers == expected

    # ------------------------------------------------------------------------------------------ what must be so

    @invariant()
    def the_same_letters(self) -> None:
        """Each letter is where the model has it, with the same body, counters and history."""
        page = self.run(scan(self.shard, most=1000))
        found = {it.id: (it.state, it.payload, it.counters, it.packed_history) for it in page.letters}
        assert found == {id: (it.state, it.payload, it.counters, it.history) for id, it in self.model.letters.items()}
        scores = {it.id: it.since_ms for it in page.letters if it.state is not LetterState.WAITING}
        assert scores == {id: self.model.letters[id].since_ms for id in scores}

    @invariant()
    def the_same_totals(self) -> None:
        """The shard's own books say what happened, and its counts what there is."""
        said = self.run(stats(self.shard))
        totals = {name: said.get("parked_total" if name == "parked" else name, 0) for name in self.model.totals}
        assert totals == self.model.totals
        states = {state: len(self.model.in_state(state)) for state in LetterState if state is not LetterState.WAITING}
        assert {state: said[state.value] for state in states} == states
        groups = self.place.client.hgetall(self.shard.key("groups"))
        assert {name.decode(): int(count) for name, count in groups.items()} == self.model.by_fingerprint()

    @invariant()
    def clean(self) -> None:
        """`verify` finds nothing."""
        found = self.run(verified(self.shard))
        assert (found.violations, found.drift) == ([], 0)

    def _ids(self, places: list[int]) -> list[str]:
        ids = list(self.model.letters)
        return [ids[place] for place in dict.fromkeys(place % len(ids) for place in places)] if ids else []

    def _seen(self) -> list[tuple[str, LetterState, int]]:
        return [
            (id, it.state, 0 if it.state is LetterState.WAITING else it.since_ms)
            for id, it in self.model.letters.items()
        ]


@pytest.mark.timeout(360 + EXAMPLES)  # to shrink a failure may take five minutes
def test_a_shard_is_as_its_model(place: Place) -> None:
    """Random calls of every verb are answered as the model says, and leave what it says."""
    machine = type("ShardBesideModel", (ShardBesideModel,), {"place": place})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
