"""Outages: what keeps going wrong is said once, then at growing intervals, and once more when it is over.

While Redis is away every role of every shard fails several times a second, and all of them for the same cause. So a
worker keeps one book by cause: the first failure is a line, whoever has it; the next ones are counted, and the
count is a line after 5 s, then after 10, 20, and every 30 s. When the last role that failed is at work again, that is
a line, too. A cause that comes back within a minute goes on where it was: connections that break all the time
are no flood either, and neither is their recovery.
"""

import logging
from dataclasses import dataclass, field
from time import monotonic

__all__ = ["Outages", "Trouble"]

logger = logging.getLogger(__name__)

FIRST_SILENCE_S = 5.0
LONGEST_SILENCE_S = 30.0
FORGOTTEN_AFTER_S = 60.0
"""A cause that was over for this long is a new one when it comes back."""

MOST_CAUSES = 100
"""Texts of errors come from outside: the book must not grow with them."""


@dataclass(slots=True, eq=False)
class Cause:
    """What went wrong, by its text, and who has not got over it."""

    text: str
    since: float
    """Monotonic time of the first failure since it was last over."""
    silent_until: float
    silence_s: float = FIRST_SILENCE_S
    unsaid: int = 0
    """Failures since the last line."""
    was_said: bool = False
    """A line was written since it was last over: so its end is worth one."""
    over_at: float = 0.0
    failing: set["Trouble"] = field(default_factory=set)

    def is_forgotten(self, now: float) -> bool:
        """Whether it has been over for so long that nobody connects it with what comes."""
        return not self.failing and now - self.over_at > FORGOTTEN_AFTER_S


class Outages:
    """The book of one worker."""

    def __init__(self) -> None:
        self._causes: dict[str, Cause] = {}

    def of(self, where: str) -> "Trouble":
        """Return what one role writes its failures into; `where` begins its lines."""
        return Trouble(self, where)

    def note(self, trouble: "Trouble", what: str, text: str) -> None:
        """Count a failure; say it if the cause is new, or has been silent for long enough."""
        now = monotonic()
        cause = self._causes.get(text)
        if cause is None or cause.is_forgotten(now):
            self._make_room(now)
            cause = self._causes[text] = Cause(text, now, now)
        if not cause.failing:
            cause.since = now
        cause.failing.add(trouble)
        trouble.causes.add(cause)
        if now < cause.silent_until:
            cause.unsaid += 1
            return
        more = f" ({cause.unsaid} more failures since the last such line)" if cause.unsaid else ""
        logger.warning("%s: %s: %s%s", trouble.where, what, text, more, extra={"is_rationed": True})
        cause.was_said, cause.unsaid = True, 0
        cause.silent_until = now + cause.silence_s
        cause.silence_s = min(2 * cause.silence_s, LONGEST_SILENCE_S)

    def _make_room(self, now: float) -> None:
        for text in [text for text, cause in self._causes.items() if cause.is_forgotten(now)]:
            del self._causes[text]
        while len(self._causes) >= MOST_CAUSES:
            oldest = self._causes.pop(next(iter(self._causes)))
            for trouble in oldest.failing:
                trouble.causes.discard(oldest)

    def end(self, trouble: "Trouble") -> None:
        """Note that a role is at work again; say so if it was the last one."""
        now = monotonic()
        over = []
        for cause in trouble.causes:
            cause.failing.discard(trouble)
            if not cause.failing:
                cause.over_at = now
                over.append(cause)
        trouble.causes.clear()
        said = [cause for cause in over if cause.was_said]
        if said:
            lasted_s = now - min(cause.since for cause in said)
            unsaid = sum(cause.unsaid for cause in said)
            texts = "; ".join(cause.text for cause in said)
            logger.info("over after %.1f s: %s (%d failures were not logged)", lasted_s, texts, unsaid)
        for cause in said:
            cause.was_said, cause.unsaid = False, 0


class Trouble:
    """The failures of one role in one place."""

    __slots__ = ("_outages", "causes", "where")

    def __init__(self, outages: Outages, where: str) -> None:
        self._outages = outages
        self.where = where
        self.causes: set[Cause] = set()
        """Those that it has not got over."""

    def failed(self, what: str, error: Exception | str) -> None:
        """Note that `what` was in vain. The cause is the error's ``why`` if it has one, else its text."""
        self._outages.note(self, what, str(getattr(error, "why", error)) or type(error).__name__)

    def over(self) -> None:
        """Note that the role is at work; costs next to nothing while nothing has failed."""
        if self.causes:
            self._outages.end(self)
