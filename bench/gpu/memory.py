"""Peak memory of a device, by polling."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtime.ort.device import load_driver

if TYPE_CHECKING:
    from bench.gpu.bench import Bench

_INTERVAL = 0.002  # seconds between two polls


class PeakMemory:
    """Peak of the bytes in use, minus those in use when the `with` block began.

    On a GPU of all processes; on the CPU this process's resident memory.
    """

    def __init__(self, bench: Bench) -> None:
        self._on_gpu = bench.on_gpu
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0
        self._peak = 0

    def __enter__(self) -> Self:
        if self._on_gpu:
            self._attach()
        self._before = self._peak = self._used()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._peak = max(self._peak, self._used())

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return self._peak - self._before

    def _watch(self) -> None:
        if self._on_gpu:
            self._attach()
        while not self._stop.wait(_INTERVAL):
            self._peak = max(self._peak, self._used())

    def _attach(self) -> None:
        """Give this thread the context of ONNX Runtime and torch: the driver counts memory by context."""
        self._driver = load_driver()
        context = ctypes.c_void_p()
        self._driver.cuInit(0)
        self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        self._driver.cuCtxSetCurrent(context)

    def _used(self) -> int:
        if not self._on_gpu:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * 4096
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value
