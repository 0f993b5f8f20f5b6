"""The way to one slot: sends calls to the node that serves it, follows redirects, and repeats what is safe.

Every error is classified in one place (`meaning`); here it becomes a decision: follow, wait and try again, or
tell the caller. redis-py decides nothing: its retries are off, and its cluster client is not used (its ASK takes
another connection than its ASKING, and its resets drop the connections of bystanders).
"""

import logging
import random
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import anyio
from redis.exceptions import AskError

from uno.event_bus.dead_letter.errors import QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.store.meaning import Meaning, classify, describe, refusal
from uno.event_bus.dead_letter.store.node import Lane, Manner, Node, Word
from uno.event_bus.dead_letter.store.scripts import Script
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["Refused", "Route"]

logger = logging.getLogger(__name__)

MOST_REDIRECTS: Final = 5
"""Redirects in a row that are followed at once; after them the nodes are given time to agree."""


REPLICAS_REST_S: Final = 5.0
"""A slot's replicas are left alone for so long after one did not answer, which may have taken a whole timeout."""


class Refused(Exception):
    """A script's answer to a caller of an earlier protocol or layout; never leaves the store."""

    def __init__(self, code: str, known: int, *, certain: bool = True) -> None:
        self.code = code
        self.known = known
        self.certain = certain
        """No earlier try of the call may have run."""
        super().__init__(f"{code} {known}")


class Route:
    """The way to the keys of one slot."""

    def __init__(self, topology: Topology, slot: int, queue: str = "") -> None:
        self.slot = slot
        self._topology = topology
        self._queue = queue
        self._failed: Node | None = None
        """The node that last did not do what it was asked to; before the next try the others are asked for the map."""
        self._replicas_rest_until = 0.0
        """Monotonic time until which no replica is asked."""
        self.away_since: float | None = None
        """Monotonic time since which the slot has answered nothing; None while it answers."""

    @property
    def primary(self) -> Node:
        """The node that serves the slot, as far as is known."""
        return self._topology.primary(self.slot)

    async def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Word],
        *,
        lane: Lane = "commands",
        repeat: bool = True,
        patience_s: float | None = None,
        confirm: bytes = b"",
        replica: bool = False,
    ) -> Any:
        """Run a script; what certainly did not run is tried again, and with `repeat` also what may have run.

        Tries for the topology's timeout in all, with exponential backoff and jitter from 10 ms to 500 ms; while
        nothing can have run, only for `patience_s` (None: no less). With the command `confirm`, which follows on the
        same connection, it returns the script's reply and the reply to that, which may be an error. With `replica`, for
        a script that writes nothing, a replica is asked first, whose answer may be behind.

        Raises `StoreUnavailable`, `QueueFull` (no memory) and `Refused` (a later protocol or layout); for what
        no repeat helps, `PermissionDenied` or `StoreError`.
        """
        if replica and (node := await self._replica()) is not None:
            try:
                return await node.run(node.by_sha(script, keys, args), script, keys, args, lane, Manner())
            except Exception as error:
                logger.debug("%s is not read, its primary is: %s", node, describe(error))
                self._replicas_rest_until = monotonic() + REPLICAS_REST_S
        began, timeout_s = monotonic(), self._topology.timeout_s
        pause = 0.01
        redirects = 0
        certain = True
        asked: Node | None = None
        while True:
            if self._failed is not None:
                await self._topology.refresh(failed=self._failed)
                self._failed = None
            node = asked or self.primary
            by_sha = node.by_sha(script, keys, args)  # not below: what cannot be packed is no error of Redis
            try:
                reply = await node.run(by_sha, script, keys, args, lane, Manner(asked is not None, confirm))
            except Exception as error:
                meaning = classify(error)
                asked = self._redirected(meaning, error, node)
                if meaning in _REDIRECTS and redirects < MOST_REDIRECTS:
                    redirects += 1
                    continue
                self._failed = node if meaning in _NODES_FAULT else None
                again = meaning in _NOT_EXECUTED or (repeat and meaning is Meaning.UNKNOWN)
                certain = certain and meaning is not Meaning.UNKNOWN  # of all tries: one of them may have run
                tries_for_s = patience_s if certain and patience_s is not None else timeout_s
                if not again or monotonic() + pause > began + tries_for_s:
                    raise self._failure(meaning, error, node, certain) from error
            else:
                self.away_since = None
                return reply
            await anyio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, 0.5)
            redirects, asked = 0, None

    async def _replica(self) -> Node | None:
        """Return a replica to read from; None while none is known that answers."""
        if monotonic() < self._replicas_rest_until:
            return None
        replica = self._topology.replica(self.slot)
        if replica is None:  # nodes do not name a replica that is still coming up
            await self._topology.refresh()
            replica = self._topology.replica(self.slot)
        if replica is None:
            self._replicas_rest_until = monotonic() + REPLICAS_REST_S
        return replica

    async def send(self, *words: Word, lane: Lane) -> Any:
        """Send one command once, where the slot is; raises what redis-py raises."""
        node = self.primary
        try:
            return await node.send(*words, lane=lane)
        except AskError as error:
            asked = self._redirected(classify(error), error, node)
            return await (asked or self.primary).send(*words, lane=lane, asking=asked is not None)
        except Exception as error:
            self._failed = node if classify(error) in _NODES_FAULT else None
            raise

    def _redirected(self, meaning: Meaning, error: Exception, node: Node) -> Node | None:
        """Take a redirect to heart; return the node to ask once, None when the slot's own is to be asked."""
        if meaning is Meaning.MOVED:
            assert isinstance(error, AskError)
            self._topology.moved(self.slot, error.node_addr, node)
        elif meaning is Meaning.ASK:
            assert isinstance(error, AskError)
            return self._topology.told(error.node_addr, node)
        return None

    def _failure(self, meaning: Meaning, error: Exception, node: Node, certain: bool) -> Exception:
        """Return what the caller is told."""
        match meaning:
            # Of a repeat they would say that nothing was done; but an earlier try may have had the right, or the room.
            case Meaning.FATAL if certain:
                return refusal(error, node.target.name)
            case Meaning.FULL if certain:
                return QueueFull(self._queue)
            case Meaning.REFUSED:
                code, _, known = str(error).partition(" ")
                return Refused(code, int(known), certain=certain)
            case _:
                if self.away_since is None:
                    self.away_since = monotonic()
                return StoreUnavailable(f"{describe(error)} at {node.target.name}", certain=certain)


_REDIRECTS: Final = frozenset({Meaning.MOVED, Meaning.ASK})
_NODES_FAULT: Final = frozenset({Meaning.NOT_SENT, Meaning.UNKNOWN, Meaning.DEGRADED, *_REDIRECTS})
_NOT_EXECUTED: Final = frozenset({Meaning.NOT_SENT, Meaning.DEGRADED, Meaning.LOCKED_OUT, *_REDIRECTS})
