"""Errors of ONNX Runtime that mean out of memory, and those that do not."""

import pytest

from console.errors import InputError
from runtime.ort.out_of_memory import report_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4194305"),
        RuntimeError("Available memory of 10 is smaller than requested bytes of 4194305"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"),
    ],
)
def test_out_of_memory_is_one_line(error):
    """In the words of ONNX Runtime 1.31."""
    more = ", 5 MiB more in one piece" if "4194305" in str(error) else ""
    with (
        pytest.raises(InputError, match=f"^out of memory for a thing{more}; buy some$"),
        report_out_of_memory("a thing", "buy some"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA failure 209: no kernel image"), InputError("x: is empty"), ValueError("std::bad_alloc")],
)
def test_another_error_passes_unchanged(error):
    with pytest.raises(type(error)) as raised, report_out_of_memory("a thing", "buy some"):
        raise error
    assert raised.value is error
