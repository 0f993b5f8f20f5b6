"""One verb on many letters: asked for first, then done in batches, with an answer for each."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from uno.cli.dead_letter.asking import ask
from uno.cli.dead_letter.output import Records, format_of, note, progress, write_record
from uno.cli.dead_letter.session import on_queue, run_async
from uno.cli.failures import Status
from uno.cli.text import one_line

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue
    from uno.event_bus.dead_letter.bulk import Answered, BulkReport, Which

    type Verb = Callable[..., Awaitable[BulkReport]]
    type Heard = Callable[[Sequence[Answered]], None]

__all__ = ["Deed"]


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What a command does to letters, and how it was asked to."""

    name: str = field(kw_only=False)
    done: str = field(kw_only=False)
    """What a letter is afterwards, in one word."""
    verb_of: "Callable[[DeadLetterQueue], Verb]" = field(kw_only=False)
    """`retry_many` or `discard_many`, with all that it needs beside the letters."""
    yes: bool
    dry_run: bool
    output: str | None
    redis_url: str | None
    queue: str | None

    def on_ids(self, ids: list[str], *, sure: bool = True) -> int:
        """Do it to the letters of these ids, and print an answer for each; return the exit status."""
        if not sure and not self.dry_run:
            ask(f"{self.name.capitalize()} {len(ids)} letters?", yes=self.yes)
        chosen = format_of(self.output, many=True)
        outcome = f"would be {self.done}" if self.dry_run else self.done
        with Records(chosen) as records:

            def tell(answers: "Sequence[Answered]") -> None:
                for letter_id, _, error in answers:
                    if chosen == "table":
                        print(f"{one_line(letter_id)}  {one_line(str(error or outcome))}")
                    else:
                        records.write(_record(letter_id, error, outcome))

            report = self._run(ids, tell, total=len(ids), dry_run=self.dry_run)
        found = {Status.NOT_FOUND: report.not_found, Status.REFUSED: report.changed + report.leased}
        statuses = [status for status, count in found.items() if count]
        return int(statuses[0] if len(statuses) == 1 else Status.FAILURE if statuses else Status.OK)

    def on_matching(self, where: Mapping[str, Sequence[str]], *, by_name: bool = False) -> int:
        """Do it to every letter that matches, and print how many; return the exit status.

        Asked first, unless with ``--yes``: for what cannot be undone `by_name`, by typing the queue's name.
        """
        matched: int | None = None
        if self.dry_run or not self.yes:
            preview = self._run(where, dry_run=True)
            matched = preview.done + preview.changed + preview.leased
            if self.dry_run:
                return self._print_preview(matched)
            if matched:
                question = f"{self.name.capitalize()} {matched} letters of queue {preview.queue}?"
                ask(question, yes=False, name=preview.queue if by_name else "")
        return self._print_report(self._run(where, total=matched, dry_run=False))

    def _run(
        self, which: "Which", tell: "Heard | None" = None, *, total: int | None = None, dry_run: bool
    ) -> "BulkReport":
        """Call the verb, with a bar; `tell` prints answers, and where it prints on a terminal takes the bar's place."""
        what = "count" if dry_run else self.name

        async def act(queue: "DeadLetterQueue") -> "BulkReport":
            done = 0
            with progress(what, total, shown=tell is None or not sys.stdout.isatty()) as bar:

                def heard(answers: "Sequence[Answered]") -> None:
                    nonlocal done
                    done += sum(error is None for _, _, error in answers)
                    if tell is not None:
                        tell(answers)
                    bar.advance(len(answers))

                try:
                    return await self.verb_of(queue)(which, dry_run=dry_run, on_answers=heard)
                except BaseException:
                    if not dry_run:
                        note(f"{done} letters were done before this; to repeat the command is safe")
                    raise

        return run_async(partial(on_queue, act, self.redis_url, self.queue))

    def _print_preview(self, matched: int) -> int:
        chosen = format_of(self.output)
        if chosen == "table":
            print(f"{matched} letters match; nothing was changed")
        else:
            write_record({"dry_run": True, "matched": matched}, chosen)
        return int(Status.OK)

    def _print_report(self, report: "BulkReport") -> int:
        # What is gone by now, or does not match any more, is as it was wanted, or somebody else's success.
        left = {"gone": report.not_found, "changed": report.changed, "refused": report.leased}
        chosen = format_of(self.output)
        if chosen == "table":
            words = {"gone": "gone meanwhile", "changed": "changed meanwhile", "refused": "refused"}
            print(
                f"{report.done} {self.done}" + "".join(f", {left[name]} {words[name]}" for name in left if left[name])
            )
        else:
            write_record({self.done: report.done} | left, chosen)
        return int(Status.REFUSED if report.leased else Status.OK)


def _record(letter_id: str, error: Exception | None, outcome: str) -> dict[str, Any]:
    """Return an answer for programs; without an error it is the outcome."""
    if error is None:
        return {"id": letter_id, "outcome": outcome}
    return {"id": letter_id, "outcome": getattr(error, "code", "failure"), "message": str(error)}
