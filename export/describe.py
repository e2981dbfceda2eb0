"""The content of runtime.json: the model's shape, where its weights are stored, and the graphs of each device."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from console.errors import InputError
from export.formats import require_float
from export.modules.weights import byte_ranges
from quantize.checkpoint.reader import DTYPES
from quantize.model.text_config import head_dim, mtp_windows, rope, windows
from quantize.scheme import has_mtp
from runtime.ort import manifest
from runtime.ort.manifest import VisionSettings
from runtime.ort.rope import inverse_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from export.modules.decoder import Decoder
    from export.modules.weights import Source
    from quantize.checkpoint.reader import Checkpoint
    from quantize.model.families import Family
    from runtime.sizes import KvLayout

_NUMPY_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(
    checkpoint: Checkpoint, family: Family, config: PreTrainedConfig, targets: dict[str, manifest.Target]
) -> manifest.Manifest:
    """Describe a model folder and its graphs. Reads every weights file for its checksum."""
    text = config.get_text_config()
    embeddings = checkpoint.tensors[f"{family.embeddings}.weight"]
    return manifest.Manifest(
        text=manifest.Text(
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            kv_heads=text.num_key_value_heads,
            head_dim=head_dim(text),
            context=text.max_position_embeddings,
            windows=windows(config),
            mtp_windows=mtp_windows(config) if any(target.mtp for target in targets.values()) else [],
            rope=rope(config),
        ),
        vision=_vision_settings(config) if family.vision else None,
        embeddings=manifest.StoredArray(
            file=embeddings.file.name,
            offset=embeddings.offset,
            dtype=_NUMPY_NAMES[embeddings.dtype],
            shape=list(embeddings.shape),
        ),
        weights={path.name: manifest.describe_weights(path) for path in checkpoint.files},
        targets=targets,
    )


def _vision_settings(config: PreTrainedConfig) -> VisionSettings:
    vision = config.vision_config
    return VisionSettings(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        head_dim=vision.hidden_size // vision.num_heads,
        rope_theta=vision.rope_parameters["rope_theta"],
    )


def describe_target(
    source: Source,
    family: Family,
    config: PreTrainedConfig,
    device: str,
    *,
    kv_bits: int,
    kv_layout: KvLayout,
) -> manifest.Target:
    """Describe the graphs of a device before they are written: without the head's weights and the rewind graphs.

    Raises InputError where the weights have no graph for the device.
    """
    dtype = dtype_name(_activation_dtype(source.checkpoint, family, device))
    mtp = has_mtp(source.checkpoint, family) and family.mtp_layers(config) > 0
    return manifest.Target(
        dtype=dtype,
        kv_dtype="int8" if kv_bits == 8 else dtype,
        kv_layout=kv_layout,
        exact=source.exact,
        block_size=source.block_size,
        decoder=f"decoder.{device}.onnx",
        vision=f"vision.{device}.onnx" if family.vision else None,
        mtp=f"mtp.{device}.onnx" if mtp else None,
        rewind=None,
        mtp_rewind=None,
        head={},
        graphs={},
        versions={name: version(name) for name in ("torch", "transformers", "onnx")},
    )


def _activation_dtype(checkpoint: Checkpoint, family: Family, device: str) -> torch.dtype:
    """float32 on the CPU; on CUDA the dtype of the checkpoint, because attention has kernels for 16 bits only."""
    stored = DTYPES[require_float(checkpoint.tensor(f"{family.embeddings}.weight")).dtype]
    if device == "cpu":
        return torch.float32
    if stored not in (torch.float16, torch.bfloat16):
        raise InputError(f"{checkpoint.folder}: stored in {stored}; CUDA graphs need float16 or bfloat16 weights")
    return stored


def describe_head(decoder: Decoder) -> dict[str, manifest.StoredArray]:
    """Where the weights of the head are stored, by the names of their initializers."""
    arrays = {}
    for name, stored in byte_ranges(decoder.head).items():
        buffer = decoder.head.get_buffer(name)
        arrays[f"head.{name}"] = manifest.StoredArray(
            stored.file, stored.offset, dtype_name(buffer.dtype), list(buffer.shape)
        )
    return arrays


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


def require_runnable(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """Raise InputError for a model that the runtime would fail to run after it was exported."""
    try:
        inverse_frequencies(rope(config))
    except InputError as error:
        raise InputError(f"{checkpoint.folder / 'config.json'}: {error}") from error
