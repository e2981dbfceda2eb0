"""Values inside a block that float16 cannot hold, where what comes out of the block is small."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from calib_data import READER
from console.errors import InputError
from quantize.calibration.overflow import overflow_check
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings

from ..test_command import reader_with
from ..test_pipeline import inputs_in_transformers, load

SCALE = 512
DECODER = "model.language_model.layers.0.mlp"
OPTIONS = {"count": 1, "reference": 0, "solver": "rtn"}


def large_inside(mlp):
    """An MLP whose gate and up projection put out much, and whose down projection takes it back."""

    def change(tensors):
        for linear, scale in (("gate_proj", SCALE), ("up_proj", SCALE), ("down_proj", SCALE**-2)):
            name = f"{mlp}.{linear}.weight"
            tensors[name] = tensors[name].float() * scale

    return change


@pytest.mark.parametrize(
    ("mlp", "options"),
    [
        (DECODER, {"vision_bits": 16}),
        ("model.visual.blocks.0.mlp", {"vision_bits": 8}),
        ("model.visual.blocks.0.mlp", {"vision_bits": 16}),
        ("mtp.layers.0.mlp", {"vision_bits": 16}),
        ("mtp.layers.0.mlp", {"format": "gptq"}),  # which leaves that layer in 16 bits
    ],
)
def test_the_linear_is_named_and_the_dtype_to_use(tmp_path, mlp, options):
    model = reader_with(tmp_path / "model", large_inside(mlp))
    says = rf"^the input of {re.escape(mlp)}.down_proj reaches (\S+), float16 cannot hold it; use --dtype bfloat16"
    with pytest.raises(InputError, match=says) as refused:
        quantize(Settings(model, tmp_path / "out", **OPTIONS, **options))
    if mlp != DECODER:
        return
    settings = Settings(model, **OPTIONS)
    eager = load(model, dtype=torch.float32)
    paths = [f"{mlp}.down_proj", f"{mlp}.gate_proj", "model.language_model.layers.1.self_attn.q_proj"]
    largest = [
        float(seen.abs().max())
        for seen in inputs_in_transformers(eager, read_samples(settings, eager.config), paths).values()
    ]
    assert float(re.match(says, str(refused.value))[1]) == pytest.approx(largest[0], rel=0.01)
    assert max(largest[1:]) < 65504 < largest[0]  # hidden states do not tell


def test_bfloat16_holds_it(tmp_path):
    model = reader_with(tmp_path / "model", large_inside(DECODER))
    assert quantize(Settings(model, tmp_path / "out", **OPTIONS, vision_bits=16, dtype="bfloat16")) is not None


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ((1.0, 1.0, 1.0), None),
        ((1e5, 1e-5, 1.0), "the output of block.0 reaches 2e.05"),
        ((1.0, -1e5, 1e-5), "the output of block.2.0 reaches 2e.05"),
        ((float("nan"), 1.0, 1.0), "the output of block.0 reaches nan"),
    ],
)
def test_the_first_that_exceeds_is_named(factors, says):
    """In the order of data, over all documents, whatever the sign; hooks are gone afterwards."""
    layers = [nn.Linear(3, 3, bias=False) for _ in factors]
    for layer, factor in zip(layers, factors, strict=True):
        layer.weight = nn.Parameter(torch.eye(3) * factor, requires_grad=False)
    block = nn.Sequential(layers[0], nn.Identity(), nn.Sequential(*layers[1:]))

    def run():
        with overflow_check(block, "block", torch.float16):
            for document in (torch.tensor([[1.0, 2, 0]]), torch.ones(4, 3)):
                block(document)

    if says is None:
        run()
    else:
        with pytest.raises(InputError, match=says):
            run()
    assert not any(module._forward_hooks for module in block.modules())


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_stays_in_16_bits_is_looked_at_too(tmp_path, request, tied):
    """Row 0 is of the padding token: where the head is the embedding, no document has it."""
    model, name = tmp_path / "model", "model.embed_tokens.weight" if tied else "lm_head.weight"
    shutil.copytree(request.getfixturevalue("text_only") if tied else READER, model)
    path = next(path for path in model.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(path)
    tensors[name] = tensors[name].float().contiguous()
    tensors[name][0, :64] = 6e4
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"the output of lm_head reaches .*, float16 cannot hold it; use --dtype"):
        quantize(Settings(model, tmp_path / "out", **OPTIONS, vision_bits=16, head_bits=16))
