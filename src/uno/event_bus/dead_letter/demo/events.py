"""What the demo publishes: the shop's events, generated from a seed, or the lines of a file."""

import gzip
import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from hashlib import blake2b
from itertools import cycle, islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import msgspec

from uno.event_bus.dead_letter.codec import encode
from uno.event_bus.dead_letter.errors import ConfigError

__all__ = [
    "PUBLISHING",
    "OrderPlaced",
    "PaymentDue",
    "Publication",
    "ShipmentRequested",
    "digest_of",
    "from_file",
    "generated",
]


class OrderPlaced(msgspec.Struct, frozen=True):
    """A customer has ordered; the stock is to be reserved and a receipt sent."""

    order: str
    customer: str
    items: dict[str, int]
    """Article → pieces."""
    total_cents: int


class PaymentDue(msgspec.Struct, frozen=True):
    """An order is to be paid."""

    order: str
    method: str
    """``card`` or ``bank transfer``."""
    amount_cents: int


class ShipmentRequested(msgspec.Struct, frozen=True):
    """A parcel is to be sent."""

    order: str
    country: str
    weight_grams: int
    cancelled: bool = False
    """The customer has cancelled the order meanwhile."""


class Publication(NamedTuple):
    """One event on its way to the bus."""

    event_id: str
    type: str
    event: object
    payload: bytes
    """The bytes that a letter of this event must carry, from capture to end."""

    @property
    def digest(self) -> str:
        """Fingerprint of the payload."""
        return digest_of(self.payload)


PUBLISHING: Final[ContextVar[Publication]] = ContextVar("PUBLISHING")
"""What is being published in this context; the shop's handlers take notes by it when there is no letter yet."""


def digest_of(payload: bytes) -> str:
    """Return 32 hex digits that tell payloads apart."""
    return blake2b(payload, digest_size=16).hexdigest()


# --- the shop's events -----------------------------------------------------------------------------------

ARTICLES: Final = ("tea", "teapot", "kettle", "cup", "Löffel", "砂糖", "biscuits")
COUNTRIES: Final = ("DE", "FR", "NL", "PL", "SE")
NAMES: Final = ("Ada", "Bo", "Chloé", "Dmitri", "Eun-ji", "Farid", "Grace", "Håkon")


def _order(rng: random.Random, order: str) -> OrderPlaced:
    items = {article: rng.randint(1, 4) for article in rng.sample(ARTICLES, rng.randint(1, 4))}
    return OrderPlaced(order, rng.choice(NAMES), items, rng.randint(500, 40_000))


def _card(rng: random.Random, order: str) -> PaymentDue:
    return PaymentDue(order, "card", rng.randint(500, 40_000))


def _transfer(rng: random.Random, order: str) -> PaymentDue:
    return PaymentDue(order, "bank transfer", rng.randint(500, 40_000))


def _parcel(rng: random.Random, order: str) -> ShipmentRequested:
    return ShipmentRequested(order, rng.choice(COUNTRIES), rng.randint(100, 9_000))


def _parcel_to_iceland(rng: random.Random, order: str) -> ShipmentRequested:
    return ShipmentRequested(order, "IS", rng.randint(100, 9_000))


def _cancelled_parcel(rng: random.Random, order: str) -> ShipmentRequested:
    return ShipmentRequested(order, rng.choice(COUNTRIES), rng.randint(100, 9_000), cancelled=True)


# One of each first, so that six events show all there is to see; of 25, one never works and one is given up.
_MIXTURE: Final[tuple[Callable[[random.Random, str], object], ...]] = (
    (_order, _card, _parcel, _transfer, _parcel_to_iceland, _cancelled_parcel)
    + (_order, _card, _parcel) * 5
    + (_order, _order, _order, _parcel)
)


def generated(count: int, seed: int) -> list[Publication]:
    """Return so many events of the shop, the same ones for the same seed; each fails when it is published."""
    rng = random.Random(seed)
    makers = list(islice(cycle(_MIXTURE), count))
    rng.shuffle(makers)
    return [_publication(f"event-{n:04d}", make(rng, f"order-{n:04d}")) for n, make in enumerate(makers, 1)]


def _publication(event_id: str, event: object) -> Publication:
    encoded = encode(event)
    return Publication(event_id, encoded.type, event, encoded.payload)


# --- the lines of a file ---------------------------------------------------------------------------------


class _Line(msgspec.Struct):
    type: str
    payload: msgspec.Raw
    """The bytes as they stand in the line: not parsed, not written anew."""
    event_id: str = ""


def from_file(path: Path) -> list[Publication]:
    """Return the events of an NDJSON file, also gzipped; `ConfigError` names the file, the line and the fault.

    A line is an object with ``type``, ``payload`` and, if it likes, ``event_id``; empty lines are passed over.
    """
    try:
        with _opened(path) as lines:
            found = list(_publications(path, lines))
    except (OSError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"the events of {path} cannot be read: {why}") from None
    if not found:
        raise ConfigError(f"{path} has no events: a line is an object with type, payload and perhaps event_id")
    return found


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast("BinaryIO", gzip.open(path, "rb")) if zipped else path.open("rb")


def _publications(path: Path, lines: BinaryIO) -> Iterator[Publication]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: {error}; a line is an object with type and payload") from None
        payload = bytes(fields.payload)
        yield Publication(fields.event_id or f"line-{number}", fields.type, payload, payload)
