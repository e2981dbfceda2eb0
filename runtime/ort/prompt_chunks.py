"""How a prompt is cut into calls of the decoder.

A call of several tokens over a cache is a shape, and cuDNN plans attention anew for each shape: 55 to 400 ms, says
ONNX Runtime's source. So on a GPU calls have few lengths. What does not fill a chunk comes first, while the cache is
empty, and is padded: rows of padding lie behind the prompt so far, where the next call overwrites them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.sizes import Chunking


class Call(NamedTuple):
    """Tokens [start, stop) of a prompt, and rows of padding behind them."""

    start: int
    stop: int
    padding: int


def prompt_calls(length: int, chunking: Chunking, rows: int) -> Iterator[Call]:
    """Cut a prompt of `length` tokens, for an empty cache whose smallest buffer has so many rows.

    Where padding would fill more than these rows, which pushes tokens out of a window, there is none.
    """
    first = length % chunking.longest or min(length, chunking.longest)
    padded = -(-first // chunking.multiple) * chunking.multiple
    yield Call(0, first, padded - first if padded <= rows else 0)
    for start in range(first, length, chunking.longest):
        yield Call(start, start + chunking.longest, 0)
