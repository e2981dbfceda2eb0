"""The whole model at 33 B, exported otherwise: the stage's name says how.

Each has a process of its own: ONNX Runtime keeps the memory of caches, and two kinds of them would not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.gpu.folders import VARIANTS
from bench.gpu.whole import measure_variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.gpu.bench import Bench
    from bench.gpu.figures import Figure


def measure(bench: Bench) -> Iterator[Figure]:
    """What the stage `whole` measures of the folder as it is stored."""
    (variant,) = (name for name in VARIANTS if name == bench.stage)
    yield from measure_variant(bench, variant)
