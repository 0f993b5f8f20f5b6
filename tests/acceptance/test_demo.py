"""The demo: it shows the main job, and its ledger does not lie."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.servers import Server
from uno.event_bus.dead_letter.demo import run_demo
from uno.event_bus.dead_letter.demo.events import from_file, generated
from uno.event_bus.dead_letter.demo.shop import failures_of
from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable

LAST_LINE = re.compile(
    r"captured (\d+) = resolved (\d+) \+ parked (\d+) \+ discarded (\d+); verify clean; unaccounted 0"
)


def last_line(printed: str) -> str:
    return printed.rstrip("\n").rpartition("\n")[2]


@pytest.fixture
def leaves_no_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary directories are made where nobody else makes any, and are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="uno-") as path:  # short enough for sockets
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield
        assert list(Path(path).iterdir()) == []


def keys_of(server: Server) -> list[bytes]:
    return list(server.client.keys("*"))


async def test_every_letter_of_the_shop_is_accounted_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Six events show all there is to see: four resolved, one parked, one discarded."""
    status = await run_demo(url=server.url, events=None, letters=6, seed=1, progress=False)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert LAST_LINE.fullmatch(last_line(printed)) is not None, printed
    assert last_line(printed).startswith("captured 6 = resolved 4 + parked 1 + discarded 1;")
    assert "the same to the byte" in printed


async def test_it_leaves_nothing_on_a_redis_of_the_users(server: Server) -> None:
    """Its queue's keys are gone afterwards, others are as they were."""
    server.client.set("mine", "1")
    await run_demo(url=server.url, events=None, letters=3, seed=1, progress=False)
    assert keys_of(server) == [b"mine"]


@pytest.mark.usefixtures("leaves_no_directory")
async def test_it_brings_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a URL it starts an embedded server, and removes it with its directory."""
    assert await run_demo(url=None, events=None, letters=6, seed=2, progress=False) == 0
    assert "an embedded server" in capsys.readouterr().out


async def test_lines_of_a_file_come_back_to_the_byte(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty events with odd spacing, key order, escapes and numbers: nothing is written anew."""
    lines = [
        f'{{"type": "t.{n % 3}",\t"event_id":"odd-{n}", "payload": {{ "b":1.50,"a" : "\\u00e9\\/ü", "n":{n}e2 }} }}'
        for n in range(20)
    ]
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join(lines) + "\n\n")
    assert from_file(file)[7].payload == b'{ "b":1.50,"a" : "\\u00e9\\/\xc3\xbc", "n":7e2 }'
    status = await run_demo(url=server.url, events=file, letters=1, seed=1, progress=False)
    printed = capsys.readouterr().out
    parked = sum(failures_of(f"odd-{n}") is None for n in range(20))
    assert status == 0, printed
    assert last_line(printed).startswith(f"captured 20 = resolved {20 - parked} + parked {parked} + discarded 0;")


async def test_a_lost_letter_is_missed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry deleted behind the demo's back makes it fail and say so."""

    async def steal() -> None:
        while True:
            for key in server.client.keys("dlq:{demo-*:letters"):
                for id, _ in server.client.xrange(key, count=1):
                    if server.client.xdel(key, id):
                        return
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(steal)
        status = await run_demo(url=server.url, events=None, letters=30, seed=1, progress=False)
        group.cancel_scope.cancel()
    printed = capsys.readouterr().out
    assert status == 1, printed
    assert last_line(printed).endswith("unaccounted 1")
    assert "captured 30 ≠" in last_line(printed)


async def test_bars_are_drawn_on_a_terminal(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The live screen ends with the same last line."""
    assert await run_demo(url=server.url, events=None, letters=6, seed=3, progress=True) == 0
    printed = capsys.readouterr().out
    assert "━" in printed
    assert LAST_LINE.search(last_line(printed)) is not None


async def test_without_a_redis_the_caller_hears_why(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is away is `StoreUnavailable`, without the password, and before anything is begun."""
    with pytest.raises(StoreUnavailable) as caught:
        await run_demo(url="redis://:secret@localhost:1/0", events=None, letters=6, seed=1, progress=False)
    assert "secret" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_seed_gives_the_same_events() -> None:
    """The same seed, the same bytes; another one, others."""
    assert generated(50, 7) == generated(50, 7)
    assert generated(50, 7) != generated(50, 8)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "has no events"),
        ('{"type":"a","payload":1}\nnonsense\n', "line 2"),
        ('{"payload":1}\n', "type"),
        ('{"type":"a"}\n', "payload"),
        ('{"type":"a","payload":[1,2}\n', "line 1"),
    ],
)
def test_a_file_that_is_no_good_is_refused_in_one_line(tmp_path: Path, content: str, fault: str) -> None:
    """The error names the file, the line and what is wrong."""
    file = tmp_path / "bad.ndjson"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        from_file(file)
    assert "bad.ndjson" in str(caught.value) and fault in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_events_that_share_an_id_are_one_letter(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repeated event id is captured once, and counted once."""
    line: dict[str, Any] = {"type": "t", "event_id": "same", "payload": {"n": 1}}
    file = tmp_path / "twice.ndjson"
    file.write_text("".join(json.dumps(line) + "\n" for _ in range(5)))
    status = await run_demo(url=server.url, events=file, letters=1, seed=1, progress=False)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert last_line(printed).startswith("captured 1 = ")
