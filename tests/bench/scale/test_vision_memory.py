"""Memory of the vision graph at the largest image, 16384 patches: far from an N x N tensor, on both targets."""

import os
import sys

import pytest

from bench.scale.vision_memory import LARGEST, MIB, Call, on_cpu, on_cuda, table

BOUND = 512 * MIB  # the scores of a single head would be 1024 MiB in float32, and 512 in float16


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_largest_image_on_the_cpu(exported, monkeypatch):
    """320 MiB when this was written."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    peak, kept, _ = on_cpu(exported("fp16"), LARGEST)
    assert 100 * MIB < peak < BOUND
    assert kept < peak / 2


def test_the_largest_image_on_cuda(cuda_stub, exported, monkeypatch):
    """232 MiB when this was written; without its flash kernel the provider asks for the scores, and that is seen."""
    folder = exported("fp16", "cuda")
    peak, kept = on_cuda(folder, LARGEST, cuda_stub)
    assert 50 * MIB < peak < BOUND
    assert kept < MIB
    for kernel in ("FLASH_ATTENTION", "MEMORY_EFFICIENT_ATTENTION", "CUDNN_FLASH_ATTENTION"):
        monkeypatch.setitem(os.environ, f"ORT_DISABLE_{kernel}", "1")
    assert on_cuda(folder, LARGEST, cuda_stub)[0] > 4 * BOUND


def test_table():
    calls = [Call("a", "cpu", 64, 3 * MIB, MIB, 1.25, 5 * MIB), Call("b", "cuda", 64, 2 * MIB, 0, None, 5 * MIB)]
    assert table(calls).splitlines()[2:] == ["| a | cpu | 64 | 3 | 1 | 5 | 1.2 |", "| b | cuda | 64 | 2 | 0 | 5 | – |"]
