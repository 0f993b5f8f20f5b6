"""``/v1/audit``: what operators have done."""

import msgspec

from uno.event_bus.dead_letter.remote.wire import AuditPage, AuditQuery, AuditRecord
from uno.event_bus.dead_letter.service.caller import READ
from uno.event_bus.dead_letter.service.operation import Call, op
from uno.event_bus.dead_letter.store.audit import AuditEntry

__all__ = ["OPERATIONS"]


@op("GET", "/v1/audit", role=READ, query=AuditQuery, out=AuditPage)
async def audit(call: Call) -> AuditPage:
    """Tell what operators were about to do, and what became of it, the newest first.

    Two records a call of a verb, which share `call`: the intent before anything is changed, and the outcome. An intent
    without an outcome is of a call that still runs, or was killed. Through a service, `who` is `token:` and its name.
    """
    page = await call.queue.audit_page(call.query.cursor, limit=call.query.limit)
    return AuditPage([_record(entry) for entry in page.entries], page.cursor)


def _record(entry: AuditEntry) -> AuditRecord:
    return msgspec.convert(entry, AuditRecord, from_attributes=True)


OPERATIONS = (audit,)
