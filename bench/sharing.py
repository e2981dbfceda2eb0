"""`python -m bench.sharing`: what one Hessian and one factorisation for q, k, v, and for gate, up, save.

One decoder layer at the widths of EXAONE 4.5 33B, random weights and inputs, no model around them. A per-linear GPTQ
sums up and factorises the Hessian of each linear; ours does so once for linears that read the same inputs. Both run in
turns, with the same functions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from calib_data.errors import run_command
from calib_data.progress import track
from quantize import gptq
from quantize.checkpoint import read_json
from quantize.grids import UniformGrid
from quantize.solver import solve_together

from .provenance import provenance
from .released_widths import RELEASED, STD

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(add_completion=False)
GRID = UniformGrid(4, 128)
CHUNK = 1024  # tokens of one document


def released_groups() -> tuple[int, dict[str, list[int]]]:
    """The hidden size, which all of them read, and the rows of q, k, v and of gate, up."""
    text = read_json(RELEASED)["text_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    keys = hidden // heads * text["num_key_value_heads"]
    return hidden, {"q, k, v": [hidden, keys, keys], "gate, up": [text["intermediate_size"]] * 2}


def solve_all(groups: Sequence[Sequence[torch.Tensor]], X: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Solve groups of weights [N, K], each with a Hessian of its own. Seconds of Hessians, and of what follows.

    X [T, K]: inputs, given again until there were so many tokens.
    """
    hessians = solving = 0.0
    for weights in groups:
        started = time.perf_counter()
        H = torch.zeros(X.shape[1], X.shape[1])
        for first in range(0, tokens, len(X)):
            gptq.add_inputs(H, X[: tokens - first])
        summed = time.perf_counter()
        solve_together(weights, H, GRID, "gptq")
        hessians, solving = hessians + summed - started, solving + time.perf_counter() - summed
    return hessians, solving


@torch.no_grad()
def compare(rows: list[int], hidden: int, tokens: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of Hessians and of solving, the fastest of all rounds: [shared, per linear] of each."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.empty(n, hidden).normal_(0, STD, generator=generator) for n in rows]
    X = torch.empty(min(CHUNK, tokens), hidden).normal_(generator=generator)
    ways = ([weights], [[weight] for weight in weights])
    found = [[solve_all(groups, X, tokens) for groups in ways] for _ in track(range(rounds), f"{rows} rows")]
    hessians, solving = ([min(turn[way][part] for turn in found) for way in (0, 1)] for part in (0, 1))
    return hessians, solving


@app.command()
def main(
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 12288,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of both ways; the fastest counts.")] = 2,
) -> None:
    """Solve q, k, v and gate, up of one decoder layer together, and one by one; print the times."""
    hidden, groups = released_groups()
    print(f"{tokens} tokens of {hidden} inputs\n")
    print("| linears | way | Hessians, s | factorise and solve, s | together, s |\n|---|---|---|---|---|")
    totals = [0.0, 0.0]
    for name, rows in groups.items():
        hessians, solving = compare(rows, hidden, tokens, rounds)
        for way, label in enumerate(("shared", "per linear")):
            totals[way] += hessians[way] + solving[way]
            together = hessians[way] + solving[way]
            print(f"| {name} | {label} | {hessians[way]:.1f} | {solving[way]:.1f} | {together:.1f} |", flush=True)
        ratio = (hessians[1] + solving[1]) / (hessians[0] + solving[0])
        print(
            f"| {name} | per linear / shared | {hessians[1] / hessians[0]:.2f} "
            f"| {solving[1] / solving[0]:.2f} | {ratio:.2f} |"
        )
    print(f"\nAll five linears: per linear takes {totals[1] / totals[0]:.2f} times as long.")
    print(f"\n{provenance(f'python -m bench.sharing --tokens {tokens} --rounds {rounds}')}")


if __name__ == "__main__":
    run_command(app)
