"""Step sizes of an int8 KV cache, from the ranges that `quantize` measured on calibration documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from console.errors import InputError
from console.files import read_object, to_type
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.model.text_config import head_dim

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from export.modules.cached_attention import KvScales
    from quantize.model.families import Family

_LARGEST = 127
_ADVICE = "run python -m quantize again"
_Magnitude = Annotated[float, Field(ge=0)]


@dataclass(config=ConfigDict(strict=True, allow_inf_nan=False))
class _Ranges:
    """The largest magnitudes of a layer, [kv_heads, head_dim] each."""

    key: list[list[_Magnitude]]
    value: list[list[_Magnitude]]


def read_kv_scales(folder: Path, family: Family, config: PreTrainedConfig) -> list[KvScales]:
    """Step sizes for keys and values of each decoder layer: the largest magnitude of a channel becomes 127 steps.

    Raises InputError if the folder has no ranges, or those of another model.
    """
    path = folder / KV_SCALES
    if not path.is_file():
        raise InputError(f"{path} is missing; an int8 KV cache needs the ranges that python -m quantize writes there")
    text = config.get_text_config()
    shape = (text.num_hidden_layers, text.num_key_value_heads, head_dim(text))
    ranges = to_type(dict[str, _Ranges], read_object(path, _ADVICE), path, _ADVICE)
    try:
        layers = [ranges[name] for name in family.decoder_blocks(config)]
        key, value = torch.tensor([layer.key for layer in layers]), torch.tensor([layer.value for layer in layers])
        for name, part in (("key", key), ("value", value)):
            if part.shape != shape:
                raise ValueError(f"{name}: {list(part.shape)} magnitudes, not {list(shape)}")
            if not part.isfinite().all():
                raise ValueError(f"{name}: magnitudes that float32 cannot hold")
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: not the ranges of this model ({error}); {_ADVICE}") from error
    has_rope = [kind == "sliding_attention" or text.sliding_window is None for kind in text.layer_types]
    return [
        (_steps(_over_rotations(keys) if rotated else keys), _steps(values))
        for keys, values, rotated in zip(key, value, has_rope, strict=True)
    ]


def _over_rotations(largest: torch.Tensor) -> torch.Tensor:
    """Ranges [kv_heads, D] that cover the largest value any RoPE rotation can produce.

    RoPE rotates channels i and i + D/2 as a pair (a, b). At positions that calibration did not reach, each can become
    as large as sqrt(a^2 + b^2).
    """
    radius = torch.hypot(*largest.chunk(2, dim=-1))
    return torch.cat((radius, radius), dim=-1)


def _steps(largest: torch.Tensor) -> torch.Tensor:
    """[kv_heads, D] to [1, kv_heads, 1, D]; a channel that was always 0 gets the smallest step of the others."""
    used = largest[largest > 0]
    floor = used.min() if len(used) else torch.tensor(1.0)
    return (largest.clamp_min(floor) / _LARGEST)[None, :, None, :].contiguous()
