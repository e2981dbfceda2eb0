"""What `bench.peers` does itself: documents out, weights in, divergence. No quantizer of others is needed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from bench.dequantized import dequantized
from bench.divergence import Divergence
from bench.peers import environments, peer
from bench.peers.__main__ import ratio
from bench.peers.smollm2 import passages
from bench.peers.weights import is_decoder_linear, read_weights, write_samples
from calib_data import READER
from console.errors import InputError
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings

pytestmark = pytest.mark.slow

CHANGED = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def samples():
    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(READER)
    return list(read_samples(Settings(READER, count=3, seed=11), config, split="evaluation"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "ours"
    quantize(Settings(READER, folder, count=2, reference=0, vision_bits=16, head_bits=16))
    return folder


@pytest.fixture
def saved(ours, tmp_path):
    """Weights as peer.py saves them, and the file."""
    weights = {name: weight for name, weight in dequantized(ours).items() if is_decoder_linear(name)}
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    return weights, path


def test_a_peer_reads_the_very_samples(samples, tmp_path):
    write_samples(samples, tmp_path / "samples")
    calls = peer.calls(tmp_path / "samples")
    assert len(calls) == 3
    for call, sample in zip(calls, samples, strict=True):
        assert torch.equal(call["input_ids"], sample.ids[None])
        assert call["input_ids"].dtype == torch.int64
        assert torch.equal(call["pixel_values"], sample.patches)
        assert torch.equal(call["image_grid_thw"], sample.grid)


def test_a_peer_reads_the_tokens_of_a_language_model(samples, tmp_path):
    write_samples([replace(sample, patches=None, grid=None) for sample in samples], tmp_path / "samples")
    calls = peer.calls(tmp_path / "samples")
    assert [call["input_ids"].tolist() for call in calls] == [[sample.ids.tolist()] for sample in samples]
    assert all(call.keys() == {"input_ids", "use_cache"} for call in calls)


def test_passages_are_cut_at_line_ends_and_the_end_is_dropped():
    lines = [f"{i:02} {'x' * 6}\n" for i in range(25)]
    assert list(passages("".join(lines), 100)) == ["".join(lines[:10]), "".join(lines[10:20])]


def call_of(sample):
    return {"input_ids": sample.ids[None], "pixel_values": sample.patches, "image_grid_thw": sample.grid}


@torch.no_grad()
def naive_divergence(samples, weight):
    """KL of each answer token by its definition, from two models that transformers runs as a whole."""
    models = [AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32) for _ in range(2)]
    models[1].get_parameter(CHANGED).data = weight
    documents = []
    for sample in samples:
        p, q = (model(**call_of(sample)).logits[0].double().softmax(-1).tolist() for model in models)
        positions = range(len(sample.ids) - sample.answer - 1, len(sample.ids) - 1)
        documents.append([sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True)) for i in positions])
    return documents


def test_divergence_is_that_of_two_models_and_leaves_none_behind(samples):
    divergence = Divergence(READER, samples)
    weight = load_file(READER / "model.safetensors")[CHANGED].float().roll(1, 0)
    found = divergence({CHANGED: weight})
    for document, expected in zip(found, naive_divergence(samples, weight), strict=True):
        np.testing.assert_allclose(document, expected, rtol=1e-3, atol=1e-6)
    assert np.concatenate(found).mean() > 1e-3
    assert all((document == 0).all() for document in divergence({}))


def test_weights_of_a_peer_are_read(saved):
    weights, path = saved
    read = read_weights(path, READER, 128)
    assert all(torch.equal(read[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(CHANGED), f"{CHANGED} was not quantized"),
        (lambda weights: weights.update({"lm_head.weight": torch.ones(512, 256)}), "lm_head.weight was quantized"),
        (lambda weights: weights.update({CHANGED: torch.randn(256, 768)}), f"{CHANGED} has 128 values in a group"),
    ],
)
def test_other_weights_are_refused(saved, change, message):
    weights, path = saved
    change(weights)
    save_file(weights, path)
    with pytest.raises(InputError, match=message):
        read_weights(path, READER, 128)


def test_what_cannot_be_installed_is_one_clear_line(tmp_path):
    missing = environments.Peer("missing", "missing", (f"missing @ file://{tmp_path}/missing-1-py3-none-any.whl",))
    with pytest.raises(InputError, match=r"missing cannot be installed \(missing @ .*ERROR.*install\.log") as error:
        environments.environment(missing, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "missing" / "venv" / "requirements.txt").exists()


def test_a_ratio_is_over_the_same_documents():
    ours = [np.array([1.0, 2.0]), np.array([30.0]), np.array([4.0, 5.0, 6.0])]
    assert ratio([2.5 * kl for kl in ours], ours) == "2.50 (2.50–2.50)"
