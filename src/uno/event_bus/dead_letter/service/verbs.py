"""``/v1/letters``, as operators act on it: retry, park and discard, one letter or many.

Every change runs within `as_caller`. A verb on many letters ends with its request: when the client leaves, or the
service stops, the engine writes down how far it came, and to repeat it is safe.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from uno.event_bus.dead_letter.bulk import Answered, BulkReport, OnAnswers, Which
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.remote.problems import problem_of
from uno.event_bus.dead_letter.remote.wire import (
    Answers,
    BulkResult,
    Discard,
    DiscardMany,
    OneAnswer,
    Park,
    Retry,
    RetryMany,
    Settled,
)
from uno.event_bus.dead_letter.service.caller import OPERATE
from uno.event_bus.dead_letter.service.ending import while_wanted
from uno.event_bus.dead_letter.service.letters import where_of
from uno.event_bus.dead_letter.service.lines import Lines, Tell, line
from uno.event_bus.dead_letter.service.operation import Call, as_caller, op

__all__ = ["OPERATIONS"]

FAILS = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
OF_ONE = (HTTPStatus.NOT_FOUND, *FAILS)

type Verb = Callable[[Which, OnAnswers | None], Awaitable[BulkReport]]
"""A verb of the queue, with all but which letters, and who hears the answers."""


@op("POST", "/v1/letters/{id}/retry", role=OPERATE, body=Retry, body_may_be_missing=True, out=Settled, fails=OF_ONE)
async def retry(call: Call) -> Settled:
    """Send a letter back to the workers.

    A parked one gets a new budget of retries. 409 when a worker has it.
    """
    with as_caller(call):
        await call.queue.retry(call.id, delay=call.body.delay_ms / 1000)
    return Settled(call.id, "retry")


@op("POST", "/v1/letters/{id}/park", role=OPERATE, body=Park, out=Settled, fails=OF_ONE)
async def park(call: Call) -> Settled:
    """Stop the retries of a letter.

    409 when a worker has it, or it is parked.
    """
    with as_caller(call):
        await call.queue.park(call.id, call.body.why)
    return Settled(call.id, "park")


@op("POST", "/v1/letters/{id}/discard", role=OPERATE, body=Discard, out=Settled, fails=OF_ONE)
async def discard(call: Call) -> Settled:
    """Remove a letter for good, also one that a worker has."""
    with as_caller(call):
        await call.queue.discard(call.id, call.body.why)
    return Settled(call.id, "discard")


# -- many letters ---------------------------------------------------------------------------------------------


@op("POST", "/v1/letters/retry", role=OPERATE, body=RetryMany, out=BulkResult, lines=Answers, fails=FAILS)
async def retry_many(call: Call) -> BulkResult | Response:
    """Send letters back to the workers: those of some ids, or all that a filter matches.

    A letter that is gone, or that a worker has, is an answer, no error. A client that accepts `application/x-ndjson`
    hears the answers as they come, and `progress` at least every ten seconds; its last line has `report`, or `problem`.
    """
    body: RetryMany = call.body

    def verb(which: Which, heard: OnAnswers | None) -> Awaitable[BulkReport]:
        delay = body.delay_ms / 1000
        return call.queue.retry_many(which, delay=delay, dry_run=body.dry_run, on_answers=heard)

    return await _on_many(call, verb)


@op("POST", "/v1/letters/discard", role=OPERATE, body=DiscardMany, out=BulkResult, lines=Answers, fails=FAILS)
async def discard_many(call: Call) -> BulkResult | Response:
    """Remove letters for good: those of some ids, or all that a filter matches.

    Replies as of the bulk retry. The filter `{}` matches every letter of the queue.
    """
    body: DiscardMany = call.body

    def verb(which: Which, heard: OnAnswers | None) -> Awaitable[BulkReport]:
        return call.queue.discard_many(which, body.why, dry_run=body.dry_run, on_answers=heard)

    return await _on_many(call, verb)


async def _on_many(call: Call, verb: Verb) -> BulkResult | Response:
    which = _which(call.body)
    if call.wants_lines:
        stream = _Stream(call, verb, which)
        return Lines(call, stream.run, silent=stream.progress)

    async def act() -> BulkReport:
        with as_caller(call):
            return await verb(which, None)

    return _result(await while_wanted(call, act))


def _which(body: RetryMany | DiscardMany) -> Which:
    """Return the letters that are meant. Raises `ConfigError` unless they are said in exactly one way."""
    if (body.ids is UNSET) == (body.where is UNSET):
        raise ConfigError("it needs ids or where, one of the two; where {} matches every letter: nothing was done")
    return body.ids if not isinstance(body.ids, msgspec.UnsetType) else where_of(body.where)  # type: ignore[arg-type]


def _result(report: BulkReport) -> BulkResult:
    return BulkResult(
        report.queue,
        report.done,
        report.changed,
        report.leased,
        report.not_found,
        report.dry_run,
        {letter_id: str(answer.value) for letter_id, answer in report.answers.items()},
    )


class _Stream:
    """The answers of a verb on many letters, as lines."""

    def __init__(self, call: Call, verb: Verb, which: Which) -> None:
        self._call = call
        self._verb = verb
        self._which = which
        self._named = None if not isinstance(which, list) else max(len(which), 1)
        """Letters that are named; None: a filter, which may match any number."""
        self._heard = 0

    def progress(self) -> bytes:
        """Return the line that says how far it is: of a filter nobody knows, and 0 keeps the connection alive."""
        return line(Answers(progress=self._heard / self._named if self._named else 0.0))

    async def run(self, tell: Tell) -> None:
        """Do it, and tell each answer, then the report."""
        with as_caller(self._call):
            report = await self._verb(self._which, partial(self._on_answers, tell))
        result = _result(report)
        result.answers = {}  # each has been told
        await tell(line(Answers(report=result)))

    async def _on_answers(self, tell: Tell, answered: Sequence[Answered]) -> None:
        self._heard += len(answered)
        await tell(line(Answers([_answer(one, self._call.request_id) for one in answered])))


def _answer(one: Answered, request_id: str) -> OneAnswer:
    told = None if one.error is None else problem_of(one.error, request_id)
    return OneAnswer(one.letter_id, str(one.answer.value), told)


OPERATIONS = (retry, park, discard, retry_many, discard_many)
