"""Counters and settings of the stand-in device: copies between host and device, and device memory.

Scripts that `CudaStub.run` starts import it as `traffic`.
"""

from __future__ import annotations

import ctypes

COUNTERS = ("bytes_to_device", "bytes_to_host", "copies_to_device", "copies_to_host", "launches")


class Traffic:
    """Counts copies and kernel launches inside a `with` block, by the names in COUNTERS."""

    def __enter__(self) -> Traffic:
        self._before = _counters()
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = {name: after - self._before[name] for name, after in _counters().items()}


class DeviceMemory:
    """Bytes of device memory that a `with` block allocates: at most `peak`, and `kept` in the end."""

    def __enter__(self) -> DeviceMemory:
        held, peak = (_counter(name) for name in ("device_bytes", "device_bytes_peak"))
        self._before = peak.value = held.value
        return self

    def __exit__(self, *_: object) -> None:
        self.peak, self.kept = (_counter(name).value - self._before for name in ("device_bytes_peak", "device_bytes"))


def leave_memory(size: int) -> None:
    """Let the device allocate so many bytes more, and refuse all beyond."""
    _counter("device_limit").value = _counter("device_bytes").value + size


def fill_memory(byte: int) -> None:
    """Fill memory that the device allocates from now on with a byte; 0xFF makes every 16-bit float NaN."""
    _counter("device_fill").value = byte


def set_driver_version(version: int) -> None:
    """Let the driver support CUDA up to a version: 12080 is 12.8."""
    ctypes.c_int.in_dll(ctypes.CDLL("libcuda.so.1"), "stub_driver_version").value = version


def _counters() -> dict[str, int]:
    return {name: _counter(name).value for name in COUNTERS}


def _counter(name: str) -> ctypes.c_ulong:
    return ctypes.c_ulong.in_dll(ctypes.CDLL("libcudart.so.13"), f"stub_{name}")
