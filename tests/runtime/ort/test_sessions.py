"""Options of execution providers, and threads of sessions."""

import time

import numpy as np
import pytest

from console.errors import InputError
from runtime.decoding.forward import decode
from runtime.model import Model
from runtime.ort.device import Device
from runtime.ort.sessions import Options, open_session, provider


def test_a_gpu_gets_its_number_and_limit():
    name, options = provider(Device("cuda", 1), Options(memory_limit=3 << 30, capture=True))
    assert name == "CUDAExecutionProvider"
    assert options["device_id"] == "1"
    assert options["gpu_mem_limit"] == str(3 << 30)
    assert options["enable_cuda_graph"] == "1"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in provider(Device("cuda"), Options())[1]
    assert provider(Device("cpu"), Options(memory_limit=1)) == ("CPUExecutionProvider", {})


def test_threads_sleep_between_two_calls(exported):
    """Spinning, each would take a core from the next graph: drafting then costs half a step more."""
    model = Model(exported("fp16"), "cpu", Options(threads=2))
    cache, embeds = model.decoder.new_cache(100), model.embed_tokens(np.arange(100, 164))
    used = []
    for _ in range(5):
        cache.lengths[:] = 0
        decode(model, cache, embeds, np.array([63]))
        start = time.process_time()
        time.sleep(0.05)
        used.append(time.process_time() - start)
    assert min(used) < 0.01  # once at least: other threads of the tests' process may wake up in a pause


def test_a_graph_in_memory_that_cannot_be_loaded_is_one_line(exported):
    with pytest.raises(InputError, match=r"decoder.cpu.onnx: ONNX Runtime cannot load it"):
        open_session(exported("fp16") / "decoder.cpu.onnx", Device("cpu"), graph=b"no graph")
