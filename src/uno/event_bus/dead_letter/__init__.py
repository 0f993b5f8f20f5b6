"""uno's dead-letter queue: keeps every event that a service failed to handle, and tries it again."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uno.event_bus.dead_letter.actor import acting_as
    from uno.event_bus.dead_letter.backoff import DelayList, ExponentialBackoff, FixedDelay
    from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
    from uno.event_bus.dead_letter.config import DeadLetterConfig
    from uno.event_bus.dead_letter.decision import Discard, Park, RetryLater
    from uno.event_bus.dead_letter.errors import (
        BackupInvalid,
        ConfigError,
        DeadLetterError,
        Disabled,
        InvalidEvent,
        LayoutMismatch,
        LeaseLost,
        LetterNotFound,
        LetterStateConflict,
        NotReplicated,
        PartialCapture,
        PayloadTooLarge,
        PermissionDenied,
        QueueFull,
        QueueNotFound,
        SpoolFull,
        StoreError,
        StoreUnavailable,
    )
    from uno.event_bus.dead_letter.letter import DeadLetterReason, Letter, LetterState
    from uno.event_bus.dead_letter.queue import DeadLetterQueue
    from uno.event_bus.dead_letter.replay import ReplayReport
    from uno.event_bus.dead_letter.retry import PolicyByException, RetryPolicy
    from uno.event_bus.dead_letter.spool.folder import SpoolStats
    from uno.event_bus.dead_letter.where import Where

_HOMES = {
    "actor": ("acting_as",),
    "backoff": ("DelayList", "ExponentialBackoff", "FixedDelay"),
    "books": ("QueueStats", "VerifyReport"),
    "config": ("DeadLetterConfig",),
    "decision": ("Discard", "Park", "RetryLater"),
    "errors": (
        "BackupInvalid",
        "ConfigError",
        "DeadLetterError",
        "Disabled",
        "InvalidEvent",
        "LayoutMismatch",
        "LeaseLost",
        "LetterNotFound",
        "LetterStateConflict",
        "NotReplicated",
        "PartialCapture",
        "PayloadTooLarge",
        "PermissionDenied",
        "QueueFull",
        "QueueNotFound",
        "SpoolFull",
        "StoreError",
        "StoreUnavailable",
    ),
    "letter": ("DeadLetterReason", "Letter", "LetterState"),
    "queue": ("DeadLetterQueue",),
    "replay": ("ReplayReport",),
    "retry": ("PolicyByException", "RetryPolicy"),
    "spool.folder": ("SpoolStats",),
    "where": ("Where",),
}
"""Module → public names. They are imported when first asked for: `--help` needs none of them."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BackupInvalid",
    "ConfigError",
    "DeadLetterConfig",
    "DeadLetterError",
    "DeadLetterQueue",
    "DeadLetterReason",
    "DelayList",
    "Disabled",
    "Discard",
    "ExponentialBackoff",
    "FixedDelay",
    "InvalidEvent",
    "LayoutMismatch",
    "LeaseLost",
    "Letter",
    "LetterNotFound",
    "LetterState",
    "LetterStateConflict",
    "NotReplicated",
    "Park",
    "PartialCapture",
    "PayloadTooLarge",
    "PermissionDenied",
    "PolicyByException",
    "QueueFull",
    "QueueNotFound",
    "QueueStats",
    "ReplayReport",
    "RetryLater",
    "RetryPolicy",
    "SpoolFull",
    "SpoolStats",
    "StoreError",
    "StoreUnavailable",
    "VerifyReport",
    "Where",
    "acting_as",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found
