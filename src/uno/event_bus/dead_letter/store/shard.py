"""One shard: the typed face of the scripts that change it.

A letter's id is ``<shard>-<ms>-<seq>``; below this module only the stream id, its last two parts, is known.
Times go down as durations and come up in ms of the server's clock.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Final

from uno.event_bus.dead_letter.errors import LayoutMismatch, NotReplicated, StoreUnavailable
from uno.event_bus.dead_letter.letter import Lease, Letter, LetterState, NewLetter, Verb
from uno.event_bus.dead_letter.store.durability import Durability
from uno.event_bus.dead_letter.store.layout import shard_key, shard_tag, slot_of
from uno.event_bus.dead_letter.store.layout_record import Layout
from uno.event_bus.dead_letter.store.meaning import Meaning, classify
from uno.event_bus.dead_letter.store.node import LONGEST_BLOCK_S, Lane, Word
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.topology import Topology
from uno.event_bus.dead_letter.store.values import (
    VERDICTS,
    Answer,
    Extended,
    Outcome,
    Reclaimed,
    Repaired,
    Seen,
    Taken,
    Verdict,
    arguments_of,
    counters_of,
    optional_ms,
)

__all__ = ["LayoutChanged", "Shard"]

THIS_PROCESS: Final = token_urlsafe(4)
"""Names this process among those that capture; its forks share the name, and the clock."""

OWN_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine is suspended, where the system has such a clock; not while a hypervisor pauses it."""


class LayoutChanged(Exception):
    """The queue has grown: letters have other homes. Nothing is captured from here on; never leaves the store."""

    def __init__(self, *, certain: bool) -> None:
        self.certain = certain
        """Nothing was captured before either; else the home of before may tell."""
        super().__init__()


type Follow = Callable[[], Callable[[int], Awaitable[None]] | None]
"""Gives what brings the layout of this process to an epoch that a shard has told; None when its store is gone."""


class Shard:
    """A slice of the queue: its keys share one hash slot, so each method is one atomic script.

    Every method raises `StoreUnavailable` when Redis does not answer, and `LayoutMismatch` when the shard knows
    a later protocol or layout than this process.
    """

    def __init__(
        self,
        queue: str,
        index: int,
        topology: Topology,
        layout: Layout,
        *,
        follow: Follow | None = None,
        now_us: int | None = None,
    ) -> None:
        self.queue = queue
        self.index = index
        self.tag = shard_tag(queue, index)
        self.route = Route(topology, slot_of(self.tag), queue)
        self.layout = layout
        self._follow = follow
        self.now_us = now_us
        """Time passed to the scripts, for tests; None: the server's."""
        self.producer: tuple[str, int] | None = None
        """Who captures, and when by its own clock in ms, for tests; None: this process, then by `now_us` if passed."""
        self._prefix = f"{index}-"
        self._highest_token = 0
        """Told to `take`, which draws a later one also when a failover has set the shard and its clock back."""

    def __repr__(self) -> str:
        return f"Shard({self.tag})"

    def key(self, name: str) -> str:
        """Return the shard's key of this name."""
        return shard_key(self.queue, self.index, name)

    def letter_id(self, stream_id: bytes) -> str:
        """Return the letter's id of a stream id."""
        return self._prefix + stream_id.decode()

    @staticmethod
    def stream_id(letter_id: str) -> str:
        """Return the stream id of a letter's id."""
        return letter_id.partition("-")[2]

    async def call(
        self,
        name: str,
        args: Iterable[Word],
        *,
        repeat: bool = True,
        lane: Lane = "commands",
        patience_s: float | None = None,
        confirm: bytes = b"",
        stays: bool = True,
        replica: bool = False,
    ) -> Any:
        """Run a script here with protocol, epoch and time before its arguments; the rest as of `Route.call`.

        When the queue grows meanwhile, the call goes on here; unless it `stays`, it raises `LayoutChanged`.
        """
        verb = script(name)
        keys = [self.key(key) for key in verb.keys]
        words = tuple(args)
        certain = True
        try:
            while True:
                common: tuple[Word, ...] = (PROTOCOL, self.layout.epoch, "" if self.now_us is None else self.now_us)
                try:
                    return await self.route.call(
                        verb,
                        keys,
                        common + words,
                        lane=lane,
                        repeat=repeat,
                        patience_s=patience_s,
                        confirm=confirm,
                        replica=replica,
                    )
                except Refused as refused:
                    certain = certain and refused.certain
                    await self._refused(refused)
                if not stays:
                    raise LayoutChanged(certain=certain)
        except StoreUnavailable as error:
            if certain:
                raise
            raise error.unsure() from error

    async def _refused(self, refused: Refused) -> None:
        """Follow a growth that this process has not heard of; raise when it cannot."""
        if refused.code == "UPGRADE":
            raise LayoutMismatch(
                self.queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
            ) from None
        follow = None if self._follow is None else self._follow()
        if follow is None:
            raise LayoutMismatch(
                self.queue, "layout epoch", self.layout.epoch, refused.known, "restart this process"
            ) from None
        await follow(refused.known)

    async def add(
        self,
        letters: Sequence[NewLetter],
        *,
        limit: int = 0,
        window_ms: int = 600_000,
        patience_s: float | None = None,
        stays: bool = False,
    ) -> list[str | None]:
        """Capture letters; return their ids, None for each that found the shard full.

        `limit` is the number of letters the shard may hold (0: any); a capture key is remembered for
        `window_ms` (0: not at all). A repeat answers the first id. Raises `QueueFull` when the server is out of
        memory. While it is certain that nothing was captured it tries for `patience_s` (None: as all calls).
        Letters that do not stay have another home when the queue grows: `LayoutChanged`.
        """
        args = [limit, window_ms, *self._producer(), *arguments_of(letters)]
        return self._ids(await self.call("add", args, repeat=window_ms > 0, patience_s=patience_s, stays=stays))

    async def add_durably(
        self,
        letters: Sequence[NewLetter],
        durability: Durability,
        *,
        limit: int = 0,
        window_ms: int = 600_000,
        patience_s: float | None = None,
        stays: bool = False,
    ) -> list[str | NotReplicated | None]:
        """Capture letters as `add` does, and have that confirmed; return `NotReplicated` for each that was not."""
        args = [limit, window_ms, *self._producer(), *arguments_of(letters)]
        reply, confirmed = await self.call(
            "add", args, repeat=window_ms > 0, patience_s=patience_s, confirm=durability.command, stays=stays
        )
        return [id and (durability.refusal(id, confirmed) or id) for id in self._ids(reply)]

    def _producer(self) -> tuple[str, int]:
        """Return who captures, and when by a clock that nobody sets: that tells a repeat if the server's jumps."""
        if self.producer is not None:
            return self.producer
        own_us = time.clock_gettime_ns(OWN_CLOCK) // 1000 if self.now_us is None else self.now_us
        return THIS_PROCESS, own_us // 1000

    def _ids(self, reply: Sequence[bytes]) -> list[str | None]:
        return [None if id == b"FULL" else self.letter_id(id) for id in reply]

    async def recall(self, keys: Sequence[str], *, window_ms: int) -> list[str | None]:
        """Return the ids of the letters that capture keys were captured as here within the window."""
        ids = await self.call("recall", [window_ms, *self._producer(), *keys])
        return [self.letter_id(id) if id else None for id in ids]

    async def adopt(self, epoch: int) -> None:
        """Have the shard refuse callers of an earlier layout epoch from now on. Safe to repeat."""
        verb = script("adopt")
        await self.route.call(verb, [self.key(key) for key in verb.keys], (PROTOCOL, epoch, ""), lane="heartbeats")

    async def take(self, consumer: str, count: int, *, alone: bool = False, ids: Sequence[str] = ()) -> Taken:
        """Lease at most `count` letters: due and new ones, or those named (scheduled or parked, due or not).

        `alone` says that the caller holds nothing: a due suspect then comes first, by itself.
        """
        asked_at = monotonic()
        args: list[Word] = [consumer, count, int(alone), self._highest_token, *map(self.stream_id, ids)]
        reply = await self.call("take", args, repeat=False, lane="work")
        token, now_ms, mark, more, next_due, suspect_due, remade, suspect, new, retried = reply
        drawn = int(token)
        self._highest_token = max(self._highest_token, drawn)
        expires_at = asked_at + self.layout.lease_ms / 1000
        letters = [
            Letter(
                self.letter_id(row[0]),
                row[1],
                state=LetterState.LEASED,
                lease=Lease(consumer, drawn, expires_at),
            )
            for row in new
        ]
        letters += [
            Letter(
                self.letter_id(row[0]),
                row[1],
                state=LetterState.LEASED,
                counters=counters_of(row[2]),
                packed_history=row[3],
                due_ms=int(row[4]) if row[4].isdigit() else 0,
                lease=Lease(consumer, drawn, expires_at),
            )
            for row in retried
        ]
        return Taken(
            letters,
            int(now_ms),
            mark,
            bool(more),
            optional_ms(next_due),
            optional_ms(suspect_due),
            bool(remade),
            bool(suspect),
        )

    async def settle(self, consumer: str, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """End leases; a lease that is not the caller's any more changes nothing. Safe to repeat."""
        args: list[Word] = [consumer]
        for outcome in outcomes:
            ends = outcome.verb is Verb.RESOLVE or outcome.verb is Verb.DISCARD
            args += (
                outcome.letter_id.partition("-")[2],
                outcome.token,
                outcome.verb,
                outcome.fingerprint if ends else f"{outcome.delay_ms} {outcome.failed:d} {outcome.reason}",
                outcome.history,
            )
        reply = await self.call("settle", args, lane="work")
        return [VERDICTS[verdict] for verdict in reply]

    async def extend(self, consumer: str, leases: Sequence[tuple[str, int]]) -> Extended:
        """Keep the leases (letter id, token) that are still the caller's, and learn which are not."""
        args: list[Word] = [consumer]
        for letter_id, token in leases:
            args += (self.stream_id(letter_id), token)
        lost, forgotten = await self.call("extend", args, lane="heartbeats")
        return Extended(
            [self.letter_id(id) for id in lost],
            [(self.letter_id(forgotten[i]), int(forgotten[i + 1])) for i in range(0, len(forgotten), 2)],
        )

    async def reclaim(self, cursor: bytes = b"0-0", *, lease_ms: int, max_crashes: int, until_ms: int = 0) -> Reclaimed:
        """Take letters back from leases older than `lease_ms`; none is leased anew.

        A call that the server comes to after `until_ms` by its own clock (0: never too late) takes nothing back.
        """
        reply = await self.call("reclaim", [cursor, lease_ms, max_crashes, until_ms], lane="work")
        suspects, parked = list(map(self.letter_id, reply[1])), list(map(self.letter_id, reply[2]))
        return Reclaimed(reply[0], suspects, parked, int(reply[3]), reply[4])

    async def repair(self, cursor: bytes = b"", *, idle_ms: int = 3_600_000) -> Repaired:
        """Mend a bounded part of the shard: letters in no place or in two, rows without a letter."""
        reply = await self.call("repair", [cursor, idle_ms], lane="work")
        return Repaired(
            reply[0],
            list(map(self.letter_id, reply[1])),
            list(map(self.letter_id, reply[2])),
            int(reply[3]),
            bool(reply[5]),
        )

    async def expire(self, retention_ms: int) -> list[str]:
        """Remove letters parked for longer than `retention_ms`, at most 100 a call; return their ids."""
        return [self.letter_id(id) for id in await self.call("expire", [retention_ms], lane="work")]

    async def reschedule(self, letters: Sequence[Seen], *, delay_ms: int = 0) -> list[Answer]:
        """Send letters back to the workers; from parked it is a redrive, with a new budget of retries."""
        return await self._operate("reschedule", delay_ms, letters)

    async def park(self, letters: Sequence[Seen], *, reason: str) -> list[Answer]:
        """Stop the retries of letters."""
        return await self._operate("park", reason, letters)

    async def hold(self, letters: Sequence[Seen], *, why: str = "") -> list[Answer]:
        """Keep letters back until they are rescheduled."""
        return await self._operate("hold", why, letters)

    async def discard(self, letters: Sequence[Seen], *, why: str) -> list[Answer]:
        """Remove letters for good."""
        return await self._operate("discard", why, letters)

    async def _operate(self, name: str, value: Word, letters: Sequence[Seen]) -> list[Answer]:
        args: list[Word] = [value]
        for seen in letters:
            args += (self.stream_id(seen.letter_id), seen.state, seen.since_ms)
        # Not repeated after an unknown outcome: the verb would answer CHANGED for its own change.
        return [Answer(answer.decode()) for answer in await self.call(name, args, repeat=False)]

    async def has_leases_older_than(self, seconds: float) -> bool:
        """Whether a lease was not renewed for so long; also when the shard does not answer now."""
        idle_ms = int(seconds * 1000)
        try:
            rows = await self.route.send(
                "XPENDING", self.key("letters"), "workers", "IDLE", idle_ms, "-", "+", 1, lane="work"
            )
        except Exception as error:
            return classify(error) is not Meaning.FATAL  # that is: no group
        return bool(rows)

    async def has_suspects_due_by(self, due_ms: int) -> bool:
        """Whether a letter that was taken back is to run by then; also when the shard does not answer now."""
        try:
            return bool(await self.route.send("ZCOUNT", self.key("suspects"), "-inf", due_ms, lane="work"))
        except Exception as error:
            return classify(error) is not Meaning.FATAL  # that is: a key of another type

    async def wait(self, after: bytes, timeout_s: float) -> None:
        """Return when the stream has an entry past the id `after`, or after `timeout_s` (at most 2 s).

        Nothing is consumed, and a letter that came before the call ends it at once: no wake-up is missed.
        """
        block_ms = max(1, int(min(timeout_s, LONGEST_BLOCK_S) * 1000))
        await self.route.send(
            "XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", self.key("letters"), after, lane="reads"
        )

    async def hang_up(self) -> None:
        """Close the connections to the shard's node that have waited for letters and wait for none now."""
        await self.route.primary.drop_idle("reads")
