"""Trains the bundled reader: `python -m calib_data.train_reader --output DIR --minutes 60`.

What makes a small model read are two auxiliary losses that the renderer's ground truth pays for: every merged image
token also names the characters in its 28x28 cell, through a linear layer that is thrown away afterwards; and while the
model writes a character, two heads of its global layer are told which image token shows it. Glyph pages (no question,
vision tower only) come first, then single lines, then documents with questions; the learning rate stays constant until
the last `--decay` minutes, and an exponential average of the weights is what is exported.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from . import READER
from .errors import InputError, run_command
from .reader_evaluation import evaluate
from .reader_examples import CLASSES, SLOTS, Batch, Batches, Stage
from .reader_files import CONFIG
from .reader_forward import Reader, decoder_and_last_input, gaze, masks, mtp, vision

STAGES = (
    Stage(until=2500, glyphs=1.0, lines=0.0, thinking=0.0),
    Stage(until=4200, glyphs=0.4, lines=0.6, thinking=0.0),
    Stage(until=10000, glyphs=0.2, lines=0.5, thinking=0.05, shapes=3),
    Stage(until=10**9, glyphs=0.15, lines=0.2, thinking=0.15),
)
MTP_FROM = 6500  # steps; before that the decoder's hidden state says little
PEAK, WARM_UP, AVERAGE = 1e-3, 200, 0.998
GAZE_HEADS = [0, 2]  # one of each key-value head of the global layer
IMAGE_ID = CONFIG["image_token_id"]


@dataclass
class State:
    """Everything that a resumed run needs. warm_from: the step at which the optimizer began with nothing."""

    reader: Reader
    characters: nn.Linear
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    warm_from: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def losses(reader: Reader, head: nn.Linear, batch: Batch, with_mtp: bool) -> tuple[Tensor, dict[str, float]]:
    """The training loss of one batch, and the numbers to report."""
    embeddings = vision(reader, batch.patches, batch.height, batch.width)
    total, report = _character_loss(head(embeddings), batch.characters)
    if not batch.tokens.shape[1]:
        return total, report
    inputs = reader.model.language_model.embed_tokens(batch.tokens)
    inputs = inputs.masked_scatter((batch.tokens == IMAGE_ID)[..., None], embeddings)
    shared = masks(reader, batch.tokens.shape[1])
    hidden, last = decoder_and_last_input(reader, inputs, shared)
    loss, accuracy = _token_loss(hidden[:, :-1], reader.lm_head.weight, batch.tokens[:, 1:], batch.answer[:, 1:])
    looking = _gaze_loss(reader, last, batch.gaze)
    total = total + loss + looking
    report |= {"text": loss.item(), "token accuracy": accuracy, "gaze": looking.item()}
    if with_mtp:
        drafted = mtp(reader, inputs[:, 1:].detach(), hidden[:, :-1].detach(), masks(reader, inputs.shape[1] - 1))
        weight = reader.lm_head.weight.detach()
        # Position t drafts token t + 2; a draft is only made from an answer token on.
        loss, accuracy = _token_loss(drafted[:, :-1], weight, batch.tokens[:, 2:], batch.answer[:, 2:])
        total, report = total + 0.5 * loss, report | {"draft": loss.item(), "draft accuracy": accuracy}
    return total, report


def _character_loss(scores: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    scores = scores.unflatten(-1, (SLOTS, -1)).flatten(0, -2)
    loss = functional.cross_entropy(scores, target.flatten())
    printed = target.flatten() > 0
    accuracy = (scores.argmax(-1) == target.flatten())[printed].float().mean()
    return 4 * loss, {"characters": loss.item(), "character accuracy": accuracy.item()}


def _gaze_loss(reader: Reader, states: Tensor, target: Tensor) -> Tensor:
    """Teach two heads of the global layer to look at the image token that shows the next character."""
    rows, positions = (target > 0).nonzero(as_tuple=True)
    attention = gaze(reader, states, rows, positions - 1, GAZE_HEADS)
    return -attention[torch.arange(len(rows)), :, target[rows, positions]].mean()


def _token_loss(hidden: Tensor, head: Tensor, target: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    scores, target = functional.linear(hidden[wanted], head), target[wanted]
    return functional.cross_entropy(scores, target), (scores.argmax(-1) == target).float().mean().item()


def new_state(weights: Path | None, seed: int) -> State:
    """Random weights, or those of a safetensors file."""
    torch.manual_seed(seed)
    reader = Reader()
    if weights is not None:
        reader.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    head = nn.Linear(CONFIG["text_config"]["hidden_size"], SLOTS * (len(CLASSES) + 1))
    matrices = [p for p in (*reader.parameters(), *head.parameters()) if p.dim() > 1]
    vectors = [p for p in (*reader.parameters(), *head.parameters()) if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), fused=True)
    average = {name: tensor.clone() for name, tensor in reader.state_dict().items()}
    return State(reader, head, average, optimizer)


def committed_state(seed: int) -> State:
    """The committed weights at the step that they have reached; the optimizer and the character layer start anew."""
    state = new_state(READER / "model.safetensors", seed)
    state.curve = json.loads((READER / "curve.json").read_text())
    state.step = state.warm_from = int(state.curve[-1]["step"])
    state.seconds = 60 * state.curve[-1]["minutes"]
    return state


def save(state: State, path: Path) -> None:
    """Write a checkpoint; a kill while writing leaves the previous one."""
    parts = {
        "reader": state.reader.state_dict(), "characters": state.characters.state_dict(), "average": state.average,
        "optimizer": state.optimizer.state_dict(), "step": state.step, "warm_from": state.warm_from,
        "seconds": state.seconds, "curve": state.curve,
    }  # fmt: skip
    torch.save(parts, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def load(state: State, path: Path) -> None:
    """Read a checkpoint into a state."""
    parts = torch.load(path, weights_only=True)
    state.reader.load_state_dict(parts["reader"])
    state.characters.load_state_dict(parts["characters"])
    state.optimizer.load_state_dict(parts["optimizer"])
    state.average, state.step, state.warm_from = parts["average"], parts["step"], parts["warm_from"]
    state.seconds, state.curve = parts["seconds"], parts["curve"]


def export(state: State, folder: Path) -> None:
    """Write a reader folder: the averaged weights in float16, the loss curve, and the files that do not change."""
    for file in READER.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    half = {name: tensor.half().contiguous() for name, tensor in state.average.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "curve.json").write_text("[\n" + ",\n".join(map(json.dumps, state.curve)) + "\n]\n")


def learning_rate(step: int, left: float, decay: float) -> float:
    """Warm up, stay, and go down to zero over the last `decay` seconds of the run."""
    return PEAK * min(1.0, (step + 1) / WARM_UP, max(left, 0.0) / decay if decay else 1.0)


def train(state: State, output: Path, seconds: float, decay: float, seed: int) -> None:
    """Train for this long, with a line of numbers every 50 steps and a checkpoint every three minutes."""
    batches = DataLoader(
        Batches(STAGES, seed), batch_size=None, sampler=range(state.step, 10**9), num_workers=1, prefetch_factor=6
    )
    start = last = saved = time.monotonic()
    sums: dict[str, list[float]] = {}
    parameters = [*state.reader.parameters(), *state.characters.parameters()]
    for batch in batches:
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        if now - start > seconds:
            break
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step - state.warm_from, seconds - (now - start), decay)
        loss, report = losses(state.reader, state.characters, batch, state.step >= MTP_FROM)
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimizer.step()
        state.step += 1
        _follow(state)
        for name, number in (report | {"pages": len(batch.patches)}).items():
            sums.setdefault(name, []).append(number)
        if state.step % 50 == 0:
            _log(state, sums)
            sums = {}
        if now - saved > 180:
            save(state, output / "checkpoint.pt")
            saved = now


def _follow(state: State) -> None:
    """Move the exported average towards the weights; slower as training goes on."""
    keep = min(AVERAGE, (1 + state.step) / (10 + state.step))
    weights = state.reader.state_dict()
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
