"""Clients of the service who mean no good: F24."""

import json
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from tests.faults.rows.registry import row
from tests.faults.rows.replicas import SECRET as CLIENTS_SECRET
from tests.faults.rows.workers import add
from tests.support.harness.actors import Actor
from tests.support.harness.paces import Paces, cores_apart
from tests.support.harness.payloads import HOSTILE_EVENT, PAYLOADS, SECRET
from tests.support.harness.replicas import EXPIRED, Replica, Replicas
from tests.support.harness.run import Promise, Run
from tests.support.probes import Answer, get
from uno.event_bus.dead_letter.service.access import new_token
from uno.event_bus.dead_letter.store.audit import AuditEntry

REQUEST_S = 1.5
"""DLQ_SERVICE_REQUEST_TIMEOUT: how long a head may take, and then a body."""

BOUND_S = 3 * REQUEST_S + 4.0
"""Within which an attack is over: head, body, and the moment that a refused client may linger; and a busy core."""

BODY_BYTES = 1 << 20
LIMITS: Final[dict[str, Any]] = {
    "service_request_timeout": REQUEST_S,
    "service_max_body_bytes": BODY_BYTES,
    "service_max_connections": 400,
    "service_hosts": "localhost,127.0.0.1",
}

GROWTH_KIB = 64 * 1024
"""Of the service's memory at most: eight full bodies, and what 400 connections have in their buffers."""

REFUSED = re.compile(r"4\d\d|503|closed|200 read")
"""What an attack gets. 503: every connection, or all memory for bodies, is at work for others of its kind.

Reads of one who may look are no attack but by their number.
"""

REFUSED_VERB = "token:admin reshard config_invalid"
"""What the audit stream may tell of attacks: what an admin asked for, and did not get."""

PARKED = 20
BACKLOG = 2000
STORM_S = 8.0
CALM_S = 6.0
LEAST_RATE = 0.85
"""Letters a second under attack, as a part of those before it."""

SLOWER = 3.0
SLOW_S = 0.25
"""Lag of the slowest of a hundred letters under attack, at most: so many times that before it, or this."""


def park_some(run: Run) -> set[str]:
    """Have letters that wait for an operator; return their ids."""
    add(run, [{"id": f"parked.{n}", "do": "raise", "ms": 1} for n in range(PARKED)])
    run.wait(lambda: len(parked(run)) == PARKED, 20, "letters are parked")
    return parked(run)


@contextmanager
def backlog(run: Run) -> Iterator[None]:
    """Have many letters that wait for tomorrow, for who reads them all."""
    numbers = range(BACKLOG)
    run.journal.write_all(run.journal.line("foreign", f"backlog.{n}") for n in numbers)
    run.ask(run.queue.add_many([{"n": n} for n in numbers], type="backlog", delay=86_400))
    yield
    run.ask(run.queue.discard_many({"type": ["backlog"]}, "the row is over"))


def parked(run: Run) -> set[str]:
    """The letters that wait for an operator, but for those of attackers."""

    async def look() -> set[str]:
        letters = run.queue.letters({"state": ["parked"]}, whole=False)
        return {letter.id async for letter in letters if not letter.event_id.startswith(HOSTILE_EVENT)}

    return run.ask(look())


def audited(run: Run) -> list[AuditEntry]:
    async def look() -> list[AuditEntry]:
        return [entry async for entry in run.queue.audited()]

    return run.ask(look())


def attack(run: Run, replicas: Replicas, **how: Any) -> Actor:
    """Start an attacker of all replicas' one address; it has a token of each role, one that has expired, and none."""
    known = replicas.tokens
    roles = {"capture": "clients", "read": "reader", "operate": "operator", "admin": "admin"}
    tokens = {role: known[name] for role, name in roles.items()}
    tokens |= {"none": "", "unknown": new_token(), "expired": known[EXPIRED]}
    how |= {"service": replicas.address, "tokens": tokens}
    run.others.append(attacker := Actor("attacker", run.settings_of("attacker", how), run.tree))
    return attacker


def judge(run: Run, begun_kib: int, service: Replica) -> None:
    """Look at what the attacks came to, and what they cost."""
    run.history.follow()
    attacks = [line for line in run.history.lines if line.what == "attack"]
    wrong = Counter(f"{line.event}: {line.note}" for line in attacks if not REFUSED.fullmatch(line.note))
    run.failures += [f"an attack was answered {count} times: {what}" for what, count in wrong.most_common(8)]
    slowest = max(attacks, key=lambda line: line.at - line.asked_at)
    took_s = slowest.at - slowest.asked_at
    if took_s > BOUND_S:
        run.failures.append(f"{slowest.event} took {took_s:.1f} s, promised {BOUND_S:g}")
    grown_kib = service.peak_kib - begun_kib
    if grown_kib > GROWTH_KIB:
        run.failures.append(f"the service has grown by {grown_kib} KiB, promised {GROWTH_KIB}")
    outcomes = Counter(line.note for line in attacks)
    run.remarks.append(
        f"{len(attacks)} hostile requests of {len({line.event for line in attacks})} kinds: "
        + ", ".join(f"{count} {what}" for what, count in outcomes.most_common(12))
        + f"; the slowest took {took_s:.1f} s ({slowest.event}); the service has grown by {grown_kib / 1024:.0f} MiB"
    )


def judge_state(run: Run, before: set[str]) -> None:
    """Look whether anything was done: to letters, to the queue, or in its audit stream."""
    if (now := parked(run)) != before:
        run.failures.append(f"{len(before ^ now)} parked letters have come or gone")
    outcomes = Counter(
        f"{entry.who} {entry.verb} {entry.outcome}" for entry in audited(run) if entry.phase == "outcome"
    )
    if done := outcomes.keys() - {REFUSED_VERB}:
        run.failures.append(f"the audit stream tells of {sorted(done)}")
    if (shards := len(run.server.keys("*:meta"))) != len(run.shards):
        run.failures.append(f"the queue has {shards} shards, promised {len(run.shards)}")


def judge_payloads(run: Run) -> None:
    """Say what became of the hostile payloads: none may have cost a worker its life, or be there without an end."""
    run.history.follow()
    letters = {line.event: line.letter for line in run.history.lines if line.event.startswith(HOSTILE_EVENT)}
    ran = {line.event for line in run.history.lines if line.what == "end" and line.note == "ok"} & letters.keys()
    kept = {event for event, _ in run.open.values()} & letters.keys()
    run.remarks.append(
        f"of {len(PAYLOADS)} hostile payloads {len(letters)} were taken; {len(ran)} ran, {len(kept)} are parked"
    )


def shown_safely(run: Run, replicas: Replicas) -> None:
    """Have a letter of scripts shown in every way: as what no browser runs."""
    run.journal.write("foreign", "script")
    script = "<script>alert(1)</script>"
    event: dict[str, Any] = dict.fromkeys(("type", "reason", "error", "error_type"), script)
    event |= {"content_type": "text/html", "payload_base64": b64encode(script.encode()).decode()}
    body = json.dumps(event | {"delay_ms": 3_600_000}).encode()

    def ask(path: str, name: str, method: str = "GET", body: bytes | None = None) -> Answer:
        token = {"authorization": f"Bearer {replicas.tokens[name]}", "content-type": "application/json"}
        return get(replicas.address, path, method, token, body)

    letter = ask("/v1/letters", "clients", "POST", body).record["id"]
    pages = (
        "/v1/letters?whole=true",
        f"/v1/letters/{letter}",
        f"/v1/letters/{letter}/payload",
        "/v1/audit",
        "/metrics",
    )
    for path in pages:
        shown = ask(path, "reader")
        is_kept = "attachment" in shown.headers.get("content-disposition", "")
        is_sandbox = shown.headers.get("content-security-policy", "").startswith(("default-src 'none'", "sandbox"))
        is_html = "html" in shown.headers["content-type"] and not is_kept
        if shown.status != 200 or is_html or not is_sandbox or shown.headers["x-content-type-options"] != "nosniff":
            run.failures.append(f"{path} is shown as {shown.status}, {shown.headers}")
    ask(f"/v1/letters/{letter}/discard", "operator", "POST", b'{"why": "the row is over"}')


def redrive_together(run: Run, replicas: Replicas, times: int) -> None:
    """Have many who may send the parked letters back at once: each letter has one end, each call its two entries."""
    token = {"authorization": f"Bearer {replicas.tokens['operator']}", "content-type": "application/json"}
    body = json.dumps({"where": {"state": ["parked"]}}).encode()

    def retry(n: int) -> Answer:
        return get(replicas.address, "/v1/letters/retry", "POST", token | {"x-request-id": f"redrive.{n}"}, body)

    with ThreadPoolExecutor(times) as pool:
        answers = list(pool.map(retry, range(times)))
    if any(answer.status != 200 for answer in answers):
        run.failures.append(f"redrives were answered {[answer.status for answer in answers]}")
    done = sum(answer.record.get("done", 0) for answer in answers if answer.status == 200)
    ours = [entry for entry in audited(run) if entry.verb == "retry"]
    entries = Counter((entry.who, entry.request_id, entry.phase) for entry in ours)
    expected = {("token:operator", f"redrive.{n}", phase): 1 for n in range(times) for phase in ("intent", "outcome")}
    if entries != expected:
        run.failures.append(f"the audit stream is {entries}")
    run.remarks.append(f"{times} redrives of {PARKED} parked letters at once sent {done} back")
    if done < PARKED:
        run.failures.append(f"{done} letters were sent back")


@row("F24", "hostile HTTP: every attack once, also with tokens; then a concurrent redrive", "standalone")
def hostile(run: Run) -> None:
    run.settings = {"max_retries": 1}
    run.promise = Promise(crashed=0)
    with Replicas(run, 1, **LIMITS) as replicas:
        [service] = replicas.all
        run.begin(producers=1, workers=2, warm=20)
        before = park_some(run)
        replicas.clients(1, lanes=1, also={"note": CLIENTS_SECRET})
        begun_kib = service.peak_kib
        attacked_at = time.monotonic()
        with run.fault("attacks"):
            attacker = attack(run, replicas)
            if code := attacker.wait(120):
                run.failures.append(f"{attacker} ended with {code}: {attacker.said()}")
        run.remarks.append(served_meanwhile(run, attacked_at))
        judge(run, begun_kib, service)
        judge_state(run, before)
        redrive_together(run, replicas, 12)
        shown_safely(run, replicas)
        run.finish()
        judge_payloads(run)
        replicas.check_logs(SECRET, CLIENTS_SECRET)


def served_meanwhile(run: Run, since: float) -> str:
    """Say how the client of the service fares who means well."""
    run.history.follow()
    client = run.producers[-1].name
    lines = [line for line in run.history.lines if line.actor == client and line.at > since]
    asked = {line.event: line.at for line in reversed(lines) if line.what == "invoke"}
    took_s = [line.at - asked[line.event] for line in lines if line.what == "ok" and line.event in asked]
    if not took_s:
        run.failures.append("a client who means well was not answered once")
    return f"a client who means well was answered {len(took_s)} times, after {max(took_s, default=0):.2f} s at most"


@row(
    "F24-storm",
    "hostile HTTP, and reads of a large queue, as fast as the service takes it: a worker's throughput stays",
    "standalone",
)
def storm(run: Run) -> None:
    run.settings = {"max_retries": 1}
    run.promise = Promise(crashed=0)
    with Replicas(run, 1, **LIMITS) as replicas:
        [service] = replicas.all
        run.begin(producers=1, workers=1, warm=60, lanes=16, gap_s=0.1)
        [producer] = run.producers
        with backlog(run):
            before = park_some(run)
            replicas.clients(1, lanes=1, also={"note": CLIENTS_SECRET})
            begun_kib = service.peak_kib
            attacker = attack(run, replicas, storm=STORM_S, wait_for="go")
            attacker.wait_ready()
            with cores_apart(run, (service.process.pid, attacker.process.pid)) as where:
                calm_at = time.monotonic()
                run.sleep(CALM_S)
                storm_at = time.monotonic()
                with run.fault("attacks"):
                    (run.folder / "go").touch()
                    run.sleep(STORM_S)
                    calm, stormy = (
                        Paces(run, producer, calm_at, storm_at),
                        Paces(run, producer, storm_at, time.monotonic() - 1.0),
                    )
                    if code := attacker.wait(60):
                        run.failures.append(f"{attacker} ended with {code}: {attacker.said()}")
            run.remarks.append(f"on {where}: before {calm}; under attack {stormy}")
            if stormy.rate < LEAST_RATE * calm.rate or stormy.missing:
                run.failures.append(f"{stormy.rate:.0f} letters/s under attack, {calm.rate:.0f} before it")
            if stormy.p99_s > max(SLOWER * calm.p99_s, SLOW_S):
                run.failures.append(f"a lag of {stormy.p99_s:.3f} s under attack, {calm.p99_s:.3f} s before it")
            run.remarks.append(served_meanwhile(run, storm_at))
            judge(run, begun_kib, service)
            judge_state(run, before)
        run.finish()
        replicas.check_logs(SECRET, CLIENTS_SECRET)
