"""One verb on many letters: asked for first, a few at a time, and an answer for each."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from uno.cli.dead_letter.asking import ask
from uno.cli.dead_letter.output import Bar, Records, format_of, note, progress, write_record
from uno.cli.dead_letter.session import on_queue, run_async
from uno.cli.failures import Status, status_of
from uno.cli.text import one_line

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue

__all__ = ["Deed"]

AT_A_TIME: Final = 8
"""Letters in work: enough to hide the round trips, too few to keep workers from their connections."""

type Verb = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What a command does to letters, and how it was asked to."""

    name: str = field(kw_only=False)
    done: str = field(kw_only=False)
    """What a letter is afterwards, in one word."""
    verb_of: "Callable[[DeadLetterQueue], Verb]" = field(kw_only=False)
    yes: bool
    dry_run: bool
    output: str | None
    redis_url: str | None
    queue: str | None

    def _run[T](self, function: "Callable[[DeadLetterQueue], Awaitable[T]]") -> T:
        return run_async(partial(on_queue, function, self.redis_url, self.queue))

    def on_ids(self, ids: list[str], *, sure: bool = True) -> int:
        """Do it to the letters of these ids, and print an answer for each; return the exit status."""
        if not sure and not self.dry_run:
            ask(f"{self.name.capitalize()} {len(ids)} letters?", yes=self.yes)
        chosen = format_of(self.output, many=True)
        outcome = f"would be {self.done}" if self.dry_run else self.done

        def told(records: Records, answer: Answer) -> None:
            if chosen == "table":
                print(f"{one_line(answer.letter_id)}  {one_line(str(answer.error or outcome))}")
            else:
                records.write(answer.record(outcome))

        async def act(queue: "DeadLetterQueue") -> Tally:
            verb = queue.get if self.dry_run else self.verb_of(queue)
            with Records(chosen) as records:
                return await _act_on(_each(ids), verb, partial(told, records), Bar(None))

        return self._run(act).status

    def on_matching(self, where: Any, states: tuple[str, ...] = (), *, by_name: bool = False) -> int:
        """Do it to every letter that matches, and print how many; return the exit status.

        Asked first, unless with ``--yes``: for what cannot be undone `by_name`, by typing the queue's name.
        """
        matched: int | None = None
        if self.dry_run or not self.yes:
            matched, name = self._run(partial(_count, where, states))
            if self.dry_run:
                return self._print_preview(matched)
            if matched:
                question = f"{self.name.capitalize()} {matched} letters of queue {name}?"
                ask(question, yes=False, name=name if by_name else "")

        async def act(queue: "DeadLetterQueue") -> Tally:
            with progress(self.name, matched) as bar:
                return await _act_on(_matching(where, states, queue), self.verb_of(queue), _heard, bar)

        return self._print_tally(self._run(act))

    def _print_preview(self, matched: int) -> int:
        chosen = format_of(self.output)
        if chosen == "table":
            print(f"{matched} letters match; nothing was changed")
        else:
            write_record({"dry_run": True, "matched": matched}, chosen)
        return 0

    def _print_tally(self, tally: "Tally") -> int:
        chosen = format_of(self.output)
        if chosen == "table":
            left = {"gone meanwhile": tally.gone, "refused": tally.refused}
            print(f"{tally.done} {self.done}" + "".join(f", {count} {what}" for what, count in left.items() if count))
        else:
            write_record({self.done: tally.done, "gone": tally.gone, "refused": tally.refused}, chosen)
        # A letter that is gone by now is what was wanted, or somebody else's success.
        tally.statuses.discard(Status.NOT_FOUND)
        return tally.status


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verb did to one letter."""

    letter_id: str
    error: Exception | None = None

    def record(self, outcome: str) -> dict[str, Any]:
        """Return it for programs; without an error it is the outcome."""
        if self.error is None:
            return {"id": self.letter_id, "outcome": outcome}
        code = getattr(self.error, "code", "failure")
        return {"id": self.letter_id, "outcome": code, "message": str(self.error)}


@dataclass(slots=True)
class Tally:
    """What a verb did to many letters."""

    done: int = 0
    gone: int = 0
    """Settled, or removed by somebody else, before the verb came to them."""
    refused: int = 0
    """In a state that the verb does not take, such as leased by a worker."""
    statuses: set[int] = field(default_factory=set)
    """Exit statuses that single failures would give."""

    def count(self, answer: Answer) -> None:
        """Count one answer."""
        if answer.error is None:
            self.done += 1
            return
        status = status_of(answer.error)
        self.statuses.add(status)
        if status == Status.NOT_FOUND:
            self.gone += 1
        else:
            self.refused += 1

    @property
    def status(self) -> int:
        """The exit status: that of the failures if all are of one kind, else 1."""
        return min(self.statuses) if len(self.statuses) == 1 else int(bool(self.statuses))


# --- which letters ---------------------------------------------------------------------------------------


async def _each(ids: list[str]) -> AsyncIterator[str]:
    for letter_id in ids:
        yield letter_id


async def _matching(where: Any, states: tuple[str, ...], queue: "DeadLetterQueue") -> AsyncIterator[str]:
    """Yield the ids of letters that match, in one of the states if some are given."""
    async with aclosing(queue.letters(where, whole=False)) as letters:
        async for letter in letters:
            if not states or letter.state.value in states:
                yield letter.id


async def _count(where: Any, states: tuple[str, ...], queue: "DeadLetterQueue") -> tuple[int, str]:
    """Return how many letters match, and the queue's name."""
    return sum([1 async for _ in _matching(where, states, queue)]), queue.config.queue


# --- doing -----------------------------------------------------------------------------------------------


async def _act_on(ids: AsyncIterator[str], verb: Verb, told: Callable[[Answer], None], bar: Bar) -> Tally:
    """Call the verb for every id, a few at a time; `told` hears each answer as it comes.

    A letter that is gone or in another state is an answer. Any other error ends the work; what was done until
    then is said on stderr.
    """
    import anyio

    tally = Tally()
    send, receive = anyio.create_memory_object_stream[str]()

    async def feed() -> None:
        async with send:
            async for letter_id in ids:
                await send.send(letter_id)

    async def work() -> None:
        async for letter_id in receive:
            answer = await _one(verb, letter_id)
            tally.count(answer)
            told(answer)
            bar.advance()

    try:
        async with receive, anyio.create_task_group() as group:
            group.start_soon(feed)
            for _ in range(AT_A_TIME):
                group.start_soon(work)
    except BaseException:
        note(f"{tally.done} letters were done before this; to repeat the command is safe")
        raise
    return tally


def _heard(answer: Answer) -> None:
    """Pass over an answer: only the tally is printed."""


async def _one(verb: Verb, letter_id: str) -> Answer:
    from uno.event_bus.dead_letter.errors import LetterNotFound, LetterStateConflict

    try:
        await verb(letter_id)
    except (LetterNotFound, LetterStateConflict) as error:
        return Answer(letter_id, error)
    return Answer(letter_id)
