"""Who acts: the process's user unless a caller was named, in whatever the caller starts."""

import asyncio
import os
import pwd
import socket
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from uno.event_bus.dead_letter.actor import Actor, acting_as, current_actor, process_user


@pytest.fixture
def fresh() -> Iterator[None]:
    """The process's user is looked up anew, and again after the test."""
    process_user.cache_clear()
    yield
    process_user.cache_clear()


def test_unless_told_it_is_the_user_of_the_process_with_a_request_of_its_own() -> None:
    first, second = current_actor(), current_actor()
    assert first.who == second.who == process_user() and "@" in first.who
    assert len(first.request_id) == 16 and first.request_id != second.request_id


def test_who_is_named_acts_until_the_block_ends() -> None:
    with acting_as("token:ops", "r1"):
        assert current_actor() == Actor("token:ops", "r1")
        with acting_as("cli:somebody"):
            assert current_actor().who == "cli:somebody" and current_actor().request_id not in ("", "r1")
        with pytest.raises(KeyError), acting_as("cli:nobody"):
            raise KeyError
        assert copy_context().run(current_actor) == Actor("token:ops", "r1")
    assert current_actor().who == process_user()


async def test_tasks_at_once_act_as_those_who_began_them() -> None:
    async def act(who: str) -> str:
        with acting_as(who):
            await asyncio.sleep(0)
            return current_actor().who

    assert await asyncio.gather(*map(act, "abc")) == ["a", "b", "c"]


def _fail(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_container_without_names_has_an_actor_too(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """No entry in /etc/passwd, no host name: it never raises."""
    monkeypatch.setattr(pwd, "getpwuid", _fail(KeyError("uid not found")))
    monkeypatch.setattr(socket, "gethostname", _fail(OSError()))
    assert current_actor().who == f"uid {os.getuid()}@unknown"
