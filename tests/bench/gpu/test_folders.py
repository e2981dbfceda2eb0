"""Folders of random weights that are made of graphs and headers."""

import numpy as np
import pytest
import torch

from bench.gpu.folders import unpack
from bench.scale.folders import STD
from quantize.checkpoint.reader import open_checkpoint
from runtime.decoding.forward import prefill
from runtime.model import Model
from runtime.prompt import build_prompt
from runtime.weights import Weights

pytestmark = pytest.mark.slow

LINEAR = "model.language_model.layers.0.mlp.down_proj"


def test_folders_made_of_graphs_and_headers_answer(archive, tmp_path):
    """Packed here, unpacked elsewhere. Weights are linked, not copied, and have the deviation of trained ones."""
    assert archive.stat().st_size < 1 << 20
    (tmp_path / "made").mkdir()
    unpack(archive, tmp_path / "made")
    plain, quantized = (tmp_path / "made" / variant for variant in ("stored", "int8-kv"))
    assert {path.name for path in plain.glob("*.onnx")} >= {"decoder.cpu.onnx", "mtp.cpu.onnx", "vision.cpu.onnx"}
    (weights,) = (path.name for path in plain.glob("*.safetensors"))
    assert (plain / weights).samefile(quantized / weights)
    linear = Weights(plain, [weights]).load(LINEAR)
    assert linear.std() == pytest.approx(STD, rel=0.05)
    assert abs(linear.mean()) < STD / 10
    assert torch.equal(open_checkpoint(plain).load(f"{LINEAR}.weight_shape"), torch.tensor(linear.shape))
    logits = []
    for folder in (plain, quantized):
        model = Model(folder, "cpu")
        prompt = build_prompt(model, "Hello")
        with model.decoder.borrow_cache(len(prompt.ids)) as cache:
            logits.append(prefill(model, cache, prompt))
    assert np.isfinite(logits).all()
    assert np.std(logits, axis=1).min() > 0.01
    assert not np.array_equal(*logits)
