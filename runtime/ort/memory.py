"""Memory that is free on a device."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.ort.device import load_driver

if TYPE_CHECKING:
    from runtime.ort.device import Device

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: Device) -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    return _free_on_gpu(device.index) if device.kind == "cuda" else _free_on_host()


def _free_on_gpu(index: int) -> int:
    """Ask the driver in the context that ONNX Runtime uses."""
    driver, context = load_driver(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index)
    driver.cuCtxSetCurrent(context)
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return free.value


def _free_on_host(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Linux's estimate of available memory, or what a container's limit leaves if that is less."""
    try:
        match = re.search(r"^MemAvailable: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    if match is None:
        return None
    available = int(match[1]) * 1024
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
