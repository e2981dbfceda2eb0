"""Time that one shared Hessian and factorisation saves for q, k, v and for gate, up, against one per linear.

One decoder layer at the widths of EXAONE 4.5 33B, random weights and inputs. A per-linear GPTQ sums up and factorises
the Hessian of each linear; ours does so once for linears that read the same inputs. Both run in turns with the same
functions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from bench.provenance import provenance
from bench.scale.folders import RELEASED, STD
from console.files import read_object
from console.progress import track
from quantize.solver import gptq
from quantize.solver.quantizers import UniformQuantizer
from quantize.solver.solve import Solved, solve_together

if TYPE_CHECKING:
    from collections.abc import Sequence

GRID = UniformQuantizer(4, 128)
CHUNK = 1024  # tokens of one document


def released_groups() -> tuple[int, dict[str, list[int]]]:
    """The hidden size, and the outputs of each linear in q, k, v and in gate, up."""
    text = read_object(RELEASED)["text_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    keys = hidden // heads * text["num_key_value_heads"]
    return hidden, {"q, k, v": [hidden, keys, keys], "gate, up": [text["intermediate_size"]] * 2}


@dataclass(frozen=True)
class Solving:
    """Seconds of processor time of one way, and its results."""

    hessians: float
    """For the Hessians."""
    rest: float
    """For factorising and solving."""
    solved: list[Solved]

    @property
    def seconds(self) -> float:
        """Total."""
        return self.hessians + self.rest


def solve_all(groups: Sequence[Sequence[torch.Tensor]], X: torch.Tensor, tokens: int) -> Solving:
    """Solve groups of weights [N, K], each group with one Hessian and one factorisation.

    X [T, K]: inputs, repeated until there are `tokens` of them.
    """
    hessians = rest = 0.0
    solved: list[Solved] = []
    for weights in groups:
        started = time.process_time()
        H = torch.zeros(X.shape[1], X.shape[1])
        for first in range(0, tokens, len(X)):
            gptq.add_inputs(H, X[: tokens - first])
        summed = time.process_time()
        solved += solve_together(weights, H, GRID, "gptq")
        hessians, rest = hessians + summed - started, rest + time.process_time() - summed
    return Solving(hessians, rest, solved)


@torch.no_grad()
def compare(rows: list[int], hidden: int, tokens: int, rounds: int) -> tuple[Solving, Solving]:
    """Solve linears [rows, hidden] together and one by one, in turns; the fastest of each."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.empty(n, hidden).normal_(0, STD, generator=generator) for n in rows]
    X = torch.empty(min(CHUNK, tokens), hidden).normal_(generator=generator)
    together, alone = [weights], [[weight] for weight in weights]
    turns = [(solve_all(together, X, tokens), solve_all(alone, X, tokens)) for _ in track(range(rounds), f"{rows}")]
    shared, single = (min(way, key=lambda solving: solving.seconds) for way in zip(*turns, strict=True))
    return shared, single


def rows_of(name: str, shared: Solving, single: Solving) -> list[str]:
    """Three rows of the table: both ways, and their ratio."""
    rows = [
        f"| {name} | {way} | {solving.hessians:.1f} | {solving.rest:.1f} | {solving.seconds:.1f} |"
        for way, solving in (("shared", shared), ("per linear", single))
    ]
    ratios = (single.hessians / shared.hessians, single.rest / shared.rest, single.seconds / shared.seconds)
    return [*rows, f"| {name} | per linear / shared | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"]


def main(
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 12288,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each way; the fastest counts.")] = 2,
) -> None:
    """Solve q, k, v and gate, up of one decoder layer together, and one by one; print the times."""
    hidden, groups = released_groups()
    print(f"{tokens} tokens of {hidden} inputs; seconds of processor time\n")
    print("| linears | way | Hessians | factorise and solve | all |\n|---|---|---|---|---|", flush=True)
    compared = []
    for name, rows in groups.items():
        compared.append(compare(rows, hidden, tokens, rounds))
        print(*rows_of(name, *compared[-1]), sep="\n", flush=True)
    ways = list(zip(*compared, strict=True))
    shared, single = (sum(solving.seconds for solving in way) for way in ways)
    more = [1000 * sum(solving.hessians for solving in way) / tokens for way in ways]
    print(f"\nAll five linears: per linear takes {single / shared:.2f} times as long.")
    print(f"Each further 1000 tokens take {more[0]:.2f} s shared and {more[1]:.2f} s per linear.")
    print(f"\n{provenance(f'python -m bench.scale sharing --tokens {tokens} --rounds {rounds}')}")
