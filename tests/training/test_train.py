"""Training the reader: losses fall, a resumed run is the uninterrupted one, and the commands do what they say."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calib_data import READER
from console.errors import run_command
from training import architecture
from training.__main__ import app
from training.batches import Batches, Stage
from training.curve import draw
from training.losses import DAMPING, REGULARIZED, gptq_error_ratio, losses
from training.state import committed_state, export, load, new_state, save
from training.train import MTP_FROM, WARM_UP, Gradients, learning_rate, split, update

pytestmark = pytest.mark.slow


@cache
def lines(number):
    batch = Batches((Stage(10**9, glyphs=0.0, lines=1.0, thinking=0.0),), 0)[number]
    names = ("patches", "characters", "tokens", "answer", "attention_target")
    return replace(batch, **{name: getattr(batch, name)[:4] for name in names})


def step(state, batch, share=1.0):
    loss, report = losses(state.module, batch, with_mtp=True)
    state.module.zero_grad()
    loss.backward()
    update(state, share)
    return report


def test_every_loss_falls_on_a_batch_seen_often():
    state, batch = new_state(None, 0), lines(0)
    reports = [step(state, batch, share=3.0) for _ in range(4)]  # long steps: few are enough to see it
    for name in ("characters", "text", "draft"):
        assert reports[-1][name] < 0.8 * reports[0][name], name


def test_mtp_teaches_the_mtp_layer_alone():
    module, batch = new_state(READER / "model.safetensors", 0).module, lines(1)
    gradients = []
    for with_mtp in (False, True):
        module.zero_grad()
        losses(module, batch, with_mtp)[0].backward()
        gradients.append({n: p.grad.clone() for n, p in module.reader.named_parameters() if p.grad is not None})
    assert not any(name.startswith("mtp.") for name in gradients[0])
    assert gradients[1]["mtp.fc.weight"].abs().max() > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_gptqs_error_is_the_variance_of_a_channel_given_those_after_it():
    """Each is 1 / the first entry of the inverse over it and those after it, of tokens of one size, padding apart."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    real = torch.arange(9) < torch.tensor([[9], [4]])
    tokens = (states[real] / states[real].norm(dim=-1, keepdim=True)).double()
    moment = tokens.T @ tokens / tokens.square().sum() * 5
    order = moment.diagonal().argsort(descending=True)
    moment = moment[order][:, order] + DAMPING * torch.eye(5)
    left = [1 / torch.linalg.inv(moment[i:, i:])[0, 0] for i in range(5)]
    assert gptq_error_ratio(states, real).item() == pytest.approx(torch.stack(left).mean().log().item(), abs=1e-5)


def test_regularization_lowers_gptqs_error_and_spares_the_vision_tower():
    state, batch = new_state(READER / "model.safetensors", 0), lines(0)
    reports = []
    for _ in range(4):
        loss, report = losses(state.module, batch, with_mtp=False, regularized=2)
        state.module.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in state.module.reader.model.visual.parameters())
        update(state, 0.5)
        reports.append(report)
    assert all(reports[-1][f"{name} error ratio"] < reports[0][f"{name} error ratio"] - 0.01 for name in REGULARIZED)


def test_gradients_on_two_cores_are_those_of_the_whole_batch_within_bfloat16():
    module = new_state(None, 0).module  # far from a minimum, where gradients are larger than rounding
    one, two = split(lines(3), 2)
    assert torch.equal(torch.cat((one.tokens, two.tokens)), lines(3).tokens)
    expected = []
    for part in (one, two):
        module.zero_grad()
        losses(module, part, with_mtp=True)[0].backward()
        expected.append([parameter.grad.clone() for parameter in module.parameters()])
    module.zero_grad()
    Gradients(module)(lines(3), with_mtp=True)
    for (name, parameter), first, second in zip(module.named_parameters(), *expected, strict=True):
        wanted = (first + second) / 2
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - wanted).norm() / wanted.norm().clamp(min=1e-4)
        assert error < 0.08, (name, error)


def test_muon_takes_the_matrices_inside_the_model():
    state = new_state(None, 0)
    named = {parameter: name for name, parameter in state.module.named_parameters()}
    muon, adam = ([named[p] for group in one.param_groups for p in group["params"]] for one in state.optimizers)
    assert len(muon) + len(adam) == len(named)
    assert "reader.mtp.fc.weight" in muon
    assert {"reader.lm_head.weight", "characters.weight", "reader.model.visual.patch_embed.proj.weight"} <= set(adam)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    first = new_state(None, 0)
    step(first, lines(0))
    first.curve.append({"step": 1, "minutes": 0.5})
    save(first, tmp_path / "checkpoint.pt")
    resumed = new_state(None, 1)
    load(resumed, tmp_path / "checkpoint.pt")
    assert (resumed.step, resumed.curve) == (1, first.curve)
    step(first, lines(1))
    step(resumed, lines(1))
    pairs = zip(first.module.state_dict().items(), resumed.module.state_dict().values(), strict=True)
    for (name, one), other in pairs:
        assert torch.equal(one, other), name


def test_the_exported_folder_is_a_reader_with_the_averaged_weights(tmp_path):
    state = new_state(READER / "model.safetensors", 0)
    state.average["lm_head.weight"] += 1
    export(state, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert json.loads((tmp_path / "config.json").read_text()) == architecture.CONFIG
    written, committed = load_file(tmp_path / "model.safetensors"), load_file(READER / "model.safetensors")
    assert torch.equal(written["mtp.fc.weight"], committed["mtp.fc.weight"])
    torch.testing.assert_close(written["lm_head.weight"], committed["lm_head.weight"] + 1, rtol=1e-3, atol=1e-3)


def test_the_learning_rate_warms_up_stays_and_decays():
    assert learning_rate(0, 1000, 0) == pytest.approx(1 / WARM_UP)
    assert learning_rate(WARM_UP, 1000, 300) == 1
    assert learning_rate(WARM_UP, 150, 300) == pytest.approx(1 / 2)
    assert learning_rate(WARM_UP, -1, 300) == 0
    assert MTP_FROM > WARM_UP


def test_training_resumes_from_the_committed_weights():
    state = committed_state(0)
    rows = json.loads((READER / "curve.json").read_text())
    assert state.step == state.warm_from == rows[-1]["step"] > MTP_FROM
    assert state.curve == rows
    committed = load_file(READER / "model.safetensors")
    assert torch.equal(state.module.reader.state_dict()["mtp.fc.weight"], committed["mtp.fc.weight"].float())


def test_the_command_resumes_from_its_checkpoint(tmp_path):
    state = new_state(READER / "model.safetensors", 0)
    state.step, state.seconds = 21, 600.0  # glyph pages, the quickest
    save(state, tmp_path / "checkpoint.pt")
    command = [sys.executable, "-m", "training", "train", "--output", str(tmp_path), "--minutes", "0.001"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("resumed at step 21, 10.0 minutes")
    load(state, tmp_path / "checkpoint.pt")
    assert state.step > 21


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_command(app)
    return ended.value.code


def test_the_command_evaluates(monkeypatch, capsys):
    assert run(monkeypatch, "evaluate", "--count", 1) == 0
    assert re.search(r"^transcription +exact_match \d.\d{3}  cer ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--output", "{tmp}/new", "--minutes", "-1"), "--minutes -1"),
        (("evaluate", "--model", "{tmp}/nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, words):
    assert run(monkeypatch, *(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_curve_shows_a_line_for_each_accuracy():
    rows = [{"minutes": float(m), "character accuracy": m / 10, "token accuracy": 0.5} for m in range(1, 9)]
    axes = draw(rows).axes[0]
    characters, tokens, drafts = axes.lines
    np.testing.assert_allclose(characters.get_xydata(), [(m, m / 10) for m in range(1, 9)])
    assert set(tokens.get_ydata()) == {0.5}  # a level line at one half
    assert len(drafts.get_xydata()) == 0
    assert len({line.get_color() for line in axes.lines}) == 3
    assert axes.get_ylim() == (0, 1)
