"""What a script on the stand-in device can see: bytes between host and device, memory there, and where nodes run.

Imported by the scripts that `CudaStub.run` starts, under the name `traffic`.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

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


def _counters() -> dict[str, int]:
    return {name: _counter(name).value for name in COUNTERS}


def _counter(name: str) -> ctypes.c_ulong:
    return ctypes.c_ulong.in_dll(ctypes.CDLL("libcudart.so.13"), f"stub_{name}")


def placement(session: onnxruntime.InferenceSession) -> list[tuple[str, str]]:
    """End the profiling of a session that has run; returns (operator, provider) of every node that ran, Memcpy too."""
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return sorted({(node["op_name"], node["provider"]) for node in nodes})
