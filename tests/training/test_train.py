"""Training the reader: losses fall, a resumed run is the uninterrupted one, and the commands do what they say."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calib_data import READER
from console.errors import run_command
from training import architecture, evaluation, loss_curve, train
from training.examples import Batches, Stage
from training.losses import DAMPING, NARROW, left_by_gptq, losses
from training.train import (
    MTP_FROM,
    WARM_UP,
    Gradients,
    committed_state,
    export,
    learning_rate,
    load,
    new_state,
    save,
    split,
    update,
)


def lines(number):
    batch = Batches((Stage(10**9, glyphs=0.0, lines=1.0, thinking=0.0),), 0)[number]
    parts = {name: getattr(batch, name)[:4] for name in ("patches", "characters", "tokens", "answer", "gaze")}
    return replace(batch, **parts)


MODULES = {module.__name__.split(".")[1]: module for module in (train, evaluation, loss_curve)}


def step(state, batch):
    loss, report = losses(state.learner, batch, with_mtp=True)
    state.learner.zero_grad()
    loss.backward()
    update(state, 1.0)
    return report


def test_every_loss_falls_on_a_batch_seen_often():
    state, batch = new_state(None, 0), lines(0)
    reports = [step(state, batch) for _ in range(8)]
    for name in ("characters", "text", "draft"):
        assert reports[-1][name] < 0.8 * reports[0][name], name


def test_mtp_teaches_the_mtp_layer_alone():
    learner, batch = new_state(READER / "model.safetensors", 0).learner, lines(1)
    gradients = []
    for with_mtp in (False, True):
        learner.zero_grad()
        losses(learner, batch, with_mtp)[0].backward()
        gradients.append({n: p.grad.clone() for n, p in learner.reader.named_parameters() if p.grad is not None})
    assert not any(name.startswith("mtp.") for name in gradients[0])
    assert gradients[1]["mtp.fc.weight"].abs().max() > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_what_gptq_leaves_is_the_variance_of_a_channel_given_those_after_it():
    """Each is 1 / the first entry of the inverse over it and those after it, of tokens of one size, padding apart."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    real = torch.arange(9) < torch.tensor([[9], [4]])
    tokens = (states[real] / states[real].norm(dim=-1, keepdim=True)).double()
    moment = tokens.T @ tokens / tokens.square().sum() * 5
    order = moment.diagonal().argsort(descending=True)
    moment = moment[order][:, order] + DAMPING * torch.eye(5)
    left = [1 / torch.linalg.inv(moment[i:, i:])[0, 0] for i in range(5)]
    assert left_by_gptq(states, real).item() == pytest.approx(torch.stack(left).mean().log().item(), abs=1e-5)


def test_narrowing_lowers_what_gptq_leaves_and_spares_the_vision_tower():
    state, batch = new_state(READER / "model.safetensors", 0), lines(0)
    reports = []
    for _ in range(6):
        loss, report = losses(state.learner, batch, with_mtp=False, narrowed=2)
        state.learner.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in state.learner.reader.model.visual.parameters())
        update(state, 0.5)
        reports.append(report)
    assert all(reports[-1][name] < reports[0][name] - 0.01 for name in NARROW)


def test_gradients_on_two_cores_are_those_of_the_whole_batch_within_bfloat16():
    learner = new_state(None, 0).learner  # far from a minimum, where gradients are larger than rounding
    one, two = split(lines(3), 2)
    assert torch.equal(torch.cat((one.tokens, two.tokens)), lines(3).tokens)
    expected = []
    for part in (one, two):
        learner.zero_grad()
        losses(learner, part, with_mtp=True)[0].backward()
        expected.append([parameter.grad.clone() for parameter in learner.parameters()])
    learner.zero_grad()
    Gradients(learner)(lines(3), with_mtp=True)
    for (name, parameter), first, second in zip(learner.named_parameters(), *expected, strict=True):
        wanted = (first + second) / 2
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - wanted).norm() / wanted.norm().clamp(min=1e-4)
        assert error < 0.08, (name, error)


def test_muon_takes_the_matrices_inside_the_model():
    state = new_state(None, 0)
    named = {parameter: name for name, parameter in state.learner.named_parameters()}
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
    pairs = zip(first.learner.state_dict().items(), resumed.learner.state_dict().values(), strict=True)
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


def test_committed_weights_go_on_where_they_stopped():
    state = committed_state(0)
    rows = json.loads((READER / "curve.json").read_text())
    assert state.step == state.warm_from == rows[-1]["step"] > MTP_FROM
    assert state.curve == rows
    committed = load_file(READER / "model.safetensors")
    assert torch.equal(state.learner.reader.state_dict()["mtp.fc.weight"], committed["mtp.fc.weight"].float())


def test_the_command_goes_on_from_its_checkpoint_and_evaluates(tmp_path):
    state = new_state(READER / "model.safetensors", 0)
    state.step, state.seconds = 4321, 600.0
    save(state, tmp_path / "checkpoint.pt")
    command = [sys.executable, "-m", "training.train", "--output", str(tmp_path)]
    options = ["--minutes", "0.2", "--documents", "1"]
    result = subprocess.run(command + options, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("going on from step 4321, 10.0 minutes")
    assert "transcription: exact_match" in result.stdout
    load(state, tmp_path / "checkpoint.pt")
    assert state.step > 4321


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("train_reader", ("--output", "{tmp}/new", "--minutes", "-1"), "--minutes -1"),
        ("reader_evaluation", ("--model", "{tmp}/nowhere"), "nowhere"),
        ("loss_curve", ("{tmp}/nowhere.json", "{tmp}/curve.png"), "nowhere.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, module, arguments, words):
    monkeypatch.setattr(sys, "argv", [module, *(argument.format(tmp=tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as exit_code:
        run_command(MODULES[module].app)
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_curve_is_drawn_in_its_colours():
    rows = [{"minutes": float(m), "character accuracy": m / 10, "token accuracy": 0.5} for m in range(1, 9)]
    pixels = np.asarray(loss_curve.draw(rows))
    red = (pixels == (0xD6, 0x27, 0x28)).all(-1)
    half = loss_curve.HEIGHT - loss_curve.MARGIN - 0.5 * (loss_curve.HEIGHT - 2 * loss_curve.MARGIN)
    assert red[int(half) - 1 : int(half) + 2].sum() > 300  # a level line at one half
    assert not red[int(half) + 20 :].any()
