"""Weights read without torch, against compressed-tensors, bitsandbytes and safetensors."""

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file

from console.errors import InputError
from runtime.ort.manifest import load_manifest
from runtime.weights import Weights

NAMES = [
    "model.language_model.layers.1.self_attn.k_proj",
    "model.visual.blocks.0.mlp.down_proj",
    "model.visual.patch_embed.proj",
    "lm_head",
    "mtp.fc",
]


def opened(folder):
    return Weights(folder, load_manifest(folder).weights)


def by_libraries(folder, name):
    """float32 [N, K]."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    if f"{name}.weight_packed" in tensors:
        packed, scale = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"].float()
        shape = tensors[f"{name}.weight_shape"].tolist()
        codes = unpack_from_int32(packed, packed.shape[1] * 32 // shape[1], torch.Size(shape))
        return codes.float() * scale.repeat_interleave(shape[1] // scale.shape[1], 1)
    state = {key: part for key, part in tensors.items() if key.startswith(f"{name}.weight.")}
    if state:
        quantized = QuantState.from_dict(state, device="cpu")
        quantized.dtype = torch.float32
        return dequantize_4bit(tensors[f"{name}.weight"], quantized)
    return tensors[f"{name}.weight"].float().flatten(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("folder", "bits"), [("fp16", 16), ("w4", 4), ("w8", 8), ("nf4", 4)])
def test_weights_are_those_of_the_libraries(folder, bits, name, exported):
    weights = opened(exported(folder))
    np.testing.assert_allclose(weights.load(name), by_libraries(exported(folder), name), rtol=1e-6, atol=1e-9)
    expected = bits if "layers" in name or name == "mtp.fc" else {"w4": 8, "w8": 8}.get(folder, 16)
    assert weights.bits(name) == (16 if "patch_embed" in name else expected)


@pytest.mark.parametrize("folder", ["fp16", "w4", "nf4"])
def test_rows_are_those_of_the_whole(folder, exported):
    weights = opened(exported(folder))
    for name in NAMES:
        whole = weights.load(name)
        assert weights.shape(name) == whole.shape
        parts = [weights.load(name, slice(start, start + 64)) for start in range(0, len(whole), 64)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_folder_has_the_same_linears(exported):
    names = opened(exported("fp16")).linears()
    assert len(names) == 4 * 7 + 7 + 1 + len([n for n in names if "visual" in n]) + 1
    assert set(NAMES) <= set(names)
    assert not any("norm" in name or "embed_tokens" in name for name in names)
    for folder in ("w4", "nf4"):
        assert opened(exported(folder)).linears() == names


def test_a_linear_that_is_not_there(exported):
    with pytest.raises(InputError, match=r"no linear model\.nothing"):
        opened(exported("w4")).load("model.nothing")
