"""Writes every graph of one device: decoder, vision encoder, MTP layer and the graphs that take back drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from export.describe import describe_head
from export.kv_scales import read_kv_scales
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.vision import VisionEncoder
from export.onnx_graph import save
from export.rewind import save_rewind
from export.trace import trace_decoder, trace_vision
from quantize.model.text_config import head_dim, mtp_windows, windows
from runtime.sizes import buffer_limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedConfig

    from export.modules.weights import Source
    from quantize.model.families import Family
    from runtime.ort import manifest


def write_graphs(
    source: Source,
    family: Family,
    config: PreTrainedConfig,
    device: str,
    target: manifest.Target,
    new_path: Callable[[str], Path],
) -> manifest.Target:
    """Trace and write the graphs that a target lists.

    new_path: gives the path to write for a file name.
    Returns the target with the weights of its head and its rewind graphs.
    """
    dtype, full_buffers = getattr(torch, target.dtype), target.kv_layout == "full"
    kv_scales = read_kv_scales(source.checkpoint.folder, family, config) if target.kv_dtype == "int8" else None
    decoder = Decoder(
        source, family, config, with_hidden=target.mtp is not None or kv_scales is not None, kv_scales=kv_scales,
        full_buffers=full_buffers,
    )  # fmt: skip
    # Decoder and MTP layer share the head: as an input of both graphs, a GPU holds it once.
    head = describe_head(decoder) if target.mtp and device == "cuda" else {}
    save(trace_decoder(decoder, config, dtype), decoder, new_path(target.decoder), head)
    if target.vision:
        vision = VisionEncoder(source, family, config, on_cuda=device == "cuda", dtype=dtype)
        save(trace_vision(vision, config), vision, new_path(target.vision))
    if target.mtp is None:
        return target
    mtp = Mtp(source, family, config, full_buffers=full_buffers)
    save(trace_decoder(mtp, config, dtype), mtp, new_path(target.mtp), head)
    rewinds = _write_rewinds(config, device, target, new_path)
    return replace(target, head=head, rewind=rewinds.get("rewind"), mtp_rewind=rewinds.get("mtp_rewind"))


def _write_rewinds(
    config: PreTrainedConfig, device: str, target: manifest.Target, new_path: Callable[[str], Path]
) -> dict[str, str]:
    """Write the graphs that take back drafts, for decoder and MTP layer; returns their file names.

    Only window buffers need one: elsewhere a smaller length takes drafts back.
    """
    text, names = config.get_text_config(), {}
    caches = {"rewind": (windows(config), target.kv_dtype), "mtp_rewind": (mtp_windows(config), target.dtype)}
    for name, (limits, dtype) in caches.items():
        limits = buffer_limits(limits, target.kv_layout)
        if any(limits):
            names[name] = f"{name}.{device}.onnx"
            save_rewind(limits, text.num_key_value_heads, head_dim(text), dtype, new_path(names[name]))
    return names
