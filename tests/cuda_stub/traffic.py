"""What a script on the stand-in device can see, bytes between host and device and memory there, and what it can set.

Imported by the scripts that `CudaStub.run` starts, under the name `traffic`.
"""

from __future__ import annotations

import ctypes

COUNTERS = ("bytes_to_device", "bytes_to_host", "copies_to_device", "copies_to_host", "launches")


class Traffic:
    """Counts what happens inside a `with` block; its counters are those of COUNTERS."""

    def __enter__(self) -> Traffic:
        self._before = _counters()
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = {name: after - self._before[name] for name, after in _counters().items()}


class DeviceMemory:
    """Bytes of device memory held in a `with` block beyond those when it began: at most `peak`, `kept` in the end."""

    def __enter__(self) -> DeviceMemory:
        held, peak = (_counter(name) for name in ("device_bytes", "device_bytes_peak"))
        self._before = peak.value = held.value
        return self

    def __exit__(self, *_: object) -> None:
        self.peak, self.kept = (_counter(name).value - self._before for name in ("device_bytes_peak", "device_bytes"))


def leave_memory(size: int) -> None:
    """Let the device give out so many bytes more; all that is asked for beyond is refused."""
    _counter("device_limit").value = _counter("device_bytes").value + size


def fill_memory(byte: int) -> None:
    """Let memory that the device gives out from now on hold a byte everywhere; 0xFF makes NaN of every 16-bit float."""
    _counter("device_fill").value = byte


def set_driver_version(version: int) -> None:
    """Make the driver one that knows CUDA up to a version: 12080 is 12.8."""
    ctypes.c_int.in_dll(ctypes.CDLL("libcuda.so.1"), "stub_driver_version").value = version


def _counters() -> dict[str, int]:
    return {name: _counter(name).value for name in COUNTERS}


def _counter(name: str) -> ctypes.c_ulong:
    return ctypes.c_ulong.in_dll(ctypes.CDLL("libcudart.so.13"), f"stub_{name}")
