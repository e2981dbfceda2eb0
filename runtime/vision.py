"""Inputs of the vision graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime import bundle as io
from runtime.windows import VisionSettings, vision_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def vision_feeds(
    patches: NDArray[np.float32], grids: Sequence[tuple[int, int, int]], shape: VisionSettings
) -> dict[str, NDArray[np.generic]]:
    """Inputs of the vision graph for patches [P, ...] of images in turn; their grids are (frames, rows, columns)."""
    index = vision_index(grids, shape)
    return {
        io.PATCHES: patches,
        io.PATCH_COS: index.cos,
        io.PATCH_SIN: index.sin,
        io.WINDOW_INDEX: index.window_index,
        io.WINDOW_INVERSE: index.inverse_index,
        io.WINDOW_GATHER: index.window_gather.reshape(len(index.window_lengths), -1),
        io.WINDOW_SCATTER: index.window_scatter,
        io.WINDOW_LENGTHS: index.window_lengths,
        io.FRAME_GATHER: index.frame_gather.reshape(len(index.frame_lengths), -1),
        io.FRAME_SCATTER: index.frame_scatter,
        io.FRAME_LENGTHS: index.frame_lengths,
        io.FRAME_LENGTH: np.array(index.frame_lengths.max()),
    }
