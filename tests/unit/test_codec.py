"""Events to bytes and back: what comes back as it was, and what is refused with its field."""

import dataclasses
import enum
import math
import subprocess
import sys
from collections import OrderedDict, UserDict, UserList, deque
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter.codec import (
    BYTES,
    JSON,
    Encoded,
    decode,
    decoder_for,
    encode,
    is_json,
    type_name,
)
from uno.event_bus.dead_letter.errors import ConfigError, InvalidEvent


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Share(enum.Enum):
    HALF = 0.5
    NOTHING = math.nan


class Line(msgspec.Struct):
    sku: str
    price: float = 0.0


class Order(msgspec.Struct, rename="camel"):
    order_id: UUID
    placed_at: datetime
    total: Decimal
    colour: Colour
    lines: list[Line]
    notes: dict[str, Any] = {}
    blob: bytes = b""
    tags: set[str] = set()
    took: timedelta = timedelta()


@dataclasses.dataclass
class Shipped:
    order_id: UUID
    day: date
    at: time
    lines: tuple[Line, ...] = ()
    weight: float | None = None


@attrs.define
class Paid:
    amount: Decimal
    by: str | None = None
    cents: int = attrs.field(default=0, converter=int)


@attrs.define
class Private:
    _secret: int
    shown: float = 1.0


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(alias="streetName")
    zip_code: str = pydantic.Field("", validation_alias="ZIP")
    city: str = pydantic.Field("", serialization_alias="CITY")


class Customer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    name: str
    score: float | None = None
    address: Address | None = None
    born: date | None = None
    token: pydantic.SecretStr | None = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def initial(self) -> str:
        return self.name[:1]


class Point(NamedTuple):
    x: int
    y: int


class Measured(TypedDict):
    value: float


class Lines(TypedDict):
    lines: list[Line]


class OddFloat(float):
    pass


class OddText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not me"


ORDER = Order(
    UUID(int=5),
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    Decimal("12345678901234567890.1234567890"),
    Colour.BLUE,
    [Line("a", 1.5), Line("ü€😀")],
    {"nested": {"none": None, "empty": {}, "list": [[]]}},
    b"\x00\xff",
    {"x"},
    timedelta(days=1, microseconds=3),
)
SHIPPED = Shipped(UUID(int=6), date(2026, 1, 2), time(3, 4, 5, 6), (Line("a"),), None)
ADDRESS = Address.model_validate({"streetName": "High St", "ZIP": "1234", "city": "X"})
CUSTOMER = Customer.model_validate({"name": "Ann", "address": ADDRESS, "born": date(2000, 2, 29), "extra_field": [1]})

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


def round_trip(event: Any, target: Any = None) -> Any:
    encoded = encode(event)
    return decode(encoded.payload, encoded.content_type, target, event_type=encoded.type)


def refused(event: Any, **arguments: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        encode(event, **arguments)
    assert "\n" not in str(caught.value)
    return caught.value


# --- types -----------------------------------------------------------------------------------------------


def test_type_is_the_class_name_unless_the_class_says_otherwise() -> None:
    """`__event_type__` first, then `event_type`, if they are texts of the class; else the name."""

    class Named:
        event_type = "order.placed"

    class Dunder(Named):
        __event_type__: ClassVar[str] = "order.dunder"

    class NotText:
        event_type = 5

    class Field(msgspec.Struct):
        event_type: str = "of the event, not of the class"

    names = [type_name(kind) for kind in (Line, Named, Dunder, NotText, Field, dict)]
    assert names == ["Line", "order.placed", "order.dunder", "NotText", "Field", "dict"]


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (ORDER, "Order"),
        (SHIPPED, "Shipped"),
        (Paid(Decimal(1)), "Paid"),
        (CUSTOMER, "Customer"),
        ({}, "dict"),
        ([], "list"),
    ],
)
def test_events_of_each_kind_become_json_under_their_class_name(event: Any, name: str) -> None:
    """Structs, dataclasses, attrs, models and plain values alike."""
    encoded = encode(event)
    assert (encoded.type, encoded.content_type) == (name, JSON)
    assert msgspec.json.decode(encoded.payload) is not None


def test_a_given_name_wins() -> None:
    """Dicts and bytes have no class that says what they are."""
    assert encode({}, type_name="order.placed") == Encoded("order.placed", JSON, b"{}")
    assert encode(b"", type_name="order.placed").type == "order.placed"


@pytest.mark.parametrize("name", ["", "\ud800", 5, b"order"])
def test_impossible_type_names_are_refused(name: Any) -> None:
    """The name is stored as text, and handlers are chosen by it."""
    refused({}, type_name=name)


# --- bytes -----------------------------------------------------------------------------------------------


@given(st.binary())
def test_bytes_stay_bytes(payload: bytes) -> None:
    """Never looked at, never re-encoded."""
    for event in (payload, bytearray(payload), memoryview(payload)):
        encoded = encode(event)
        assert encoded == Encoded("bytes", BYTES, payload)
        assert type(encoded.payload) is bytes
    assert round_trip(payload) == payload
    assert decode(payload, JSON, bytes) == payload


def test_bytes_may_be_json_already() -> None:
    """Imported payloads keep their bytes and are decoded for the handler."""
    encoded = encode(b'{"a" : 1}', type_name="x", content_type=JSON)
    assert encoded == Encoded("x", JSON, b'{"a" : 1}')
    assert decode(encoded.payload, encoded.content_type) == {"a": 1}


# --- round trips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [ORDER, SHIPPED, Paid(Decimal("1.10"), "Ann", 3), Private(7), CUSTOMER, Point(1, 2)],
    ids=lambda e: type(e).__name__,
)
def test_event_comes_back_as_it_was(event: Any) -> None:
    """Into its own class, every value in its declared type."""
    found = round_trip(event, type(event))
    assert found == event
    assert type(found) is type(event)


@given(json_values.filter(lambda value: value is not None))
def test_plain_values_come_back_exactly(value: Any) -> None:
    """Big integers, floats, any text, empty containers."""
    found = round_trip(value)
    assert found == value
    assert repr(found) == repr(value), "1 and 1.0 and True are not the same"


@given(
    st.builds(
        Order,
        st.uuids(),
        st.datetimes(timezones=st.just(UTC)),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.sampled_from([Colour.RED, Colour.BLUE]),
        st.lists(
            st.builds(Line, st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False))
        ),
        st.dictionaries(st.text(st.characters(codec="utf-8")), json_values),
        st.binary(),
        st.sets(st.text(st.characters(codec="utf-8"))),
        st.timedeltas(timedelta(-99_999), timedelta(99_999)),
    )
)
def test_any_struct_comes_back_as_it_was(order: Order) -> None:
    """Datetimes, UUIDs, decimals, enums, bytes, sets and durations keep their values."""
    assert round_trip(order, Order) == order


@given(
    st.builds(
        Customer,
        name=st.text(st.characters(codec="utf-8")),
        score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        born=st.none() | st.dates(),
        other=json_values,
    )
)
def test_any_model_comes_back_as_it_was(customer: Customer) -> None:
    """Also fields that only the instance has, and without its computed ones."""
    assert round_trip(customer, Customer) == customer


def test_datetime_keeps_its_offset() -> None:
    """An offset is part of the value."""
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    found = round_trip([at], list[datetime])[0]
    assert found == at
    assert found.utcoffset() == at.utcoffset()


@pytest.mark.parametrize("number", [2**53 + 1, -(2**64), 2**64 - 1, 10**4000])
def test_integers_keep_all_digits(number: int) -> None:
    """Beyond what JavaScript or 64 bits can hold."""
    assert round_trip({"n": number}) == {"n": number}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (OddFloat(1.5), 1.5),
        (OddText("me"), "me"),
        (Level.LOW, 1),
        (deque([1, 2]), [1, 2]),
        (UserList([1]), [1]),
        (UserDict(a=1), {"a": 1}),
        (OrderedDict(b=1), {"b": 1}),
        (MappingProxyType({"a": {1}}), {"a": [1]}),
        (frozenset({1}), [1]),
        (Customer(name="Ann"), {"name": "Ann", "score": None, "address": None, "born": None, "token": None}),
    ],
    ids=repr,
)
def test_parts_that_msgspec_does_not_know_are_written_as_what_they_are(value: Any, plain: Any) -> None:
    """Subclasses of builtins, other containers, and models inside of anything else."""
    assert round_trip({"part": value}) == {"part": plain}
    assert round_trip(Shipped(value, SHIPPED.day, SHIPPED.at))["order_id"] == plain


def test_models_inside_other_types_come_back_as_models() -> None:
    """A handler may ask for a list of models, or a struct that holds one."""

    class Signup(msgspec.Struct):
        who: Customer

    assert round_trip([CUSTOMER], list[Customer]) == [CUSTOMER]
    assert round_trip(Signup(CUSTOMER), Signup).who == CUSTOMER


def test_model_is_read_by_field_names_and_by_aliases() -> None:
    """Ours are written by name; other producers write the aliases."""
    for payload in (b'{"streetName":"x","ZIP":"1"}', b'{"street":"x","zip_code":"1"}'):
        assert decode(payload, JSON, Address) == Address.model_validate({"streetName": "x", "ZIP": "1"})


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, OddFloat("nan")])
def test_nan_and_infinity_are_refused_with_their_field(number: float) -> None:
    """JSON writers put null in their place, and nobody would notice before the handler."""
    cases: dict[str, Any] = {
        "order.items[2].price": {"order": {"items": [1, None, {"price": number}]}},
        "lines[1].price": Shipped(UUID(int=1), date.today(), time(), (Line("a"), Line("b", number))),  # noqa: DTZ011
        "by": Paid(Decimal(1), by=number),  # type: ignore[arg-type]
        "shown": Private(1, number),
        "score": Customer.model_construct(name="Ann", score=number),
        "other": Customer.model_validate({"name": "Ann", "other": number}),
        "customers[0].score": {"customers": [Customer.model_construct(name="Ann", score=number)]},
        "notes['a b'][7]": msgspec.structs.replace(ORDER, notes={"a b": {7: number}}),
    }
    for field, event in cases.items():
        error = refused(event)
        assert (error.field, error.event_type) == (field, type(event).__name__)
        assert "NaN" in error.why
    assert refused(number).field is None


def test_enum_of_nan_is_refused() -> None:
    """A float may also hide behind a name."""
    assert encode({"share": Share.HALF}).payload == b'{"share":0.5}'
    assert refused({"colour": Share.NOTHING}).field == "colour.value"


def test_models_that_would_write_nan_by_name_are_refused() -> None:
    """Pydantic may be told to write NaN literally, which is no JSON."""

    class Literal(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")
        score: float

    assert refused(Literal(score=math.inf)).field == "score"


def test_null_and_the_word_nan_are_no_reason_to_refuse() -> None:
    """None is a value, and text is text."""
    for value in ({"a": None, "b": [None, 1.5]}, {"a": "null NaN Infinity **********"}, [OddFloat(1)]):
        assert round_trip(value) == value


def test_masked_secret_is_refused() -> None:
    """Asterisks would be captured, and the retry would run with them."""
    assert refused(Customer(name="Ann", token="s3")).field == "token"  # type: ignore[arg-type]
    assert refused({"c": Customer(name="Ann", token="s3")}).field == "c.token"  # type: ignore[arg-type]


def test_private_attributes_of_attrs_are_kept_or_refused() -> None:
    """Left out by msgspec without a word: kept on the event itself, refused inside of others."""
    assert encode(Private(5)).payload == b'{"_secret":5,"shown":1.0}'
    error = refused({"parts": [Private(5)]})
    assert error.field == "parts[0]"
    assert "_secret" in error.why


class Unknown:
    pass


class Holder(msgspec.Struct):
    other: "Holder | None"
    parts: list[Unknown]


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Keys(UserDict[str, int]):
    def __hash__(self) -> int:
        return 1


class BrokenItems(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize(
    ("part", "where", "why"),
    [
        (Unknown(), "", "Unknown cannot be written as JSON"),
        (Hostile(), "", "Hostile cannot be written as JSON"),
        (lambda: 1, "", "function"),
        (range(10**12), "", "range"),
        (1j, "", "complex"),
        ("\ud800", "", "surrogates"),
        (10**5000, "", "4300 digits"),
        ({(1, 2): 3}, "[<tuple>]", "tuple"),
        ({"\udfff": 3}, "['\\udfff']", "surrogates"),
        ({Unknown(): 3}, "[<Unknown>]", "Unknown"),
        ({frozenset({1}): 3}, "[<frozenset>]", "frozenset"),
        ({Keys(a=1): 3}, "[<Keys>]", "Keys"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_refused_with_its_field(part: Any, where: str, why: str) -> None:
    """In every kind of event, and on its own."""
    for event, field in (
        ({"a": [0, part]}, "a[1]"),
        (Shipped(part, SHIPPED.day, SHIPPED.at), "order_id"),
        (Paid(part), "amount"),
        (msgspec.structs.replace(ORDER, notes={"x": part}), "notes.x"),
        (part, ""),
    ):
        error = refused(event)
        assert error.field == (field + where or None)
        assert why in error.why


def test_broken_or_endless_events_are_refused() -> None:
    """An event's own code may raise; an event may hold itself; None is none."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for event in (endless, deep, None, BrokenItems(a=Unknown()), Unknown, Unknown()):
        refused(event)


def test_field_of_an_error_is_short() -> None:
    """Keys belong to the payload: an error shows little of them."""
    assert len(refused({"k" * 10_000: math.nan}).field or "") <= 200


def test_neither_pydantic_nor_attrs_is_imported() -> None:
    """The core knows their classes by their marks."""
    code = (
        "import sys, uno.event_bus.dead_letter.codec as c; c.encode({'a': None}); c.decode(b'{}', '', dict);"
        "sys.exit('pydantic' in sys.modules or 'attr' in sys.modules or 'redis' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False).returncode
        == 0
    )


# --- decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json", "text/json", "", " "],
)
def test_json_is_known_by_its_content_type(content_type: str) -> None:
    """The JSON family, and a capture that names none."""
    assert is_json(content_type)
    assert decode(b"[1]", content_type) == [1]


@pytest.mark.parametrize("content_type", [BYTES, "text/plain", "application/jsonx", "application/x-protobuf", "json"])
def test_other_content_types_stay_bytes(content_type: str) -> None:
    """For a handler that asks for nothing or for bytes; another is told."""
    for target in (None, Any, object, bytes):
        assert decode(b"\xff", content_type, target) == b"\xff"
    with pytest.raises(InvalidEvent, match="annotate the event as bytes"):
        decode(b"{}", content_type, Line, event_type="Line")


@pytest.mark.parametrize(
    ("payload", "target", "field"),
    [
        (b"", None, None),
        (b"{", dict, None),
        (b"\xff", None, None),
        (b'"\xff"', str, None),
        (b"[" * 100_000, None, None),
        (b"1e999", None, None),
        (b"NaN", None, None),
        (b"[]", dict, None),
        (b"{}", Line, None),
        (b'{"sku": 5}', Line, "sku"),
        (b'{"lines":[{"sku":1}]}', Lines, "lines[0].sku"),
        (b'{"amount": "x"}', Paid, "amount"),
        (b"{}", Customer, "name"),
        (b'{"name": 5}', Customer, "name"),
        (b'{"name":"x","address":{"street":1}}', Customer, "address.street"),
        (b"\xff", Customer, None),
        (b'[{"name":5}]', list[Customer], "[0]"),
    ],
    ids=repr,
)
def test_bad_bytes_are_an_invalid_event_with_the_field(payload: bytes, target: Any, field: str | None) -> None:
    """One kind of error, whatever library found it."""
    with pytest.raises(InvalidEvent) as caught:
        decode(payload, JSON, target, event_type="order.placed")
    assert caught.value.event_type == "order.placed"
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_no_error_quotes_the_payload() -> None:
    """Pydantic's own messages hold the input, ours do not."""

    class Strict(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            raise AttributeError(f"hunter2 {value}")

    class Checked(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            raise ValueError(f"hunter2 {self.n}")

    cases: list[tuple[bytes, Any]] = [
        (b'{"name": {"x": "hunter2"}}', Customer),
        (b'[{"name": {"x": "hunter2"}}]', list[Customer]),
        (b'{"n": 1}', Strict),
        (b'{"n": 1}', Checked),
    ]
    for payload, target in cases:
        with pytest.raises(InvalidEvent) as caught:
            decode(payload, JSON, target)
        assert "hunter2" not in str(caught.value)


@given(st.binary(), st.sampled_from([None, dict, Line, Customer, Paid, Shipped, list[Customer], int, bytes]))
def test_any_bytes_are_decoded_or_refused(payload: bytes, target: Any) -> None:
    """Nothing in an entry ever stops a worker."""
    with suppress(InvalidEvent):
        decode(payload, JSON, target)


@pytest.mark.parametrize(
    "target", [Unknown, "Line", 5, Line | Order, dict[Unknown, int], Share, Holder, pydantic.BaseModel | int], ids=repr
)
def test_target_that_nothing_decodes_into_is_a_config_error(target: Any) -> None:
    """Told when the handler is added, not when its first letter fails."""
    with pytest.raises(ConfigError, match="cannot be decoded into"):
        decoder_for(target)


@pytest.mark.parametrize("target", [int | None, Measured, Point, Annotated[int, []], list[Line] | None], ids=repr)
def test_targets_need_not_be_classes(target: Any) -> None:
    """Unions, typed dicts, named tuples, and annotations that cannot be hashed."""
    assert callable(decoder_for(target))


def test_decoder_is_made_once() -> None:
    """Making one costs more than using it a hundred times."""
    assert decoder_for(Line) is decoder_for(Line)


def test_object_inside_a_container_means_anything() -> None:
    """``dict[str, object]`` is how a typed handler says that it takes any JSON object."""
    assert decode(b'{"a": [1, {"b": null}]}', "application/json", dict[str, object]) == {"a": [1, {"b": None}]}
