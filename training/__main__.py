"""`python -m training`: train the bundled reader, and measure how well a reader folder reads."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import typer

from calib_data import READER
from console.errors import InputError, run_command
from training.evaluation import evaluate
from training.state import committed_state, export, load, new_state, save
from training.train import train

app = typer.Typer(add_completion=False)


@app.command("train")
def _train(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoint; run the command again to resume.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 60.0,
    decay: Annotated[
        float,
        typer.Option(
            help="Minutes at the end in which the learning rate falls to zero; more than --minutes resumes a decay."
        ),
    ] = 0.0,
    scratch: Annotated[bool, typer.Option(help="Start from random weights, not from the committed ones.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the documents.")] = 0,
) -> None:
    """Train the bundled reader on rendered documents. The output becomes a reader folder."""
    if minutes <= 0 or decay < 0:
        raise InputError(f"--minutes {minutes} --decay {decay}: give positive numbers")
    output.mkdir(parents=True, exist_ok=True)
    state = new_state(None, seed) if scratch else committed_state(seed)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        load(state, checkpoint)
        typer.echo(f"resumed at step {state.step}, {state.seconds / 60:.1f} minutes")
    train(state, output, minutes * 60, decay * 60, seed)
    save(state, checkpoint)
    export(state, output)


@app.command("evaluate")
def _evaluate(
    model: Annotated[Path, typer.Option(help="Reader folder.")] = READER,
    count: Annotated[int, typer.Option(help="Held-out documents of each kind.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Which documents are drawn.")] = 1,
) -> None:
    """Read held-out rendered documents in PyTorch, without an export, and score the answers."""
    if not (model / "model.safetensors").is_file():
        raise InputError(f"{model}: holds no model.safetensors, give the folder of a reader")
    for name, scores in evaluate(model, count, seed).items():
        typer.echo(f"{name:28}" + "  ".join(f"{key} {number:.3f}" for key, number in scores.items()))


if __name__ == "__main__":
    run_command(app)
