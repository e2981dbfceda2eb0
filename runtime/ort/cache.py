"""The KV cache: sliding layers keep their window, global layers the whole sequence."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np

from runtime.ort.buffer import Buffer
from runtime.ort.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.ort.device import Device
    from runtime.sizes import KvLayers


class KVCache:
    """Keys and values of a batch of sequences on a device, allocated once, with RoPE tables of the same capacity.

    capacity: tokens that a sequence may grow to. lengths: int32 [batch], tokens of each sequence so far. buffers: key
    and value of each layer in turn. They start as zeros: cuDNN's attention reads them up to their capacity, and NaN in
    unused memory would stay NaN whatever its weight. rope_cos, rope_sin: [capacity, head_dim / 2].
    """

    def __init__(
        self,
        layers: KvLayers,
        rope: Mapping[str, Any],
        dtype: str,
        kv_dtype: str,
        device: Device,
        capacity: int,
        batch: int = 1,
    ) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)
        self.buffers = [
            Buffer.zeros(shape, kv_dtype, device) for shape in layers.shapes(capacity, batch) for _ in ("key", "value")
        ]
        tables = rope_tables(rope, capacity)
        self.rope_cos, self.rope_sin = (Buffer.from_array(table, dtype, device) for table in tables)

    def row(self, number: int) -> KVCache:
        """View one sequence of the batch as a cache of its own, in the same memory."""
        return self.rows(number, number + 1)

    def rows(self, start: int, stop: int) -> KVCache:
        """View sequences [start, stop) of the batch as a cache of their own, in the same memory; all are this one."""
        if stop - start == len(self.lengths):
            return self
        rows = copy.copy(self)
        rows.lengths = self.lengths[start:stop]
        rows.buffers = []
        for buffer in self.buffers:
            shape = (stop - start, *buffer.shape[1:])
            rows.buffers.append(buffer.view(start * math.prod(shape[1:]), shape))
        return rows
