"""When, by what and with which graphs a comparison was made: what its numbers are to be read with."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from runtime.compare.baseline import FolderBaseline

if TYPE_CHECKING:
    from runtime.compare.run import Loaded
    from runtime.generate import Model


def provenance(loaded: Loaded) -> dict[str, Any]:
    """Date, versions, machine, and what the graphs of the baseline (None for a reference) and the candidates are."""
    baseline = loaded.baseline
    own = describe(baseline.model) if isinstance(baseline, FolderBaseline) else None
    return {
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        "machine": platform.machine(),
        "versions": {
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "graphs": [own, *(describe(model) for model in loaded.candidates)],
    }


def describe(model: Model) -> str:
    """Which numbers a model's graphs compute with."""
    target = model.target
    fast = model.device.kind == "cpu" and not target.exact
    inputs = "int8 activations where weights are packed" if fast else f"{target.dtype} activations"
    return f"{inputs}, {target.kv_dtype} KV cache"
