"""A letter as a record for programs, and as a row of a table."""

import base64
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from uno.cli.dead_letter.output import fit, span, table, when
from uno.cli.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from uno.event_bus.dead_letter import Letter

__all__ = ["STYLES", "due_ms", "json_text", "letters_table", "reason_now", "record_of"]

STYLES: Final = {
    "waiting": "",
    "leased": "cyan",
    "scheduled": "yellow",
    "suspect": "magenta",
    "held": "blue",
    "parked": "red",
}

WIDE: Final = 110
"""Columns of a terminal from which a table of letters also shows subscription and reason."""

LONGEST_CELL: Final = 200


def due_ms(letter: "Letter") -> int | None:
    """Return when the letter may run next, Unix time in ms; None when it will not by itself, or runs now."""
    match letter.state.value:
        case "scheduled" | "suspect":
            return letter.due_ms
        case "waiting":
            return max(letter.due_ms, letter.captured_at_ms)
    return None


def reason_now(letter: "Letter") -> str:
    """Return why it was captured, and what became of it where that is another reason."""
    later = letter.counters.reason
    return letter.reason if later in ("", letter.reason) else f"{letter.reason} → {later}"


# --- for programs ----------------------------------------------------------------------------------------


def record_of(letter: "Letter", *, whole: bool) -> dict[str, Any]:
    """Return all that is known of a letter; payload, traceback, headers and history only if it is whole."""
    counters, state = letter.counters, letter.state.value
    record: dict[str, Any] = {
        "id": letter.id,
        "state": state,
        "type": letter.type,
        "subscription": letter.subscription or None,
        "event_id": letter.event_id,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "fingerprint": letter.fingerprint,
        "captured_at": when(letter.captured_at_ms),
        "failed_at": when(letter.failed_at_ms),
        "due_at": when(due_ms(letter)),
        "parked_at": when(letter.since_ms) if state == "parked" else None,
        "held_at": when(letter.since_ms) if state == "held" else None,
        "settled_reason": counters.reason or None,
        "failures": counters.failures,
        "crashes": counters.crashes,
        "releases": counters.releases,
        "redrives": counters.redrives,
        "caller_attempts": letter.caller_attempts,
        "ordering_key": letter.ordering_key or None,
        "dedupe_key": letter.dedupe_key or None,
    }
    return record | _body(letter) if whole else record


def _body(letter: "Letter") -> dict[str, Any]:
    body: dict[str, Any] = {
        "headers": letter.headers,
        "history": [
            {
                "started_at": when(each.started_ms),
                "worker": each.worker,
                "duration_s": each.duration_s,
                "error_type": each.error_type,
                "message": each.message,
            }
            for each in letter.history.attempts
        ],
        "traceback": letter.traceback,
        "content_type": letter.content_type,
        "encoding": letter.encoding or None,
        "payload_bytes": len(letter.payload),
    }
    text = json_text(letter)
    if text is None:
        body["payload_base64"] = base64.b64encode(letter.payload).decode()
    else:
        import msgspec

        body["payload"] = msgspec.Raw(letter.payload)
    return body


def json_text(letter: "Letter") -> str | None:
    """Return the payload as text when it is sound JSON."""
    import msgspec

    if letter.encoding or "json" not in letter.content_type:
        return None
    try:
        msgspec.json.decode(letter.payload)
        return letter.payload.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


# --- for people ------------------------------------------------------------------------------------------


def letters_table(letters: Iterable["Letter"], *, now_ms: int, width: int) -> "Table":
    """Return a table of letters; at `width` columns and the server's time."""
    from rich.text import Text

    wide = ("subscription", "reason") if width >= WIDE else ()
    made = table(
        "id",
        "state",
        "type",
        *wide,
        "failures",
        "age",
        "due",
        "error",
        right=("failures", "age", "due"),
    )
    for letter in letters:
        state = letter.state.value
        middle = (one_line(letter.subscription, 40), one_line(reason_now(letter), 40)) if wide else ()
        made.add_row(
            letter.id,
            Text(state, STYLES[state]),
            one_line(letter.type, 40),
            *middle,
            str(letter.counters.failures),
            span((now_ms - letter.captured_at_ms) / 1000),
            _due(letter, now_ms),
            one_line(_error(letter), LONGEST_CELL),
        )
    fit(made, width, "type", "subscription", "reason", "error")
    return made


def _due(letter: "Letter", now_ms: int) -> str:
    due = due_ms(letter)
    if due is None:
        return "–"
    return "now" if due <= now_ms else span((due - now_ms) / 1000)


def _error(letter: "Letter") -> str:
    """Return the latest error in short: that of the last attempt, else the one it was captured with."""
    attempts = letter.history.attempts
    kind, message = letter.error_type, letter.error
    if attempts and attempts[-1].error_type:
        kind, message = attempts[-1].error_type, attempts[-1].message
    return ": ".join(part for part in (kind.rpartition(".")[2], message) if part)
