"""Operators' verbs on many letters: each as it was seen, in batches, with an answer for each.

A verb names the state and the score that a letter was seen with, so that an operator never undoes what a worker or
another operator has just done. What has changed meanwhile is looked at again, because it may still be meant. What
lies past the mark is named again: each call runs the intake 500 letters nearer to it, and never claims it before.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from uno.event_bus.dead_letter.errors import ConfigError, LetterNotFound, LetterStateConflict
from uno.event_bus.dead_letter.letter import Letter, LetterState
from uno.event_bus.dead_letter.rules import require_seconds
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH, Answer, Seen
from uno.event_bus.dead_letter.walk import PAGE, Walk, find_many, position
from uno.event_bus.dead_letter.where import Where

__all__ = [
    "LONGEST_ID",
    "Answered",
    "Bulk",
    "BulkReport",
    "OnAnswers",
    "OperatorVerb",
    "Which",
    "chosen",
    "discarding",
    "home_of_id",
    "parking",
    "retrying",
]

BATCH: Final = min(PAGE, LARGEST_BATCH)
"""Letters of one call, which keeps the server for about 10 ms."""

LOOKS: Final = 100
"""Further looks at a letter that keeps changing, before it is left as it is."""

LONGEST_ID: Final = 64
"""Characters of what can be a letter's id: three numbers."""

type Which = Sequence[str] | Where | Mapping[str, Any]
"""Letters by their ids, or all that match a filter; a filter without a field matches every letter."""


class OperatorVerb(NamedTuple):
    """What an operator does to letters."""

    name: str
    takes: tuple[str, ...]
    """States that it takes letters from."""
    act: Callable[[Shard, Sequence[Seen]], Awaitable[list[Answer]]]
    why: str = ""
    """The operator's own words."""
    delay_ms: int = 0
    """Of a retry: due so much later."""


def retrying(delay: float) -> OperatorVerb:
    """Return the verb that sends letters back, due after so many seconds. Raises `ConfigError`."""
    delay_ms = int(require_seconds("delay", delay) * 1000)
    takes = ("waiting", "scheduled", "suspect", "held", "parked")
    return OperatorVerb("retry", takes, partial(Shard.reschedule, delay_ms=delay_ms), delay_ms=delay_ms)


def parking(why: str) -> OperatorVerb:
    """Return the verb that stops retries. Raises `ConfigError`."""
    takes = ("waiting", "scheduled", "suspect", "held")
    return OperatorVerb("park", takes, partial(Shard.park, reason=_sound(why)), why)


def discarding(why: str) -> OperatorVerb:
    """Return the verb that removes letters. Raises `ConfigError`."""
    takes = ("waiting", "leased", "scheduled", "suspect", "held", "parked")
    return OperatorVerb("discard", takes, partial(Shard.discard, why=_sound(why)), why)


def _sound(why: str) -> str:
    if not isinstance(why, str):
        raise ConfigError(f"why is {why!r}; allowed is a text")
    try:
        why.encode()
    except UnicodeEncodeError:
        raise ConfigError("why has lone surrogates: allowed is a text that can be written as UTF-8") from None
    return why


class Answered(NamedTuple):
    """What a verb did to one letter."""

    letter_id: str
    answer: Answer
    """``OK``, ``CHANGED``, ``LEASED`` or ``GONE``."""
    error: LetterNotFound | LetterStateConflict | None = None
    """What the verb on this letter alone raises; None when it is done."""


type OnAnswers = Callable[[Sequence[Answered]], Awaitable[None] | None]
"""Hears answers, batch by batch; one that returns an awaitable is waited for before the work goes on."""


@dataclass(slots=True)
class BulkReport:
    """What a verb did to many letters."""

    queue: str
    done: int = 0
    changed: int = 0
    """Left as they are: the filter does not match them any more, or the verb does not take letters of their state."""
    leased: int = 0
    """Left as they are: a worker has them."""
    not_found: int = 0
    """Settled or removed meanwhile, or never there."""
    dry_run: bool = False
    """Nothing was done: `done` says what would have been."""
    answers: dict[str, Answer] = field(default_factory=dict, repr=False)
    """By id, if ids were named; a filter may match any number of letters, which are not kept."""

    def __str__(self) -> str:
        return f"{self.done} done, {self.changed} changed, {self.leased} leased, {self.not_found} not found"

    def count(self, answered: Iterable[Answered]) -> None:
        """Count answers."""
        for _, answer, _ in answered:
            match answer:
                case Answer.OK:
                    self.done += 1
                case Answer.LEASED:
                    self.leased += 1
                case Answer.GONE:
                    self.not_found += 1
                case _:
                    self.changed += 1


class Bulk:
    """One verb on many letters of an open store."""

    def __init__(
        self, store: Store, verb: OperatorVerb, *, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> None:
        self.report = BulkReport(store.queue, dry_run=dry_run)
        """Right at any time, also when the work ends with an error; but a call whose outcome is unknown may have
        done up to 500 letters more."""
        self._store = store
        self._verb = verb
        self._on_answers = on_answers

    async def on(self, letters: Where | Iterable[str]) -> None:
        """Do it to the letters that match, or that have these ids: shard by shard, oldest first."""
        if isinstance(letters, Where):
            await self._on_matching(letters)
        else:
            await self._on_ids(letters)

    async def _on_ids(self, ids: Iterable[str]) -> None:
        homes: dict[Shard, list[str]] = {}
        for letter_id in dict.fromkeys(ids):
            shard = home_of_id(self._store, letter_id)
            if shard is None:
                await self._tell([_gone(letter_id)], named=True)
            else:
                homes.setdefault(shard, []).append(letter_id)
        for shard, named in homes.items():
            named.sort(key=lambda letter_id: position(Shard.stream_id(letter_id)))
            for at in range(0, len(named), BATCH):
                await self._on_batch(shard, named[at : at + BATCH])

    async def _on_batch(self, shard: Shard, ids: Sequence[str]) -> None:
        letters = await find_many(shard, ids)
        known = {letter.id for letter in letters}
        await self._tell([_gone(letter_id) for letter_id in ids if letter_id not in known], named=True)
        await self._do(shard, letters, None)

    async def _on_matching(self, where: Where) -> None:
        for shard in list(self._store.shards):
            walk = Walk(shard, where, most=BATCH)
            while (page := await walk.next()) is not None:
                await self._do(shard, page.letters, walk)

    async def _do(self, shard: Shard, letters: Sequence[Letter], walk: Walk | None) -> None:
        """Do it to letters as they were seen; those that have changed are looked at again."""
        looks = 0
        while letters:
            told = [refused for letter in letters if (refused := self._refusal(letter, walk))]
            passed_over = {answered.letter_id for answered in told}
            meant = [letter for letter in letters if letter.id not in passed_over]
            ahead: list[Letter] = []
            changed: list[Letter] = []
            for letter, answer in zip(meant, await self._act(shard, meant), strict=True):
                if answer is Answer.AHEAD:
                    ahead.append(letter)
                elif answer is Answer.CHANGED and looks < LOOKS:
                    changed.append(letter)
                else:
                    told.append(self._answered(letter, answer))
            looks += bool(changed)  # to wait for the intake is none
            again = await find_many(shard, [letter.id for letter in changed])
            known = {letter.id for letter in again}
            told += [_gone(letter.id) for letter in changed if letter.id not in known]
            await self._tell(told, named=walk is None)
            letters = [*ahead, *again]

    async def _act(self, shard: Shard, letters: Sequence[Letter]) -> list[Answer]:
        if self.report.dry_run or not letters:
            return [Answer.OK] * len(letters)
        return await self._verb.act(shard, [Seen(letter.id, letter.state, letter.since_ms) for letter in letters])

    def _refusal(self, letter: Letter, walk: Walk | None) -> Answered | None:
        """Return the answer for a letter that the verb is not even tried on, as it was seen last."""
        if walk is not None and not walk.wants(letter):
            return self._conflict(letter, Answer.CHANGED)
        if letter.state not in self._verb.takes:
            return self._conflict(letter, Answer.LEASED if letter.state is LetterState.LEASED else Answer.CHANGED)
        return None

    def _answered(self, letter: Letter, answer: Answer) -> Answered:
        if answer is Answer.OK:
            return Answered(letter.id, answer)
        return _gone(letter.id) if answer is Answer.GONE else self._conflict(letter, answer)

    def _conflict(self, letter: Letter, answer: Answer) -> Answered:
        state = LetterState.LEASED if answer is Answer.LEASED else letter.state
        return Answered(
            letter.id, answer, LetterStateConflict(letter.id, self._verb.name, state.value, self._verb.takes)
        )

    async def _tell(self, answered: Sequence[Answered], *, named: bool) -> None:
        self.report.count(answered)
        if named:
            self.report.answers.update((letter_id, answer) for letter_id, answer, _ in answered)
        if answered and self._on_answers is not None:
            heard = self._on_answers(answered)
            if heard is not None:
                await heard


def _gone(letter_id: str) -> Answered:
    return Answered(letter_id, Answer.GONE, LetterNotFound(letter_id))


def home_of_id(store: Store, letter_id: str) -> Shard | None:
    """Return the shard that an id names; None for what is no id of this queue."""
    return store.shard_of(letter_id) if len(letter_id) <= LONGEST_ID else None


def chosen(which: Which) -> Where | list[str]:
    """Return the filter, or the ids, that are meant. Raises `ConfigError` for a text alone, and a wrong filter."""
    if isinstance(which, (Where, Mapping)):
        return Where.of(which)
    if isinstance(which, str | bytes):
        raise ConfigError(f"which is {which!r}; allowed are a list of ids, and a filter")
    return list(which)
