"""What config.json may hold, for the fields that decide how large a model is. transformers checks the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from console.files import Size, to_type

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)

Layers = Annotated[int, Field(ge=1, le=1000)]
"""Layers, for each of which modules are built."""


@dataclass(config=_STRICT)
class _Text:
    """The decoder. What may be missing has a default in transformers."""

    num_hidden_layers: Layers
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size | None = None
    rms_norm_eps: Annotated[float, Field(gt=0)] | None = None
    hidden_act: str | None = None
    dtype: str | None = None
    layer_types: list[str] | None = None
    sliding_window: Size | None = None
    sliding_window_pattern: str | Annotated[int, Field(ge=0, le=1000)] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=1000)] | None = None


@dataclass(config=_STRICT)
class _Vision:
    """The vision tower."""

    depth: Layers | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_heads: Size | None = None
    num_key_value_heads: Size | None = None
    in_channels: Size | None = None
    patch_size: Size | None = None
    spatial_merge_size: Size | None = None
    temporal_patch_size: Size | None = None
    window_size: Size | None = None
    out_hidden_size: Size | None = None
    fullatt_block_indexes: list[int] | None = None
    hidden_act: str | None = None
    dtype: str | None = None


@dataclass(config=_STRICT)
class _Multimodal:
    """config.json of a model with a vision tower; that of a text model is a `_Text`."""

    text_config: _Text
    vision_config: _Vision
    dtype: str | None = None
    tie_word_embeddings: bool | None = None
    image_token_id: Annotated[int, Field(ge=0)] | None = None


def check_config(raw: dict[str, Any], *, has_vision: bool) -> None:
    """Raise InputError for a value of another kind, or a number of layers that no model has."""
    path = Path("config.json")
    if has_vision:
        to_type(_Multimodal, raw, path)
    else:
        to_type(_Text, raw, path)
