"""The tree of errors: codes, facts as attributes, one-line messages."""

import copy
import inspect
import pickle

import pytest

from uno.event_bus.dead_letter import errors
from uno.event_bus.dead_letter.errors import DeadLetterError

CLASSES = [getattr(errors, name) for name in errors.__all__]

SAMPLES = [
    errors.ConfigError("DLQ_SHARDS (shards) is 3: allowed is a power of two"),
    errors.Disabled(),
    errors.QueueFull("orders", 100),
    errors.QueueFull("orders"),
    errors.QueueFull("orders", 100, 4),
    errors.PayloadTooLarge(2_000_000, 1_048_576),
    errors.InvalidEvent("Order", "NaN cannot be written", field="items[2].price"),
    errors.InvalidEvent("Order", "NaN cannot be written"),
    errors.PartialCapture({0: "0-1-0", 2: "0-1-1"}, {1: errors.QueueFull("orders", 2)}),
    errors.LetterNotFound("0-1-0"),
    errors.QueueNotFound("orders"),
    errors.LetterStateConflict("0-1-0", "retry", "leased", ["parked", "scheduled"]),
    errors.LetterStateConflict("0-1-0", "retry", "leased"),
    errors.LetterStateConflict("0-1-0", "retry", "parked", ["parked", "scheduled"]),
    errors.LeaseLost("0-1-0"),
    errors.LayoutMismatch("orders", "shards", 8, 4, "unset DLQ_SHARDS"),
    errors.NotReplicated("0-1-0", 2, 1),
    errors.StoreUnavailable("timed out"),
    errors.StoreUnavailable("connection refused", certain=True),
    errors.SpoolFull("connection refused", "/var/lib/uno/spool/orders", 4096),
    errors.SpoolFull("timed out", "/var/lib/uno/spool/orders", 4096, certain=False),
    errors.StoreError("WRONGTYPE Operation against a key"),
    errors.BackupInvalid("wrong checksum in line 7"),
    errors.PermissionDenied("role read may not discard"),
]


def test_every_class_is_exported_and_drawn_in_the_tree() -> None:
    """`__all__`, the classes of the module and the drawing at its top are the same set."""
    defined = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}
    assert set(errors.__all__) == defined
    assert sorted(errors.__all__) == errors.__all__
    drawing = (errors.__doc__ or "").partition("::")[2]
    assert all(f"── {name} " in drawing for name in defined - {"DeadLetterError"})


def test_every_class_has_a_stable_code_of_its_own() -> None:
    """Problem details, CLI text and metrics tell errors apart by code."""
    codes = {each.__name__: vars(each).get("code") for each in CLASSES}
    assert codes == {
        "BackupInvalid": "backup_invalid",
        "ConfigError": "config_invalid",
        "DeadLetterError": "dead_letter_error",
        "Disabled": "disabled",
        "InvalidEvent": "invalid_event",
        "LayoutMismatch": "layout_mismatch",
        "LeaseLost": "lease_lost",
        "LetterNotFound": "letter_not_found",
        "LetterStateConflict": "letter_state_conflict",
        "NotReplicated": "not_replicated",
        "PartialCapture": "partial_capture",
        "PayloadTooLarge": "payload_too_large",
        "PermissionDenied": "permission_denied",
        "QueueFull": "queue_full",
        "QueueNotFound": "queue_not_found",
        "SpoolFull": "spool_full",
        "StoreError": "store_error",
        "StoreUnavailable": "store_unavailable",
    }


def test_every_class_is_one_of_ours_and_says_when_it_is_raised() -> None:
    """One `except DeadLetterError` catches all that the engine raises on purpose."""
    for each in CLASSES:
        assert issubclass(each, DeadLetterError)
        assert each is DeadLetterError or (each.__doc__ or "").startswith("Raised ")


def test_there_is_a_sample_of_every_class() -> None:
    """The tests below cover the whole tree."""
    assert {type(sample) for sample in SAMPLES} == set(CLASSES) - {DeadLetterError}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_message_is_one_line(error: DeadLetterError) -> None:
    """It stands in logs and on a terminal."""
    assert str(error)
    assert "\n" not in str(error)


def test_messages_say_what_happened_to_the_event() -> None:
    """The caller learns whether to repeat."""
    for error in (errors.Disabled(), errors.QueueFull("q", 1), errors.PayloadTooLarge(2, 1)):
        assert "the event was not captured" in str(error)
    assert "nothing was written" in str(errors.QueueFull("q"))  # by any verb: the server has no memory left
    assert "outcome unknown" in str(errors.StoreUnavailable("timed out"))
    assert "nothing was written" in str(errors.StoreUnavailable("refused", certain=True))


def test_a_conflict_does_not_contradict_itself() -> None:
    """A letter that only kept changing is in a state that the verb takes: the caller may call again."""
    changing = str(errors.LetterStateConflict("0-1-0", "retry", "parked", ["parked", "scheduled"]))
    assert "it changed meanwhile; call again" in changing
    assert "that are" not in changing
    assert "call again" not in str(errors.LetterStateConflict("0-1-0", "retry", "leased", ["parked"]))


def test_a_full_queue_of_several_shards_says_that_one_is_full() -> None:
    """The others may have room."""
    assert "the letter's shard, one of 4, has its share of max_queue_size" in str(errors.QueueFull("q", 100, 4))
    assert "shard" not in str(errors.QueueFull("q", 100))


def test_facts_are_attributes() -> None:
    """Nobody has to parse a message."""
    full = errors.QueueFull("orders", 100)
    assert (full.queue, full.limit) == ("orders", 100)
    invalid = errors.InvalidEvent("Order", "why", field="a.b")
    assert (invalid.event_type, invalid.why, invalid.field) == ("Order", "why", "a.b")
    conflict = errors.LetterStateConflict("0-1-0", "retry", "leased", ["parked"])
    assert (conflict.letter_id, conflict.verb, conflict.state, conflict.allowed) == (
        "0-1-0",
        "retry",
        "leased",
        ("parked",),
    )
    assert errors.StoreUnavailable("x").certain is False


def test_partial_capture_maps_positions_and_names_the_first_error() -> None:
    """Position → id for what was captured, position → error for the rest."""
    ids, failed = {0: "0-1-0"}, {2: errors.QueueFull("q", 1), 1: errors.PayloadTooLarge(2, 1)}
    error = errors.PartialCapture(ids, failed)
    ids.clear()
    assert error.ids == {0: "0-1-0"}
    assert "1 of 3 events were captured" in str(error)
    assert "position 1: payload: 2 bytes" in str(error)


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_errors_cross_processes(error: DeadLetterError, copied: object) -> None:
    """Process pools and Celery pickle what a task raises."""
    assert callable(copied)
    again = copied(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
