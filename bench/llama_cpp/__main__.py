"""`python -m bench.llama_cpp`: tokens a second on this CPU, against llama.cpp with the same weights in Q4_0.

One EXAONE 4 checkpoint of 220 M random weights, quantized by each: by our commands (4-bit groups of 128, by default an
8-bit head and int8 activations), and by llama.cpp's own quantizer (Q4_0 with a Q6_K head; int8 activations too).
llama.cpp is built from source into an environment of its own, which takes half an hour once. Run nothing else
meanwhile: llama.cpp's threads spin while they wait, and lose most if one of them is held up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.llama_cpp.model import config, exported
from bench.llama_cpp.runners import LLAMA_CPP, Memory, Ours, Runner, Task, Theirs, Turn
from bench.provenance import provenance
from bench.timing import Quartiles, in_turns
from console.errors import run_command
from console.progress import track

app = typer.Typer(add_completion=False)
HEADER = """\
| | MB a token | prompt, tokens/s | decode, tokens/s | bandwidth | prompt, ours to this | decode, ours to this |
|---|---|---|---|---|---|---|"""
NOTES = """\
Medians over the rounds, all in turns, in another order each round. Ratios are within a round, in brackets their
quartiles. Prompt: up to the first new token. Decode: greedy, batch 1, no speculation. MB a token: weights as stored,
without the embeddings. Bandwidth: the share of the memory bandwidth of the same rounds that reading these takes."""


def table(rows: list[Runner], turns: list[list[Turn]], bandwidth: float) -> list[str]:
    """One row for each runner. turns: by row, then by round. bandwidth: bytes a second."""
    lines = [HEADER]
    for row, taken in zip(rows, turns, strict=True):
        prompt, decode = (np.median([getattr(turn, part) for turn in taken]) for part in ("prompt", "decode"))
        ratios = [ratio(turns[0], taken, part) if row is not rows[0] else "–" for part in ("prompt", "decode")]
        lines.append(
            f"| {row.name} | {row.weight_bytes / 1e6:.0f} | {prompt:.0f} | {decode:.0f} "
            f"| {row.weight_bytes * decode / bandwidth:.0%} | {' | '.join(ratios)} |"
        )
    return lines


def ratio(ours: list[Turn], theirs: list[Turn], part: str) -> str:
    """Our speed relative to theirs: the median over rounds, and the quartiles."""
    ratios = [getattr(mine, part) / getattr(other, part) for mine, other in zip(ours, theirs, strict=True)]
    return str(Quartiles.of(ratios))


def measure(rows: list[Runner], task: Task, rounds: int, memory: Memory) -> tuple[list[list[Turn]], float]:
    """Turns by row, then by round, and the median memory bandwidth in bytes a second."""
    turns: list[list[Turn]] = [[] for _ in rows]
    bandwidths = []
    for row in rows:
        row.turn(task)  # to warm up
    for number in track(range(rounds), "rounds"):
        for taken, row in in_turns(list(zip(turns, rows, strict=True)), number):
            taken.append(row.turn(task))
        bandwidths.append(memory.bandwidth())
    return turns, float(np.median(bandwidths))


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each runner.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, max=384, help="Tokens of the prompt.")] = 256,
    tokens: Annotated[int, typer.Option(min=2, max=128, help="New tokens.")] = 128,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of each; 1 is timed by processor time.", show_default="all cores")
    ] = os.cpu_count() or 1,
    head_bits: Annotated[int, typer.Option(help="Bits of our head, and of llama.cpp's in its second row: 4 or 8.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the prompt.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for the models and llama.cpp.")] = Path("build/llama.cpp"),
) -> None:
    """Quantize a model of random weights with both, run both in turns, and print tokens a second."""
    ids = np.random.default_rng(seed).integers(0, config()["vocab_size"], prompt).tolist()
    theirs = [
        Theirs(f"llama.cpp, {name}", cache, head, threads, huge_pages=huge_pages)
        for name, head, huge_pages in (
            ("Q4_0", "default", False),
            (f"Q4_0 with a Q{head_bits}_0 head", f"Q{head_bits}_0", False),
            ("Q4_0, on huge pages", "default", True),
        )
    ]
    rows: list[Runner] = [
        Ours(f"this toolkit, 4 bits, {head_bits}-bit head", exported(cache, head_bits), threads),
        *theirs,
    ]
    load = os.getloadavg()[0]
    turns, bandwidth = measure(rows, Task(ids, tokens), rounds, Memory(threads))
    for row in theirs:
        row.close()
    print(*table(rows, turns, bandwidth), sep="\n")
    same = np.corrcoef(rows[0].logits, rows[1].logits)[0, 1]
    print(f"\n{NOTES}")
    print(f"Memory bandwidth: {bandwidth / 1e9:.1f} GB/s. Load average before: {load:.1f}.")
    print(f"Logits of the first two rows after the prompt correlate at {same:.2f}.\n")
    command = f"python -m bench.llama_cpp --rounds {rounds} --prompt {prompt} --tokens {tokens} --threads {threads}"
    print(f"{provenance(f'{command} --head-bits {head_bits} --seed {seed}')} {LLAMA_CPP.versions}.")


if __name__ == "__main__":
    run_command(app)
