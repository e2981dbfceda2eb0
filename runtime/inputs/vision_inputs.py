"""Inputs of the vision graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.inputs.windows import vision_index
from runtime.ort import graph_io

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.ort.manifest import VisionSettings


def vision_feeds(
    patches: NDArray[np.float32], grids: Sequence[tuple[int, int, int]], shape: VisionSettings
) -> dict[str, NDArray[np.generic]]:
    """Inputs of the vision graph for patches [P, ...] of images in turn; their grids are (frames, rows, columns)."""
    index = vision_index(grids, shape)
    return {
        graph_io.PATCHES: patches,
        graph_io.PATCH_COS: index.cos,
        graph_io.PATCH_SIN: index.sin,
        graph_io.WINDOW_INDEX: index.window_index,
        graph_io.WINDOW_INVERSE: index.inverse_index,
        graph_io.WINDOW_GATHER: index.window_gather.reshape(len(index.window_lengths), -1),
        graph_io.WINDOW_SCATTER: index.window_scatter,
        graph_io.WINDOW_LENGTHS: index.window_lengths,
        graph_io.FRAME_GATHER: index.frame_gather.reshape(len(index.frame_lengths), -1),
        graph_io.FRAME_SCATTER: index.frame_scatter,
        graph_io.FRAME_LENGTHS: index.frame_lengths,
        graph_io.FRAME_LENGTH: np.array(index.frame_lengths.max()),
    }
