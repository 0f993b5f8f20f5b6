"""One attempt: from a leased letter to the outcome of its lease."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from uno.event_bus.dead_letter.decision import RESOLVED, Decision, decide
from uno.event_bus.dead_letter.errors import InvalidEvent
from uno.event_bus.dead_letter.failure import describe
from uno.event_bus.dead_letter.handlers import Handler, HandlerTimeout, InThread
from uno.event_bus.dead_letter.history import MESSAGE_BYTES, Attempt, History
from uno.event_bus.dead_letter.letter import WIRE_VERSION, DeadLetterReason, Letter, Verb
from uno.event_bus.dead_letter.retry import RetryPolicy, most_attempts
from uno.event_bus.dead_letter.store.values import Outcome
from uno.event_bus.dead_letter.telemetry.log_fields import about
from uno.event_bus.dead_letter.telemetry.tracing.work import AttemptSpan
from uno.event_bus.dead_letter.worker.cancellation import by_worker, take_back
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.lines import Lines
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Attempts", "release"]

logger = logging.getLogger(__name__)

LATER_VERSION_MS = 60_000
"""A letter of a later wire format comes back after this long: a rolling upgrade is under way."""

LONGEST_UNRUN_MS = 60_000
"""Longest time for which a letter is given back that nobody here handles, or no thread is left for."""

SHORTEST_UNRUN_MS = 500
"""First wait of a letter that this worker cannot run; it doubles with each release."""

LINE_FULL_MS = 1_000
"""A letter comes back after this long when a batch of others waits for its handler."""

AFTER_DEFECT_MS = 5_000
"""A letter that this code itself failed on comes back after this long: another worker may do better."""


def release(held: Held, *, delay_ms: int = 0, history: bytes = b"") -> Outcome:
    """Return the outcome of a letter that was never started, or whose handler had to go without an end."""
    return Outcome(held.letter.id, held.lease.token, Verb.RELEASE, delay_ms, history=history)


class Attempts:
    """Runs letters through their handlers; whatever happens, each lease gets an outcome or is lost."""

    def __init__(
        self, session: Session, settle: Callable[[Held, Outcome], None], again: Callable[[Held], None]
    ) -> None:
        self._session = session
        self._handlers = session.handlers
        self._settle = settle
        self._again = again
        """Hands a letter that has waited in line to a slot."""
        self._lines = Lines(session.holdings, session.config.batch_size)
        self._traced_policy: RetryPolicy | None = None
        self._most: int | None = None
        """How many attempts the policy of the last span allows: mostly the next one's too."""

    def withdraw(self) -> list[Held]:
        """Return the letters that wait in line, and forget them."""
        return self._lines.withdraw()

    async def run(self, held: Held) -> None:
        """Run one letter, and what was next in line after it."""
        try:
            await self._run(held)
        finally:
            self._hand_over(self._lines.pass_on(held))

    def _hand_over(self, following: Held | None) -> None:
        if following is not None:
            self._again(following)

    async def _run(self, held: Held) -> None:
        """A pipeline: refuse what cannot be run, call the handler, decide, settle."""
        about(held.letter)
        if not held.lease.still_mine():
            # It waited here past its lease: another worker may have it. Nothing to settle.
            self._session.holdings.drop(held)
            return
        try:
            handler = self._handlers.find(held.letter)
            outcome = self._unrunnable(held, handler)
            if outcome is None and handler is not None:
                if handler.is_plain:
                    outcome = await self._run_handler(held, handler)
                elif handler.concurrency is None:
                    outcome = await self._run_in_place(held, handler)
                else:
                    outcome = await self._run_in_line(held, handler)
        except Exception:
            logger.exception("letter %s could not be run; it is released", held.letter.id)
            outcome = release(held, delay_ms=AFTER_DEFECT_MS)
        if outcome is not None:
            self._session.holdings.handled(held)
            self._settle(held, outcome)

    # -- letters that no handler gets ----------------------------------------------------------------

    def _unrunnable(self, held: Held, handler: Handler | None) -> Outcome | None:
        letter = held.letter
        if (letter.values[0] != b"1" and letter.version > WIRE_VERSION) or letter.is_encoded:
            return release(held, delay_ms=LATER_VERSION_MS)
        if not letter.has_payload:
            self._session.recorder.refused(self._session.config.queue, letter)
            return self._park(held, DeadLetterReason.INVALID_EVENT, "the entry has no payload")
        if handler is None:
            return self._unhandled(held)
        return None

    def _park(self, held: Held, reason: DeadLetterReason, why: str) -> Outcome:
        history = _with_attempt(held.letter, self._now_attempt(0.0, "", why))
        history.unhandled_since_ms = 0  # a redrive starts the wait for a handler anew
        return Outcome(held.letter.id, held.lease.token, Verb.PARK, reason=reason.value, history=history.pack())

    def _unhandled(self, held: Held) -> Outcome:
        """Give back a letter that nobody here handles, for a growing while; park it when nobody else did either."""
        now_ms = self._session.clock.now_ms()
        history = held.letter.history
        history.unhandled_since_ms = history.unhandled_since_ms or now_ms
        if now_ms - history.unhandled_since_ms >= self._session.config.unhandled_after * 1000:
            return self._park(held, DeadLetterReason.UNHANDLED, "no handler in any worker that saw it")
        return release(held, delay_ms=_growing_ms(held.letter), history=history.pack())

    # -- letters that a handler gets -----------------------------------------------------------------

    async def _run_in_line(self, held: Held, handler: Handler) -> Outcome | None:
        """Run the letter if its handler may run one more; else it waits without a slot, or is given back."""
        match self._lines.enter(held, handler):
            case None:
                return release(held, delay_ms=LINE_FULL_MS)
            case False:
                return None
        try:
            return await self._run_in_place(held, handler)
        finally:
            self._hand_over(self._lines.leave(handler))

    async def _run_in_place(self, held: Held, handler: Handler) -> Outcome | None:
        """Run the letter, a plain function in a thread; give it back when every thread hangs."""
        if handler.is_async:
            return await self._run_handler(held, handler)
        place = await self._session.threads.place(handler.id)
        if place is None:
            return release(held, delay_ms=_growing_ms(held.letter))
        with place:
            return await self._run_handler(held, handler, place.run)

    async def _run_handler(self, held: Held, handler: Handler, thread: InThread | None = None) -> Outcome | None:
        letter = held.letter
        span = None if self._session.tracing is None else self._begin_span(held, handler)
        started = monotonic()
        if self._session.records:
            self._tell_started(held, started)
        error: BaseException | None = None
        decoding = True
        try:
            try:
                event = handler.decode(letter)
                decoding = False
                if handler.is_plain:
                    await handler.fn(event)
                else:
                    await handler.run(event, letter, thread)
            except KeyboardInterrupt:
                raise
            except asyncio.CancelledError as cancelled:
                if by_worker():
                    raise  # who did that says what becomes of the letter
                error = cancelled  # the handler's own doing: a failure like any other
            except BaseException as raised:
                error = raised
            take_back()
            return self._concluded(held, handler, error, decoding, monotonic() - started, span)
        finally:
            if span is not None:
                span.end(held.lease.lost)

    def _begin_span(self, held: Held, handler: Handler) -> AttemptSpan | None:
        assert self._session.tracing is not None
        policy = handler.policy or self._session.policy
        if policy is not self._traced_policy:
            self._traced_policy, self._most = policy, most_attempts(policy)
        return self._session.tracing.attempt(held.letter, held.shard.index, held.trace, self._most)

    def _concluded(
        self,
        held: Held,
        handler: Handler,
        error: BaseException | None,
        decoding: bool,
        duration_s: float,
        span: AttemptSpan | None,
    ) -> Outcome | None:
        """Decide after the handler's end; the attempt's span is current still, for whatever records the attempt."""
        letter = held.letter
        if held.lease.lost:
            self._session.holdings.drop(held)
            return None
        if span is not None:
            span.conclude()
        decision = RESOLVED if error is None else self._decide(letter, handler, error, decoding)
        if self._session.records:
            cause = "" if error is None else _cause(error, decision, decoding)
            self._session.recorder.attempted(self._session.config.queue, letter, duration_s, cause)
        return self._outcome(held, decision, error, duration_s, span)

    def _tell_started(self, held: Held, now_s: float) -> None:
        lag_s = None
        if held.server_ahead_s is not None:
            lag_s = max(0.0, now_s + held.server_ahead_s - held.letter.due_ms / 1000)
        self._session.recorder.started(self._session.config.queue, held.letter, lag_s)

    def _decide(self, letter: Letter, handler: Handler, error: BaseException, decoding: bool) -> Decision:
        return decide(
            error,
            counters=letter.counters,
            captured_at_ms=letter.captured_at_ms,
            now_ms=self._session.clock.now_ms(),
            policy=handler.policy or self._session.policy,
            retry_for=self._session.config.retry_for,
            timed_out=isinstance(error, HandlerTimeout),
            decoding=decoding,
        )

    def _outcome(
        self,
        held: Held,
        decision: Decision,
        error: BaseException | None,
        duration_s: float,
        span: AttemptSpan | None,
    ) -> Outcome:
        letter, verb = held.letter, decision.verb
        fingerprint = letter.fingerprint
        if verb in (Verb.RESOLVE, Verb.DISCARD):
            return Outcome(letter.id, held.lease.token, verb, reason=decision.why, fingerprint=fingerprint)
        failure = describe(error, event_type=letter.type)
        attempt = self._now_attempt(duration_s, failure.error_type, failure.message or decision.why)
        history = _with_attempt(letter, attempt)
        if span is not None:
            span.keep_in(history, letter.attempt)
            if decision.reason:  # else the handler has asked for another try, and nothing failed
                span.failed(*failure, decision.reason)
        return Outcome(
            letter.id,
            held.lease.token,
            verb,
            int(decision.delay_s * 1000),
            decision.failed,
            decision.reason,
            history.pack(),
            fingerprint,
        )

    def _now_attempt(self, duration_s: float, error_type: str, message: str) -> Attempt:
        started_ms = self._session.clock.now_ms() - int(duration_s * 1000)
        short = message.encode("utf-8", "replace")[:MESSAGE_BYTES].decode("utf-8", "ignore")
        return Attempt(started_ms, self._session.consumer, duration_s, error_type[:MESSAGE_BYTES], short)


def _growing_ms(letter: Letter) -> int:
    """Return how long a letter is given back for: 0.5 s, doubled with each release, at most a minute."""
    return int(min(SHORTEST_UNRUN_MS * 2 ** min(letter.counters.releases, 10), LONGEST_UNRUN_MS))


def _with_attempt(letter: Letter, attempt: Attempt) -> History:
    history = letter.history
    history.attempts.append(attempt)
    history.unhandled_since_ms = 0 if attempt.error_type else history.unhandled_since_ms
    return history


def _cause(error: BaseException, decision: Decision, decoding: bool) -> str:
    if decoding and isinstance(error, InvalidEvent):
        return "invalid"
    if isinstance(error, HandlerTimeout):
        return "timeout"
    return "handler" if decision.failed else ""
