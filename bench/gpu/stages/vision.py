"""Time and memory of the vision encoder, all blocks at the released widths: an A4 page and the largest image."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.figures import Figure
from bench.gpu.folders import TINY, WHOLE, Variant, folder_of
from bench.gpu.memory import PeakMemory
from bench.timing import timed
from runtime.inputs.vision import vision_feeds
from runtime.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from bench.gpu.bench import Bench

LARGEST, LARGEST_TINY = 128, 16  # patches along a side of the largest image
PAGE, PAGE_TINY = (126, 88), (12, 8)  # rows and columns of an A4 page: 2772 tokens
MERGED = 4  # patches a token


def measure(bench: Bench) -> Iterator[Figure]:
    """Time and memory of each image, with weights as stored and in blocks of 32."""
    variants: list[Variant] = ["stored", "block-32"] if bench.on_gpu else ["stored"]
    for variant in bench.within(variants, seconds=0 if bench.tiny else 3):
        yield from _variant(bench, variant)


def _variant(bench: Bench, variant: Variant) -> Iterator[Figure]:
    model = Model(folder_of(bench, TINY if bench.tiny else WHOLE, variant), bench.device)
    largest = LARGEST_TINY if bench.tiny else LARGEST
    for name, (rows, columns) in (("A4 page", PAGE_TINY if bench.tiny else PAGE), ("largest", (largest, largest))):
        feeds = image_feeds(model, rows, columns)
        timing = timed(partial(model.vision.run, feeds), least=3)
        with PeakMemory(bench) as memory:
            model.vision.run(feeds)
        note = f"{rows * columns // MERGED} tokens; {memory.bytes / 2**20:.0f} MiB without the weights"
        yield Figure.of(f"{variant}: {name}", timing, note=note)


def image_feeds(model: Model, rows: int, columns: int) -> Mapping[str, NDArray[np.generic]]:
    """Inputs of the vision graph for a random image; rows and columns are in patches."""
    settings, shape = model.image_settings, model.manifest.vision
    assert shape is not None
    width = 3 * settings.temporal_patch_size * settings.patch_size**2
    patches = np.random.default_rng(0).standard_normal((rows * columns, width), np.float32)
    return vision_feeds(patches, [(1, rows, columns)], shape)
