"""Values of a field as they are counted."""

import pyarrow as pa
import pytest

from runtime.batch.output.fields import FieldValues, field_counter

TYPES = {
    "integer": (pa.int64(), [3, 1, 2], FieldValues("integer", 1, 2, 3)),
    "number": (pa.float64(), [0.5, -1.0], FieldValues("number", -1.0, -1.0, 0.5)),
    "no number": (pa.float64(), [], FieldValues("number")),
    "text": (pa.string(), ["b", "a", "b"], FieldValues("text", frequent=(("b", 2), ("a", 1)), different=2)),
    "boolean": (
        pa.bool_(),
        [True, False, True],
        FieldValues("boolean", frequent=(("true", 2), ("false", 1)), different=2),
    ),
    "list": (pa.list_(pa.int64()), [[1]], FieldValues("list")),
    "object": (pa.struct({"a": pa.int64()}), [{"a": 1}], FieldValues("object")),
}


@pytest.mark.parametrize("case", TYPES)
def test_values_of_a_column(case):
    kind, values, expected = TYPES[case]
    counter = field_counter(kind)
    for value in values:
        counter.add(value)
    assert counter.values() == expected


def test_a_long_text_counts_by_its_beginning():
    counter = field_counter(pa.string())
    for text in ("x" * 80 + "a", "x" * 80 + "b", "y" * 80):
        counter.add(text)
    assert counter.values().frequent == (("x" * 79 + "…", 2), ("y" * 80, 1))
