"""``/healthz``, ``/readyz`` and ``/metrics``: for those who supervise the service."""

import gzip
from http import HTTPStatus
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.responses import Response

from uno.event_bus.dead_letter.service.caller import READ
from uno.event_bus.dead_letter.service.operation import Call, op
from uno.event_bus.dead_letter.service.reply import GUARDS, reply
from uno.event_bus.dead_letter.telemetry.snapshot import Snapshot

__all__ = ["OPERATIONS"]

READY_S: Final = 3.0
"""How long shards may take to answer: longer than a snapshot, which takes 2 s at most."""

GZIP_LEVEL: Final = 1


class Probe(msgspec.Struct, omit_defaults=True):
    """What a probe is told."""

    ok: bool
    why: str = ""
    shards: int = 0
    """That answered."""
    of: int = 0
    """That there are."""


@op("GET", "/healthz", role=None, out=Probe)
async def healthz(call: Call) -> Probe:
    """Tell that the process answers; of Redis nothing, so that an outage of that restarts nobody."""
    return Probe(True)


@op("GET", "/readyz", role=None, out=Probe, fails=(HTTPStatus.SERVICE_UNAVAILABLE,))
async def readyz(call: Call) -> Response:
    """Tell whether every shard of the queue answers, as of the last second, and the service does not stop."""
    told = await _readiness(call)
    return reply(told, HTTPStatus.OK if told.ok else HTTPStatus.SERVICE_UNAVAILABLE)


async def _readiness(call: Call) -> Probe:
    if call.service.stop.is_set():
        return Probe(False, "the service stops")
    snapshot = await _snapshot(call)
    if snapshot is None:
        return Probe(False, f"no shard answered within {READY_S:g} s")
    up, of = sum(shard.is_up for shard in snapshot.shards), len(snapshot.shards)
    if not of:
        return Probe(False, "the queue cannot be opened; the log says why")
    return Probe(up == of, "" if up == of else f"{of - up} of {of} shards do not answer", up, of)


async def _snapshot(call: Call) -> Snapshot | None:
    with anyio.move_on_after(READY_S):
        return await call.service.exposed.snapshots.refresh()
    return None


@op("GET", "/metrics", role=READ, out=bytes, media="text/plain")
async def metrics(call: Call) -> Response:
    """Show the metrics of the queue and of this process, as OpenMetrics to who accepts that, else as text."""
    await _snapshot(call)
    encode, content_type = choose_encoder(call.request.headers.get("accept", ""))
    headers = {**GUARDS, "content-type": content_type}
    body = await anyio.to_thread.run_sync(encode, call.service.exposed.registry)
    if gzip_accepted(call.request.headers.get("accept-encoding", "")):
        body = await anyio.to_thread.run_sync(gzip.compress, body, GZIP_LEVEL)
        headers["content-encoding"] = "gzip"
    return Response(body, headers={**headers, "vary": "accept, accept-encoding"})


OPERATIONS = (healthz, readyz, metrics)
