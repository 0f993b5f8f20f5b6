"""Whose cancellation it is: the worker's own, which ends a task, or one that the application's code has made up.

Handlers and hooks run in tasks of the worker. One that cancels its own task, or lets the `CancelledError` of another
task through, must not end the task that it runs in: a task group whose child ends as cancelled is cancelled itself,
and the worker would stop without a word.
"""

import asyncio
from math import inf

import anyio

__all__ = ["by_worker", "take_back"]


def by_worker() -> bool:
    """Whether the worker cancels the task that asks: a scope around it is cancelled."""
    return anyio.current_effective_deadline() == -inf


def take_back() -> None:
    """Forget what the code that has just ended asked for: its cancellation would reach whatever the task does next."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() and not by_worker():
        while task.cancelling():
            task.uncancel()
