"""Trains the bundled reader: `python -m training.train --output DIR --minutes 100`.

Glyph pages (no question, vision tower only) come first, then single lines, then documents with questions; at last the
decoder alone learns to read fewer directions. Matrices are optimized by Muon, the rest by AdamW; the learning rates
stay constant until the last `--decay` minutes, and an exponential average of the weights is what is exported.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from calib_data import READER
from console.errors import InputError, run_command
from training import architecture
from training.evaluation import evaluate
from training.examples import Batch, Batches, Stage
from training.losses import Learner, losses

STAGES = (
    Stage(until=1500, glyphs=1.0, lines=0.0, thinking=0.0),
    Stage(until=2700, glyphs=0.2, lines=0.5, thinking=0.0, shapes=4),
    Stage(until=7500, glyphs=0.1, lines=0.15, thinking=0.15),
    Stage(until=10**9, glyphs=0.0, lines=0.15, thinking=0.15),
)
MTP_FROM = 5000  # steps; before that the decoder's hidden state says little. Then every second one teaches it
NARROW_FROM = 7500  # steps; from then on at half the rates, one decoder layer a step
NARROWED = (0, 1, 2, 3, 3)  # the last one twice: it is the widest
MUON, ADAM, WARM_UP, AVERAGE = 0.02, 3e-3, 200, 0.998
CORES = 2  # each works on its own part of a batch


@dataclass
class State:
    """Everything that a resumed run needs. warm_from: the step at which the optimizers began with nothing."""

    learner: Learner
    average: dict[str, Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    warm_from: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def new_state(weights: Path | None, seed: int) -> State:
    """Random weights, or those of a safetensors file."""
    torch.manual_seed(seed)
    learner = Learner()
    if weights is not None:
        learner.reader.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    average = {name: tensor.clone() for name, tensor in learner.reader.state_dict().items()}
    return State(learner, average, _optimizers(learner))


def _optimizers(learner: Learner) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) for the matrices inside the model; AdamW for embeddings, heads, biases and norms.

    In the same time Muon named twice as many characters as AdamW alone.
    """
    named = dict(learner.named_parameters())
    ends = ("lm_head.weight", "embed_tokens.weight", "characters.weight")
    inner = {name for name, parameter in named.items() if parameter.dim() == 2 and not name.endswith(ends)}
    muon = torch.optim.Muon([named[name] for name in sorted(inner)], lr=MUON, weight_decay=0.01)
    rest = [parameter for name, parameter in named.items() if name not in inner]
    return muon, torch.optim.AdamW(rest, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def committed_state(seed: int) -> State:
    """The committed weights at the step that they have reached; optimizers and character layer start anew."""
    if json.loads((READER / "config.json").read_text(encoding="utf-8")) != architecture.CONFIG:
        raise InputError(f"{READER}: its weights are of another architecture than this code's; give --scratch")
    state = new_state(READER / "model.safetensors", seed)
    state.curve = json.loads((READER / "curve.json").read_text(encoding="utf-8"))
    state.step = state.warm_from = int(state.curve[-1]["step"])
    state.seconds = 60 * state.curve[-1]["minutes"]
    return state


def save(state: State, path: Path) -> None:
    """Write a checkpoint; a kill while writing leaves the previous one."""
    parts = {
        "learner": state.learner.state_dict(), "average": state.average,
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step, "warm_from": state.warm_from, "seconds": state.seconds, "curve": state.curve,
    }  # fmt: skip
    torch.save(parts, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def load(state: State, path: Path) -> None:
    """Read a checkpoint into a state."""
    parts = torch.load(path, weights_only=True)
    state.learner.load_state_dict(parts["learner"])
    for optimizer, saved in zip(state.optimizers, parts["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    state.average, state.step, state.warm_from = parts["average"], parts["step"], parts["warm_from"]
    state.seconds, state.curve = parts["seconds"], parts["curve"]


def export(state: State, folder: Path) -> None:
    """Write a reader folder: the averaged weights in float16, the loss curve, and the files that do not change."""
    architecture.write(folder)
    for name in ("chat_template.jinja", "README.md"):
        shutil.copy(READER / name, folder)
    half = {name: tensor.half().contiguous() for name, tensor in state.average.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "curve.json").write_text("[\n" + ",\n".join(map(json.dumps, state.curve)) + "\n]\n", encoding="utf-8")


class Gradients:
    """Computes gradients in bfloat16, a part of the batch on each core, into the learner's float32 parameters.

    Two threads of one core each beat one operation split over two cores by a third, and bfloat16 products are more than
    twice as fast where the processor has them.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.copies = [copy.deepcopy(learner) for _ in range(CORES)]
        for parameter in (p for one in self.copies for p in one.parameters()):
            parameter.data = parameter.data.bfloat16()  # buffers, such as RoPE frequencies, stay float32
        self.threads = ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, batch: Batch, with_mtp: bool, narrowed: int | None = None) -> dict[str, float]:
        """Set `.grad` of every parameter to the mean over the parts; return the mean of what they report."""
        pairs = zip(self.copies, split(batch, CORES), strict=True)
        reports = list(self.threads.map(lambda pair: self._part(pair[0], pair[1], with_mtp, narrowed), pairs))
        copied = zip(*(one.parameters() for one in self.copies), strict=True)
        for parameter, ones in zip(self.learner.parameters(), copied, strict=True):
            grads = [one.grad.float() for one in ones if one.grad is not None]
            parameter.grad = sum(grads[1:], grads[0]) / CORES if grads else None
        return {name: sum(report[name] for report in reports) / CORES for name in reports[0]}

    def _part(self, one: Learner, part: Batch, with_mtp: bool, narrowed: int | None) -> dict[str, float]:
        with torch.no_grad():
            torch._foreach_copy_(list(one.parameters()), list(self.learner.parameters()))
        one.zero_grad()
        loss, report = losses(one, part, with_mtp, narrowed)
        loss.backward()
        return report


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split the pages of a batch into equal parts."""
    names = ("patches", "characters", "tokens", "answer", "gaze")
    pieces = zip(*(getattr(batch, name).chunk(parts) for name in names), strict=True)
    return [replace(batch, **dict(zip(names, piece, strict=True))) for piece in pieces]


def learning_rate(step: int, left: float, decay: float) -> float:
    """Share of the peak rates: warm up, stay, and go down to zero over the last `decay` seconds of the run."""
    return min(1.0, (step + 1) / WARM_UP, max(left, 0.0) / decay if decay else 1.0)


def train(state: State, output: Path, seconds: float, decay: float, seed: int) -> None:
    """Train for this long, with a line of numbers every 50 steps and a checkpoint every three minutes."""
    batches = DataLoader(
        Batches(STAGES, seed), batch_size=None, sampler=range(state.step, 10**9), num_workers=1, prefetch_factor=6
    )
    gradients = Gradients(state.learner)
    start = last = saved = time.monotonic()
    sums: dict[str, list[float]] = {}
    for batch in batches:
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        if now - start > seconds:
            break
        narrowed = NARROWED[state.step % len(NARROWED)] if state.step >= NARROW_FROM else None
        report = gradients(batch, state.step >= MTP_FROM and state.step % 2 == 0, narrowed)
        share = learning_rate(state.step - state.warm_from, seconds - (now - start), decay)
        update(state, share if narrowed is None else share / 2)
        for name, number in (report | {"pages": len(batch.patches)}).items():
            sums.setdefault(name, []).append(number)
        if state.step % 50 == 0:
            _log(state, sums)
            sums = {}
        if now - saved > 180:
            save(state, output / "checkpoint.pt")
            saved = now


def update(state: State, share: float) -> None:
    """One step of the optimizers at a share of their peak rates."""
    nn.utils.clip_grad_norm_(state.learner.parameters(), 1.0)
    for optimizer, peak in zip(state.optimizers, (MUON, ADAM), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        optimizer.step()
    state.step += 1
    _follow(state)


def _follow(state: State) -> None:
    """Move the exported average towards the weights; slower as training goes on."""
    keep = min(AVERAGE, (1 + state.step) / (10 + state.step))
    weights = state.learner.reader.state_dict()
    names = list(weights)
    torch._foreach_lerp_([state.average[n] for n in names], [weights[n] for n in names], 1 - keep)


def _log(state: State, sums: dict[str, list[float]]) -> None:
    row = {name: sum(numbers) / len(numbers) for name, numbers in sums.items()}
    row = {"step": state.step, "minutes": round(state.seconds / 60, 2)} | {n: round(x, 4) for n, x in row.items()}
    state.curve.append(row)
    typer.echo("  ".join(f"{name} {number}" for name, number in row.items()))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint; the same command goes on from it.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 60.0,
    decay: Annotated[
        float,
        typer.Option(
            help="Minutes at the end in which the learning rate goes to zero; more than --minutes resumes a decay."
        ),
    ] = 0.0,
    scratch: Annotated[bool, typer.Option(help="Start from random weights, not from the committed ones.")] = False,
    documents: Annotated[int, typer.Option(help="Held-out documents of each kind to read at the end.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the documents.")] = 0,
) -> None:
    """Train the bundled reader on rendered documents; OUTPUT becomes a reader folder."""
    if minutes <= 0 or decay < 0:
        raise InputError(f"--minutes {minutes} --decay {decay}: give positive numbers")
    output.mkdir(parents=True, exist_ok=True)
    state = new_state(None, seed) if scratch else committed_state(seed)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        load(state, checkpoint)
        typer.echo(f"going on from step {state.step}, {state.seconds / 60:.1f} minutes")
    train(state, output, minutes * 60, decay * 60, seed)
    save(state, checkpoint)
    export(state, output)
    for name, numbers in evaluate(output, documents).items():
        typer.echo(f"{name}: " + "  ".join(f"{key} {number}" for key, number in numbers.items()))


if __name__ == "__main__":
    run_command(app)
