"""The offline checker: from the histories of all processes, and what the queue holds at the end, to figures.

A failover to a replica that lacks the last writes undoes them: at the default level that is promised, so a letter
may then end once in each of the two pasts. The run marks such windows (``fault`` lines with shards); an end of a
letter that was accepted before or within one, and another after its begin, are no second end.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tests.support.harness.history import Line, shard_of

__all__ = ["EndState", "Figures", "check"]

BEFORE_S = 1.0
"""How long before a fault a write may have been made that it undoes: replication takes ms, on a busy machine more."""

TERMINAL = ("resolve", "discard")


class Window(NamedTuple):
    """Time and shards of a fault that may undo writes."""

    begin: float
    end: float
    shards: frozenset[int]


@dataclass
class EndState:
    """The queue after the run."""

    open: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Letter id → event id, state."""
    totals: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    expected_open: frozenset[str] = frozenset({"parked", "held"})
    """States that a letter may have at the end."""


@dataclass
class Figures:
    """What a run has shown."""

    attempts: int = 0
    """Captures that were tried, repeats included."""
    acknowledged: int = 0
    """Events whose capture was acknowledged."""
    ok: int = 0
    """Of these, events that came to an end or are kept."""
    lost: int = 0
    """Of these, the others."""
    lost_outside: int = 0
    """Of the lost, those that were acknowledged when no fault could undo it."""
    duplicated: int = 0
    """Events whose handler came to its end more than once."""
    recovered: int = 0
    """Events with a capture of unknown outcome that were there, or were acknowledged by a repeat."""
    unresolved: int = 0
    """Events with a capture of unknown outcome that no repeat could resolve."""
    double_terminal: int = 0
    """Letters, or events, with two ends that no window explains."""
    undone: int = 0
    """The same, explained by a window: the first end was undone with the node that had it."""
    stale_settles: int = 0
    """Settles of a lease that was over, and were accepted."""
    refused: int = 0
    """Settles of a lease that was over, and were refused, as they must be."""
    stuck: int = 0
    """Letters that should have come to an end, and did not."""
    errors: int = 0
    """Answers other than an acknowledgement that producers got."""
    unexpected: int = 0
    """Letters that hold another event than was acknowledged under their id."""
    books: list[str] = field(default_factory=list)
    """What does not add up between histories and the shards' totals, and what `verify` found."""
    examples: list[str] = field(default_factory=list)


class _Settled(NamedTuple):
    line: Line
    verb: str
    verdict: str


class _Checker:
    def __init__(self, lines: Iterable[Line], end: EndState) -> None:
        self._lines = sorted(lines, key=lambda line: line.at)
        self._end = end
        self._figures = Figures()
        self._by: dict[str, list[Line]] = defaultdict(list)
        for line in self._lines:
            self._by[line.what].append(line)
        self._windows = _windows(self._by["fault"])
        self._event_of = {line.letter: line.event for line in [*self._by["ok"], *self._by["start"]]}
        self._event_of |= {letter: event for letter, (event, _) in end.open.items()}
        self._takes: dict[str, list[Line]] = defaultdict(list)
        for line in self._by["take"]:
            self._takes[line.letter].append(line)
        self._deleted = {line.letter for line in self._by["deleted"]}
        self._settled = [_Settled(line, *line.note.split(" ")) for line in self._by["settled"]]

    def figures(self) -> Figures:
        self._captures()
        self._ends()
        self._fences()
        self._unheard_ends()
        self._leftovers()
        self._books()
        return self._figures

    def _explained(self, shard: int, first_at: float, second_at: float) -> bool:
        return any(
            shard in window.shards and window.begin - BEFORE_S <= first_at <= window.end and second_at >= window.begin
            for window in self._windows
        )

    def _undoable(self, capture: Line) -> bool:
        """Whether a fault could undo a capture that was acknowledged then: of one in a spool nobody knows the shard."""
        if capture.letter.startswith("spooled:"):
            return bool(self._windows)
        shard = shard_of(capture.letter)
        return any(
            shard in window.shards and window.begin - BEFORE_S <= capture.at <= window.end for window in self._windows
        )

    def _note(self, text: str) -> None:
        if len(self._figures.examples) < 8:
            self._figures.examples.append(text)

    # -- captures ------------------------------------------------------------------------------------

    def _captures(self) -> None:
        figures = self._figures
        figures.attempts = len(self._by["invoke"])
        acknowledged = {line.event for line in self._by["ok"]}
        figures.acknowledged = len(acknowledged)
        figures.errors = sum(line.note != "cancelled" for line in [*self._by["info"], *self._by["fail"]])
        ended = self._ended_events()
        lost = acknowledged - ended
        figures.lost, figures.ok = len(lost), len(acknowledged) - len(lost)
        for event in sorted(lost):
            self._note(f"lost {event}")
        safe = {line.event for line in self._by["ok"] if not self._undoable(line)}
        figures.lost_outside = len(lost & safe)
        unknown = {line.event for line in self._by["info"]}
        figures.recovered = len(unknown & (acknowledged | ended))
        figures.unresolved = len(unknown - acknowledged)
        acknowledged_as = {line.letter: line.event for line in self._by["ok"]}
        crossed = {
            line.letter for line in self._by["start"] if acknowledged_as.get(line.letter, line.event) != line.event
        }
        figures.unexpected = len(crossed)
        runs = Counter(line.event for line in self._by["end"] if line.note == "ok")
        figures.duplicated = sum(count > 1 for count in runs.values())

    def _ended_events(self) -> set[str]:
        """Events that came to an end, perhaps by a settle that was not answered, or that are kept."""
        refused = {(s.line.letter, s.line.token, s.line.actor) for s in self._settled if s.verdict != "OK"}
        ended = {
            self._event_of.get(line.letter, "")
            for line in self._by["settling"]
            if line.note in TERMINAL and (line.letter, line.token, line.actor) not in refused
        }
        # Refused, but after a try without an answer: that one may have been it.
        tries = Counter((line.letter, line.token, line.actor) for line in self._by["settling"])
        ended |= {
            self._event_of.get(letter, "") for (letter, token, actor) in refused if tries[letter, token, actor] > 1
        }
        return ended | {event for event, _ in self._end.open.values()}

    # -- ends ----------------------------------------------------------------------------------------

    def _ends(self) -> None:
        by_event: dict[str, list[Line]] = defaultdict(list)
        for settled in self._settled:
            if settled.verb in TERMINAL and settled.verdict == "OK":
                by_event[self._event_of.get(settled.line.letter, settled.line.letter)].append(settled.line)
        for event, ends in by_event.items():
            ends.sort(key=lambda line: line.at)
            for first, second in pairwise(ends):
                self._second_end(event, first, second.letter, second.at)
            for letter, (kept, state) in self._end.open.items():
                if kept == event:
                    self._second_end(event, ends[-1], letter, float("inf"), f"and is {state}")

    def _second_end(self, event: str, first: Line, letter: str, at: float, how: str = "") -> None:
        if self._explained(shard_of(first.letter), first.at, at):
            self._figures.undone += 1
        else:
            self._figures.double_terminal += 1
            self._note(f"two ends: {event}, as {first.letter} (token {first.token}) and as {letter} {how}")

    # -- fences --------------------------------------------------------------------------------------

    def _fences(self) -> None:
        tries = Counter((line.letter, line.token, line.actor) for line in self._by["settling"])
        for line, verb, verdict in self._settled:
            later = [take for take in self._takes[line.letter] if take.token > line.token]
            if verdict == "OK":
                known = [take for take in later if take.at < line.asked_at]
                if known and not self._explained(shard_of(line.letter), known[0].at, line.at):
                    self._stale(f"{verb} of {line.letter} by token {line.token} after token {known[0].token}")
                continue
            self._figures.refused += 1
            repeated = tries[line.letter, line.token, line.actor] > 1
            kept = self._end.open.get(line.letter, ("", ""))[1] in self._end.expected_open
            own = next((take for take in self._takes[line.letter] if take.token == line.token), line)
            known_why = later or repeated or kept or line.letter in self._deleted
            if not (known_why or self._explained(shard_of(line.letter), own.at, line.at)):
                self._stale(f"{line.letter} was ended by another while token {line.token} had it ({verb} {verdict})")

    def _unheard_ends(self) -> None:
        """An earlier lease's settle may have ended a letter under its holder, without anybody having been answered.

        The holder's handler is cancelled then, and nobody ever takes the letter again.
        """
        tried: dict[str, list[Line]] = defaultdict(list)
        for line in self._by["settling"]:
            tried[line.letter].append(line)
        for run in self._by["end"]:
            earlier = [line for line in tried[run.letter] if line.token < run.token and line.note in TERMINAL]
            is_over = any(take.token > run.token for take in self._takes[run.letter]) or run.letter in self._end.open
            settled_itself = any(line.token == run.token for line in tried[run.letter])
            if run.note != "cancelled" or not earlier or is_over or settled_itself or run.letter in self._deleted:
                continue
            if not self._explained(shard_of(run.letter), earlier[0].at, run.at):
                self._stale(f"{run.letter} was ended by token {earlier[0].token} while token {run.token} had it")

    def _stale(self, text: str) -> None:
        self._figures.stale_settles += 1
        self._note(f"stale: {text}")

    # -- leftovers and books -------------------------------------------------------------------------

    def _leftovers(self) -> None:
        left = {
            letter: (event, state)
            for letter, (event, state) in self._end.open.items()
            if state not in self._end.expected_open
        }
        self._figures.stuck = len(left)
        for letter, (event, state) in left.items():
            self._note(f"stuck: {event}, {letter} is {state}")

    def _books(self) -> None:
        figures, totals = self._figures, self._end.totals
        figures.books += self._end.violations
        if not totals:
            return
        out = sum(totals[name] for name in ("resolved", "discarded", "expired", "lost_externally"))
        if totals["captured"] != out + len(self._end.open):
            figures.books.append(f"captured {totals['captured']} is not {out} gone and {len(self._end.open)} open")
        if self._windows:
            return  # totals go back with the node that had them
        certain = {s.line.letter for s in self._settled if s.verb == "resolve" and s.verdict == "OK"} - self._deleted
        tried = {line.letter for line in self._by["settling"] if line.note == "resolve"}
        if not len(certain) <= totals["resolved"] <= len(tried):
            figures.books.append(f"resolved {totals['resolved']}, by the histories {len(certain)} to {len(tried)}")
        invoked = {line.event for line in self._by["invoke"]}
        low, high = figures.acknowledged, len(invoked) + len(self._by["foreign"])
        if not low <= totals["captured"] <= high:
            figures.books.append(f"captured {totals['captured']}, by the histories {low} to {high}")


def _windows(faults: Iterable[Line]) -> list[Window]:
    """Windows of the faults that name shards; one that was not ended lasts for ever."""
    begun: dict[str, Line] = {}
    windows = []
    for line in faults:
        if line.letter and line.note == "begin":
            begun[line.event] = line
        elif line.letter and line.note == "end":
            begin = begun.pop(line.event)
            windows.append(Window(begin.at, line.at, frozenset(json.loads(begin.letter))))
    windows += [Window(line.at, float("inf"), frozenset(json.loads(line.letter))) for line in begun.values()]
    return windows


def check(lines: Iterable[Line], end: EndState) -> Figures:
    """Return the figures of a run."""
    return _Checker(lines, end).figures()
