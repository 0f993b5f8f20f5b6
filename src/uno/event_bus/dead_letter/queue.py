"""`DeadLetterQueue`: the façade over capture, handlers, worker, replay and operators' verbs."""

import builtins
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from opentelemetry import context as contexts
from opentelemetry.trace import TracerProvider

from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
from uno.event_bus.dead_letter.bulk import BulkReport, OnAnswers, Which
from uno.event_bus.dead_letter.capture import ARGUMENTS, Capturer, check_metadata
from uno.event_bus.dead_letter.codec import type_name
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.doctor import Finding, examine_spool
from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError
from uno.event_bus.dead_letter.handlers import Handler, Handlers
from uno.event_bus.dead_letter.letter import Letter, NewLetter
from uno.event_bus.dead_letter.operations import Operations
from uno.event_bus.dead_letter.replay import Replay, ReplayReport
from uno.event_bus.dead_letter.retry import PolicyLike, RetryPolicy, as_policy, from_config
from uno.event_bus.dead_letter.rules import require_whole
from uno.event_bus.dead_letter.spool.folder import SpoolStats
from uno.event_bus.dead_letter.storage import Storage
from uno.event_bus.dead_letter.store.audit import AuditEntry, AuditPage
from uno.event_bus.dead_letter.store.connect import Client
from uno.event_bus.dead_letter.store.lookup import Kept
from uno.event_bus.dead_letter.store.registry import WorkerInfo
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.surveyor import Surveyor
from uno.event_bus.dead_letter.telemetry.recorder import NO_RECORDER, Recorder, guarded, together
from uno.event_bus.dead_letter.telemetry.snapshot import Snapshot
from uno.event_bus.dead_letter.telemetry.tracing.captures import CaptureSpans
from uno.event_bus.dead_letter.telemetry.tracing.tracers import OFF, Tracers
from uno.event_bus.dead_letter.telemetry.tracing.work import WorkSpans
from uno.event_bus.dead_letter.where import Where
from uno.event_bus.dead_letter.worker.session import ParkedHook, Report, Session
from uno.event_bus.dead_letter.worker.vitals import Vitals
from uno.event_bus.dead_letter.worker.worker import Worker

if TYPE_CHECKING:
    from uno.event_bus.dead_letter.remote.operations import RemoteOperations

__all__ = ["DeadLetterQueue"]

AUDIT_PAGE: Final = 200
"""Entries of the audit stream that are read at a time."""


class DeadLetterQueue:
    """Keeps every event that a service failed to handle, and tries it again at the right time.

    Args:
        redis: A `redis.asyncio.Redis` or `redis.asyncio.cluster.RedisCluster` as users build it (also with
            ``decode_responses=True``), or a URL: ``redis://``, ``rediss://``, ``unix://``, ``embedded:`` or
            ``embedded:///directory``; for a cluster ``redis://host:7000,host:7001/0?cluster=true``, of whose
            nodes one is enough. ``http://`` or ``https://`` is a service in front of it: the queue is remote then, and
            has every verb but those that run handlers. None: ``config.service_url``, else ``config.redis_url``. A
            client is only read for where it connects to: the engine makes connections of its own, and never closes
            the user's.
        config: Settings; None: the defaults.
        recorder: Hooks for telemetry; None: nothing is recorded.
        tracer_provider: What makes the spans; None: the global one of OpenTelemetry, nothing while none is set.

    Construction does no I/O and needs no event loop; the first call connects. ``async with`` closes the
    connections at the end, `aclose` does so without it. With ``spool_dir`` it also opens while Redis is away: captures
    then answer ``spooled:<event id>``, and this process sends them when Redis is back.
    """

    def __init__(
        self,
        redis: Client | str | None = None,
        config: DeadLetterConfig | None = None,
        *,
        recorder: Recorder | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._config = config or DeadLetterConfig()
        self._storage = Storage(redis if redis is not None else self._config.require_url(), self._config)
        self._recorder = guarded(recorder or NO_RECORDER)
        self._tracers = Tracers(tracer_provider)
        self._policy: RetryPolicy = from_config(self._config)
        self._handlers = Handlers()
        self._parked_hooks: list[ParkedHook] = []
        self._capturer = Capturer(self._config, self.policy_of)
        self._capturer.recorder = self._recorder

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return a queue with the settings of the environment. Raises `ConfigError`."""
        config = DeadLetterConfig.from_env(environ)
        return cls(config.require_url(), config)

    def __repr__(self) -> str:
        return f"DeadLetterQueue({self._config.queue!r})"

    @property
    def config(self) -> DeadLetterConfig:
        """The settings."""
        return self._config

    @property
    def is_remote(self) -> bool:
        """Whether the queue is behind a service: it captures and has the operators' verbs, but runs no handlers."""
        return self._storage.service is not None

    @property
    def tracer_provider(self) -> TracerProvider | None:
        """What makes the spans; None: the global provider."""
        return self._tracers.provider

    def add_recorder(self, recorder: Recorder) -> None:
        """Tell one more recorder what this process does, from now on; not of workers that run already."""
        self._recorder = self._capturer.recorder = together(self._recorder, guarded(recorder))

    # -- life ----------------------------------------------------------------------------------------

    async def open(self, *, make: bool = True) -> None:
        """Connect, check the server and read the queue's layout; any other call does so by itself.

        Without `make`, a queue that nobody has ever used is not made, and letters that wait in ``spool_dir`` are left
        to others. Raises `QueueNotFound` then, `StoreUnavailable`, `LayoutMismatch`, and `ConfigError` for a server
        that is not fit.
        """
        await self._storage.open(make=make)

    async def aclose(self) -> None:
        """Close the connections; an embedded server that nobody else uses ends. The queue can be used again.

        Letters in the spool stay there for the next process, or for the next use.
        """
        await self._storage.aclose()

    async def _store(self, verb: str = "that") -> Store:
        """Return the store, open. Raises `ConfigError` on a remote queue: `verb` needs it."""
        return await self._storage.store(verb)

    async def __aenter__(self) -> Self:
        try:
            await self._storage.open_or_spool()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    # -- capture -------------------------------------------------------------------------------------

    async def add(
        self,
        event: Any,
        *,
        reason: str | None = None,
        error: BaseException | str | None = None,
        subscription_id: str | None = None,
        attempt_count: int = 0,
        delay: float | None = None,
        event_id: str | None = None,
        dedupe_key: str | None = None,
        ordering_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        failed_at: float | None = None,
        **metadata: Any,
    ) -> str:
        """Capture one event that failed; return the letter's id.

        Args:
            event: A msgspec struct, pydantic model, dataclass, attrs object, dict, bytes, or `codec.Encoded`.
            reason: A `DeadLetterReason`, or a text; None: what the error tells.
            error: What the event failed with.
            subscription_id: The subscription that failed; only its handler gets the letter.
            attempt_count: Attempts before the capture; information, not counted against ``max_retries``.
            delay: Seconds until the first retry; None: the policy's first delay, 0: due now.
            event_id: Repeating a call with the same one (and subscription) within ``dedupe_window`` answers the
                first letter's id, and captures nothing. None: a new one is made.
            dedupe_key: Takes the place of `event_id` for that.
            ordering_key: Letters that share it share a shard.
            headers: Kept with the letter, beside the trace context.
            type: The event's type; None: what the event itself says.
            failed_at: When it failed, Unix time, seconds; None: now.
            metadata: Kept in the headers. A name that looks like an argument of this or another method is
                refused; `headers` takes any.

        With ``spool_dir``, what Redis cannot take now is kept on disk and sent later: the id is then
        ``spooled:<event id>``, which names no letter yet.

        Raises `Disabled`, `ConfigError`, `InvalidEvent`, `PayloadTooLarge`, `QueueFull`, `StoreUnavailable`,
        `SpoolFull`, `NotReplicated`, `PermissionDenied`, `StoreError`; in each case the event is untouched, and
        nothing was captured unless the error, `NotReplicated` or one that is not ``certain``, leaves that open.
        """
        check_metadata("add", metadata)
        with self._capture_spans(headers, metadata, None) as spans:
            made = self._capturer.letters(
                [event],
                type=type,
                reason=reason,
                error=error,
                subscription_id=subscription_id,
                attempt_count=attempt_count,
                delay=delay,
                event_ids=[event_id],
                dedupe_key=dedupe_key,
                ordering_key=ordering_key,
                headers=headers,
                failed_at=failed_at,
                metadata=metadata,
                spans=spans,
            )
            if isinstance(made[0], Exception):
                raise made[0]
            return (await self._capturer.capture(self._storage.receiver, made, self._storage.spool(), spans))[0]

    async def add_many(
        self,
        events: Sequence[Any],
        *,
        reason: str | None = None,
        error: BaseException | str | None = None,
        subscription_id: str | None = None,
        attempt_count: int = 0,
        delay: float | None = None,
        event_ids: Sequence[str | None] | None = None,
        ordering_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        failed_at: float | None = None,
        **metadata: Any,
    ) -> list[str]:
        """Capture events that failed alike, up to 100 a round trip and shard; return the letters' ids in order.

        Arguments as of `add`; `event_ids` are theirs by position. Raises `PartialCapture` with ids and errors by
        position when not all were captured (one event: its own error), else as `add`.
        """
        check_metadata("add_many", metadata)
        if event_ids is not None and len(event_ids) != len(events):
            raise ConfigError(f"event_ids has {len(event_ids)} entries for {len(events)} events: nothing was captured")
        if not events:
            return []
        with self._capture_spans(headers, metadata, len(events)) as spans:
            made = self._capturer.letters(
                events,
                type=type,
                reason=reason,
                error=error,
                subscription_id=subscription_id,
                attempt_count=attempt_count,
                delay=delay,
                event_ids=event_ids,
                ordering_key=ordering_key,
                headers=headers,
                failed_at=failed_at,
                metadata=metadata,
                spans=spans,
            )
            return await self._capturer.capture(self._storage.receiver, made, self._storage.spool(), spans)

    async def put(self, letters: Sequence[NewLetter]) -> list[str | DeadLetterError]:
        """Capture letters that are made already, as a service is given them; return by position id or error.

        Repeats, spool and bounds are those of `add_many`; spans are whoever's who made the letters. Raises `Disabled`,
        and what opening the queue does.
        """
        if not letters:
            return []
        return await self._capturer.put(self._storage.receiver, letters, self._storage.spool())

    async def known(self, kept: Sequence[Kept], *, now_ms: int) -> set[int]:
        """Return the positions of those letters, kept by their producer for a while, that stand in the queue.

        What is older than ``dedupe_window`` is not told by a repeated capture. `now_ms` is the producer's clock. Raises
        `StoreUnavailable`. A letter that was captured and settled meanwhile cannot be seen.
        """
        return await (await self._storage.receiver()).known(kept, now_ms=now_ms)

    def _capture_spans(
        self, headers: Mapping[str, str] | None, metadata: Mapping[str, Any], letters: int | None
    ) -> AbstractContextManager[CaptureSpans | None]:
        tracer = self._tracers.current()
        if tracer is None or not self._config.enabled:
            return OFF
        given = {**metadata, **(headers or {})}
        return CaptureSpans(tracer, self._config.queue, given, letters=letters, create_spans=self._config.create_spans)

    @asynccontextmanager
    async def capture(self, event: Any, **how: Any) -> AsyncGenerator[None]:
        """Capture the event when the body raises an `Exception`, which then goes no further; arguments as of `add`.

        If the capture itself fails, its error is raised with the body's as its cause, so nothing is swallowed.
        With ``DLQ_ENABLED=false`` the body's own error is raised.
        """
        check_metadata("add", how.keys() - ARGUMENTS["add"])  # before the body: afterwards it would cost the event
        try:
            yield
        except Exception as error:
            if not self._config.enabled:
                raise
            try:
                how.setdefault("error", error)
                await self.add(event, **how)
            except Exception as failure:
                raise failure from error

    # -- handlers ------------------------------------------------------------------------------------

    def add_handler(
        self,
        fn: Callable[..., Any],
        type: str | builtins.type[Any] | None = None,
        subscription: str | None = None,
        *,
        timeout: float | None = None,
        concurrency: int | None = None,
        retry: PolicyLike = None,
    ) -> str:
        """Register what handles letters of a type and a subscription (None: any); return the handler's id.

        The most specific handler gets the letter: type and subscription, then subscription, then type, then
        neither. It gets the event, decoded into the annotation of its first parameter, and, if it has a
        parameter named ``letter``, the letter. Returning resolves; raising follows the policy; `RetryLater`,
        `Park` and `Discard` decide. A plain function runs in a thread.

        Args:
            fn: The handler, async or not.
            type: The event's type, or the class of the events.
            subscription: The id of the subscription that failed.
            timeout: Seconds that an attempt may take; None: as long as it needs, the lease is kept meanwhile.
            concurrency: Attempts at a time in this process; None: as many as the worker runs.
            retry: A policy of its own, see `retry.as_policy`; None: the queue's.

        Raises `ConfigError` when there is one for the same type and subscription already.
        """
        # mypy does not take a class for hashable
        name = type_name(type) if isinstance(type, builtins.type) else type  # type: ignore[arg-type]
        return self._handlers.add(
            fn,
            name,
            subscription,
            timeout=timeout,
            concurrency=concurrency,
            retry=retry,
            max_retries=self._config.max_retries,
        )

    def handler(
        self,
        type: str | builtins.type[Any] | None = None,
        *,
        subscription: str | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        retry: PolicyLike = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register the decorated function; arguments as of `add_handler`."""

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            self.add_handler(fn, type, subscription, timeout=timeout, concurrency=concurrency, retry=retry)
            return fn

        return register

    def remove_handler(self, handler_id: str) -> bool:
        """Remove a handler; answer whether there was one. Its letters wait for another, see ``unhandled_after``."""
        return self._handlers.remove(handler_id)

    def clear_handlers(self) -> None:
        """Remove all handlers."""
        self._handlers.clear()

    @property
    def handlers(self) -> list[Handler]:
        """The handlers, in the order of their registration."""
        return self._handlers.all()

    def set_retry_policy(self, policy: PolicyLike, *, handler: str | None = None) -> None:
        """Set the policy of the queue in this process, or of one handler by its id.

        It holds from now on, also for workers that run. Raises `ConfigError` for what is no policy (see
        `retry.as_policy`; also for None, which `add_handler` takes for the queue's), or an id that is not
        registered.
        """
        if policy is None:
            raise ConfigError("policy is None: allowed are seconds, a policy and others; () parks at once")
        made = as_policy(policy, max_retries=self._config.max_retries)
        if handler is None:
            self._policy = made
        else:
            self._registered(handler).policy = made

    def get_retry_policy(self, handler: str | None = None) -> RetryPolicy:
        """Return the policy of the queue, or the one that a handler's letters follow."""
        return self._policy if handler is None else self._registered(handler).policy or self._policy

    def _registered(self, handler_id: str) -> Handler:
        found = self._handlers.get(handler_id)
        if found is None:
            known = ", ".join(handler.id for handler in self._handlers.all()) or "none"
            raise ConfigError(f"no handler has the id {handler_id!r}; registered are: {known}")
        return found

    def policy_of(self, type: str, subscription: str | None) -> RetryPolicy:
        """Return the policy that letters of this type and subscription follow in this process."""
        handler = self._handlers.most_specific(type, subscription)
        return (handler.policy if handler else None) or self._policy

    def on_parked(self, hook: ParkedHook) -> ParkedHook:
        """Call ``hook(letter, reason)`` for each letter that this process parks; async or not; a decorator too.

        It is called after the letter is parked, at most once by each process, not at all if that is killed. A
        plain function runs in a thread.
        """
        self._parked_hooks.append(hook)
        return hook

    # -- work ----------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        stop: anyio.Event | None = None,
        ready: anyio.Event | None = None,
        vitals: Vitals | None = None,
    ) -> Report:
        """Work on letters until cancelled, or until `stop` is set; return what was done.

        `stop` makes an ordered end: no more letters are taken, those not started are released, handlers get
        ``shutdown_grace`` seconds to finish. A cancellation does the same without the grace time. `ready` is set
        when every shard has answered. `vitals` hears of the worker: what the probes of a process ask.
        """
        session = await self._session("run", parent=contexts.Context())  # it outlives the span that it is started in
        worker = Worker(session)
        if vitals is not None:
            vitals.watch(worker)
        async with anyio.create_task_group() as group:
            if stop is not None:
                group.start_soon(_then, stop, worker.stop)
            if ready is not None:
                group.start_soon(_then, worker.ready, ready.set)
            await worker.run()
            group.cancel_scope.cancel()
        return session.report

    async def process(self) -> Report:
        """Work off what is due now, then return; letters that are due later stay scheduled.

        Letters of dead workers whose leases have run out are due as well: while there are any it stays, for a
        lease at most until it may take them back, and runs them.
        """
        session = await self._session("process")
        await Worker(session).run(until_idle=True)
        return session.report

    async def replay_events(
        self,
        batch_size: int = 100,
        max_concurrent: int | None = None,
        where: Where | Mapping[str, Any] | None = None,
        dry_run: bool = False,
        on_progress: Callable[[ReplayReport], None] | None = None,
    ) -> ReplayReport:
        """Run letters now, in this process: every waiting and scheduled one, due or not.

        Args:
            batch_size: Letters a round trip, 1 to 1000.
            max_concurrent: Handlers at a time; None: ``concurrency``.
            where: Which letters; parked ones only if it says so (``{"state": "parked"}``).
            dry_run: Count them, and run none.
            on_progress: Called five times a second, and at the end, with what was done so far.

        Returns a report that unpacks as ``success, failed``. Letters that fail follow their policy. Suspects and
        held letters are left alone.
        """
        batch_size = require_whole("batch_size", batch_size, "letters", 1, 1000)
        if max_concurrent is None:
            max_concurrent = self._config.concurrency
        max_concurrent = require_whole("max_concurrent", max_concurrent, "handlers", 1, 10_000)
        config = replace(self._config, batch_size=batch_size, concurrency=max_concurrent)
        session = await self._session("replay_events", config)
        replay = Replay(session, Where.of(where), batch_size=batch_size, dry_run=dry_run, on_progress=on_progress)
        return await replay.run()

    async def _session(
        self, verb: str = "that", config: DeadLetterConfig | None = None, *, parent: contexts.Context | None = None
    ) -> Session:
        store = await self._store(verb)
        await self._storage.open_spool()
        session = Session(
            store,
            config or self._config,
            self._handlers,
            lambda: self._policy,
            self._recorder,
            self._parked_hooks,
        )
        tracer = self._tracers.current()
        if tracer is not None:
            parent = contexts.get_current() if parent is None else parent
            session.tracing = WorkSpans(tracer, self._config.queue, session.consumer, parent)
        return session

    # -- operators -----------------------------------------------------------------------------------

    async def _operations(self) -> "Operations | RemoteOperations":
        receiver = await self._storage.receiver()
        if isinstance(receiver, Store):
            return Operations(receiver, replica=self._config.read_from == "replica")
        from uno.event_bus.dead_letter.remote.operations import RemoteOperations

        return RemoteOperations(receiver)

    async def get(self, letter_id: str) -> Letter:
        """Return an open letter; raises `LetterNotFound`."""
        return await (await self._operations()).get(letter_id)

    async def letters(
        self, where: Where | Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> AsyncGenerator[Letter]:
        """Yield the open letters that match, shard by shard, oldest capture first.

        Without `whole`, payload and traceback are left out. Letters that change meanwhile may be missed, or
        shown as they were.
        """
        operations = await self._operations()
        async for letter in operations.letters(where, whole=whole):
            yield letter

    async def page(
        self, where: Where | Mapping[str, Any] | None = None, *, cursor: str = "", most: int = 100, whole: bool = True
    ) -> tuple[list[Letter], str]:
        """Return some of the open letters that match, 1 to 1000, and the cursor of the next page; empty after the last.

        A page may be empty and not the last: its work is bounded. Raises `ConfigError` for what is no cursor.
        """
        most = require_whole("most", most, "letters", 1, 1000)
        return await (await self._operations()).page(where, cursor, most, whole=whole)

    async def retry(self, letter_id: str, *, delay: float = 0.0) -> None:
        """Send a letter back to the workers, due after `delay` seconds; a parked one gets a new budget of retries.

        Raises `LetterNotFound`; `LetterStateConflict` when a worker has it.
        """
        await (await self._operations()).retry(letter_id, delay=delay)

    async def park(self, letter_id: str, why: str) -> None:
        """Stop the retries of a letter. Raises `LetterNotFound`; `LetterStateConflict` when leased or parked."""
        await (await self._operations()).park(letter_id, why)

    async def discard(self, letter_id: str, why: str) -> None:
        """Remove a letter for good, also one that a worker has. Raises `LetterNotFound`."""
        await (await self._operations()).discard(letter_id, why)

    async def retry_many(
        self, which: Which, *, delay: float = 0.0, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Send letters back to the workers, as `retry` does each: those of a list of ids, or all that a filter matches.

        Letters go 500 a call; `on_answers` hears what became of each, batch by batch. One that is gone, or that a
        worker has, is an answer, no error. Any other error ends the work where it is; to repeat the call is safe.
        With `dry_run` the answers are those that would be given, and nothing is changed.
        """
        operations = await self._operations()
        return await operations.retry_many(which, delay=delay, dry_run=dry_run, on_answers=on_answers)

    async def discard_many(
        self, which: Which, why: str, *, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Remove letters for good, as `discard` does each; arguments and answers as of `retry_many`.

        A filter without any field (``{}``) matches every letter of the queue.
        """
        return await (await self._operations()).discard_many(which, why, dry_run=dry_run, on_answers=on_answers)

    async def stats(self) -> QueueStats:
        """Return counts and totals: one bounded call a shard, and a look at the spool's files."""
        found = await (await self._operations()).stats()
        return replace(found, spool=await self.spool_stats())

    async def spool_stats(self) -> SpoolStats | None:
        """Count what waits in the spool, of all processes of this machine; None without one. Needs no Redis."""
        spool = self._storage.spool()
        return None if spool is None else await spool.stats()

    async def snapshot(self, before: Snapshot | None = None) -> Snapshot:
        """Return what metrics tell of the queue and its servers: one bounded call a shard and a server, 2 s at most.

        It always answers: what is away is told as it was `before`, and said to be away. Raises `ConfigError` on a
        remote queue.
        """
        self._storage.require_redis("snapshot")
        return await Surveyor(self._config.queue, self._store, self.spool_stats).survey(before)

    async def workers(self) -> list[WorkerInfo]:
        """Return what the workers that live tell of themselves: shards, letters held, host, process, concurrency."""
        return await (await self._operations()).workers()

    async def reshard(self, shards: int) -> int:
        """Give a live queue more shards, while producers and workers go on; return how many it has then.

        Nobody is restarted, no key is renamed and no letter moved; a repeat is safe. Raises `ConfigError` for what is
        no power of two above the present count, `StoreUnavailable` when a node is away: then repeat it soon, because
        shards that have heard of it wait for its end.
        """
        return await (await self._operations()).reshard(shards)

    async def audited(self) -> AsyncGenerator[AuditEntry]:
        """Yield what operators have done, the newest first: for each call of a verb its outcome and its intent.

        Who did it is `process_user`, or whom ``with acting_as(who, request_id):`` names around the call.
        """
        operations, cursor = await self._operations(), ""
        while True:
            page = await operations.audit_page(cursor, limit=AUDIT_PAGE)
            for entry in page.entries:
                yield entry
            cursor = page.cursor
            if not cursor:
                return

    async def audit_page(self, cursor: str = "", *, limit: int = 100) -> AuditPage:
        """Return at most so many of these entries, 1 to 1000, and a cursor for those before them; empty at the end."""
        return await (await self._operations()).audit_page(cursor, limit=limit)

    async def verify(self, *, on_progress: Callable[[float], None] | None = None) -> VerifyReport:
        """Check every invariant over the live queue, in bounded calls.

        `on_progress` hears after each of them how much is done: an estimate, from 0 to 1.
        """
        return await (await self._operations()).verify(on_progress=on_progress)

    async def health(self) -> list[Finding]:
        """Look at server, memory, layout, every shard, and the spool; it is fit for work when every finding is ok."""
        found = await (await self._operations()).health()
        if self._config.spool_dir is not None:
            found.append(examine_spool(self._config.spool_dir, await self.spool_stats()))
        return found


async def _then(event: anyio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()
