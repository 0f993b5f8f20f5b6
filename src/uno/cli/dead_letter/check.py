"""`verify` and `health`: is every letter accounted for, is the queue fit to work?"""

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option, queue_options
from uno.cli.dead_letter.output import console, fit, format_of, progress, table, write_record
from uno.cli.dead_letter.session import on_queue, run_async, with_queue
from uno.cli.failures import Failure, Status
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
@click.option("--url", metavar="URL", help="Ask the worker or service that has its probes there: http://worker:9464.")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="PORT", help="The same, for one of this machine.")
@click.option("--live", is_flag=True, help="With these: ask only whether the process gets on.")
@queue_options
def health(
    output: str | None, url: str | None, port: int | None, live: bool, redis_url: str | None, queue: str | None
) -> int:
    """Check that the queue is fit to work, or that a worker or service is; exit status 0 only if it is so.

    Of the queue: every shard answers a script, the server does not evict keys, layout and protocol fit this
    version, and the spool, where there is one, has room.

    With --url or --port, of the worker with that --metrics-port: is it at work on its shards, and do they answer?
    Of the service at that port: do the queue's shards answer? It needs no token. With --live: does the process make
    progress? That alone is a reason to restart it. Exit status 5: nobody answers.

    An https:// URL is checked by the system's authorities, or those of DLQ_SERVICE_CA_FILE.

    Examples:
      uno dead-letter health
      uno dead-letter health -o json | jq .healthy
      uno dead-letter health --port 9464 --live
      uno dead-letter health --port 8000
    """
    if url is not None and port is not None:
        raise Failure("--url and --port name the same: drop one of them", Status.USAGE)
    if url is None and port is None:
        if live:
            raise Failure("--live is a question for a worker or service: name it with --url or --port", Status.USAGE)
        return run_async(partial(on_queue, partial(_of_queue, output), redis_url, queue))
    return _of_worker(url or f"http://127.0.0.1:{port}", "/livez" if live else "/readyz", output)


def _of_worker(url: str, path: str, output: str | None) -> int:
    from uno.cli.dead_letter.probe import probe

    told = probe(url, path)
    chosen = format_of(output)
    if chosen == "table":
        facts = [f"{name} {one_line(str(value))}" for name, value in told.items() if name not in ("ok", "why")]
        print("ok" if told["ok"] else f"NOT OK: {one_line(str(told.get('why', '')))}", *facts, sep="\n  ")
    else:
        write_record(told, chosen)
    return int(Status.OK if told["ok"] else Status.FAILURE)


async def _of_queue(output: str | None, queue: "DeadLetterQueue") -> int:
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
