"""Runs the vision graph: patches of images and frames in, their embeddings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from runtime.inputs.windows import vision_index
from runtime.ort import graph_io
from runtime.ort.out_of_memory import report_failed_run, report_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from runtime.ort.manifest import VisionSettings


class VisionSession:
    """The vision graph on a device. It frees its activations after each call.

    For the largest image they are as large as the KV cache of a long context, which is filled after them.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        cuda = session.get_provider_options().get("CUDAExecutionProvider")
        arena = "cpu:0" if cuda is None else f"gpu:{cuda['device_id']}"
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Embed images and frames: [P / merge^2, H]. feeds: inputs from `vision_feeds`.

        Raises InputError where the graph cannot take them: its settings are others.
        """
        advice = "give smaller images or a lower --fps, or raise --memory-limit where it was given"
        patches = f"pictures of {len(feeds[graph_io.PATCHES])} patches"
        with report_out_of_memory(patches, advice), report_failed_run(patches):
            (embeds,) = self._session.run([graph_io.IMAGE_EMBEDS], dict(feeds), self._options)
        return np.asarray(embeds, dtype=np.float32)


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
