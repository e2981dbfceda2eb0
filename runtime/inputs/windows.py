"""Computes the vision encoder's indices on the host: window order, positions, lengths and padded layouts.

The encoder's blocks attend inside windows of `window_size` pixels, or inside whole frames. The indices of both depend
on the sizes of the images. Computing them here keeps the exported graph free of loops and shape arithmetic.

The same P patches occur in three orders:

- raster blocks, as `runtime.inputs.images` returns them: frame after frame, 2x2 merge blocks in raster order, the four
  patches of a block together.
- window order: the same blocks, sorted so that each window is contiguous. Windows come in raster order. Frames and
  images stay in sequence, so a frame is contiguous too.
- padded: window order cut into windows (or frames), each right-padded to a common length. This is the batch of one
  attention operator. `*_gather` maps window order to padded, `*_scatter` maps back.
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
    """Indices of one batch of frames: P patches, P/4 merged tokens (at merge_size 2), N windows, F frames."""

    window_index: NDArray[np.int64]
    """[P/4]: `tokens[window_index]` brings merged tokens from raster to window order."""
    inverse_index: NDArray[np.int64]
    """[P/4]: the inverse."""
    cos: NDArray[np.float32]
    """[P, head_dim]: cosines of the patches' rotary angles, in window order."""
    sin: NDArray[np.float32]
    """[P, head_dim]: sines."""
    window_lengths: NDArray[np.int32]
    """[N]: patches of each window."""
    window_gather: NDArray[np.int64]
    """[N * window_patches]: rows of the window-ordered patches; -1 in padding slots."""
    window_scatter: NDArray[np.int64]
    """[P]: slot of each window-ordered row in the padded batch."""
    frame_lengths: NDArray[np.int32]
    """[F]: patches of each frame."""
    frame_gather: NDArray[np.int64]
    """[F * longest frame]: as `window_gather`."""
    frame_scatter: NDArray[np.int64]
    """[P]: as `window_scatter`."""


def vision_index(grids: Sequence[Grid], settings: VisionSettings) -> VisionIndex:
    """Compute the indices of images in order. grids: (frames, rows, columns) of each, in patches.

    Raises ValueError without grids, and for a grid that is empty or not made of whole merge blocks.
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
    """Frame (counted over all images), row and column of each merged token in raster order; a triple for each image."""
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

    Axial rotary embedding: a quarter of the head rotates with the patch's row, a quarter with its column, and the
    second half repeats the first (rotate-half layout). Angles are computed in float64. transformers' float32 is off by
    up to position * 2^-23, so the tables agree with it to about 1e-6 at usual sizes.
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
    """Pad consecutive segments of `lengths` rows to `width` slots each.

    Returns gather [len(lengths) * width] int64 (-1 in padding slots) and scatter [sum(lengths)] int64.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    slots = np.arange(width, dtype=np.int64)
    filled = slots < lengths[:, None]
    gather = np.where(filled, starts[:, None] + slots, -1).ravel()
    return gather, np.flatnonzero(filled).astype(np.int64, copy=False)
