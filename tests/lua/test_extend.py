"""extend: a heartbeat keeps what is still the caller's, and names what it lost or has forgotten."""

import pytest

from tests.support.look import Look, several
from uno.event_bus.dead_letter.store.shard import Shard

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000


@pytest.fixture
async def leased(shard: Shard) -> list[str]:
    """Three letters, leased to `w` with TOKEN."""
    ids = await shard.add(several(3))
    await shard.take("w", 3)
    return [str(id) for id in ids]


async def test_a_lease_that_is_extended_does_not_run_out(shard: Shard, look: Look, leased: list[str]) -> None:
    """Its idle time starts anew; owner and token stay."""
    look.age(60_000)
    before = look.leases
    assert await shard.extend("w", [(leased[0], TOKEN)]) == ([], [(leased[1], TOKEN), (leased[2], TOKEN)])
    assert look.leases == before
    assert (await shard.reclaim(lease_ms=30_000, max_crashes=3)).suspects == leased[1:]
    assert look.where(leased[0]) == ["leased"]


@pytest.mark.parametrize(
    ("consumer", "token", "forgotten"), [("w", TOKEN + 1, False), ("w", 0, False), ("other", TOKEN, False)]
)
async def test_a_lease_that_is_anothers_is_lost_and_not_extended(
    consumer: str, token: int, forgotten: bool, shard: Shard, look: Look, leased: list[str]
) -> None:
    """A late heartbeat does not steal the lease back (P7)."""
    look.age(60_000)
    found = await shard.extend(consumer, [(id, token) for id in leased])
    assert found.lost == leased and bool(found.forgotten) is forgotten
    assert len((await shard.reclaim(lease_ms=30_000, max_crashes=3)).suspects) == 3


async def test_a_letter_that_is_gone_is_lost(shard: Shard) -> None:
    """Settled by somebody, or never there."""
    await shard.take("w", 1)
    assert (await shard.extend("w", [("0-1-1", 5)])).lost == ["0-1-1"]


async def test_leases_that_the_caller_does_not_name_are_answered(shard: Shard, leased: list[str]) -> None:
    """The reply of a take was lost: the worker learns id and token, and releases them."""
    assert (await shard.extend("w", [])).forgotten == [(id, TOKEN) for id in leased]
    assert (await shard.extend("other", [])).forgotten == []


async def test_the_forgotten_are_answered_behind_a_long_list_of_the_named(shard: Shard) -> None:
    """Up to 100 of them in one call, beside as many leases as the worker holds."""
    await shard.add(several(300))
    taken = (await shard.take("w", 300)).letters
    named = [(x.id, x.lease.token) for x in taken[:150] if x.lease]
    found = await shard.extend("w", named)
    assert found.lost == [] and [id for id, _ in found.forgotten] == [x.id for x in taken[150:250]]


async def test_a_thousand_leases_and_more_are_extended_in_one_call(shard: Shard, look: Look) -> None:
    """The list is claimed in chunks."""
    await shard.add(several(1000))
    taken = (await shard.take("w", 1000)).letters
    await shard.add(several(500, "more"))
    taken += (await shard.take("w", 500)).letters
    look.age(60_000)
    assert await shard.extend("w", [(x.id, x.lease.token) for x in taken if x.lease]) == ([], [])
    cursor = b"0-0"
    while True:
        found = await shard.reclaim(cursor, lease_ms=30_000, max_crashes=3)
        assert found.suspects == []
        if (cursor := found.cursor) == b"0-0":
            break


async def test_without_a_group_every_lease_is_lost(shard: Shard, look: Look, leased: list[str]) -> None:
    """The handlers are told, and nothing is made."""
    look.client.xgroup_destroy(look.key("letters"), "workers")
    before = look.snapshot()
    assert await shard.extend("w", [(leased[0], TOKEN)]) == ([leased[0]], [])
    assert look.snapshot() == before
    await shard.repair()


@pytest.mark.parametrize("token", ["", "x"])
async def test_a_token_that_is_no_number_takes_no_lease_over(
    token: str, shard: Shard, look: Look, leased: list[str]
) -> None:
    """Neither the caller's own nor another's."""
    await shard.add(several(1, "other"))
    await shard.take("other", 1)
    before = look.leases
    words = [word for id in look.letters for word in (id.removeprefix("0-"), token)]
    lost, _ = await shard.call("extend", ["w", *words])
    assert len(lost) == 4 and look.leases == before
    with pytest.raises(Exception, match="rows of 2"):
        await shard.call("extend", ["w", "1-1"])
    assert len(leased) == 3
