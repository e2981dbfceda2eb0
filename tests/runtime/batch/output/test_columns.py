"""Columns of a JSON schema, and the values of answers in them, against pyarrow and jsonschema."""

import io
import json
import sys

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.batch.output.columns import BASE, field_columns, parse_fields

OPTIONS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def schema_of(properties, **more):
    return {"type": "object", "properties": properties, **more}


CLOSED = {"additionalProperties": False}


def test_columns_have_the_order_of_the_properties():
    names = ["z", "a", "ㄱ", "m"]
    assert [column.name for column in field_columns(schema_of({name: {} for name in names}))] == names


@pytest.mark.parametrize("name", BASE.names)
def test_a_property_named_like_a_column_is_refused(name):
    with pytest.raises(InputError, match=rf"^property '{name}' is also a column of the output; rename it$"):
        field_columns(schema_of({"total": {}, name: {}}))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": ["a"]},
        {"type": "array", "items": {}},
        {"type": ["object", "null"], "properties": {"a": {}}},
        {"anyOf": [{"type": "object"}]},
    ],
)
def test_what_is_no_object_with_properties_is_refused(schema):
    with pytest.raises(InputError, match=r"^is no object with properties; its properties become columns$"):
        field_columns(schema)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(InputError, match=r"^property '\\ud83d' is not valid Unicode; rename it$"):
        field_columns(schema_of({"\ud83d": {}}))
    with pytest.raises(InputError, match=r"^property '\\ud83d' is not valid Unicode; rename it$"):
        field_columns(schema_of({"a": {"type": "array", "items": schema_of({"\ud83d": {}}, **CLOSED)}}))


def test_lists_in_lists_are_text_before_parquet_has_too_many_levels():
    """Arrow writes them without an error, and no reader opens the file."""
    schema, value = {"type": "integer"}, 7
    for _ in range(40):
        schema, value = {"type": "array", "items": schema}, [value]
    columns = field_columns(schema_of({"a": schema}))
    fields, problem = parse_fields(json.dumps({"a": value}), columns)
    assert problem is None
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([fields], pa.schema(columns)), file)
    found = pq.ParquetFile(file).read(use_threads=False).to_pylist()[0]["a"]
    while isinstance(found, list):
        (found,), (value,) = found, value
    assert json.loads(found) == value


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = st.sampled_from(
    [
        ({"type": "string"}, TEXT),
        ({"type": "integer"}, st.integers(-(2**63), 2**63 - 1)),
        ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)),
        ({"type": "boolean"}, st.booleans()),
        ({"type": ["null", "integer"]}, st.none() | st.integers(-5, 5)),
    ]
)


def lists(kind):
    schema, values = kind
    return {"type": "array", "items": schema}, st.lists(values, max_size=3)


def objects(kinds):
    schemas, values = ({name: kind[place] for name, kind in kinds.items()} for place in (0, 1))
    return schema_of(schemas, required=list(schemas), **CLOSED), st.fixed_dictionaries(values)


OBJECTS = st.dictionaries(TEXT.filter(lambda name: name not in BASE.names), LEAVES, min_size=1, max_size=3).map(objects)
KINDS = st.recursive(
    LEAVES,
    lambda kinds: (
        kinds.map(lists)
        | st.dictionaries(st.sampled_from(["a", "b", "금액"]), kinds, min_size=1, max_size=2).map(objects)
    ),
    max_leaves=4,
)


@OPTIONS
@given(
    st.dictionaries(TEXT.filter(lambda name: name not in BASE.names), KINDS, min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)
def test_what_is_valid_and_fits_comes_back_equal(kinds, data, ascii_only):
    schema, values = objects(kinds)
    value = data.draw(values)
    jsonschema.validate(value, schema)
    columns = field_columns(schema)
    fields, problem = parse_fields(json.dumps(value, ensure_ascii=ascii_only), columns)
    assert problem is None
    read = pa.Table.from_pylist([fields], pa.schema(columns)).to_pylist()
    assert read == pa.Table.from_pylist([value], pa.schema(columns)).to_pylist()  # pyarrow's own conversion
    assert read == [value]


FINITE = st.floats(allow_nan=False, allow_infinity=False)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "n": {"type": "integer"},
    "x": {"type": "number"},
    "t": {"type": "boolean"},
    "s": {"type": "string"},
    "l": {"type": "array", "items": {"type": "integer"}},
    "o": schema_of({"a": {"type": "number"}}, **CLOSED),
    "any": {},
}
WIDER = schema_of(  # below a list or an object, what is null stays null
    FIELDS
    | {"l": {"type": "array", "items": {"type": ["integer", "null"]}}, "any": {"type": "string"}}
    | {"o": schema_of({"a": {"type": ["number", "null"]}}, **CLOSED)}
)


@OPTIONS
@given(st.dictionaries(st.sampled_from(list(FIELDS)), ANY_JSON))
def test_any_object_has_values_that_can_be_written_and_are_valid_or_null(value):
    """A model may write what it likes where nothing forces it: no value is changed into another."""
    columns = field_columns(schema_of(FIELDS))
    fields, problem = parse_fields(json.dumps(value), columns)
    assert list(fields) == list(FIELDS)
    jsonschema.validate({name: found for name, found in fields.items() if found is not None}, WIDER)
    pa.Table.from_pylist([fields], pa.schema(columns))
    lost = {name for name in value if value[name] is not None and fields[name] is None}
    assert (problem is None) == (not lost)
    for name in ("n", "x", "t", "l"):
        assert fields[name] is None or fields[name] == value[name]
    assert fields["o"] is None or fields["o"] == {"a": value["o"].get("a")}
    for name in ("s", "any"):  # what is not text is JSON in its column
        written = value.get(name)
        assert fields[name] is None or fields[name] == written or json.loads(fields[name]) == written


ONE = {
    "whole": ({"type": "integer"}, "3.0", 3),
    "largest": ({"type": "integer"}, str(2**63 - 1), 2**63 - 1),
    "a large number": ({"type": "number"}, str(10**20), 1e20),
    "a whole number": ({"type": "number"}, "3", 3.0),
    "text of anything": ({}, '"3"', "3"),
    "a number of anything": ({}, "3.50", "3.5"),
    "objects of anything": ({}, '{"금액": [1, null]}', '{"금액": [1, null]}'),
    "null": ({"type": "string"}, "null", None),
    "what an object lacks": (schema_of({"a": {}, "b": {}}, **CLOSED), '{"b": 1}', {"a": None, "b": "1"}),
}


@pytest.mark.parametrize("case", ONE)
def test_a_value_as_its_column_holds_it(case):
    schema, written, value = ONE[case]
    columns = field_columns(schema_of({"v": schema}))
    fields, problem = parse_fields(f'{{"v": {written}, "more": 1}}', columns)
    assert (fields, problem) == ({"v": value}, None)
    assert pa.Table.from_pylist([fields], pa.schema(columns)).to_pylist() == [{"v": value}]


LETTERS = "가" * 60
UNFIT = {
    "too large": ({"type": "integer"}, str(2**63), "9223372036854775808 is too large for its column"),
    "far too large": ({"type": "integer"}, "1e300", "1e+300 is too large for its column"),
    "endless": ({"type": "integer"}, "1e999", "Infinity is too large for its column"),
    "an endless number": ({"type": "number"}, "-1e999", "-Infinity is too large for its column"),
    "a very long number": ({"type": "number"}, "9" * 999, "9" * 39 + "… is too large for its column"),
    "endless in anything": ({}, "[1e999]", "[Infinity] has a number that is too large"),
    "a fraction": ({"type": "integer"}, "3.5", "3.5 is no integer"),
    "true": ({"type": "integer"}, "true", "true is no integer"),
    "true for a number": ({"type": "number"}, "true", "true is no number"),
    "digits": ({"type": "number"}, '"12,50"', '"12,50" is no number'),
    "digits of a list": ({"type": "integer"}, '["1"]', '["1"] is no integer'),
    "a long text": ({"type": "integer"}, f'"{LETTERS}"', f'"{LETTERS[:39]}…" is no integer'),
    "more digits than a number holds": (
        {"type": "number"},
        str(2**53 + 1),
        "9007199254740993 has too many digits for its column",
    ),
    "one": ({"type": "boolean"}, "1", "1 is no boolean"),
    "half a character": ({"type": "string"}, '"\\ud83d"', '"\\ud83d" is not valid Unicode'),
    "half a character of anything": ({}, '["\\ud83d"]', '["\\ud83d"] is not valid Unicode'),
    "half a character of a number": ({"type": "number"}, '"\\ud83d"', '"\\ud83d" is no number'),
    "no list": ({"type": "array", "items": {"type": "integer"}}, "3", "3 is no list"),
    "text for a list": ({"type": "array", "items": {"type": "string"}}, '"abc"', '"abc" is no list'),
    "a bad item": ({"type": "array", "items": {"type": "integer"}}, "[1, 2.5]", "2.5 is no integer"),
    "no object": (schema_of({"a": {}}, **CLOSED), "[1]", "[1] is no object"),
    "a bad member": (schema_of({"a": {"type": "integer"}}, **CLOSED), '{"a": "x"}', '"x" is no integer'),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_value_that_does_not_fit_is_null_and_an_error_and_others_stay(case):
    schema, written, says = UNFIT[case]
    columns = field_columns(schema_of({"before": {"type": "integer"}, "v": schema, "after": {"type": "string"}}))
    fields, problem = parse_fields(f'{{"before": 1, "v": {written}, "after": "b"}}', columns)
    assert fields == {"before": 1, "v": None, "after": "b"}
    assert problem == f"field 'v': {says}"
    pa.Table.from_pylist([fields | {"error": problem}], pa.schema([*columns, pa.field("error", pa.string())]))


def test_the_first_field_that_does_not_fit_is_the_error():
    columns = field_columns(schema_of({name: {"type": "integer"} for name in "abc"}))
    fields, problem = parse_fields('{"a": 1, "b": "x", "c": "y"}', columns)
    assert (fields, problem) == ({"a": 1, "b": None, "c": None}, "field 'b': \"x\" is no integer")


@pytest.mark.parametrize("kind", ["string", "integer"])
def test_levels_that_can_just_be_read_are_an_error_at_most(kind):
    """Python writes fewer levels of JSON than it reads, by the frames that are open."""
    columns = field_columns(schema_of({"a": {"type": kind}, "b": {"type": "integer"}}))
    said = set()
    for levels in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 50):
        fields, problem = parse_fields(f'{{"a": {"[" * levels}{"]" * levels}, "b": 1}}', columns)
        said.add((fields["b"], problem))
    assert (None, "the answer is not JSON") in said
    assert said <= {
        (None, "the answer is not JSON"),
        (1, "field 'a': has too many levels"),
        (1, None if kind == "string" else f"field 'a': {'[' * 39}… is no integer"),
    }


ANSWERS = {
    '{"a": 1, "b": "cu': "the answer is not JSON",
    "": "the answer is not JSON",
    "Total: 12": "the answer is not JSON",
    '{"a": 1} and more': "the answer is not JSON",
    "[" * 100_000: "the answer is not JSON",
    f'{{"a": {"9" * 5000}}}': "the answer is not JSON",
    '{"a": NaN}': "the answer is not JSON",
    '{"b": -Infinity}': "the answer is not JSON",
    "[1]": "the answer is no JSON object",
    "null": "the answer is no JSON object",
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[:12])
def test_an_answer_that_is_no_object_has_no_values(answer):
    columns = field_columns(schema_of({"a": {"type": "integer"}, "b": {"type": "string"}}))
    assert parse_fields(answer, columns) == ({"a": None, "b": None}, ANSWERS[answer])
