"""Shapes of the KV cache: sliding layers keep their window, global layers the whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.bundle import Text

Shape = tuple[int, int, int, int]


def buffer_shapes(text: Text, batch: int, room: int) -> list[Shape]:
    """Shape [batch, kv_heads, rows, head_dim] of each layer's key buffer, and of its value buffer alike.

    room: tokens the sequence may grow to. A sliding layer never needs more rows than its window, and CUDA's kernel
    demands exactly that many.
    """
    return [(batch, text.kv_heads, room if window is None else window, text.head_dim) for window in text.windows]


def cache_bytes(text: Text, batch: int, room: int, itemsize: int) -> int:
    """Bytes of all key and value buffers."""
    return sum(2 * itemsize * b * heads * rows * width for b, heads, rows, width in buffer_shapes(text, batch, room))
