"""Computes the decoder's rotary position tables on the host. The graphs take them as inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from console.errors import InputError
from runtime.sizes import rope_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rope_tables(text_config: Mapping[str, Any], length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [length, head_dim/2] float32 of positions 0 … length - 1.

    text_config: the decoder's part of config.json. Angles, cosines and sines are computed in float64 and rounded once.
    transformers multiplies position and frequency in float32, which is off by up to position * 2^-23 radians (0.03 at
    position 262143). So the two agree to that bound, and not bit for bit.
    """
    frequencies = inverse_frequencies(text_config)
    angles = np.outer(np.arange(length, dtype=np.float64), frequencies)
    cos, sin = (np.empty(rope_shape(length, 2 * len(frequencies)), np.float32) for _ in range(2))
    # Written straight into float32: at 262144 positions a float64 result would take another 128 MiB.
    np.cos(angles, out=cos, casting="same_kind", dtype=np.float64)
    np.sin(angles, out=sin, casting="same_kind", dtype=np.float64)
    return cos, sin


def inverse_frequencies(text_config: Mapping[str, Any]) -> NDArray[np.float64]:
    """Radians per position for each rotated pair, [head_dim/2] float64.

    Raises InputError for a rotary embedding other than "default" and "llama3", and for missing numbers.
    """
    rope = _rope_parameters(text_config)
    head_dim = text_config.get("head_dim") or text_config["hidden_size"] // text_config["num_attention_heads"]
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies: NDArray[np.float64] = np.power(_number(rope, "rope_theta"), -exponents)
    kind = rope["rope_type"]
    if kind == "default":
        return frequencies
    if kind == "llama3":
        return _scale_llama3(frequencies, rope)
    raise InputError(f"rope_type {kind!r} is not supported, only 'default' and 'llama3' are")


def _rope_parameters(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as one dict, from `rope_parameters` or from the older `rope_scaling` and `rope_theta`."""
    given = text_config.get("rope_parameters") or text_config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"the rotary embedding needs an object of parameters, found {given!r}")
    rope = dict(given)
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", text_config.get("rope_theta"))
    rope.setdefault("original_max_position_embeddings", text_config.get("max_position_embeddings"))
    return rope


def _scale_llama3(frequencies: NDArray[np.float64], rope: Mapping[str, Any]) -> NDArray[np.float64]:
    """Scale frequencies as Llama 3.1 does: low ones are divided by `factor`, high ones kept, the rest blended linearly.

    A pair is low when it makes fewer than `low_freq_factor` turns over the original context, and high above
    `high_freq_factor` turns.
    """
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if low >= high:
        raise InputError(f"the rotary embedding needs a low_freq_factor below high_freq_factor, found {low} and {high}")
    turns = _number(rope, "original_max_position_embeddings") * frequencies / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (smooth + (1 - smooth) / _number(rope, "factor"))


def _number(rope: Mapping[str, Any], name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise InputError(f"the rotary embedding needs a positive {name}, found {value!r}")
    return float(value)
