"""A small shop: four subscriptions, three of which have something wrong with what they depend on.

What fails is decided by the event, the attempt and the clock alone, so any worker process finds the same world.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from time import time
from typing import Final

import anyio
import anyio.lowlevel

from uno.event_bus import EventBus
from uno.event_bus.dead_letter.decision import Discard, RetryLater
from uno.event_bus.dead_letter.demo.events import (
    PUBLISHING,
    OrderPlaced,
    PaymentDue,
    ShipmentRequested,
    digest_of,
)
from uno.event_bus.dead_letter.demo.journal import Note, Outcome
from uno.event_bus.dead_letter.letter import Letter

__all__ = ["CONSUMER", "OUTAGE_S", "Shop", "failures_of"]

OUTAGE_S: Final = 3.0
"""The payment provider is down for so long from the start of the demo, the bank closed for a second more."""

PATIENCE_S: Final = 0.1
"""How long the shop waits for the carrier's answer; its first one takes longer."""

POSTAGE_CENTS: Final = {"DE": 499, "FR": 899, "NL": 799, "PL": 849, "SE": 1099}

CONSUMER: Final = "consumer"
"""The one subscription to the events of a file."""


class Shop:
    """The handlers, and the notes that they take. ``opens_at`` is the Unix time when the outage is over."""

    def __init__(self, note: Callable[[Note], None], *, worker: str, opens_at: float) -> None:
        self.note = note
        self.worker = worker
        self.opens_at = opens_at

    def subscribe(self, bus: EventBus, *, file: bool) -> None:
        """Subscribe the shop's handlers, or the one handler for the events of a file."""
        if file:
            bus.subscribe(None, self.consume, id=CONSUMER)
            return
        bus.subscribe(OrderPlaced, self.reserve_stock, id="reserve-stock")
        bus.subscribe(OrderPlaced, self.send_receipt, id="send-receipt")
        bus.subscribe(PaymentDue, self.take_payment, id="take-payment")
        bus.subscribe(ShipmentRequested, self.ship, id="ship")

    async def reserve_stock(self, event: OrderPlaced, letter: Letter | None = None) -> None:
        """A flaky dependency: the warehouse hangs up twice, then answers."""
        with self._noting("reserve-stock", letter) as attempt:
            if attempt < 2:
                raise ConnectionResetError(f"the warehouse hung up on {event.order}")

    async def send_receipt(self, event: OrderPlaced, letter: Letter | None = None) -> None:
        """Works; runs once an order, whatever becomes of its neighbour on the same event."""
        with self._noting("send-receipt", letter):
            await anyio.lowlevel.checkpoint()

    async def take_payment(self, event: PaymentDue, letter: Letter | None = None) -> None:
        """An outage: the provider comes back after a while, and the bank says when it opens."""
        with self._noting("take-payment", letter) as attempt:
            to_wait_s = self.opens_at - time()
            if event.method == "bank transfer" and attempt and to_wait_s > -1:
                raise RetryLater(to_wait_s + 1, "the bank is closed")
            if to_wait_s > 0 or not attempt:
                raise ConnectionRefusedError("the payment provider is down")

    async def ship(self, event: ShipmentRequested, letter: Letter | None = None) -> None:
        """A slow dependency, an order that is void by now, and a true bug: nobody thought of Iceland."""
        with self._noting("ship", letter) as attempt:
            if event.cancelled:
                raise (
                    Discard(f"{event.order} was cancelled")
                    if attempt
                    else RuntimeError(f"{event.order} is being changed")
                )
            POSTAGE_CENTS[event.country]
            with anyio.fail_after(PATIENCE_S):
                await anyio.sleep(0.01 if attempt else 10)

    async def consume(self, event: bytes, letter: Letter | None = None) -> None:
        """For the events of a file: the hash of the event's id says how often it fails; see `failures_of`."""
        with self._noting(CONSUMER, letter, event) as attempt:
            failures = failures_of(letter.event_id) if letter else 1
            if failures is None or attempt < failures:
                raise RuntimeError("a downstream service answered 503")

    async def parked(self, letter: Letter, reason: object) -> None:
        """Note that the queue has parked a letter."""
        why = f"{reason}: whole, until somebody acts"
        self._write(letter.event_id, letter.type, letter.subscription, letter.attempt, Outcome.PARKED, why, "")

    @contextmanager
    def _noting(self, subscription: str, letter: Letter | None, event: bytes | None = None) -> Iterator[int]:
        """Give the number of the attempt, 0 at publication, and note how it ends before anybody else knows."""
        if letter is None:
            sent = PUBLISHING.get()
            attempt, event_id, type_, payload = 0, sent.event_id, sent.type, sent.payload
        else:
            attempt, event_id, type_, payload = letter.attempt, letter.event_id, letter.type, letter.payload
        digest = digest_of(payload if event is None else event)
        try:
            yield attempt
        except Exception as error:
            self._write(event_id, type_, subscription, attempt, *_outcome(error), digest)
            raise
        # One that is cancelled has not ended, and gets no note.
        self._write(event_id, type_, subscription, attempt, Outcome.WORKED, "", digest)

    def _write(
        self,
        event_id: str,
        type_: str,
        subscription: str,
        attempt: int,
        outcome: Outcome,
        why: str,
        digest: str,
    ) -> None:
        self.note(Note(self.worker, event_id, type_, subscription, attempt, outcome, why, digest))


def _outcome(error: Exception) -> tuple[Outcome, str]:
    """Return how a run ended that raised this, and why."""
    match error:
        case Discard():
            return Outcome.DISCARDED, str(error)
        case RetryLater():
            return Outcome.LATER, str(error)
    return Outcome.FAILED, f"{type(error).__name__}: {error}".removesuffix(": ")


def failures_of(event_id: str) -> int | None:
    """Return how often an event of a file fails, its publication included: 1 to 3 times; None (1 in 20): always."""
    number = blake2b(event_id.encode(), digest_size=4).digest()[0] % 20
    return None if number == 0 else 1 + number % 3
