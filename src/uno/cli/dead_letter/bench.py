"""`bench`: what a server or a cluster can do, and whether it loses a letter on the way."""

import signal
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, override

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option
from uno.cli.dead_letter.output import Bar, format_of, note, progress, write_record
from uno.cli.dead_letter.session import run_async
from uno.cli.failures import Failure, Status

if TYPE_CHECKING:
    import anyio

    from uno.event_bus.dead_letter.bench import Options, Report, Watch


@click.command("bench", cls=Command)
@click.option("--redis-url", metavar="URL", help="What to measure; else DLQ_REDIS_URL, else REDIS_URL, else its own.")
@click.option("--cluster", is_flag=True, help="Measure a cluster that it starts here: 3 primaries, 3 replicas.")
@click.option("--letters", default=20_000, show_default=True, type=click.IntRange(1), help="Letters to capture.")
@click.option(
    "--payload", default=300, show_default=True, type=click.IntRange(32), metavar="BYTES", help="Size of an event."
)
@click.option(
    "--fail-rate",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the letters that fail once.",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes with handlers.")
@click.option("--producers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes that capture.")
@click.option(
    "--concurrency",
    default=16,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Handlers at a time in a worker, captures at a time in a producer.",
)
@click.option("--shards", type=int, help="Of the queue; else DLQ_SHARDS, else 4.")
@click.option(
    "--durability",
    type=click.Choice(["memory", "replicated", "fsynced"]),
    help="What a capture waits for; else DLQ_DURABILITY, else memory.",
)
@click.option(
    "--kill-primary",
    is_flag=True,
    help="Kill a primary half-way; captures go on until a replica has taken over. Only with --cluster.",
)
@click.option("--queue", metavar="NAME", help="A queue that is not there yet; else bench-… is made up.")
@click.option("--seed", default=1, show_default=True, help="Of what fails, where letters go, and which node dies.")
@output_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def bench(*, payload: int, output: str | None, **options: Any) -> int:
    """Measure captures, work and a failover, on any server or cluster.

    Producers capture letters, one call each, while workers run them with a handler that does nothing: processes
    of their own, as yours are. A producer waits for the answer before it goes on, so the rates are what so many
    callers get. DLQ_… variables count, so timeouts, batches and leases can be those of your services.

    It works in a queue of its own, and removes it, also after Ctrl-C. Exit status 0 only if no letter is lost
    or left, and verify is clean.

    Examples:
      uno dead-letter bench
      uno dead-letter bench --redis-url 'redis://10.0.0.7:7000/0?cluster=true' --shards 16 --producers 4
      uno dead-letter bench --cluster --kill-primary --durability replicated -o json | jq .failover
    """
    from uno.event_bus.dead_letter.bench import Options, QueueTaken

    wanted = Options(payload_bytes=payload, **options)
    try:
        with ExitStack() as stack:
            report = run_async(partial(_run, wanted, _watch(stack)))
    except* QueueTaken as group:
        taken = group.exceptions[0]
        raise Failure(str(taken), Status.REFUSED, QueueTaken.code) from None
    return _print_report(report, output)


def _watch(stack: ExitStack) -> "Watch":
    """Return what shows a benchmark's course on a terminal; the stack ends it."""
    from uno.event_bus.dead_letter.bench import Watch

    class Shown(Watch):
        bar: Bar = Bar(None)

        @override
        def stage(self, what: str, letters: int | None = None) -> None:
            stack.close()
            self.bar = stack.enter_context(progress(what, letters, unit="letters" if letters else ""))

        @override
        def done(self, letters: int) -> None:
            self.bar.to(letters)

        @override
        def say(self, line: str) -> None:
            note(line)

    return Shown()


async def _run(options: "Options", watch: "Watch") -> "Report":
    """Run the benchmark; SIGTERM and SIGHUP end it as Ctrl-C does: what it has started and written goes away."""
    import anyio

    from uno.event_bus.dead_letter.bench import run_bench

    async with anyio.create_task_group() as group:
        group.start_soon(_heed_signals, group.cancel_scope)
        report = await run_bench(options, watch)
        group.cancel_scope.cancel()
        return report
    raise click.Abort


async def _heed_signals(scope: "anyio.CancelScope") -> None:
    import anyio

    # Under `nohup` the end of the terminal is to be ignored.
    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    with anyio.open_signal_receiver(*heeded) as signals:
        async for _ in signals:
            scope.cancel()


def _print_report(report: "Report", output: str | None) -> int:
    """Print the figures; return the exit status."""
    chosen = format_of(output)
    if chosen == "table":
        from uno.cli.dead_letter.bench_page import print_bench

        print_bench(report)
    else:
        from dataclasses import asdict

        write_record({"sound": report.sound} | asdict(report), chosen)
    return int(Status.OK if report.sound else Status.FAILURE)
