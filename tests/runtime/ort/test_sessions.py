"""Devices as the command line names them, and what ONNX Runtime is told about them."""

import ctypes
import time

import numpy as np
import pytest

from console.errors import InputError
from runtime.decoding.forward import decode
from runtime.model import Model
from runtime.ort.sessions import Buffer, Device, Options, memory_for, provider

CPU = Device("cpu")


@pytest.mark.parametrize(
    ("text", "device"),
    [("cpu", CPU), ("cuda", Device("cuda", 0)), ("cuda:0", Device("cuda", 0)), ("cuda:12", Device("cuda", 12))],
)
def test_devices(text, device):
    assert Device.parse(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "CUDA"])
def test_what_is_no_device(text):
    with pytest.raises(InputError, match=r'^--device .*: write "cpu", "cuda"'):
        Device.parse(text)


def test_a_card_is_told_its_number_and_limit():
    name, told = provider(Device("cuda", 1), Options(memory_limit=3 << 30, capture=True))
    assert name == "CUDAExecutionProvider"
    assert told["device_id"] == "1"
    assert told["gpu_mem_limit"] == str(3 << 30)
    assert told["enable_cuda_graph"] == "1"
    assert told["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in provider(Device("cuda"), Options())[1]
    assert provider(CPU, Options(memory_limit=1)) == ("CPUExecutionProvider", {})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int64"])
def test_a_buffer_holds_what_was_written(dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    buffer = Buffer.of(array, dtype, CPU)
    first = buffer.read()
    np.testing.assert_array_equal(first, array)
    buffer.write(array + 1)
    np.testing.assert_array_equal(first, array)  # a copy
    np.testing.assert_array_equal(buffer.read(), array + 1)


def test_bfloat16_is_rounded_once():
    buffer = Buffer.of(np.array([1.0, 1.00390625, -3.1415927], np.float32), "bfloat16", CPU)
    held = (ctypes.c_uint16 * 3).from_address(buffer.address)
    assert list(held) == [0x3F80, 0x3F80, 0xC049]


def test_threads_rest_between_two_calls(exported):
    """They would take a core each from the graph that is called next: drafts cost half a step more so."""
    model = Model(exported("w4"), "cpu", Options(threads=2))
    cache, embeds = model.decoder.new_cache(100), model.embed_tokens(np.arange(100, 164))
    decode(model, cache, embeds, np.array([63]))
    used = time.process_time()
    time.sleep(0.05)
    assert time.process_time() - used < 0.01


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4194305"),
        RuntimeError("Available memory of 10 is smaller than requested bytes of 4194305"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"),
    ],
)
def test_refused_memory_is_said_to_be(error):
    """In the words of ONNX Runtime 1.31."""
    more = ", 5 MiB more in one piece" if "4194305" in str(error) else ""
    with (
        pytest.raises(InputError, match=f"^out of memory for a thing{more}; buy some$"),
        memory_for("a thing", "buy some"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA failure 209: no kernel image"), InputError("x: is empty"), ValueError("std::bad_alloc")],
)
def test_another_error_goes_on_as_it_is(error):
    with pytest.raises(type(error)) as raised, memory_for("a thing", "buy some"):
        raise error
    assert raised.value is error
