"""``/v1/queue`` and what else is told of the queue as a whole: counts, workers, health, its books, and its growth."""

from dataclasses import asdict
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
from uno.event_bus.dead_letter.remote.wire import (
    Answers,
    Finding,
    Health,
    QueueInfo,
    Reshard,
    Spool,
    Stats,
    Verified,
    Worker,
    Workers,
)
from uno.event_bus.dead_letter.service.caller import ADMIN, ANY_ROLE, READ
from uno.event_bus.dead_letter.service.ending import while_wanted
from uno.event_bus.dead_letter.service.lines import Lines, Tell, line
from uno.event_bus.dead_letter.service.operation import Call, as_caller, op

__all__ = ["OPERATIONS"]


@op("GET", "/v1/queue", role=ANY_ROLE, out=QueueInfo)
async def queue(call: Call) -> QueueInfo:
    """Tell what a client has to know of the queue."""
    config = call.queue.config
    shards = (await call.queue.stats()).shards
    return QueueInfo(config.queue, shards, config.dedupe_window, config.max_payload_bytes, config.max_queue_size)


@op("GET", "/v1/stats", role=READ, out=Stats)
async def stats(call: Call) -> Stats:
    """Tell what the queue holds now, and has done so far: one bounded call a shard."""
    return _stats(await call.queue.stats())


def _stats(found: QueueStats) -> Stats:
    spool = found.spool
    names = (name for name in Stats.__struct_fields__ if name != "spool")
    told = Stats(**{name: getattr(found, name) for name in names})
    if spool is not None:
        told.spool = Spool(spool.directory, spool.bytes, spool.letters, spool.oldest_ms, spool.max_bytes)
    return told


@op("GET", "/v1/workers", role=READ, out=Workers)
async def workers(call: Call) -> Workers:
    """Tell what the workers that live say of themselves."""
    return Workers([Worker(**msgspec.structs.asdict(info)) for info in await call.queue.workers()])


@op("GET", "/v1/health", role=READ, out=Health)
async def health(call: Call) -> Health:
    """Look at servers, memory, layout, every shard, and the spool: is the queue fit for work?

    200 in either case; `/readyz` says it by its status.
    """
    found = await call.queue.health()
    return Health(all(one.ok for one in found), [Finding(one.check, one.ok, one.detail) for one in found])


@op("POST", "/v1/verify", role=READ, out=Verified, lines=Answers, fails=(HTTPStatus.SERVICE_UNAVAILABLE,))
async def verify(call: Call) -> Verified | Response:
    """Check every invariant over the live queue, in bounded steps; nothing is changed.

    A client that accepts `application/x-ndjson` hears of the progress; the last line has `verified`, or `problem`.
    """
    if call.wants_lines:
        stream = _Stream(call)
        return Lines(call, stream.run, silent=stream.progress)
    return _verified(await while_wanted(call, call.queue.verify))


def _verified(report: VerifyReport) -> Verified:
    return msgspec.convert(asdict(report) | {"clean": report.clean}, Verified)


class _Stream:
    """A check that tells how far it is."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._done = 0.0

    def progress(self) -> bytes:
        """Return the line that says how far it is."""
        return line(Answers(progress=self._done))

    def _hear(self, done: float) -> None:
        self._done = done

    async def run(self, tell: Tell) -> None:
        """Check, and tell what was found."""
        await tell(self.progress())
        report = await self._call.queue.verify(on_progress=self._hear)
        await tell(line(Answers(verified=_verified(report))))


@op(
    "POST",
    "/v1/shards",
    role=ADMIN,
    body=Reshard,
    out=QueueInfo,
    fails=(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def shards(call: Call) -> QueueInfo:
    """Give the queue more shards, while producers and workers go on.

    No letter is moved, and a repeat is safe.
    """
    config = call.queue.config
    with as_caller(call):
        count = await call.queue.reshard(call.body.shards)
    return QueueInfo(config.queue, count, config.dedupe_window, config.max_payload_bytes, config.max_queue_size)


OPERATIONS = (queue, stats, workers, health, verify, shards)
