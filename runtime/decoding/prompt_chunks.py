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
    """Cut a prompt of `length` tokens for an empty cache whose smallest buffer has `rows` rows."""
    start = 0
    while start < length:
        chunk = next_chunk(start, length, chunking, rows)
        yield chunk
        start = chunk.stop


def next_chunk(start: int, length: int, chunking: Chunking, rows: int) -> Chunk:
    """The next chunk of a prompt of `length` tokens, for a cache that holds `start` of them.

    It is the one that is not full, where there is one. It is not padded where padding would fill more rows than the
    smallest buffer has: it would push tokens out of a window.
    """
    count = (length - start) % chunking.longest or min(length - start, chunking.longest)
    padded = -(-count // chunking.multiple) * chunking.multiple
    return Chunk(start, start + count, padded - count if start + padded <= rows else 0)
