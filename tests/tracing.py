"""Shares traced graphs among all exports of a run: tracing takes longest, and reads no weights."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from filelock import FileLock
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers import PreTrainedConfig

from export.modules.vision import VisionEncoder
from export.modules.weights import byte_ranges
from export.onnx_graph import save
from export.repeat import kind
from export.trace import trace_decoder, trace_vision


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Have exports take a graph from a folder where the same was traced before. Each binds it to its own weights."""

    def shared(trace: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
        def traced(module: torch.nn.Module, *settings: object) -> ir.Model:
            stored = folder / f"{structure(module, *settings)}.onnx"
            with FileLock(f"{stored}.lock"):
                if not stored.exists():
                    save(trace(module, *settings), module, stored)
            return ir.load(stored)

        return traced

    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.graphs.trace_vision", shared(trace_vision))
        patch.setattr("export.graphs.trace_decoder", shared(trace_decoder))
        patch.setattr("export.graphs.save", save)  # and not what the fixture `untraced` put there
        # Every trace reads the same table of operators, in half a second.
        table = functools.cache(ONNXRegistry.from_torchlib.__func__)
        patch.setattr(ONNXRegistry, "from_torchlib", classmethod(table))
        yield


def structure(module: torch.nn.Module, config: PreTrainedConfig, *settings: object) -> str:
    """A hash of all that a graph depends on: the kind of module, and values that the graph holds itself."""
    sizes = config.vision_config if isinstance(module, VisionEncoder) else config.get_text_config()
    stored = byte_ranges(module)
    values = [(name, buffer.tolist()) for name, buffer in module.named_buffers() if name not in stored]
    described = repr((kind(module), json.dumps(sizes.to_dict(), sort_keys=True, default=str), settings, values))
    return hashlib.sha256(described.encode()).hexdigest()[:16]
