"""`import`: every event once, byte for byte."""

import gzip
import json
from pathlib import Path

import pytest

from tests.support.cli import Cli

ODD = b'{"n" : 1.50,  "s":"\\u00e9\xc3\xa9", "n": 12345678901234567890123}'
"""Spaces, a repeated key and a long number: anything that decodes and encodes would change it."""


def lines(*payloads: bytes) -> bytes:
    return b"".join(b'{"type":"t","event_id":"e%d","payload":%b}\n' % (n, p) for n, p in enumerate(payloads))


@pytest.mark.parametrize("zipped", [False, True])
def test_payloads_are_kept_byte_for_byte(cli: Cli, tmp_path: Path, zipped: bool) -> None:
    payloads = [ODD, b'"text"', b"[ ]", b"null", b"-0.0"]
    file = tmp_path / "events"
    file.write_bytes(gzip.compress(lines(*payloads)) if zipped else lines(*payloads))
    ran = cli("import", str(file))
    assert ran.status == 0
    assert ran.record == {"read": 5, "captured": 5, "repeated": 0, "bad": 0}

    async def stored(queue):
        return {letter.event_id: letter.payload async for letter in queue.letters()}

    assert cli.do(stored) == {f"e{n}": payload for n, payload in enumerate(payloads)}


def test_fields_reach_the_letter(cli: Cli) -> None:
    line = b'\xef\xbb\xbf{"subscription":"mail","payload":{},"more":1,"type":"t","event_id":"e"}\r\n\r\n'
    assert cli("import", "-", "--delay", "0", input=line).status == 0
    [record] = cli("list").records
    assert (record["type"], record["subscription"], record["event_id"]) == ("t", "mail", "e")


def test_importing_again_captures_nothing_twice(cli: Cli) -> None:
    events = lines(*[b"{}"] * 250)
    assert cli("import", "-", input=events).record["captured"] == 250
    again = cli("import", "-", input=events + b'{"type":"t","event_id":"new","payload":{}}\n')
    assert again.record == {"read": 251, "captured": 1, "repeated": 250, "bad": 0}
    assert cli("stats").record["open"] == 251


def test_the_same_event_for_two_subscriptions_is_two_letters(cli: Cli) -> None:
    rows: list[dict[str, object]] = [
        {"type": "t", "event_id": "e", "payload": {}, "subscription": name} for name in ("a", "b", "a")
    ]
    ran = cli("import", "-", input="\n".join(map(json.dumps, rows)))
    assert ran.record == {"read": 3, "captured": 2, "repeated": 1, "bad": 0}


BAD = [
    (b"{", "truncated"),
    (b'{"payload":{}}', "`type`"),
    (b'{"type":"t"}', "`payload`"),
    (b'{"type":"","payload":{}}', "$.type"),
    (b'{"type":"t","payload":{},"event_id":7}', "$.event_id"),
    (b'{"type":"t","payload":nope}', "malformed"),
    (b'{"type":"t","payload":"\xff"}', "not UTF-8 at byte 23"),
    (b'{"type":"t","payload":"' + b"x" * 200 + b'"}', "DLQ_MAX_PAYLOAD_BYTES is 100"),
]


def test_bad_lines_are_named_and_passed_over(cli: Cli) -> None:
    rows = [b'{"type":"t","payload":{}}', *(line for line, _ in BAD)]
    ran = cli("import", "-", input=b"\n".join(rows), DLQ_MAX_PAYLOAD_BYTES="100")
    assert ran.status == 1
    assert ran.record == {"read": 9, "captured": 1, "repeated": 0, "bad": 8}
    named = ran.err.splitlines()
    assert [line.split(":")[0] for line in named] == [f"line {n}" for n in range(2, 10)]
    assert all(why in line for line, (_, why) in zip(named, BAD, strict=True))


def test_strict_stops_at_the_first_bad_line(cli: Cli) -> None:
    ran = cli("import", "-", "--strict", input=b'{"type":"t","payload":{}}\nnope\n{"type":"t","payload":{}}\n')
    assert ran.status == 1 and "stopped at line 2" in ran.err
    assert ran.record["captured"] == 1
    assert cli("stats").record["open"] == 1


def test_a_damaged_gzip_file_keeps_what_came_before(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "events.gz"
    whole = gzip.compress(b"".join(b'{"type":"t","payload":{"n":%d}}\n' % (n * 7919) for n in range(2000)))
    file.write_bytes(whole[: len(whole) // 2])
    ran = cli("import", str(file))
    assert ran.status == 1 and "damaged after line" in ran.err
    assert 0 < ran.record["captured"] == cli("stats").record["open"]


def test_a_full_queue_stops_the_import_and_says_how_far_it_came(cli: Cli) -> None:
    ran = cli("import", "-", input=lines(*[b"{}"] * 50), DLQ_MAX_QUEUE_SIZE="20")
    assert ran.status == 4 and "is full" in ran.err
    assert 0 < ran.record["captured"] == cli("stats").record["open"]


def test_the_bar_on_the_terminal_leaves_stdout_alone(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(lines(*[b"{}"] * 300))
    status, screen, out = cli.on_terminal("import", str(file), "-o", "jsonl", stdout_elsewhere=True)
    assert status == 0 and "import" in screen
    assert out == '{"read":300,"captured":300,"repeated":0,"bad":0}\n'


def test_a_missing_file_exits_2(cli: Cli) -> None:
    assert cli("import", "/nowhere/events.ndjson").status == 2
