"""`python -m bench.sharing`: what one Hessian and one factorisation for q, k, v, and for gate, up, save.

One decoder layer at the widths of EXAONE 4.5 33B, random weights and inputs, no model around them. A per-linear GPTQ
sums up and factorises the Hessian of each linear; ours does so once for linears that read the same inputs. Both run in
turns, with the same functions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from bench.provenance import provenance
from bench.released_widths import RELEASED, STD
from console.errors import run_command
from console.files import read_object
from console.progress import track
from quantize.solver import gptq
from quantize.solver.quantizers import UniformQuantizer
from quantize.solver.solve import Solved, solve_together

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(add_completion=False)
GRID = UniformQuantizer(4, 128)
CHUNK = 1024  # tokens of one document


def released_groups() -> tuple[int, dict[str, list[int]]]:
    """The hidden size, which all of them read, and the rows of q, k, v and of gate, up."""
    text = read_object(RELEASED)["text_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    keys = hidden // heads * text["num_key_value_heads"]
    return hidden, {"q, k, v": [hidden, keys, keys], "gate, up": [text["intermediate_size"]] * 2}


@dataclass(frozen=True)
class Solving:
    """What one way took, in seconds of processor time, and what came of it: Hessians, and all that follows them."""

    hessians: float
    rest: float
    solved: list[Solved]

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.hessians + self.rest


def solve_all(groups: Sequence[Sequence[torch.Tensor]], X: torch.Tensor, tokens: int) -> Solving:
    """Solve groups of weights [N, K], each group with a Hessian and a factorisation of its own.

    X [T, K]: inputs, given again until there were so many tokens.
    """
    hessians = rest = 0.0
    solved: list[Solved] = []
    for weights in groups:
        started = time.process_time()  # other processes do not count
        H = torch.zeros(X.shape[1], X.shape[1])
        for first in range(0, tokens, len(X)):
            gptq.add_inputs(H, X[: tokens - first])
        summed = time.process_time()
        solved += solve_together(weights, H, GRID, "gptq")
        hessians, rest = hessians + summed - started, rest + time.process_time() - summed
    return Solving(hessians, rest, solved)


@torch.no_grad()
def compare(rows: list[int], hidden: int, tokens: int, rounds: int) -> tuple[Solving, Solving]:
    """Solve linears of so many rows together, and one by one, in turns: the fastest of each."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.empty(n, hidden).normal_(0, STD, generator=generator) for n in rows]
    X = torch.empty(min(CHUNK, tokens), hidden).normal_(generator=generator)
    together, alone = [weights], [[weight] for weight in weights]
    turns = [(solve_all(together, X, tokens), solve_all(alone, X, tokens)) for _ in track(range(rounds), f"{rows}")]
    shared, single = (min(way, key=lambda solving: solving.seconds) for way in zip(*turns, strict=True))
    return shared, single


def rows_of(name: str, shared: Solving, single: Solving) -> list[str]:
    """Three rows of the table."""
    rows = [
        f"| {name} | {way} | {one.hessians:.1f} | {one.rest:.1f} | {one.seconds:.1f} |"
        for way, one in (("shared", shared), ("per linear", single))
    ]
    ratios = (single.hessians / shared.hessians, single.rest / shared.rest, single.seconds / shared.seconds)
    return [*rows, f"| {name} | per linear / shared | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"]


@app.command()
def main(
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 12288,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of both ways; the fastest counts.")] = 2,
) -> None:
    """Solve q, k, v and gate, up of one decoder layer together, and one by one; print the times."""
    hidden, groups = released_groups()
    print(f"{tokens} tokens of {hidden} inputs; seconds of processor time\n")
    print("| linears | way | Hessians | factorise and solve | all |\n|---|---|---|---|---|", flush=True)
    found = []
    for name, rows in groups.items():
        found.append(compare(rows, hidden, tokens, rounds))
        print(*rows_of(name, *found[-1]), sep="\n", flush=True)
    shared, single = (sum(one.seconds for one in way) for way in zip(*found, strict=True))
    more = [1000 * sum(one.hessians for one in way) / tokens for way in zip(*found, strict=True)]
    print(f"\nAll five linears: per linear takes {single / shared:.2f} times as long.")
    print(f"Each further 1000 tokens take {more[0]:.2f} s shared and {more[1]:.2f} s per linear.")
    print(f"\n{provenance(f'python -m bench.sharing --tokens {tokens} --rounds {rounds}')}")


if __name__ == "__main__":
    run_command(app)
