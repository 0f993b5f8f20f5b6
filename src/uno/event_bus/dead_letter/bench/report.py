"""The report: figures of all processes and servers put together, and what they mean."""

from dataclasses import dataclass, field

__all__ = ["Books", "Failover", "Latency", "NodeFigures", "ProcessFigures", "Report", "Setup"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What was running where: without it, no figure means anything."""

    at: str
    """When it began, RFC 3339 in UTC."""
    uno: str
    python: str
    event_loop: str
    machine: str
    cores: int
    """That the benchmark's processes may use."""
    kind: str
    """``given`` (the user's), ``embedded`` or ``cluster`` (its own)."""
    url: str
    servers: list[str]
    primaries: int
    replicas: int
    is_shared: bool
    """Servers, workers and producers run on one machine, so they take each other's CPU."""
    queue: str
    shards: int
    workers: int
    producers: int
    letters: int
    payload_bytes: int
    fail_rate: float
    concurrency: int
    durability: str
    lease_seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds that this share took at most; up to 4.5 % too high, the maximum is exact. None without any."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One server."""

    address: str
    role: str
    """At the end; ``away`` if it did not answer."""
    role_before: str
    server: str
    letters: int
    """Of this run, captured here."""
    cpu_seconds: float | None
    """All that the server has used meanwhile, for whomever; None where it hides that."""
    cpu_share: float | None
    """Of what all nodes have used."""
    cpu_of_a_core: float | None


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """One process of the benchmark."""

    role: str
    letters: int
    """Acknowledged to a producer; runs of a worker's handler."""
    cpu_seconds: float
    cpu_of_a_core: float


@dataclass(frozen=True, slots=True)
class Books:
    """What became of the letters."""

    acknowledged: int
    captured: int
    resolved: int
    parked: int
    open: int
    """Neither resolved nor parked when the benchmark ended."""
    retried: int
    runs: int
    """Of handlers."""
    duplicates: int
    """Runs beyond one for each attempt that was settled: their settle was lost, and the letter ran again."""
    lost: int
    """Acknowledged, and in none of the queue's books: or, by the handlers' own notes, never run and not there."""


@dataclass(frozen=True, slots=True)
class Failover:
    """What the death of a primary cost; seconds."""

    node: str
    pid: int
    shards: list[int]
    killed_after_s: float
    """After the first capture."""
    capture_gap_s: float
    """Longest time without any acknowledged capture, from the kill on."""
    start_gap_s: float
    """Longest time without any start of a handler, from the kill on."""
    answered_after_s: float
    """After the kill, all shards of the node answered again."""
    restarted_after_s: float
    """After the kill, the node was there again."""


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one benchmark."""

    setup: Setup
    seconds: float
    """From the first capture to the last start of a handler."""
    capture_per_s: float | None
    """Acknowledged letters."""
    processing_per_s: float | None
    """Resolved letters, from the first start of a handler to the last."""
    capture: Latency
    """One call that was acknowledged."""
    due_to_start: Latency
    """From when a letter was due for the first time to the start of its handler, by the server's clock.

    Letters are due at whole milliseconds, so up to 1 ms of it is rounding.
    """
    books: Books
    errors: dict[str, int]
    """Code → captures that raised it; each was repeated."""
    nodes: list[NodeFigures]
    letters_by_shard: list[int]
    balance_of_shards: float | None
    """Most ÷ mean letters of a shard; 1 is perfect."""
    balance_of_nodes: float | None
    """Most ÷ mean letters of a primary, by the map at the start."""
    failover: Failover | None
    processes: list[ProcessFigures]
    verify_clean: bool
    violations: list[str]
    notes: list[str] = field(default_factory=list)
    """What has to be known before the figures are believed."""

    @property
    def sound(self) -> bool:
        """Whether no letter is lost or left, and `verify` is clean."""
        return self.verify_clean and not self.books.lost and not self.books.open
