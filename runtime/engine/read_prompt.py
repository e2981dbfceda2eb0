"""Reads a prompt into a row, one call of the vision encoder or of the decoder at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from runtime.decoding.forward import read_chunk, smallest_buffer
from runtime.decoding.prompt_chunks import next_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from runtime.engine.pictures import VisionCache
    from runtime.engine.rows import Row
    from runtime.exported import ExportedModel
    from runtime.ort.decoder import Decoded
    from runtime.sizes import Chunking

ReadAlong = Callable[["Decoded", int, "NDArray[np.float32]"], None]
"""Takes a call of the decoder, its number of tokens, and the embeddings of the tokens after each of them."""


def read_prompt(
    model: ExportedModel, vision: VisionCache, row: Row, chunking: Callable[[], Chunking], along: ReadAlong
) -> Iterator[NDArray[np.float32] | None]:
    """Read the prompt of a row's sequence behind the tokens that the row holds.

    Yields None after each call but the last, then the logits [V] after the prompt. chunking: lengths of the next call.
    along: reads each chunk too. Raises NotFiniteError and NoMemoryError.
    """
    assert row.sequence is not None
    ids, rows = row.sequence.ids, smallest_buffer(row.cache)
    pictures: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for places, embeds in _encode(vision, row):
        if embeds is None:
            yield None
        else:
            pictures.append((places, embeds))
    while True:
        chunk = next_chunk(row.length, len(ids), chunking(), rows)
        tokens, stop = chunk.stop - chunk.start, min(chunk.stop + 1, len(ids))
        embeds = model.embed_tokens(ids[chunk.start : stop])
        for places, values in pictures:
            first, last = np.searchsorted(places, (chunk.start, stop))
            embeds[places[first:last] - chunk.start] = values[first:last]
        decoded = read_chunk(model, row.cache, embeds[:tokens], chunk)
        along(decoded, tokens, embeds[1:])
        if chunk.stop == len(ids):
            yield decoded.logits[0, 0]
            return
        yield None


def _encode(vision: VisionCache, row: Row) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32] | None]]:
    """Positions of each picture's placeholders in the prompt, and its embeddings; None after each call of the encoder.

    Pictures that the row holds already are left out.
    """
    assert row.sequence is not None
    ids, read = row.sequence.ids, row.length
    seen: dict[int, int] = {}
    for picture in row.sequence.pictures:
        before = seen.get(picture.token, 0)
        seen[picture.token] = before + picture.tokens
        places = np.flatnonzero(ids == picture.token)[before : before + picture.tokens]
        if places[-1] < read:
            continue
        misses = vision.misses
        for embeds in vision.encode(picture):
            yield places, embeds
        if vision.misses > misses:
            yield places, None
