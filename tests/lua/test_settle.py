"""settle: each outcome moves a letter to one place, and a lease that is not the caller's changes nothing."""

from typing import Any

import pytest

from tests.support.look import Look, several
from tests.support.loops import BOTH_LOOPS
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen, Verdict

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000


@pytest.fixture
async def leased(shard: Shard) -> list[str]:
    """Three letters of one error group, leased to `w` with TOKEN."""
    ids = await shard.add(several(3, fingerprint="f"))
    assert len((await shard.take("w", 3)).letters) == 3
    return [str(id) for id in ids]


async def settle(shard: Shard, id: str, verb: Verb, **values: Any) -> Verdict:
    token = values.pop("token", TOKEN)
    consumer = values.pop("consumer", "w")
    (verdict,) = await shard.settle(consumer, [Outcome(id, token, verb, fingerprint="f", **values)])
    return verdict


@pytest.mark.parametrize(("verb", "total"), [(Verb.RESOLVE, "resolved"), (Verb.DISCARD, "discarded")])
async def test_an_end_removes_every_trace_of_the_letter(
    verb: Verb, total: str, shard: Shard, look: Look, leased: list[str]
) -> None:
    """Entry, lease, state, history and its place in the error group; the total stays."""
    id = leased[0]
    assert await settle(shard, id, Verb.RETRY, failed=True, history=b"h") is Verdict.OK
    (again,) = (await shard.take("w", 1)).letters
    assert again.lease is not None and again.id == id
    assert await settle(shard, id, verb, token=again.lease.token) is Verdict.OK
    assert look.letters == leased[1:] and look.where(id) == []
    assert (look.state, look.history, look.groups) == ({}, {}, {"f": 2})
    assert look.totals == {"captured": 3, "retried": 1, total: 1}


async def test_a_retry_goes_to_the_schedule(shard: Shard, look: Look, leased: list[str]) -> None:
    """Due after the delay; failures, reason and history are kept; the error group still counts it."""
    verdict = await settle(shard, leased[0], Verb.RETRY, delay_ms=1_500, failed=True, reason="boom", history=b"h")
    assert verdict is Verdict.OK
    assert look.where(leased[0]) == ["schedule"] and look.schedule == {leased[0]: NOW_MS + 1_500}
    assert look.state == {leased[0]: [1, 1, 0, 0, 0, 0, "boom", "", 0]}
    assert look.history == {leased[0]: b"h"} and look.groups == {"f": 3}
    assert look.totals == {"captured": 3, "retried": 1}


async def test_a_retry_that_the_handler_asked_for_is_no_failure(shard: Shard, look: Look, leased: list[str]) -> None:
    """`failed` decides what counts against `max_retries`, not the verb."""
    await settle(shard, leased[0], Verb.RETRY, failed=False)
    assert look.state[leased[0]][1] == 0


async def test_a_park_goes_to_parked(shard: Shard, look: Look, leased: list[str]) -> None:
    """Parked now, whole, with the reason."""
    assert await settle(shard, leased[0], Verb.PARK, failed=True, reason="invalid_event") is Verdict.OK
    assert look.where(leased[0]) == ["parked"] and look.parked == {leased[0]: NOW_MS}
    assert look.state == {leased[0]: [1, 1, 0, 0, 0, 0, "invalid_event", "", 0]}
    assert look.letters == leased and look.totals == {"captured": 3, "parked": 1}


async def test_a_release_counts_as_nothing_but_a_release(shard: Shard, look: Look, leased: list[str]) -> None:
    """Delivered, never started: no failure, and the old reason and history stay."""
    await settle(shard, leased[0], Verb.RETRY, failed=True, reason="boom", history=b"h")
    (again,) = (await shard.take("w", 1)).letters
    assert again.lease is not None
    await settle(shard, leased[0], Verb.RELEASE, token=again.lease.token, delay_ms=60_000)
    assert look.schedule == {leased[0]: NOW_MS + 60_000}
    assert look.state == {leased[0]: [1, 1, 0, 1, 0, 0, "boom", "", 0]}
    assert look.history == {leased[0]: b"h"}
    assert look.totals == {"captured": 3, "retried": 1, "released": 1}


@BOTH_LOOPS
async def test_many_outcomes_of_one_call_are_settled_each(shard: Shard, look: Look, leased: list[str]) -> None:
    """A batch answers by position."""
    verbs = [Verb.RESOLVE, Verb.RETRY, Verb.PARK]
    outcomes = [Outcome(id, TOKEN, verb) for id, verb in zip(leased, verbs, strict=True)]
    assert await shard.settle("w", outcomes) == [Verdict.OK] * 3
    assert (look.letters, list(look.schedule), list(look.parked)) == (leased[1:], [leased[1]], [leased[2]])
    assert look.leases == {}
    assert look.totals == {"captured": 3, "resolved": 1, "retried": 1, "parked": 1}


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize(
    "lease", [{"consumer": "other"}, {"token": TOKEN + 1}, {"token": TOKEN - 1}, {"token": 0}, {"token": -1}]
)
async def test_another_consumer_or_token_changes_nothing(
    lease: dict[str, Any], verb: Verb, shard: Shard, look: Look, leased: list[str]
) -> None:
    """LOST: both parts of the lease are compared."""
    before = look.snapshot()
    assert await settle(shard, leased[0], verb, failed=True, history=b"h", **lease) is Verdict.LOST
    assert look.snapshot() == before


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("first", [Verb.RETRY, Verb.PARK])
async def test_a_lease_that_is_over_changes_nothing(
    first: Verb, verb: Verb, shard: Shard, look: Look, leased: list[str]
) -> None:
    """A late outcome, or one that is repeated: LOST, the letter stays where it went."""
    await settle(shard, leased[0], first)
    before = look.snapshot()
    assert await settle(shard, leased[0], verb) is Verdict.LOST
    assert look.snapshot() == before


@pytest.mark.parametrize("verb", Verb)
async def test_an_end_is_not_repeated(verb: Verb, shard: Shard, look: Look, leased: list[str]) -> None:
    """GONE: the first end counts, once."""
    await settle(shard, leased[0], Verb.RESOLVE)
    before = look.snapshot()
    assert await settle(shard, leased[0], verb) is Verdict.GONE
    assert look.snapshot() == before


async def test_an_id_that_is_named_twice_is_settled_once(shard: Shard, look: Look, leased: list[str]) -> None:
    """Only the first of the two counts."""
    outcomes = [Outcome(leased[0], TOKEN, Verb.PARK), Outcome(leased[0], TOKEN, Verb.RESOLVE)]
    assert await shard.settle("w", outcomes) == [Verdict.OK, Verdict.LOST]
    assert look.where(leased[0]) == ["parked"] and look.totals == {"captured": 3, "parked": 1}


async def test_good_and_lost_outcomes_of_one_call_do_not_mix(shard: Shard, look: Look, leased: list[str]) -> None:
    """Each is judged alone."""
    outcomes = [
        Outcome(leased[0], TOKEN, Verb.RESOLVE),
        Outcome(leased[1], TOKEN + 5, Verb.RESOLVE),
        Outcome("0-1-1", TOKEN, Verb.RESOLVE),
    ]
    assert await shard.settle("w", outcomes) == [Verdict.OK, Verdict.LOST, Verdict.GONE]
    assert look.letters == leased[1:] and sorted(look.leases) == leased[1:]


async def test_a_stale_worker_settles_nothing_after_its_lease_was_reclaimed(
    shard: Shard, look: Look, leased: list[str]
) -> None:
    """Paused past its lease, it comes back: the heir's result stands."""
    look.age(60_000)
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    assert await settle(shard, leased[0], Verb.RESOLVE) is Verdict.LOST
    shard.now_us = TOKEN + 1_000_000
    (letter,) = (await shard.take("heir", 1, alone=True)).letters
    assert letter.lease is not None
    assert await settle(shard, letter.id, Verb.PARK) is Verdict.LOST
    assert await settle(shard, letter.id, Verb.RESOLVE, consumer="heir", token=letter.lease.token) is Verdict.OK
    assert letter.id not in look.letters


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.PARK, Verb.RELEASE])
async def test_a_lease_whose_entry_is_gone_writes_no_row(
    verb: Verb, shard: Shard, look: Look, leased: list[str]
) -> None:
    """A stranger's XDEL leaves the lease: the letter is GONE, and no index names it."""
    look.client.xdel(look.key("letters"), leased[0].removeprefix("0-"))
    assert await settle(shard, leased[0], verb) is Verdict.GONE
    assert (look.schedule, look.parked, look.state) == ({}, {}, {})
    await shard.repair()
    assert leased[0] not in look.leases


async def test_an_empty_call_answers_nothing(shard: Shard, look: Look) -> None:
    """No outcomes, no error, no key."""
    assert await shard.settle("w", []) == []
    assert look.snapshot() == {}


async def test_without_a_group_every_lease_is_lost(shard: Shard, look: Look, leased: list[str]) -> None:
    """NOGROUP is an answer, not an error."""
    look.client.xgroup_destroy(look.key("letters"), "workers")
    assert await settle(shard, leased[0], Verb.RESOLVE) is Verdict.LOST
    assert await settle(shard, "0-1-1", Verb.RESOLVE) is Verdict.GONE
    await shard.repair()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (["1-1", 1, "resolve", ""], "rows of 5"),
        (["1-1", 1, "resolve", "", "", "x"], "rows of 5"),
        (["{id}", TOKEN, "explode", "0 0 ", ""], "unknown verb explode"),
        (["{id}", TOKEN, "", "0 0 ", ""], "unknown verb"),
        (["{id}", TOKEN, "retry", "soon 0 ", ""], "detail is not"),
        (["{id}", TOKEN, "retry", "0 maybe ", ""], "detail is not"),
        (["{id}", TOKEN, "retry", "0 1", ""], "detail is not"),
        (["{id}", TOKEN, "park", "inf 0 ", ""], "detail is not"),
        (["no id", TOKEN, "retry", "0 0 ", ""], "Invalid stream ID"),
    ],
)
async def test_a_malformed_outcome_refuses_the_whole_call(
    row: list[Any], what: str, shard: Shard, look: Look, leased: list[str]
) -> None:
    """Also the good outcome before it: nothing is written."""
    before = look.snapshot()
    good: list[str | int] = [leased[1].removeprefix("0-"), TOKEN, "resolve", "", ""]
    words = [str(word).format(id=leased[0].removeprefix("0-")) for word in row]
    with pytest.raises(Exception, match=what):
        await shard.call("settle", ["w", *good, *words])
    assert look.snapshot() == before


@pytest.mark.parametrize("token", ["", "x", "nan", f"{TOKEN}x"])
async def test_a_token_that_is_no_number_is_nobodys(token: str, shard: Shard, look: Look, leased: list[str]) -> None:
    """Also for a letter without a lease, whose token is no number either."""
    await settle(shard, leased[2], Verb.PARK)
    before = look.snapshot()
    for id in (leased[0], leased[2]):
        reply = await shard.call("settle", ["w", id.removeprefix("0-"), token, "resolve", "", ""])
        assert reply == [b"LOST"]
    assert look.snapshot() == before


async def test_elements_of_a_later_version_are_copied(shard: Shard, look: Look, leased: list[str]) -> None:
    """An older script keeps what a newer one appended to the state record."""
    import msgspec

    row = msgspec.msgpack.encode([2, 1, 0, 0, 0, 0, "", "plan", 0, "later", 7])
    look.client.hset(look.key("state"), leased[0].removeprefix("0-"), row)
    await settle(shard, leased[0], Verb.RETRY, failed=True, reason="x")
    assert look.state[leased[0]] == [2, 2, 0, 0, 0, 0, "x", "plan", 0, "later", 7]


@pytest.mark.parametrize("row", [b"", b"\xc1", b"\x01", b"\x80", b"\x93\x01", bytes(range(256))])
async def test_a_state_record_that_cannot_be_read_is_made_anew(
    row: bytes, shard: Shard, look: Look, leased: list[str]
) -> None:
    """Garbage in a record stops nobody; the letter goes on with counters at 0."""
    look.client.hset(look.key("state"), leased[0].removeprefix("0-"), row)
    assert await settle(shard, leased[0], Verb.RETRY, failed=True) is Verdict.OK
    assert look.state[leased[0]][1] == 1
    await shard.park([Seen(leased[0], LetterState.SCHEDULED, NOW_MS)], reason="r")


async def test_a_full_batch_is_settled_in_one_call(shard: Shard, look: Look) -> None:
    """1,000 outcomes of each kind: `unpack` and the length of a command allow it."""
    await shard.add(several(1000))
    letters = (await shard.take("w", 1000)).letters
    assert len(letters) == 1000
    for verb in (Verb.RETRY, Verb.RESOLVE):
        outcomes = [Outcome(x.id, x.lease.token, verb, failed=True, history=b"h") for x in letters if x.lease]
        assert set(await shard.settle("w", outcomes)) == {Verdict.OK}
        letters = (await shard.take("w", 1000)).letters
    assert look.totals == {"captured": 1000, "retried": 1000, "resolved": 1000}


async def test_a_suspect_that_is_released_is_still_a_suspect(shard: Shard, look: Look, leased: list[str]) -> None:
    """It was not started, so nothing has cleared it: next time it runs alone again."""
    look.age(60_000)
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    suspect = (await shard.take("w2", 0, alone=True)).letters[0]
    assert suspect.lease is not None
    await shard.settle("w2", [Outcome(suspect.id, suspect.lease.token, Verb.RELEASE, 5_000)])
    assert look.suspects[suspect.id] and suspect.id not in look.schedule
