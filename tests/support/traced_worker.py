"""A traced worker in a process of its own: ``python -m tests.support.traced_worker '{"url": …, "spans": FILE, …}'``.

Its handler fails until the attempt that the event names, ``{"until": 3}``, and makes a span of its own each time.
"""

import json
import sys
from typing import Any

import anyio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.support.serving import serve
from tests.support.spans import JsonLines
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Letter


async def main(settings: dict[str, Any]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(JsonLines(settings["spans"])))
    tracer = provider.get_tracer("application")
    queue = DeadLetterQueue(settings["url"], DeadLetterConfig(**settings["config"]), tracer_provider=provider)

    @queue.handler()
    async def handle(event: dict[str, Any], letter: Letter) -> None:
        with tracer.start_as_current_span("charge the card"):
            await anyio.lowlevel.checkpoint()
        if letter.attempt < event["until"]:
            raise ValueError(f"not at attempt {letter.attempt}")

    await serve(queue)


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
