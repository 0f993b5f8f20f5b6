"""Workers are killed, stopped and restarted under load: every letter comes to exactly one end.

Run by name, `make test ARGS=tests/faults`: it takes minutes. Seeds are printed; DLQ_TEST_SEED replays one.
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.support.crews import say, seeded
from tests.support.kills import Kills

pytestmark = [pytest.mark.timeout(240), pytest.mark.timed(0.3)]

SLACK_S = 1.0
"""For two busy cores, on top of what is promised."""


@pytest.mark.parametrize("round", range(2))
def test_sigkills_at_random_moments_during_5000_letters(kills: Kills, round: int) -> None:  # noqa: A002
    """Four workers, one of them killed amid each of twelve bursts: no letter is lost, ended twice, or parked.

    What a dead one held leaves its lease within lease + 2 ticks.
    """
    chance = seeded(f"sigkills-{round}")
    count, strikes = 5000, 12
    crew = kills.crew(concurrency=20, max_crashes=50)
    events = [
        {"n": n, "do": "fail once" if n % 50 == 0 else "ok", "ms": chance.choice([0, 5, 20, 50])} for n in range(count)
    ]
    began = time.monotonic()
    with crew.at_work(4), ThreadPoolExecutor(strikes) as watchers:
        waits = []
        for strike in range(strikes):
            candidates = crew.ready(3)[1:]
            kills.add(events[strike * count // strikes : (strike + 1) * count // strikes])
            time.sleep(chance.uniform(0.0, 0.15))
            victim = chance.choice(candidates)
            crew.kill(victim)
            longest_s = kills.lease_s + 2 * kills.tick_s + SLACK_S
            waits.append(watchers.submit(kills.leases.wait_until_gone, victim.pid, longest_s))
            crew.replace_dead(wait=False)
        longest = max(wait.result() for wait in waits)
        kills.wait_for(lambda stats: stats.totals["resolved"] >= count, within_s=60)
    totals = kills.stats.totals
    runs = crew.starts()
    say(
        f"{strikes} kills; longest lease of a dead worker {longest:.2f} s; {totals['crashed']} leases ran out; "
        f"{sum(runs.values())} runs of {count} letters, at most {max(runs.values())} of one; "
        f"{time.monotonic() - began:.1f} s"
    )
    assert set(runs) == set(range(count))
    assert totals["retried"] == count // 50
    assert crew.overlaps() == []
    kills.assert_promises(count)


def test_a_worker_stopped_past_its_lease_changes_nothing_when_it_goes_on(kills: Kills) -> None:
    """SIGSTOP for three leases, then SIGCONT: others ran its letters meanwhile, its late settles are refused."""
    chance = seeded("sigstop")
    crew = kills.crew(concurrency=10, max_crashes=10)
    count = 1000
    with crew.at_work(3):
        kills.add([{"n": n, "do": "ok", "ms": 20} for n in range(count)])
        time.sleep(chance.uniform(0.1, 0.3))
        stopped = crew.workers[0]
        stopped.send(signal.SIGSTOP)
        held = kills.leases.of(stopped.pid)
        waited = kills.leases.wait_until_gone(stopped.pid, kills.lease_s + 2 * kills.tick_s + SLACK_S)
        time.sleep(3 * kills.lease_s - waited)
        stopped.send(signal.SIGCONT)
        kills.wait_for(lambda stats: stats.totals["resolved"] >= count, within_s=60)
        time.sleep(kills.lease_s)  # time for stale settles to do harm
    assert "stale" in stopped.said
    runs = crew.starts()
    say(f"held {held}, gone after {waited:.2f} s; runs {sum(runs.values())}; the stopped worker: {stopped.said!r}")
    assert set(runs) == set(range(count))
    kills.assert_promises(count)


@pytest.mark.parametrize("round", range(2))
def test_sigterm_under_load_ends_in_order(kills: Kills, round: int) -> None:  # noqa: A002
    """Exit code 0 within the grace time; what was not started is given back: no crash, no failure, no letter leased."""
    chance = seeded(f"sigterm-{round}")
    crew = kills.crew(concurrency=10)
    count = 1500
    with crew.at_work(2):
        kills.add([{"n": n, "do": "ok", "ms": chance.choice([1, 10, 300])} for n in range(count)])
        time.sleep(chance.uniform(0.1, 1.0))
        leaving = crew.workers[0]
        asked_at = time.monotonic()
        leaving.send(signal.SIGTERM)
        assert leaving.wait(kills.config["shutdown_grace"] + 1) == 0
        took = time.monotonic() - asked_at
        assert kills.leases.of(leaving.pid) == 0
        kills.wait_for(lambda stats: stats.totals["resolved"] >= count, within_s=90)
    totals = kills.stats.totals
    say(f"left in {took:.2f} s, having {leaving.said!r}; {totals['released']} released")
    assert took < 2
    assert (totals["crashed"], totals["retried"]) == (0, 0)
    assert crew.starts() == dict.fromkeys(range(count), 1)
    kills.assert_promises(count)


@pytest.mark.parametrize("round", range(3))
def test_sigterm_and_then_sigkill_at_a_random_offset(kills: Kills, round: int) -> None:  # noqa: A002
    """However far the ordered stop had come: each letter ends once, and none waits longer than a lease and 2 ticks."""
    chance = seeded(f"sigterm-sigkill-{round}")
    crew = kills.crew(concurrency=10, max_crashes=10)
    count = 1200
    with crew.at_work(2):
        kills.add([{"n": n, "do": "ok", "ms": chance.choice([1, 5, 100])} for n in range(count)])
        offsets = []
        for _ in range(3):
            time.sleep(chance.uniform(0.05, 0.4))
            victim = crew.workers[0]
            victim.send(signal.SIGTERM)
            offsets.append(chance.choice([0, 0.001, 0.003, 0.01, 0.03, 0.1]))
            time.sleep(offsets[-1])
            crew.kill(victim)
            kills.leases.wait_until_gone(victim.pid, kills.lease_s + 2 * kills.tick_s + SLACK_S)
            crew.replace_dead()
        kills.wait_for(lambda stats: stats.totals["resolved"] >= count, within_s=60)
    say(f"offsets {offsets}, {kills.stats.totals['crashed']} leases ran out, {kills.stats.totals['released']} released")
    assert set(crew.starts()) == set(range(count))
    assert crew.overlaps() == []
    kills.assert_promises(count)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_letter_that_kills_its_process_is_parked_and_its_neighbours_are_not(kills: Kills, workers: int) -> None:
    """One among 99 innocent ones, taken together; a supervisor restarts what died.

    All innocent letters are resolved; the killer is parked as STALLED after exactly `max_crashes` runs.
    """
    crew = kills.crew(concurrency=100, max_crashes=3, shards=1)
    with crew.at_work(workers):
        began = time.monotonic()
        kills.add([{"n": n, "do": "kill" if n == 50 else "ok", "ms": 30} for n in range(100)])
        kills.wait_for(
            lambda stats: stats.totals["resolved"] == 99 and stats.parked == 1, within_s=90, meanwhile=crew.replace_dead
        )
        took = time.monotonic() - began
        crew.replace_dead()
    runs = crew.starts()
    apart = [round(b.at - a.at, 2) for a, b in pairwise(line for line in crew.lines() if line.n == 50)]
    say(
        f"{took:.1f} s to the end; runs of innocents {sum(runs.values()) - runs[50]} of 99, at most "
        f"{max(runs[n] for n in runs if n != 50)}; the killer ran {apart} s apart"
    )
    assert runs[50] == 3
    [stalled] = kills.stalled()
    assert kills.ask(kills.queue.get(stalled)).event_id == "50"
    assert kills.ask(kills.queue.get(stalled)).counters.crashes == 3
    kills.assert_promises(100, parked=1)


def test_several_killers_take_nobody_along(kills: Kills) -> None:
    """Five among 200 on two workers, under steady load: none of the others is parked."""
    crew = kills.crew(concurrency=50, max_crashes=2)
    killers = {20, 60, 61, 110, 199}
    with crew.at_work(2):
        kills.add([{"n": n, "do": "kill" if n in killers else "ok", "ms": 5} for n in range(200)])
        kills.wait_for(
            lambda stats: stats.totals["resolved"] == 195 and stats.parked == 5,
            within_s=120,
            meanwhile=crew.replace_dead,
        )
        crew.replace_dead()
    runs = crew.starts()
    # A killer that was leased beside another one may have gone down with it, unstarted: that was a crash, too.
    assert all(1 <= runs[n] <= 2 for n in killers)
    letters = [kills.ask(kills.queue.get(id)) for id in kills.stalled()]
    assert {(int(letter.event_id), letter.counters.crashes) for letter in letters} == {(n, 2) for n in killers}
    kills.assert_promises(200, parked=5)


def test_a_worker_whose_loop_is_blocked_is_replaced(kills: Kills) -> None:
    """A handler that blocks for three leases: its neighbours are run by others meanwhile; all end once."""
    crew = kills.crew(concurrency=20, max_crashes=10)
    with crew.at_work(2):
        kills.add(
            [{"n": n, "do": "block once" if n == 10 else "ok", "ms": 3000 if n == 10 else 20} for n in range(100)]
        )
        kills.wait_for(lambda stats: stats.totals["resolved"] == 100, within_s=60)
    assert set(crew.starts()) == set(range(100))
    kills.assert_promises(100)


def test_all_workers_die_at_once_and_new_ones_come(kills: Kills) -> None:
    """A reclaimer that has just come waits for one lease in touch: what the dead held is run after two, and 2 ticks."""
    crew = kills.crew(concurrency=20, max_crashes=10)
    with crew.at_work(3):
        kills.add([{"n": n, "do": "ok", "ms": 200} for n in range(300)])
        time.sleep(0.5)
        dead = list(crew.workers)
        for worker in dead:
            crew.kill(worker)
        crew.replace_dead()
        waits = [
            kills.leases.wait_until_gone(worker.pid, 2 * (kills.lease_s + kills.tick_s) + SLACK_S) for worker in dead
        ]
        kills.wait_for(lambda stats: stats.totals["resolved"] == 300, within_s=60)
    say(f"leases of the dead were gone {max(waits):.2f} s after the new workers were ready")
    assert crew.overlaps() == []
    kills.assert_promises(300)
