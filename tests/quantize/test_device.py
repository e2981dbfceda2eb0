"""`--device cuda` without a card: on a stand-in, every tensor is where the operator that reads it runs."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.dequantized import dequantized
from console.errors import InputError
from quantize.pipeline import quantize
from quantize.settings import Settings
from quantize.solver.solve import Recipe

from ..half_reader import half_of_the_reader
from .card import CARD, NAME, Card

pytestmark = pytest.mark.slow


def test_the_stand_in_refuses_what_cuda_refuses():
    with Card():
        there = torch.zeros(3, 4, device=CARD)
        assert (there.device, (there + 1).sum().item()) == (CARD, 12.0)
        there.view(-1)[5] = 7
        assert there.cpu()[1, 1] == 7
        with pytest.raises(RuntimeError, match="is on the CPU"):
            there + torch.ones(4)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def test_quantizing_on_a_card_is_quantizing_on_the_cpu(tmp_path, monkeypatch):
    """What the unquantized model predicts is the same; codes are at first, and as good where they go other ways.

    Attention is summed up in another order, and a code that goes the other way changes what the next blocks read.
    """
    monkeypatch.setattr("quantize.settings.DEVICES", ("cpu", NAME))
    half = half_of_the_reader(tmp_path / "half")
    for device, where in (("cpu", nullcontext()), (NAME, Card())):
        with where:
            quantize(Settings(half, tmp_path / device, count=1, reference=1, device=device), Recipe(sweeps=1))
    kept = [np.load(tmp_path / device / "reference.npz") for device in ("cpu", NAME)]
    np.testing.assert_allclose(kept[1]["top_logits"], kept[0]["top_logits"], rtol=1e-4, atol=1e-4)
    cpu, card = (dequantized(tmp_path / device) for device in ("cpu", NAME))
    assert cpu.keys() == card.keys()
    first = [name for name in cpu if name.startswith("model.visual.blocks.0.")]
    assert first
    assert all((cpu[name] == card[name]).float().mean() > 0.99 for name in first)
    errors = [report_errors(tmp_path / device) for device in ("cpu", NAME)]
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.3)
    assert np.mean(errors[1]) == pytest.approx(np.mean(errors[0]), rel=0.05)


def test_a_step_that_does_not_fit_on_the_card_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("quantize.settings.DEVICES", ("cpu", NAME))
    half = half_of_the_reader(tmp_path / "half")
    monkeypatch.setattr(Card, "capacity", 256 * 704 * 4 - 1)  # a weight of the decoder's MLP in float32
    says = r"out of memory at step \S+; free the GPU, or give --device cpu \(.*out.partial keeps what is finished"
    with Card(), pytest.raises(InputError, match=says):
        quantize(Settings(half, tmp_path / "out", count=1, reference=0, solver="rtn", device=NAME))


def report_errors(folder: Path) -> list[float]:
    """Relative output error of every linear."""
    report = json.loads((folder / "quantization_report.json").read_text(encoding="utf-8"))
    return [linear["error"] for linear in report["linears"]]
