"""Tensors in device memory: what is written is read, and views share it."""

import ctypes

import numpy as np
import pytest

from runtime.ort.buffer import Buffer
from runtime.ort.device import Device

CPU = Device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int64"])
def test_a_buffer_holds_what_was_written(dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    buffer = Buffer.from_array(array, dtype, CPU)
    first = buffer.read()
    np.testing.assert_array_equal(first, array)
    buffer.write(array + 1)
    np.testing.assert_array_equal(first, array)  # a copy
    np.testing.assert_array_equal(buffer.read(), array + 1)


def test_bfloat16_is_rounded_once():
    buffer = Buffer.from_array(np.array([1.0, 1.00390625, -3.1415927], np.float32), "bfloat16", CPU)
    held = (ctypes.c_uint16 * 3).from_address(buffer.address)
    assert list(held) == [0x3F80, 0x3F80, 0xC049]


def test_a_view_has_the_memory_of_its_tensor():
    buffer = Buffer.from_array(np.arange(12).reshape(3, 4), "int32", CPU)
    view = buffer.view(4, (2, 2))
    assert list((ctypes.c_int32 * 4).from_address(view.address)) == [4, 5, 6, 7]
    assert (view.shape, view.dtype, view.owner) == ((2, 2), "int32", buffer.owner)
