"""Arrow types of JSON schemas, written by hand and by pydantic."""

import json
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import settings
from pydantic import BaseModel, Field

from console.errors import InputError
from runtime.batch.output.columns import field_columns, fields_as_json, parse_fields

OPTIONS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def schema_of(properties, **more):
    return {"type": "object", "properties": properties, **more}


CLOSED = {"additionalProperties": False}
TYPES = {
    "text": ({"type": "string"}, pa.string()),
    "text with a format": ({"type": "string", "format": "date", "maxLength": 10}, pa.string()),
    "a whole number": ({"type": "integer"}, pa.int64()),
    "a number": ({"type": "number", "minimum": 0}, pa.float64()),
    "a truth value": ({"type": "boolean"}, pa.bool_()),
    "may be null": ({"type": ["integer", "null"]}, pa.int64()),
    "null first": ({"type": ["null", "number"]}, pa.float64()),
    "several": ({"type": ["integer", "string"]}, pa.string()),
    "integers and numbers": ({"type": ["integer", "null", "number"]}, pa.float64()),
    "null alone": ({"type": "null"}, pa.string()),
    "anything": ({}, pa.string()),
    "true": (True, pa.string()),
    "a choice": ({"enum": ["a", "b"]}, pa.string()),
    "numbers of a choice": ({"enum": [1, 2, None]}, pa.int64()),
    "all numbers of a choice": ({"enum": [1, 2.5]}, pa.float64()),
    "truth values of a choice": ({"enum": [True]}, pa.bool_()),
    "a choice of several types": ({"enum": [1, "1"]}, pa.string()),
    "a choice of truth values and numbers": ({"enum": [True, 1]}, pa.string()),
    "a choice of lists": ({"enum": [[1], [2]]}, pa.string()),
    "a choice of null": ({"enum": [None]}, pa.string()),
    "no choice": ({"enum": 3}, pa.string()),
    "a constant": ({"const": 1.5}, pa.float64()),
    "one of": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64()),
    "one of two alike": ({"oneOf": [{"type": "string"}, {"const": "a"}, {"const": None}]}, pa.string()),
    "one of two numbers": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, pa.float64()),
    "one of several": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, pa.string()),
    "one of anything": ({"anyOf": [{"type": "integer"}, {}]}, pa.string()),
    "all of one": ({"allOf": [{"type": "integer"}]}, pa.int64()),
    "all of two": ({"allOf": [{"type": "integer"}, {"minimum": 1}]}, pa.string()),
    "a type and a choice": ({"type": ["integer", "string"], "enum": [1, 2]}, pa.int64()),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, pa.string()),
    "a reference elsewhere": ({"$ref": "other.json#/$defs/a"}, pa.string()),
    "a list": ({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.int64())),
    "lists": (
        {"type": "array", "items": {"type": ["array", "null"], "items": {"type": "boolean"}}},
        pa.list_(pa.list_(pa.bool_())),
    ),
    "a list of anything": ({"type": "array"}, pa.string()),
    "a tuple": ({"type": "array", "items": {"type": "integer"}, "prefixItems": [{"type": "string"}]}, pa.string()),
    "an object": (
        schema_of({"a": {"type": "integer"}, "b": {"type": "string"}}, **CLOSED),
        pa.struct({"a": pa.int64(), "b": pa.string()}),
    ),
    "objects in a list": (
        {"type": "array", "items": schema_of({"x": {"type": "array", "items": {"type": "number"}}}, **CLOSED)},
        pa.list_(pa.struct({"x": pa.list_(pa.float64())})),
    ),
    "an object that says nothing of others": (schema_of({"a": {"type": "integer"}}), pa.struct({"a": pa.int64()})),
    "an open object": (schema_of({"a": {"type": "integer"}}, additionalProperties=True), pa.string()),
    "an object with others": (schema_of({"a": {}}, additionalProperties={"type": "integer"}), pa.string()),
    "an object with names of a pattern": (schema_of({"a": {}}, patternProperties={"^b": {}}), pa.string()),
    "an object of anything": ({"type": "object"}, pa.string()),
    "a closed object of nothing": ({"type": "object", **CLOSED}, pa.string()),
    "no schema": ({"type": "object", "properties": [1], **CLOSED}, pa.string()),
}


@pytest.mark.parametrize("case", TYPES)
def test_the_type_of_a_column(case):
    schema, kind = TYPES[case]
    assert field_columns(schema_of({"금액": schema})) == [pa.field("금액", kind)]


REFERENCES = ["#/$defs/a b~1c", "#/$defs/a%20b~1c", "#/definitions/one", "#/properties/first"]


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_has_the_type_of_what_it_names(reference):
    parts = {"$defs": {"a b/c": {"type": "integer"}}, "definitions": {"one": {"$ref": REFERENCES[0]}}}
    columns = field_columns(schema_of({"first": {"type": "integer"}, "v": {"$ref": reference}}, **parts))
    assert columns[1] == pa.field("v", pa.int64())


@pytest.mark.parametrize("loop", ["#", "#/$defs/a", "#/$defs/b"])
def test_what_contains_itself_is_text_from_there_on(loop):
    parts = {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}
    schema = schema_of({"v": {"type": "array", "items": {"$ref": loop}}, "n": {"type": "integer"}}, **{"$defs": parts})
    assert field_columns(schema) == [pa.field("v", pa.list_(pa.string())), pa.field("n", pa.int64())]
    assert fields_as_json(schema) == ["v[]"]


def test_a_schema_that_is_its_own_reference_is_refused():
    for schema in ({"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}):
        with pytest.raises(InputError, match="is no object with properties"):
            field_columns(schema)


def test_parts_without_a_type_are_named():
    line = schema_of({"code": {"type": ["string", "integer"]}, "price": {"type": "number"}, "note": {"type": "string"}})
    schema = schema_of(
        {
            "text": {"type": "string"},
            "null": {"type": "null"},
            "anything": {},
            "lines": {"type": "array", "items": line},
            "line": {"anyOf": [line, {"type": "null"}]},
            "two": {"anyOf": [line, {"type": "string"}]},
            "map": {"type": "object", "additionalProperties": {"type": "number"}},
        }
    )
    assert fields_as_json(schema) == ["anything", "lines[].code", "line.code", "two", "map"]


class Kind(Enum):
    INVOICE = "invoice"
    RECEIPT = "receipt"


class Rate(IntEnum):
    LOW = 10
    HIGH = 20


class Item(BaseModel):
    name: str
    price: float | None = None
    tags: list[str] = []


class Node(BaseModel):
    value: int
    below: list["Node"] = []


class Invoice(BaseModel):
    number: str
    total: float | None
    count: int | None = Field(description="Of items.")
    kind: Kind
    rate: Rate | None = None
    state: Literal["open", "paid"]
    level: Literal[1, 2] | None
    share: int | float
    day: date
    at: datetime | None
    paid: bool
    item: Item
    other: Item | None = None
    items: list[Item]
    rates: dict[str, float]
    either: int | str
    amount: Decimal
    pair: tuple[int, str]
    tree: Node


ITEM = pa.struct({"name": pa.string(), "price": pa.float64(), "tags": pa.list_(pa.string())})
AS_PYDANTIC = {
    "number": pa.string(),
    "total": pa.float64(),
    "count": pa.int64(),
    "kind": pa.string(),
    "rate": pa.int64(),
    "state": pa.string(),
    "level": pa.int64(),
    "share": pa.float64(),
    "day": pa.string(),
    "at": pa.string(),
    "paid": pa.bool_(),
    "item": ITEM,
    "other": ITEM,
    "items": pa.list_(ITEM),
    "rates": pa.string(),
    "either": pa.string(),
    "amount": pa.string(),
    "pair": pa.string(),
    "tree": pa.struct({"value": pa.int64(), "below": pa.list_(pa.string())}),
}


def invoice(count):
    """An invoice whose optional parts are null for None."""
    items = [Item(name=f"item {number}", price=number / 2, tags=["a"]) for number in range(count or 0)]
    return Invoice(
        number="한-1",
        total=count,
        count=count,
        kind=Kind.RECEIPT,
        rate=count and Rate.HIGH,
        state="paid",
        level=count and 2,
        share=3,
        day=date(2026, 11, 29),
        at=count and datetime(2026, 11, 29, 9, tzinfo=UTC),
        paid=True,
        item=Item(name="x"),
        other=items[0] if items else None,
        items=items,
        rates={"vat": 0.1},
        either="7",
        amount=Decimal("12.50"),
        pair=(1, "b"),
        tree=Node(value=1, below=[Node(value=2, below=[Node(value=3)])]),
    )


@pytest.mark.parametrize("count", [None, 2])
def test_models_of_pydantic_have_columns_that_hold_them(count):
    schema = Invoice.model_json_schema()
    columns = field_columns(schema)
    assert {column.name: column.type for column in columns} == AS_PYDANTIC
    assert fields_as_json(schema) == ["rates", "either", "amount", "pair", "tree.below[]"]
    written = invoice(count)
    fields, problem = parse_fields(written.model_dump_json(), columns)
    assert problem is None
    (row,) = pa.Table.from_pylist([fields], pa.schema(columns)).to_pylist()
    read = {name: json.loads(row[name]) for name in ("rates", "pair")}
    read["tree"] = row["tree"] | {"below": [json.loads(node) for node in row["tree"]["below"]]}
    assert Invoice.model_validate(row | read) == written


def test_a_model_of_pydantic_that_contains_itself_has_columns():
    assert field_columns(Node.model_json_schema()) == [
        pa.field("value", pa.int64()),
        pa.field("below", pa.list_(pa.string())),
    ]


def test_parts_that_refer_to_each_other_are_bounded():
    """Each path through them is a field: of 12 there are more than 10 ** 8."""
    names = [f"D{number}" for number in range(12)]
    members = {name: {"$ref": f"#/$defs/{name}"} for name in names}
    kinds = {name: schema_of({**members, "x": {"type": "string"}}) for name in names}
    start = time.monotonic()
    (column,) = field_columns(schema_of({"a": members["D0"]}, **{"$defs": kinds}))
    assert time.monotonic() - start < 5
    assert pa.types.is_struct(column.type)
