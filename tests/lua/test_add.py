"""add: what a capture writes, byte for byte, and when it is refused."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import FIELDS, NewLetter
from uno.event_bus.dead_letter.store.browse import find
from uno.event_bus.dead_letter.store.shard import Shard

NOW_MS = 1_800_000_000_000

WHOLE = NewLetter(
    event_id="ev-1",
    type="order",
    payload=b'{"n":1}',
    content_type="application/json",
    subscription="mail",
    reason="handler_failed",
    error_type="ValueError",
    error="no such order",
    traceback="Traceback …",
    fingerprint="f00d",
    failed_at_ms=1_700_000_000_000,
    attempts=3,
    delay_ms=2_500,
    ordering_key="customer-7",
    dedupe_key="k",
    encoding="",
    headers=b'{"traceparent":"00-x"}',
)


async def test_an_entry_has_all_fields_in_the_one_order(shard: Shard, look: Look) -> None:
    """Repeated field names are stored once only if every entry has the same, in the same order."""
    (id,) = await shard.add([WHOLE])
    fields = look.fields(id or "")
    assert fields[::2] == [name.encode() for name in FIELDS]
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    assert values == {
        b"v": b"1",
        b"event_id": b"ev-1",
        b"type": b"order",
        b"subscription": b"mail",
        b"reason": b"handler_failed",
        b"error_type": b"ValueError",
        b"error": b"no such order",
        b"traceback": "Traceback …".encode(),
        b"fingerprint": b"f00d",
        b"failed_at": b"1700000000000",
        b"attempts": b"3",
        b"not_before": b"%d" % (NOW_MS + 2_500),
        b"ordering_key": b"customer-7",
        b"dedupe_key": b"k",
        b"content_type": b"application/json",
        b"encoding": b"",
        b"payload": b'{"n":1}',
        b"headers": b'{"traceparent":"00-x"}',
    }


async def test_a_capture_writes_these_keys_and_no_others(shard: Shard, look: Look) -> None:
    """The entry, the books, the capture key and the error group: nothing else exists yet."""
    shard.producer = ("p", 7)
    (id,) = await shard.add([WHOLE])
    assert look.letters == [id]
    assert look.meta == {
        "format": "1",
        "protocol": "1",
        "epoch": "1",
        "mark": "0-0",
        "captured": "1",
        "clock": str(NOW_MS * 1000),
        "lead": "0",
        "new_error_groups": "1",
    }
    assert look.client.hgetall(look.key("dedupe_a")) == {
        b"k": f"{shard.stream_id(str(id))} p 7".encode(),
        b"": str(NOW_MS).encode(),
    }
    assert look.groups == {"f00d": 1}
    assert look.group_info == {"f00d": [NOW_MS, NOW_MS, str(id).removeprefix("0-"), "open"]}
    assert set(look.client.keys()) == {
        look.key(name).encode() for name in ("letters", "meta", "dedupe_a", "groups", "group_info")
    }


async def test_a_failure_without_a_time_happened_now(shard: Shard, look: Look) -> None:
    """`failed_at` is the server's time when the caller gives none."""
    (id,) = await shard.add([new()])
    found = await find(shard, str(id))
    assert found is not None and (found.failed_at_ms, found.not_before_ms) == (NOW_MS, NOW_MS)


async def test_ids_answer_the_letters_in_their_order(shard: Shard, look: Look) -> None:
    """A batch of the largest size goes through in one call."""
    ids = await shard.add(several(1000))
    assert look.letters == ids and len(set(ids)) == 1000
    assert look.totals == {"captured": 1000}


async def test_an_empty_batch_changes_nothing(shard: Shard, look: Look) -> None:
    """No letters, no keys."""
    assert await shard.add([]) == []
    assert look.snapshot() == {}


async def test_a_shard_refuses_what_is_over_its_limit(shard: Shard, look: Look) -> None:
    """Each letter beyond the limit answers None; the others are kept, none is trimmed."""
    assert [id is None for id in await shard.add(several(5), limit=3)] == [False, False, False, True, True]
    assert await shard.add([new("late")], limit=3) == [None]
    assert len(look.letters) == 3 and look.totals == {"captured": 3}


async def test_a_repeat_answers_its_id_from_a_full_shard(shard: Shard, look: Look) -> None:
    """Capture once holds also when there is no room for anything new."""
    first = await shard.add(several(2), limit=2)
    assert await shard.add([*several(2), new("late")], limit=2) == [*first, None]
    assert look.totals == {"captured": 2, "repeated": 2}


async def test_a_letter_that_was_refused_is_captured_when_there_is_room(shard: Shard, look: Look) -> None:
    """FULL leaves no capture key behind."""
    assert (await shard.add(several(2), limit=1))[1] is None
    assert (await shard.add([new("e1")], limit=2))[0] is not None
    assert len(look.letters) == 2


@pytest.mark.parametrize("payload", [b"", b"\0", b"\xff\xfe\0", b"\r\n", b"[]", b"9007199254740993", bytes(range(256))])
async def test_a_payload_comes_back_byte_for_byte(payload: bytes, shard: Shard) -> None:
    """Empty, NUL, invalid UTF-8: opaque bytes all the way."""
    (id,) = await shard.add([new(payload=payload)])
    (letter,) = (await shard.take("w", 1)).letters
    assert (letter.id, letter.payload) == (id, payload)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=2_000), headers=st.binary(max_size=200), text=st.text(max_size=100), name=st.text())
async def test_any_bytes_and_any_text_come_back(
    payload: bytes, headers: bytes, text: str, name: str, shard: Shard
) -> None:
    """What goes in comes out, by `take` and by `find`, whatever it is."""
    name = name.encode("utf-8", "ignore").decode()
    (id,) = await shard.add([new(name, payload=payload, headers=headers, error=text, traceback=text)], window_ms=0)
    taken = (await shard.take("w", 1)).letters
    found = await find(shard, str(id))
    assert found is not None and len(taken) == 1
    for letter in (*taken, found):
        assert (letter.event_id, letter.payload, letter.fields[b"headers"]) == (name, payload, headers)
        assert (letter.error, letter.traceback) == (text, text)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda words: words[:-1], id="a short row"),
        pytest.param(lambda words: [*words, "x"], id="a row too long"),
        pytest.param(lambda words: [*words[:19], "soon", *words[20:]], id="a delay that is no number"),
        pytest.param(lambda words: [*words[:19], "", *words[20:]], id="an empty delay"),
        pytest.param(lambda words: [*words[:19], "inf", *words[20:]], id="an endless delay"),
    ],
)
async def test_a_malformed_batch_is_refused_whole(spoil, shard: Shard, look: Look) -> None:
    """A wrong second letter leaves no first one behind: all is checked before the first write."""
    row = ["event", "type", *[""] * 12, b"payload", ""]
    words = ["k1", 0, *row, "k2", 0, *row]
    assert len(words) == 36 and words[19] == 0
    with pytest.raises(Exception, match=r"rows of 18|a delay is"):
        await shard.call("add", [0, 600_000, *spoil(words)])
    assert look.snapshot() == {}


async def test_an_error_group_keeps_its_first_letter_and_its_last_time(shard: Shard, look: Look) -> None:
    """first, last, sample, state: the sample is the group's first letter."""
    first, second = await shard.add([new("a", fingerprint="f"), new("b", fingerprint="f")])
    assert shard.now_us is not None
    shard.now_us += 5_000_000
    await shard.add([new("c", fingerprint="f"), new("d", fingerprint="g"), new("e")])
    assert look.groups == {"f": 3, "g": 1}
    assert look.group_info["f"] == [NOW_MS, NOW_MS + 5_000, str(first).removeprefix("0-"), "open"]
    assert second is not None


async def test_a_group_record_that_cannot_be_read_is_made_anew(shard: Shard, look: Look) -> None:
    """Garbage in `group_info` stops no capture."""
    look.client.hset(look.key("group_info"), "f", b"\xc1")
    (id,) = await shard.add([new("a", fingerprint="f")])
    record = msgspec.msgpack.decode(look.client.hget(look.key("group_info"), "f"))
    assert record == [NOW_MS, NOW_MS, str(id).removeprefix("0-"), "open"]
