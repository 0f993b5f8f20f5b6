"""The service against its own description: Schemathesis sends what that allows, and what it does not, to a live one."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import hypothesis
import pytest
import schemathesis
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.service import app_of
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.service.server import Server
from uno.event_bus.dead_letter.service.settings import ServiceSettings


@dataclass
class Live:
    """A service in a thread of its own."""

    url: str
    errors: list[BaseException]


@pytest.fixture
def live(redis_url: str) -> Iterator[Live]:
    """A service on a free port of loopback, with a few letters in each state."""
    up, end = threading.Event(), threading.Event()
    found = Live("", [])

    async def serve() -> None:
        config = DeadLetterConfig(shards=2, operation_timeout=20)
        async with DeadLetterQueue(redis_url, config) as queue:
            ids = await queue.add_many([{"n": n} for n in range(20)], delay=3600)
            await queue.park(ids[0], "for the test")
            async with Server(app_of(queue), ServiceSettings(port=0, rate=0), grace_s=1.0) as server:
                found.url = server.url
                up.set()
                await anyio.to_thread.run_sync(end.wait)

    def run() -> None:
        try:
            anyio.run(serve)
        except BaseException as error:
            found.errors.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    up.wait()
    assert not found.errors, found.errors
    yield found
    end.set()
    thread.join()
    assert not found.errors, found.errors


EXAMPLES = 5
"""Of each operation, valid and invalid ones."""


STRICTER = {("GET", "/v1/letters"), ("POST", "/v1/shards"), ("POST", "/v1/events"), ("GET", "/v1/audit")}
"""Operations that ask for more than a schema says: a cursor of this queue, more shards than it has, data of a type."""


@pytest.mark.timeout(60)
def test_the_service_does_as_it_describes_itself(live: Live) -> None:
    """No request fails it, and no answer has a status, type or body that is not described."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        negative_data_rejection,
        unsupported_method,
    ]
    called = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Case) -> None:
            nonlocal called
            called += 1
            response = case.call()
            # To JSON Schema 1.0 is an integer; to the service it is none.
            depends = (case.method, case.path) in STRICTER or "got `float`" in response.text
            case.validate_response(response, checks=checks if depends else [*checks, positive_data_acceptance])

        check()
    assert called > 80
