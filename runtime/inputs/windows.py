"""Index work of the vision encoder, done on the host: window order, positions, lengths and padded layouts.

The encoder's blocks attend inside windows of `window_size` pixels, or inside whole frames. Both need indices that
depend on the sizes of the images. Computing them here keeps the exported graph free of loops and shape arithmetic.

Three orders of the same P patches occur:

- raster blocks: how `runtime.inputs.images` delivers patches. Frame after frame, 2x2 merge blocks in raster order, the
  four patches of a block together.
- window order: the same blocks, sorted so that each window is contiguous. Windows come in raster order, frames and
  images stay in sequence, so a frame is contiguous too.
- padded: window order cut into windows (or frames) and right-padded to a common length, to be a batch for one attention
  operator. `*_gather` leads from window order to padded, `*_scatter` back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.ort.manifest import VisionSettings

    Grid = tuple[int, int, int]


@dataclass(frozen=True)
class VisionIndex:
    """Indices of one batch of frames: P patches, P/4 merged tokens (at merge_size 2), N windows, F frames.

    window_index: [P/4] int64, `tokens[window_index]` brings merged tokens from raster to window order.
    inverse_index: [P/4] int64, and back.
    cos, sin: [P, head_dim] float32, rotary tables of the patches in window order.
    window_lengths: [N] int32, patches of each window.
    window_gather: [N * window_patches] int64, rows of the window-ordered patches; -1 in padding slots.
    window_scatter: [P] int64, where each window-ordered row lies in the padded buffer.
    frame_lengths, frame_gather, frame_scatter: the same for frames, padded to the longest.
    """

    window_index: NDArray[np.int64]
    inverse_index: NDArray[np.int64]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    window_lengths: NDArray[np.int32]
    window_gather: NDArray[np.int64]
    window_scatter: NDArray[np.int64]
    frame_lengths: NDArray[np.int32]
    frame_gather: NDArray[np.int64]
    frame_scatter: NDArray[np.int64]


def vision_index(grids: Sequence[Grid], settings: VisionSettings) -> VisionIndex:
    """Index everything about `grids`, one (frames, rows, columns) in patches for each image, in order.

    Raises ValueError for no grid at all, or one that is empty or not made of whole merge blocks.
    """
    merge = settings.merge_size
    if not grids or any(min(grid) < 1 or grid[1] % merge or grid[2] % merge for grid in grids):
        raise ValueError(f"grids must be (frames, rows, columns) with rows and columns multiples of {merge}: {grids}")
    frame, row, column = (np.concatenate(axis) for axis in zip(*_token_positions(grids, merge), strict=True))
    window = _window_numbers(frame, row, column, settings.window_tokens)
    window_index = np.argsort(window, kind="stable")
    window_lengths = np.bincount(window).astype(np.int32) * np.int32(merge**2)
    frame_lengths = np.repeat([r * c for _, r, c in grids], [t for t, _, _ in grids]).astype(np.int32)
    cos, sin = _rotary_tables(row[window_index], column[window_index], settings)
    window_gather, window_scatter = _padded_layout(window_lengths, settings.window_patches)
    frame_gather, frame_scatter = _padded_layout(frame_lengths, int(frame_lengths.max()))
    return VisionIndex(
        window_index=window_index,
        inverse_index=np.argsort(window_index),
        cos=cos,
        sin=sin,
        window_lengths=window_lengths,
        window_gather=window_gather,
        window_scatter=window_scatter,
        frame_lengths=frame_lengths,
        frame_gather=frame_gather,
        frame_scatter=frame_scatter,
    )


def _token_positions(grids: Sequence[Grid], merge: int) -> list[tuple[NDArray[np.int64], ...]]:
    """Frame (counted over all images), row and column of every merged token, raster order; one triple an image."""
    positions: list[tuple[NDArray[np.int64], ...]] = []
    first_frame = 0
    for frames, rows, columns in grids:
        frame, row, column = np.indices((frames, rows // merge, columns // merge), np.int64).reshape(3, -1)
        positions.append((frame + first_frame, row, column))
        first_frame += frames
    return positions


def _window_numbers(
    frame: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64], side: int
) -> NDArray[np.int64]:
    """Window of each merged token, numbered by frame, window row, window column. All arrays are [P/4] int64."""
    window_row, window_column = row // side, column // side
    key = (frame * (window_row.max() + 1) + window_row) * (window_column.max() + 1) + window_column
    return np.unique(key, return_inverse=True)[1].astype(np.int64, copy=False)


def _rotary_tables(
    row: NDArray[np.int64], column: NDArray[np.int64], settings: VisionSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [P, head_dim] float32 of the patches in the merged tokens at (row, column), each [P/4].

    Axial rotary embedding: a quarter of the head turns with the patch's row, a quarter with its column, and the second
    half repeats the first (rotate-half layout). Angles are taken in float64; a float32 computation is off by up to
    position * 2^-23, so the tables agree with transformers to about 1e-6 at usual sizes.
    """
    merge, half = settings.merge_size, settings.head_dim // 2
    within_row, within_column = np.indices((merge, merge)).reshape(2, -1)
    patch_row = (row[:, None] * merge + within_row).ravel()
    patch_column = (column[:, None] * merge + within_column).ravel()
    positions = np.arange(max(patch_row.max(), patch_column.max()) + 1, dtype=np.float64)
    angles = np.outer(positions, settings.rope_theta ** -(np.arange(0, half, 2, dtype=np.float64) / half))
    tables = []
    for table in (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)):
        by_row, by_column = table[patch_row], table[patch_column]
        tables.append(np.concatenate([by_row, by_column, by_row, by_column], axis=1))
    return tables[0], tables[1]


def _padded_layout(lengths: NDArray[np.int32], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay consecutive segments of `lengths` rows out as rows of `width` slots.

    Returns gather [len(lengths) * width] int64 (-1 in padding slots) and scatter [sum(lengths)] int64.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    slots = np.arange(width, dtype=np.int64)
    filled = slots < lengths[:, None]
    gather = np.where(filled, starts[:, None] + slots, -1).ravel()
    return gather, np.flatnonzero(filled).astype(np.int64, copy=False)
