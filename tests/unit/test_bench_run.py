"""The benchmark's course: when it takes the letters for settled."""

from dataclasses import replace
from typing import Any

import pytest

from uno.event_bus.dead_letter.bench import Options, Watch, run
from uno.event_bus.dead_letter.bench.place import Place
from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.store import Store

UNUSED: dict[str, Any] = dict.fromkeys(QueueStats.__slots__, 0)
NOTHING = QueueStats(**UNUSED | {"totals": {"resolved": 0}})


async def test_a_look_from_before_the_last_capture_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LOOK_S", 0.0)
    url, options = "redis://127.0.0.1:1/0", Options()
    config = options.config("bench")
    benchmark: Any = run.Benchmark(Place(url, "given", url), config, options, Store(seeds_of(url), config), Watch())
    looks = iter([NOTHING, replace(NOTHING, open=2), NOTHING])

    class Books:
        async def stats(self) -> QueueStats:
            benchmark._produced = True  # while the first look is on its way
            return next(looks)

    benchmark._books = Books()
    await benchmark._until_settled()
    assert next(looks, None) is None
