"""`python -m bench.ablation`: the gain of each part of the solver on the bundled reader, over calibration seeds.

Only the decoder is quantized. Each row adds one part to the row above it. Measured is the mean KL(FP16 ‖ quantized) of
next-token distributions on held-out documents, teacher-forced on the true answers, by transformers in float32.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from transformers import AutoConfig

from bench.dequantized import dequantized
from bench.divergence import Divergence, interval
from bench.provenance import provenance
from calib_data import READER
from console.errors import run_command
from console.progress import track
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings
from quantize.solver.solve import RECIPE, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

app = typer.Typer(add_completion=False)
HELD_OUT = 11  # seed of the held-out documents
CLIP = 0.03  # nats that a token counts at most in the clipped mean


@dataclass(frozen=True)
class Row:
    """One way to quantize."""

    name: str
    grid: Literal["int", "nf4"]
    recipe: Recipe | None
    """None is RTN, the same for all seeds."""


PLAIN = Recipe(tokens="none", weighted_scales=False, sweeps=0, input_errors=0)
WEIGHTED = replace(RECIPE, input_errors=0)
ROWS = (
    Row("4-bit g128, RTN", "int", None),
    Row("plain GPTQ", "int", PLAIN),
    Row("+ tokens of the same size", "int", replace(PLAIN, tokens="equal norms")),
    Row("+ scales weighted by use", "int", replace(PLAIN, tokens="equal norms", weighted_scales=True)),
    Row("+ coordinate descent", "int", replace(WEIGHTED, tokens="equal norms")),
    Row("+ tokens by importance", "int", replace(WEIGHTED, tokens="weights")),
    Row("+ and by attention", "int", WEIGHTED),
    Row("+ errors of inputs made up for (the default)", "int", RECIPE),
    Row("NF4, RTN (bitsandbytes)", "nf4", None),
    Row("plain GPTQ on NF4", "nf4", PLAIN),
    Row("the default on NF4, without the last", "nf4", WEIGHTED),
    Row("the default on NF4", "nf4", RECIPE),
)


def quantized(row: Row, seed: int, documents: int, divergence: Divergence) -> list[NDArray[np.float64]]:
    """Quantize the reader in one way; KL of every answer token [T] of each held-out document."""
    solver: Literal["gptq", "rtn"] = "gptq" if row.recipe else "rtn"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "quantized"
        settings = Settings(READER, folder, vision_bits=16, head_bits=16, count=documents, seed=seed, reference=0)
        quantize(
            replace(settings, quant_type=row.grid, format=None, group_size=None, solver=solver), row.recipe or RECIPE
        )
        weights = {name: weight for name, weight in dequantized(folder).items() if not name.startswith("mtp.")}
    return divergence(weights)


def line(row: Row, seeds: Sequence[list[NDArray[np.float64]]], rtn: float, plain: float) -> str:
    """One row of the table."""
    tokens = [np.concatenate(documents) for documents in seeds]
    means = [float(values.mean()) for values in tokens]
    _, low, high = interval([np.concatenate(documents) for documents in zip(*seeds, strict=True)])
    mean, clipped = float(np.mean(means)), float(np.minimum(np.concatenate(tokens), CLIP).mean())
    by_seed = " ".join(f"{1000 * mean:.2f}" for mean in means)
    return (
        f"| {row.name} | {1000 * mean:.3f} ({1000 * low:.3f}–{1000 * high:.3f}) | {by_seed} | {1000 * clipped:.3f} "
        f"| {mean / rtn:.2f} | {'–' if row.recipe is None else f'{mean / plain:.2f}'} |"
    )


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="Calibration seeds: 0, 1, ...")] = 5,
    calibration_count: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 128,
    count: Annotated[int, typer.Option(min=2, help="Held-out documents.")] = 600,
) -> None:
    """Quantize the bundled reader with more and more of the solver, and measure each with several seeds."""
    wanted = Settings(READER, count=count, seed=HELD_OUT)
    divergence = Divergence(READER, list(read_samples(wanted, AutoConfig.from_pretrained(READER), split="evaluation")))
    measured = {}
    for row in track(ROWS, "rows"):
        repeated, documents = (seeds, calibration_count) if row.recipe else (1, 1)
        measured[row] = [quantized(row, seed, documents, divergence) for seed in range(repeated)]
    print(f"| | mean KL, 10⁻³ nats (95 %) | by seed | clipped at {CLIP} | ratio to RTN | ratio to plain GPTQ |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        rtn, plain = (
            float(np.mean([np.concatenate(seed).mean() for seed in measured[_row(row.grid, recipe)]]))
            for recipe in (None, PLAIN)
        )
        print(line(row, measured[row], rtn, plain))
    command = f"python -m bench.ablation --seeds {seeds} --calibration-count {calibration_count} --count {count}"
    print(f"\n{provenance(command)}")


def _row(grid: str, recipe: Recipe | None) -> Row:
    return next(row for row in ROWS if row.grid == grid and row.recipe == recipe)


if __name__ == "__main__":
    run_command(app)
