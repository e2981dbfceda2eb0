"""What a card says of itself, through the driver that the CUDA provider has loaded already."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from runtime.ort.cuda import load_driver


@dataclass(frozen=True)
class Card:
    """A card's name and its memory in bytes, of which `used` is taken by all processes together."""

    name: str
    total: int
    used: int


def read_card(index: int) -> Card:
    """Ask the driver for a card; this process must have a session on it."""
    driver = load_driver()
    name, free, total = ctypes.create_string_buffer(100), ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), index)  # ordinals and handles are the same numbers
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return Card(name.value.decode(), total.value, total.value - free.value)
