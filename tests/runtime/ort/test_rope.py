"""Decoder rotary tables, against transformers and against plain Python arithmetic."""

import math

import numpy as np
import pytest
import torch
from transformers import Exaone4Config
from transformers.models.exaone4.modeling_exaone4 import Exaone4RotaryEmbedding

from console.errors import InputError
from runtime.ort.rope import inverse_frequencies, rope_tables

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "head_dim": 32, "max_position_embeddings": 2048}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000000,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SMALL = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
RELEASED = {  # EXAONE 4.5 33B: head_dim is not written, it follows from the sizes
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "max_position_embeddings": 262144,
    "rope_scaling": LLAMA3,
}
WITHOUT_THETA = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
OLD_STYLE = {**SIZES, "rope_theta": 1000000.0, "rope_scaling": WITHOUT_THETA}
# original_max_position_embeddings then is max_position_embeddings, in transformers too
NO_ORIGINAL = {**SIZES, "rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}}


@pytest.mark.parametrize(
    ("config", "length"),
    [(SMALL, 2048), (RELEASED, 4096), (OLD_STYLE, 2048), (NO_ORIGINAL, 512)],
    ids=["small", "released", "old-style", "no-original"],
)
def test_tables_equal_transformers(config, length):
    cos, sin = rope_tables(config, length)
    module = Exaone4RotaryEmbedding(Exaone4Config(**{**config, "num_hidden_layers": 4}))
    theirs = [t[0].numpy() for t in module(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])]
    half = cos.shape[1]
    assert cos.shape == sin.shape == (length, theirs[0].shape[1] // 2)
    assert cos.dtype == sin.dtype == np.float32
    # transformers rounds the frequency and the product to float32: two roundings of half an ulp, 2^-24 relative each,
    # a few more in the frequency itself. The angle, and so the value, is off by at most position * 2^-22 or so.
    bound = 2e-7 + np.arange(length)[:, None] * 2.0**-22
    assert (np.abs(cos - theirs[0][:, :half]) <= bound).all()
    assert (np.abs(sin - theirs[1][:, :half]) <= bound).all()
    np.testing.assert_allclose(inverse_frequencies(config), module.inv_freq.numpy(), rtol=1e-6)


def test_far_positions_are_exact():
    """At position 262143, where float32 angles are off by 0.01, the tables hold the true values."""
    cos, sin = rope_tables(RELEASED, 262144)
    frequencies = inverse_frequencies(RELEASED)
    for position in (131071, 262143):
        for pair in (0, 1, 20, 63):
            angle = position * float(frequencies[pair])
            assert cos[position, pair] == np.float32(math.cos(angle))
            assert sin[position, pair] == np.float32(math.sin(angle))


def test_llama3_scaling_by_definition():
    """Pairs by the number of turns over the original context: under 1 slowed 16 times, over 4 kept, between blended."""
    plain = [1e6 ** (-2 * i / 128) for i in range(64)]
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 16)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 16 + smooth * frequency)
    np.testing.assert_allclose(inverse_frequencies(RELEASED), expected, rtol=1e-13)
    assert expected[0] == plain[0]
    assert expected[-1] == plain[-1] / 16


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "rope_type 'yarn'"),
        ({"rope_type": "default"}, "rope_theta"),
        ({"rope_type": "default", "rope_theta": "big"}, "rope_theta"),
        ({"rope_type": "llama3", "rope_theta": 1e4, "low_freq_factor": 1, "high_freq_factor": 4}, "positive factor"),
        ({**LLAMA3, "factor": -1}, "positive factor"),
    ],
)
def test_unusable_settings_are_named(rope, message):
    with pytest.raises(InputError, match=message):
        rope_tables({**SIZES, "rope_parameters": rope}, 8)
