"""A service as what captures go to: the counterpart of `store.Store`, with one home for every letter."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

import anyio
import msgspec

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PayloadTooLarge, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.remote.client import ServiceClient, TokenRefused
from uno.event_bus.dead_letter.remote.problems import RequestRefused, error_of
from uno.event_bus.dead_letter.remote.wire import Batch, Event, Key, Keys, Known, QueueInfo, Result, Results
from uno.event_bus.dead_letter.store.lookup import Kept

__all__ = ["RemoteStore"]

logger = logging.getLogger(__name__)

BATCH: Final = 250
"""Letters of one request, at most."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Of one, beyond its first letter: bytes of what may be long in a letter."""

LOOKUP_S: Final = 60.0
"""How long the service may look for letters that are there: it walks over all that came in since, 100,000 a second."""


class RemoteStore:
    """All of a queue that is behind a service. `open` before use; `close` at the end."""

    def __init__(self, url: str, config: DeadLetterConfig) -> None:
        self.queue = config.queue
        self.client = ServiceClient(url, config)
        self._config = config
        self._info: QueueInfo | None = None
        self._opening = anyio.Lock()
        self._tries = 0
        self._refused: DeadLetterError | None = None
        """What the last try to open it came to."""

    async def open(self) -> None:
        """Ask the service for its queue. Idempotent; callers that wait while another one tries share its outcome.

        Raises `ConfigError` when it is another one, `PermissionDenied`, `StoreUnavailable`.
        """
        if self._info is not None:
            return
        tries = self._tries
        async with self._opening:
            if self._info is not None:
                return
            if self._refused is not None and self._tries > tries:
                raise self._refused
            self._refused = None
            try:
                info = await self.client.ask("GET", "/queue", QueueInfo)
                self._compare(info)
            except DeadLetterError as error:
                self._refused = error
                raise
            finally:
                self._tries += 1
            self._info = info

    def _compare(self, info: QueueInfo) -> None:
        if info.queue != self.queue:
            raise ConfigError(f"{self.client.url} serves queue {info.queue!r}, DLQ_QUEUE is {self.queue!r} here")
        if self._config.spool_dir is not None and info.dedupe_window_s < self._config.dedupe_window:
            logger.warning(
                "queue %s: the service remembers captures for %g s, DLQ_DEDUPE_WINDOW is %g s here: set the same, or "
                "letters of the spool that are settled meanwhile may be captured twice",
                self.queue,
                info.dedupe_window_s,
                self._config.dedupe_window,
                extra={"queue": self.queue},
            )

    async def close(self) -> None:
        """Close the connections, for good: a queue that is used again makes another store."""
        await self.client.close()

    # -- letters -------------------------------------------------------------------------------------

    @property
    def homes(self) -> int:
        """Home shards, as far as this side can tell them apart."""
        return 1

    @property
    def window_s(self) -> float:
        """How long the service remembers captures, as far as this side counts on it."""
        theirs = 0.0 if self._info is None else self._info.dedupe_window_s
        return min(theirs, self._config.dedupe_window)

    def home_of(self, new: NewLetter) -> int:
        """Return the home of a letter: where it really is, the service knows."""
        return 0

    async def add(self, letters: Sequence[NewLetter]) -> list[str | Exception]:
        """Capture letters; return by position its id or its error.

        A repeat answers the first id, so a request whose outcome is unknown is sent again, unless the service might
        have forgotten the first one by then. A service that does not answer is not asked for the letters behind.
        """
        results: list[str | Exception] = []
        away: StoreUnavailable | None = None
        for batch in _batches(letters):
            if away is not None:
                results += [StoreUnavailable(away.why, certain=True)] * len(batch)
                continue
            try:
                results += await self._add(batch)
            except StoreUnavailable as error:
                away = error
                results += [error] * len(batch)
        return results

    async def _add(self, letters: Sequence[NewLetter]) -> list[str | Exception]:
        """Capture letters in one request, halved while it is refused: one letter that is too large costs no other.

        Raises `StoreUnavailable`.
        """
        repeats = self.window_s > 2 * self._config.operation_timeout
        body = Batch(list(_events(letters)))
        try:
            answer = await self.client.ask("POST", "/letters/batch", Results, body, repeats=repeats)
        except (RequestRefused, PayloadTooLarge) as refused:
            if len(letters) == 1:
                return [refused]
            half = len(letters) // 2
            return [*await self._add(letters[:half]), *await self._add(letters[half:])]
        except TokenRefused as refused:  # of an open queue: a rotation that is under way must cost no letter
            raise StoreUnavailable(str(refused), certain=True) from refused
        except StoreUnavailable:
            raise
        except DeadLetterError as error:
            return [error] * len(letters)
        if len(answer.results) != len(letters):
            raise StoreUnavailable(
                f"{self.client.url} answers {len(answer.results)} results for {len(letters)} letters"
            )
        return [_result(each) for each in answer.results]

    async def known(self, kept: Sequence[Kept], *, now_ms: int) -> set[int]:
        """Return the positions of those letters that stand in the queue; `now_ms` is this machine's clock."""
        found: set[int] = set()
        for at in range(0, len(kept), BATCH):
            keys = [_key(each) for each in kept[at : at + BATCH]]
            answer = await self.client.ask("POST", "/letters/known", Known, Keys(keys, now_ms), within_s=LOOKUP_S)
            found |= {at + position for position in answer.positions}
        return found


def _key(kept: Kept) -> Key:
    new = kept.letter
    return Key(
        event_id=new.event_id,
        subscription=new.subscription,
        dedupe_key=new.dedupe_key,
        ordering_key=new.ordering_key,
        kept_since_ms=kept.since_ms,
        tried=kept.tried,
    )


def _result(result: Result) -> str | Exception:
    return result.id if result.problem is None else error_of(result.problem)


def _batches(letters: Sequence[NewLetter]) -> Iterator[Sequence[NewLetter]]:
    begin, size = 0, 0
    for at, new in enumerate(letters):
        size += _size(new)
        if at > begin and (at - begin >= BATCH or size > BATCH_BYTES):
            yield letters[begin:at]
            begin, size = at, _size(new)
    if begin < len(letters):
        yield letters[begin:]


def _size(new: NewLetter) -> int:
    return len(new.payload) + len(new.headers) + len(new.traceback) + len(new.error)


def _events(letters: Sequence[NewLetter]) -> Iterator[Event]:
    """Yield what the service is told of letters; their bytes always as base64, which brings back each of them."""
    packed, headers = b"", dict[str, Any]()
    for new in letters:
        if new.headers is not packed:  # mostly all of a call share them
            packed, headers = new.headers, msgspec.json.decode(new.headers) if new.headers else {}
        yield Event(
            type=new.type,
            payload_base64=new.payload,
            content_type=new.content_type,
            event_id=new.event_id,
            subscription=new.subscription,
            reason=new.reason,
            error_type=new.error_type,
            error=new.error,
            traceback=new.traceback,
            fingerprint=new.fingerprint,
            failed_at_ms=new.failed_at_ms,
            attempts=new.attempts,
            delay_ms=new.delay_ms,
            ordering_key=new.ordering_key,
            dedupe_key=new.dedupe_key,
            headers=headers,
        )
