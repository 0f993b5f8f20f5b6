"""A short selection of the kill tests: real processes, killed under load. The long ones are in `tests/faults`."""

import signal
import time
from collections import Counter

from tests.support.crews import seeded
from tests.support.kills import Kills

SLACK_S = 1.0
GONE_S = 40.0
"""A bound for what takes seconds: only a failing test waits for it."""


def test_a_killed_worker_costs_no_letter(kills: Kills) -> None:
    """SIGKILL under load: what it held leaves its lease within lease + 2 ticks; each letter ends once."""
    chance = seeded("killed")
    crew = kills.crew(concurrency=10, max_crashes=10)
    count = 600
    with crew.at_work(2):
        time.sleep(kills.lease_s)  # the survivor is in touch for a lease
        kills.add([{"n": n, "do": "ok", "ms": chance.choice([1, 10, 30])} for n in range(count)])
        time.sleep(chance.uniform(0.05, 0.3))
        victim = crew.workers[1]
        crew.kill(victim)
        kills.leases.wait_until_gone(victim.pid, kills.lease_s + 2 * kills.tick_s + SLACK_S)
        kills.wait_for(lambda stats: stats.totals["resolved"] == count, within_s=GONE_S)
    assert set(crew.starts()) == set(range(count))
    assert crew.overlaps() == []
    kills.assert_promises(count)


def test_a_stopped_process_changes_nothing_afterwards(kills: Kills) -> None:
    """SIGSTOP past the lease, SIGCONT: its letters were run by another; its settles and heartbeats are refused."""
    crew = kills.crew(concurrency=5, max_crashes=10, lease_seconds=0.6)
    count = 20
    with crew.at_work(2):
        time.sleep(kills.lease_s)
        kills.add([{"n": n, "do": "ok", "ms": 400} for n in range(count)])
        stopped = crew.workers[0]
        stopped.send(signal.SIGSTOP)
        while not kills.leases.of(stopped.pid):
            stopped.send(signal.SIGCONT)
            kills.wait_for(lambda stats: kills.leases.of(stopped.pid), within_s=GONE_S)
            stopped.send(signal.SIGSTOP)
        kills.leases.wait_until_gone(stopped.pid, GONE_S)
        stopped.send(signal.SIGCONT)
        kills.wait_for(lambda stats: stats.totals["resolved"] == count, within_s=GONE_S)
        time.sleep(kills.lease_s)
    assert kills.stats.totals["crashed"] > 0
    kills.assert_promises(count)


def test_sigterm_gives_back_what_was_not_started(kills: Kills) -> None:
    """Exit code 0, nothing leased, no crash, no failure, every letter run once."""
    crew = kills.crew(concurrency=5, lease_seconds=10.0)
    count = 300
    with crew.at_work(1):
        kills.add([{"n": n, "do": "stop" if n == 30 else "ok", "ms": 10} for n in range(count)])
        [leaving] = crew.workers
        assert leaving.wait() == 0
        assert kills.stats.leased == 0
        assert kills.stats.totals["resolved"] == len(crew.starts()) < count
        crew.replace_dead()
        kills.wait_for(lambda stats: stats.totals["resolved"] == count, within_s=GONE_S)
    totals = kills.stats.totals
    assert (totals["crashed"], totals["retried"]) == (0, 0)
    assert crew.starts() == Counter(range(count))
    kills.assert_promises(count)


def test_a_letter_that_kills_its_process_is_parked_alone(kills: Kills) -> None:
    """After exactly `max_crashes` runs; of its 29 neighbours none is parked, not even if one more crash is ascribed."""
    crew = kills.crew(concurrency=30, max_crashes=3, shards=1, lease_seconds=1.0)
    with crew.at_work(1):
        kills.add([{"n": n, "do": "kill" if n == 15 else "ok", "ms": 20} for n in range(30)])
        kills.wait_for(
            lambda stats: stats.totals["resolved"] == 29 and stats.parked == 1,
            within_s=GONE_S,
            meanwhile=crew.replace_dead,
        )
        crew.replace_dead()
    assert crew.starts()[15] == 3
    assert len(kills.stalled()) == 1
    kills.assert_promises(30, parked=1)
