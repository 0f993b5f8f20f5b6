"""`verify` and `health`: is every letter accounted for, is the queue fit to work?"""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option
from uno.cli.dead_letter.output import console, fit, format_of, progress, table, write_record
from uno.cli.dead_letter.session import with_queue
from uno.cli.failures import Status
from uno.cli.text import one_line

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue, VerifyReport
    from uno.event_bus.dead_letter.doctor import Finding

BOOKS = ("captured", "resolved", "discarded", "expired", "lost_externally", "letters")


@click.command("verify", cls=Command)
@output_option
@with_queue
async def verify(queue: "DeadLetterQueue", /, *, output: str | None) -> int:
    """Check that every letter is in exactly one state, and that the books add up; exit status 1 if not.

    Safe on a live queue: it reads in small bounded steps, and changes nothing.

    Examples:
      uno dead-letter verify
      uno dead-letter verify -o json | jq '.violations[]'
    """
    with progress("verify", 1, unit="") as bar:
        report = await queue.verify(on_progress=bar.to)
    chosen = format_of(output)
    if chosen == "table":
        _print_verdict(report)
    else:
        books = {name: getattr(report, name) for name in (*BOOKS, "difference", "orphaned")}
        violations = [asdict(found) for found in report.violations]
        write_record({"clean": report.clean, **books, "violations": violations}, chosen)
    return int(Status.OK if report.clean else Status.FAILURE)


def _print_verdict(report: "VerifyReport") -> None:
    if report.violations:
        found = table("violation", "letter", "where")
        for violation in report.violations:
            found.add_row(one_line(violation.kind), one_line(violation.letter_id), one_line(violation.where))
        shown = console()
        fit(found, shown.width, "where")
        shown.print(found)
        print()
    print(_books(report))
    kinds = Counter(violation.kind for violation in report.violations)
    named = ", ".join(f"{count:,} {one_line(kind)}" for kind, count in sorted(kinds.items()))
    print("clean" if report.clean else f"NOT CLEAN: {named}")


def _books(report: "VerifyReport") -> str:
    """Return the sum that has to come out even, and by how much it does not."""
    ends = (
        f"resolved {report.resolved:,} + discarded {report.discarded:,} + expired {report.expired:,} "
        f"+ lost externally {report.lost_externally:,} + open {report.letters:,}"
    )
    if not report.difference:
        return f"captured {report.captured:,} = {ends}"
    # Letters of strangers are no violation: they count as captured when the intake comes to them.
    missing = "gone without an end" if report.difference > 0 else "not taken in yet"
    return f"captured {report.captured:,} ≠ {ends}: {abs(report.difference):,} {missing}"


@click.command("health", cls=Command)
@output_option
@with_queue
async def health(queue: "DeadLetterQueue", /, *, output: str | None) -> int:
    """Check that the queue is fit to work; exit status 0 only if it is.

    Every shard answers a script, the server does not evict keys, layout and protocol fit this version, and
    the spool, where there is one, has room.

    Examples:
      uno dead-letter health
      uno dead-letter health -o json | jq .healthy
    """
    findings = await queue.health()
    healthy = all(finding.ok for finding in findings)
    chosen = format_of(output)
    if chosen == "table":
        _print_findings(findings)
    else:
        write_record({"healthy": healthy, "checks": [asdict(finding) for finding in findings]}, chosen)
    return int(Status.OK if healthy else Status.FAILURE)


def _print_findings(findings: "list[Finding]") -> None:
    from rich.text import Text

    made = table("check", "", "finding")
    made.columns[2].no_wrap, made.columns[2].overflow = False, "fold"
    for finding in findings:
        verdict = Text("ok", "green") if finding.ok else Text("BAD", "bold red")
        made.add_row(one_line(finding.check), verdict, one_line(finding.detail))
    console().print(made)
