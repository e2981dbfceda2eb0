"""`python -m bench.ablation`: what each part of the solver brings on the bundled reader, over calibration seeds.

The decoder is quantized, all else stays in 16 bits. Each row adds one part to the row above it. What is measured is the
mean KL(FP16 ‖ quantized) of next-token distributions on held-out documents, teacher-forced on the true answers, by
transformers in float32.
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
HELD_OUT = 11  # the seed of the documents to measure on
CLIP = 0.03  # nats


@dataclass(frozen=True)
class Row:
    """One way to quantize; recipe None is round-to-nearest, the same for all seeds."""

    name: str
    grid: Literal["int", "nf4"]
    recipe: Recipe | None


PLAIN = Recipe(tokens="none", weighted_scales=False, sweeps=0)
ROWS = (
    Row("4-bit g128, nearest", "int", None),
    Row("plain GPTQ", "int", PLAIN),
    Row("+ tokens of the same size", "int", replace(PLAIN, tokens="equal norms")),
    Row("+ scales weighted by use", "int", replace(PLAIN, tokens="equal norms", weighted_scales=True)),
    Row("+ coordinate descent", "int", replace(RECIPE, tokens="equal norms")),
    Row("+ tokens by importance", "int", replace(RECIPE, tokens="weights")),
    Row("+ and by attention (the default)", "int", RECIPE),
    Row("NF4, nearest (bitsandbytes)", "nf4", None),
    Row("plain GPTQ on NF4", "nf4", PLAIN),
    Row("the default on NF4", "nf4", RECIPE),
)


def quantized(row: Row, seed: int, samples: int, divergence: Divergence) -> list[NDArray[np.float64]]:
    """KL of every answer token, by document, of the reader quantized in one way."""
    solver: Literal["gptq", "rtn"] = "gptq" if row.recipe else "rtn"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "quantized"
        settings = Settings(READER, folder, vision_bits=16, head_bits=16, count=samples, seed=seed, reference=0)
        quantize(
            replace(settings, quant_type=row.grid, format=None, group_size=None, solver=solver), row.recipe or RECIPE
        )
        weights = {name: weight for name, weight in dequantized(folder).items() if not name.startswith("mtp.")}
    return divergence(weights)


def line(row: Row, seeds: Sequence[list[NDArray[np.float64]]], nearest: float, plain: float) -> str:
    """One row of the table."""
    tokens = [np.concatenate(documents) for documents in seeds]
    means = [float(values.mean()) for values in tokens]
    _, low, high = interval([np.concatenate(documents) for documents in zip(*seeds, strict=True)])
    mean, clipped = float(np.mean(means)), float(np.minimum(np.concatenate(tokens), CLIP).mean())
    by_seed = " ".join(f"{1000 * mean:.2f}" for mean in means)
    return (
        f"| {row.name} | {1000 * mean:.3f} ({1000 * low:.3f}–{1000 * high:.3f}) | {by_seed} | {1000 * clipped:.3f} "
        f"| {mean / nearest:.2f} | {'–' if row.recipe is None else f'{mean / plain:.2f}'} |"
    )


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=1, help="Calibration seeds: 0, 1, ...")] = 5,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 128,
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents to measure on.")] = 600,
) -> None:
    """Quantize the bundled reader with more and more of the solver, and measure each with several seeds."""
    wanted = Settings(READER, count=documents, seed=HELD_OUT)
    divergence = Divergence(READER, list(read_samples(wanted, AutoConfig.from_pretrained(READER), split="evaluation")))
    measured = {}
    for row in track(ROWS, "rows"):
        ways = range(seeds if row.recipe else 1)
        measured[row] = [quantized(row, seed, samples if row.recipe else 1, divergence) for seed in ways]
    print(f"| | mean KL, 10⁻³ nats (95 %) | by seed | clipped at {CLIP} | of nearest | of plain GPTQ |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        nearest, plain = (
            float(np.mean([np.concatenate(one).mean() for one in measured[_first(row.grid, recipe)]]))
            for recipe in (None, PLAIN)
        )
        print(line(row, measured[row], nearest, plain))
    command = f"python -m bench.ablation --seeds {seeds} --samples {samples} --documents {documents}"
    print(f"\n{provenance(command)}")


def _first(grid: str, recipe: Recipe | None) -> Row:
    return next(row for row in ROWS if row.grid == grid and row.recipe == recipe)


if __name__ == "__main__":
    run_command(app)
