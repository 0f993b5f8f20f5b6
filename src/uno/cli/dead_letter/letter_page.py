"""A page about one letter, for people: from what matters most to its bytes."""

from typing import TYPE_CHECKING, Any

from uno.cli.dead_letter.letters import STYLES, due_ms, json_text, reason_now
from uno.cli.dead_letter.output import span, table, when
from uno.cli.text import lines, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from uno.event_bus.dead_letter import Letter

__all__ = ["print_letter"]


def print_letter(console: "Console", letter: "Letter", *, now_ms: int) -> None:
    """Print everything about a letter, from what matters most to its bytes."""
    from rich.text import Text

    state = letter.state.value
    console.print(Text.assemble((letter.id, "bold"), "  ", (state, STYLES[state]), "  ", one_line(letter.type)))
    console.print()
    console.print(_facts(letter, now_ms))
    if letter.history.attempts:
        _section(console, "attempts", _attempts(letter, now_ms))
    if letter.headers:
        headers = table("", "")
        headers.show_header = False
        for name, value in letter.headers.items():
            headers.add_row(f"  {one_line(str(name))}", one_line(str(value)))
        _section(console, "headers", headers)
    if letter.traceback:
        _section(console, "traceback", Text(_indented(letter.traceback)))
    _section(
        console,
        f"payload ({len(letter.payload):,} bytes of {letter.content_type or 'no type'})",
        _payload(letter),
    )


def _section(console: "Console", title: str, content: Any) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(one_line(title), "bold"))
    console.print(content)


def _facts(letter: "Letter", now_ms: int) -> "Table":
    counters = letter.counters
    due = due_ms(letter)
    facts = {
        "event id": letter.event_id,
        "subscription": letter.subscription,
        "reason": reason_now(letter),
        "error": ": ".join(part for part in (letter.error_type, letter.error) if part),
        "fingerprint": letter.fingerprint,
        "captured": _moment(letter.captured_at_ms, now_ms),
        "failed": _moment(letter.failed_at_ms, now_ms),
        "due": _moment(due, now_ms) if due else "",
        "parked": _moment(letter.since_ms, now_ms) if letter.state.value == "parked" else "",
        "held": _moment(letter.since_ms, now_ms) if letter.state.value == "held" else "",
        "counted": f"{counters.failures} failures, {counters.crashes} crashes, {counters.releases} releases, "
        f"{counters.redrives} redrives"
        + (f" ({letter.caller_attempts} attempts before)" * (letter.caller_attempts > 0)),
        "ordering key": letter.ordering_key,
        "dedupe key": letter.dedupe_key,
        "encoding": letter.encoding,
    }
    made = table("", "")
    made.show_header = False
    made.columns[1].no_wrap, made.columns[1].overflow = False, "fold"
    for name, value in facts.items():
        if value:
            made.add_row(f"  {name}", one_line(value))
    return made


def _moment(ms: int, now_ms: int) -> str:
    text = when(ms)
    if text is None:
        return ""
    seconds = (now_ms - ms) / 1000
    return f"{text}  ({span(seconds)} ago)" if seconds >= 0 else f"{text}  (in {span(-seconds)})"


def _attempts(letter: "Letter", now_ms: int) -> "Table":
    made = table("  started", "ago", "took", "worker", "error", right=("ago", "took"))
    made.columns[4].no_wrap, made.columns[4].overflow = False, "fold"
    for each in letter.history.attempts:
        made.add_row(
            f"  {when(each.started_ms) or '?'}",
            span((now_ms - each.started_ms) / 1000),
            f"{each.duration_s:.3f}s",
            one_line(each.worker),
            one_line(": ".join(part for part in (each.error_type, each.message) if part)),
        )
    return made


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in lines(text).rstrip().split("\n"))


def _payload(letter: "Letter") -> Any:
    from rich.text import Text

    if not letter.payload:
        return Text("  (empty)")
    if json_text(letter) is None:
        return Text(_indented(letter.payload.decode("utf-8", "backslashreplace")))
    import msgspec
    from rich.highlighter import JSONHighlighter

    shown = Text(_indented(msgspec.json.format(letter.payload, indent=2).decode()))
    JSONHighlighter().highlight(shown)
    return shown
