"""Name and memory of a GPU, from the driver that the CUDA provider has loaded."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from runtime.ort.device import load_driver


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and memory in bytes."""

    name: str
    """As the driver reports it."""
    total: int
    """All of its memory."""
    used: int
    """Memory that all processes use together."""


def read_gpu(index: int) -> Gpu:
    """Ask the driver about a GPU; this process must have a session on it."""
    driver = load_driver()
    name, free, total = ctypes.create_string_buffer(100), ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), index)  # ordinals and handles are the same numbers
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return Gpu(name.value.decode(), total.value, total.value - free.value)
