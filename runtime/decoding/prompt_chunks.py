"""Cuts a prompt into calls of the decoder.

cuDNN plans attention anew for each number of tokens over a cache: 55 to 400 ms, says ONNX Runtime's source. So calls on
a GPU have few lengths. The chunk that is not full comes first, while the cache is empty, and is padded. Rows of padding
lie behind the prompt so far, and the next call overwrites them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.sizes import Chunking


class Chunk(NamedTuple):
    """Tokens [start, stop) of a prompt, and rows of padding behind them."""

    start: int
    stop: int
    padding: int


def prompt_chunks(length: int, chunking: Chunking, rows: int) -> Iterator[Chunk]:
    """Cut a prompt of `length` tokens for an empty cache whose smallest buffer has `rows` rows.

    The first chunk is not padded where padding would fill more than these rows: it would push tokens out of a window.
    """
    first = length % chunking.longest or min(length, chunking.longest)
    padded = -(-first // chunking.multiple) * chunking.multiple
    yield Chunk(0, first, padded - first if padded <= rows else 0)
    for start in range(first, length, chunking.longest):
        yield Chunk(start, start + chunking.longest, 0)
