"""Shares a traced vision encoder among exports: tracing it takes longest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import pytest
from filelock import FileLock
from transformers import PreTrainedConfig

from export.modules.vision import VisionEncoder
from export.onnx_graph import save
from export.trace import trace_decoder, trace_vision


@contextmanager
def traced_once(stored: Path) -> Iterator[None]:
    """Have exports take the vision graph from a file, which the first writes. Each binds it to its own weights."""

    def trace(vision: VisionEncoder, config: PreTrainedConfig) -> ir.Model:
        with FileLock(f"{stored}.lock"):
            if not stored.exists():
                ir.save(trace_vision(vision, config), stored)
        return ir.load(stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.graphs.trace_vision", trace)
        patch.setattr("export.graphs.trace_decoder", trace_decoder)  # and not what the fixture `untraced` put there
        patch.setattr("export.graphs.save", save)
        yield
