"""The MTP layer against the reader's own training code, and what quantizing leaves of its drafts."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from calib_data import READER
from quantize.calibration.block_inputs import DecoderInputs
from quantize.calibration.samples import read_samples
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from quantize.pipeline import quantize
from quantize.settings import Settings
from quantize.solver.token_weights import last_layer_weights
from training.forward import Reader, decoder, masks, mtp, vision

from ..test_pipeline import unpacked

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader():
    loaded = Reader()
    loaded.load_state_dict({name: tensor.float() for name, tensor in load_file(READER / "model.safetensors").items()})
    return loaded.eval().requires_grad_(False)


@pytest.mark.parametrize("tokens", [30, 90])
def test_the_layer_is_that_of_training(reader, tokens):
    """Shorter and longer than its window of 64."""
    checkpoint = open_checkpoint(READER)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    model = family.skeleton(config)
    layer = model.get_submodule("mtp")
    layer.load_state_dict({k: checkpoint.load(f"mtp.{k}", torch.float32) for k in layer.state_dict()}, assign=True)
    hidden, embeddings = torch.randn(2, 1, tokens, 256, generator=torch.Generator().manual_seed(0))
    inputs = DecoderInputs(
        model.get_submodule(family.text), torch.device("cpu"), last_layer_weights=[torch.ones(tokens)]
    )
    (found,) = layer(hidden, embeddings, **inputs.mtp_kwargs(0))
    expected = mtp(reader, embeddings[:, 1:], hidden[:, :-1], masks(reader, tokens - 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_counts_in_it_is_what_drafts_the_answer():
    """Position i drafts token i + 2: of a document of 6 tokens, the last 2 of them the answer, tokens 4 and 5."""
    checkpoint = open_checkpoint(READER)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    text = family.skeleton(config).get_submodule(family.text)
    inputs = DecoderInputs(text, torch.device("cpu"), last_layer_weights=[last_layer_weights(6, 2)])
    counts = inputs.mtp_kwargs(0)["token_weights"]
    assert [i + 2 for i, count in enumerate(counts.tolist()) if count == 1] == [4, 5]


@torch.no_grad()
def drafts(reader, samples):
    """Log-probabilities of every token of the answers, as drafted: position i drafts token i + 2."""
    rows = []
    for sample in samples:
        tokens, (_, height, width) = sample.ids[None], sample.grid[0].tolist()
        pixels = sample.patches.view(-1, 3, 2, 196)[:, :, 0].reshape(1, -1, 588)
        seen = vision(reader, pixels, height, width)
        inputs = reader.model.language_model.embed_tokens(tokens).masked_scatter((tokens == 67)[..., None], seen)
        hidden, _ = decoder(reader, inputs, masks(reader, tokens.shape[1]))
        ahead = mtp(reader, inputs[:, 1:], hidden[:, :-1], masks(reader, tokens.shape[1] - 1))
        rows.append(reader.lm_head(ahead)[0, -sample.answer - 1 : -1].double().log_softmax(-1))
    return torch.cat(rows)


def test_solving_keeps_the_drafts_better_than_rounding(reader, tmp_path):
    samples = list(read_samples(Settings(READER, count=16, seed=5), reader.config, split="evaluation"))
    expected = drafts(reader, samples)
    divergence = {}
    for solver, count in (("gptq", 12), ("rtn", 1)):
        settings = Settings(
            READER, tmp_path / solver, solver=solver, count=count, reference=0, vision_bits=16, head_bits=16
        )
        report = quantize(settings)
        result, rounded = open_checkpoint(settings.folder), copy.deepcopy(reader)
        names = [linear.name for linear in report.linears if linear.tower == "mtp"]
        assert len(names) == 8
        read = partial(unpacked, result, grid=settings.quantizer_of("decoder"), dtype=torch.float32)
        for name in names:
            rounded.get_parameter(f"{name}.weight").copy_(read(name))
        found = drafts(rounded, samples)
        divergence[solver] = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert 0 < divergence["gptq"] < 0.5 * divergence["rtn"]
