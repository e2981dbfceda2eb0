"""The GPU: name, versions and memory; copy bandwidth and matrix products, the ceilings for other figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import torch

from bench.gpu.bench import BANDWIDTH, PRODUCT
from bench.gpu.figures import Figure
from bench.scale.host import VOCABULARY, host_costs
from bench.timing import timed
from runtime.ort.device import cudnn_version, require_cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.gpu.bench import Bench


def measure(bench: Bench) -> Iterator[Figure]:
    """Versions and memory, the rates of a copy and of matrix products, and the host's work for a token and a page."""
    yield from _about(bench)
    yield _copy(bench)
    yield _product(bench, PRODUCT, torch.float16 if bench.on_gpu else torch.float32)
    if bench.on_gpu:
        yield _product(bench, "bf16 matrix product", torch.bfloat16)
    vocabulary, repetitions = (512, 1) if bench.tiny else (VOCABULARY, 5)
    for name, cost in host_costs(vocabulary, repetitions).items():
        yield Figure.of(f"host: {name}", cost)


def _about(bench: Bench) -> Iterator[Figure]:
    yield Figure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    yield Figure("onnxruntime", f"{onnxruntime.__version__}, CUDA {onnxruntime.cuda_version or 'none'}")
    if not bench.on_gpu:
        yield Figure("GPU", f"none: {platform.machine()} with {os.cpu_count()} cores")
        return
    require_cuda(0)
    gpu = torch.cuda.get_device_properties(0)
    yield Figure("GPU", f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} SMs")
    yield Figure("memory", gpu.total_memory / 2**30, "GiB")
    yield Figure("driver", _driver())
    version = cudnn_version()
    yield Figure("cuDNN of torch", "none" if version is None else ".".join(map(str, version)))


def _driver() -> str:
    """Version of the driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return "unknown"


def _copy(bench: Bench) -> Figure:
    """Bandwidth of a copy in the device's memory; every byte is read and written."""
    size = 16 << 20 if bench.tiny else 2 << 30
    source = torch.ones(size, dtype=torch.uint8, device=bench.torch_device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        bench.synchronize()

    return Figure.rate(BANDWIDTH, timed(copy), 2 * size / 1e9, "GB/s", note=f"{size >> 20} MiB, read and written")


def _product(bench: Bench, name: str, dtype: torch.dtype) -> Figure:
    side = 512 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=bench.torch_device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(a, b)
        bench.synchronize()

    kind = str(dtype).removeprefix("torch.")
    return Figure.rate(name, timed(multiply), 2 * side**3 / 1e12, "TFLOP/s", note=f"{side} x {side}, {kind}")
