"""The measurements of scale: arithmetic of their tables by hand, and a run in a process of its own."""

import pytest

from bench.scale.quantize import Run, extrapolation, layers_table, quantize, steps_table
from bench.scale.sharing import Solving, compare, released_groups, rows_of
from calib_data import READER
from console.errors import InputError
from quantize.report import StepReport

pytestmark = pytest.mark.slow


def run(layers, peak, blocks=(3.0, 5.0)):
    steps = [StepReport("model.visual.patch_embed", 1.0, 500)]
    steps += [StepReport(f"model.visual.blocks.{i}", seconds, 900) for i, seconds in enumerate(blocks)]
    steps += [StepReport(f"model.language_model.layers.{i}", 90.0 + 20 * (i % 2), 9000) for i in range(layers)]
    steps.append(StepReport("mtp", 100.0, 9000))
    return Run(layers, steps, 4, 400, peak, 7.5, 8.0)


def test_more_layers_are_extrapolated_by_the_mean_of_each_kind():
    """1 + 28 blocks of 4 s + 64 layers of 100 s + 100 s."""
    rows = extrapolation(run(2, 9000))
    assert "| model.visual.blocks | 4.0 | 28 | 112 |" in rows
    assert "| model.language_model.layers | 100.0 | 64 | 6400 |" in rows
    assert rows[-1] == "| all | | | 6613 (1.8 hours) |"


def test_peaks_are_compared():
    rows = layers_table([run(2, 10000.0), run(4, 10250.0)])
    assert "| 2 | 309 | 10000 | 8.0 | 7.5 |" in rows
    assert rows[-1].strip() == "Peak of 4 against 2 decoder layers: +2.5%."


def test_every_step_has_its_row():
    assert steps_table(run(2, 9000))[2:4] == [
        "| model.visual.patch_embed | 1.0 | 500 |",
        "| model.visual.blocks.0 | 3.0 | 900 |",
    ]


def test_a_quantization_is_measured(tmp_path):
    """Of the reader, whose documents' hidden states are announced and then found on the disk."""
    found = quantize(READER, tmp_path / "w4", 4, documents=16)
    assert found.documents == 16
    assert len([step for step in found.steps if step.name.startswith("model.language_model.layers.")]) == 4
    assert found.peak >= max(step.peak_mib for step in found.steps) > 100
    assert found.disk == pytest.approx(found.announced, abs=0.06)  # announced to a tenth


def test_a_quantization_that_fails_says_why(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        quantize(tmp_path / "nothing", tmp_path / "w4", 2, documents=1)


def test_linears_that_share_inputs_are_the_release():
    assert released_groups() == (5120, {"q, k, v": [5120, 1024, 1024], "gate, up": [27392, 27392]})


def test_sharing_changes_times_only():
    """More tokens than there are inputs, the last chunk not full; sums of another order may move a rare tie."""
    shared, single = compare([128, 64, 64], 256, tokens=2500, rounds=1)
    assert min(shared.hessians, shared.rest, single.hessians, single.rest) > 0
    for together, alone in zip(shared.solved, single.solved, strict=True):
        assert (together.codes == alone.codes).float().mean() > 0.999
        assert together.error == pytest.approx(alone.error, rel=1e-3)


def test_ratios_are_of_per_linear_to_shared():
    rows = rows_of("q, k, v", Solving(2.0, 10.0, []), Solving(6.0, 12.0, []))
    assert rows[1] == "| q, k, v | per linear | 6.0 | 12.0 | 18.0 |"
    assert rows[2] == "| q, k, v | per linear / shared | 3.00 | 1.20 | 1.50 |"
