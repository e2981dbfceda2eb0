"""The KV cache: sliding layers keep their window, global layers the whole sequence."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np

from runtime.ort.rope import rope_tables
from runtime.ort.sessions import Buffer
from runtime.sizes import kv_bytes, kv_shapes

if TYPE_CHECKING:
    from runtime.ort.manifest import Text
    from runtime.ort.sessions import Device


def cache_bytes(text: Text, batch: int, capacity: int, itemsize: int) -> int:
    """Bytes of all key and value buffers of a cache."""
    return kv_bytes(text.windows, text.kv_heads, text.head_dim, capacity, itemsize, batch)


class KVCache:
    """Buffers of a batch of sequences on a device, allocated once, and how far each sequence fills them.

    lengths: int32 [batch], tokens of each sequence. buffers: key and value of each layer in turn, zeroed at first:
    cuDNN's attention reads them up to their capacity, and NaN left in memory would stay NaN however little it weighs.
    RoPE tables are as long as a sequence may become.
    """

    def __init__(self, text: Text, dtype: str, kv_dtype: str, device: Device, capacity: int, batch: int = 1) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)
        self.buffers = [
            Buffer.zeros(shape, kv_dtype, device)
            for shape in kv_shapes(text.windows, text.kv_heads, text.head_dim, capacity, batch)
            for _ in ("key", "value")
        ]
        self.rope_cos, self.rope_sin = (Buffer.of(table, dtype, device) for table in rope_tables(text.rope, capacity))

    def row(self, number: int) -> KVCache:
        """One sequence of the batch as a cache of its own, in the same memory."""
        row = copy.copy(self)
        row.lengths = self.lengths[number : number + 1]
        row.buffers = []
        for buffer in self.buffers:
            shape = (1, *buffer.shape[1:])
            row.buffers.append(buffer.stretch(number * math.prod(shape), shape))
        return row
