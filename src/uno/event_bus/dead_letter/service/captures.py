"""``/v1/letters``, as producers use it: events come in, one or many, and are asked after."""

from http import HTTPStatus

from starlette.responses import Response

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.remote.problems import problem_of
from uno.event_bus.dead_letter.remote.wire import Batch, Captured, Event, Key, Keys, Known, Result, Results
from uno.event_bus.dead_letter.service.caller import CAPTURE
from uno.event_bus.dead_letter.service.ending import while_wanted
from uno.event_bus.dead_letter.service.incoming import letter_of, letters_of, trace_of
from uno.event_bus.dead_letter.service.operation import Call, op
from uno.event_bus.dead_letter.service.reply import reply
from uno.event_bus.dead_letter.store.lookup import Kept

__all__ = ["OPERATIONS", "capture_all", "capture_one"]

FAILS = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
    HTTPStatus.INSUFFICIENT_STORAGE,
)


async def capture_one(queue: DeadLetterQueue, letter: NewLetter) -> Captured:
    """Capture a letter; raises its error."""
    answer = (await queue.put([letter]))[0]
    if isinstance(answer, DeadLetterError):
        raise answer
    return Captured(answer)


async def capture_all(queue: DeadLetterQueue, made: list[NewLetter | DeadLetterError], request_id: str) -> Response:
    """Capture the letters among these; answer 201 when all were captured, else 207, by position in either case."""
    answers = iter(await queue.put([new for new in made if isinstance(new, NewLetter)]))
    results = [_result(next(answers) if isinstance(new, NewLetter) else new, request_id) for new in made]
    captured = sum(result.problem is None for result in results)
    status = HTTPStatus.CREATED if captured == len(results) else HTTPStatus.MULTI_STATUS
    return reply(Results(captured, results), status)


def _result(answer: str | DeadLetterError, request_id: str) -> Result:
    return Result(answer) if isinstance(answer, str) else Result(problem=problem_of(answer, request_id))


@op("POST", "/v1/letters", role=CAPTURE, body=Event, out=Captured, status=HTTPStatus.CREATED, fails=FAILS)
async def capture(call: Call) -> Captured:
    """Capture one event that failed.

    To repeat the request with the same `event_id` and `subscription`, or the same `dedupe_key`, within the queue's
    dedupe window is safe: it answers the first letter's id. Without either, every request makes a letter. While Redis
    is away, a service with a spool answers `spooled:` and the event's id.
    """
    return await capture_one(call.queue, letter_of(call.queue, call.body, trace_of(call.request)))


@op(
    "POST",
    "/v1/letters/batch",
    role=CAPTURE,
    body=Batch,
    out=Results,
    status=HTTPStatus.CREATED,
    also={HTTPStatus.MULTI_STATUS: Results},
    fails=FAILS,
)
async def capture_batch(call: Call) -> Response:
    """Capture up to 1000 events.

    201 when all were captured, else 207; results are by position in either case. To repeat the failed positions, or
    all, is as safe as of a single capture.
    """
    made = letters_of(call.queue, call.body.events, trace_of(call.request))
    return await capture_all(call.queue, made, call.request_id)


@op("POST", "/v1/letters/known", role=CAPTURE, body=Keys, out=Known, fails=FAILS[:4])
async def known(call: Call) -> Known:
    """Tell which of some letters are in the queue.

    For producers that have kept letters for longer than the queue's dedupe window: a repeated capture of those would
    not be told as one. Letters that were settled meanwhile are not found.
    """
    kept = [_kept(key) for key in call.body.keys]

    async def look() -> set[int]:
        async with call.service.lookup:
            return await call.queue.known(kept, now_ms=call.body.now_ms)

    return Known(sorted(await while_wanted(call, look)))


def _kept(key: Key) -> Kept:
    letter = NewLetter(
        key.event_id,
        "",
        b"",
        subscription=key.subscription,
        dedupe_key=key.dedupe_key,
        ordering_key=key.ordering_key,
    )
    return Kept(letter, key.kept_since_ms, key.tried)


OPERATIONS = (capture, capture_batch, known)
