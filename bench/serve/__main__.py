"""`python -m bench.serve`: many requests at once on this CPU, against one after another and llama.cpp's batch.

The model and llama.cpp are those of `bench.llama_cpp`. Run nothing else meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from bench.llama_cpp.model import config, exported
from bench.llama_cpp.runners import LLAMA_CPP, LlamaCpp
from bench.provenance import provenance
from bench.serve.runners import LlamaCppBatch, OneAfterAnother, Runner, Task, Together, Turn
from bench.serve.stall import ANSWERS, measure_stall
from bench.timing import Quartiles, in_turns
from console.errors import run_command
from console.progress import track
from runtime.model import Model
from runtime.ort.sessions import Options

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(add_completion=False)
COUNTS = (1, 2, 4, 8, 16)
SHARED = 8  # rows of the steps whose time is divided
LONG = 2048  # tokens of the prompt that comes late
TITLES = {
    "rate": ("new tokens a second, prompts included", 1.0, 0),
    "first": ("seconds to the first token, the median request", 1.0, 2),
    "step": ("milliseconds of a step of all", 1e3, 1),
}
NOTES = """\
Medians over the rounds, all in turns, in another order each round. After the dot: how many times as fast the engine
is, the median of ratios within rounds, and their quartiles. Greedy, no drafts. llama.cpp reads the prompts one after
another, then has one token of every sequence in a batch; "one KV" is its unified buffer."""

Turns = dict[tuple[int, str], list[Turn]]
"""Turns by number of requests and name of the runner."""


def tables(names: list[str], turns: Turns) -> list[str]:
    """A table for each figure: a row for each number of requests, a column for each runner. names: the engine first."""
    lines = []
    counts = sorted({count for count, _ in turns})
    for figure, (title, scale, digits) in TITLES.items():
        lines += [f"| {title} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for count in counts:
            taken = [np.array([getattr(turn, figure) for turn in turns[count, name]]) for name in names]
            cells = [f"{np.median(values) * scale:.{digits}f}" for values in taken]
            for place, values in enumerate(taken[1:], 1):
                times = taken[0] / values if figure == "rate" else values / taken[0]
                cells[place] += f" · {Quartiles.of(times)}"
            lines.append(f"| {count} at once | {' | '.join(cells)} |")
        lines.append("")
    return lines


def measure(runners: list[Runner], draw: Callable[[int], Task], rounds: int) -> Turns:
    """Turns of each number of requests.

    draw: a task of so many new prompts, as the engine still has the keys and values of those that it was asked.
    """
    turns: Turns = {(count, runner.name): [] for count in COUNTS for runner in runners}
    task = draw(1)
    for runner in runners:
        runner.turn(task)  # to warm up
    for number in track(range(rounds), "rounds"):
        for count in COUNTS:
            task = draw(count)
            for runner in in_turns(runners, number):
                turns[count, runner.name].append(runner.turn(task))
    return turns


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each runner.")] = 5,
    prompt: Annotated[int, typer.Option(min=1, max=256, help="Tokens of a prompt.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, max=256, help="New tokens of an answer.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.", show_default="all cores")] = os.cpu_count()
    or 1,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    cache: Annotated[Path, typer.Option(help="Folder for the models and llama.cpp.")] = Path("build/llama.cpp"),
) -> None:
    """Answer 1 to 16 requests with each runner in turns, and print tokens a second."""
    vocabulary, most = config()["vocab_size"], max(COUNTS)
    random = np.random.default_rng(seed)

    def draw(count: int) -> Task:
        return Task(random.integers(vocabulary, size=(count, prompt)).tolist(), tokens)

    model, int8_kv = (Model(exported(cache, 8, bits), "cpu", Options(threads=threads)) for bits in (16, 8))
    peers = [
        LlamaCpp(name, cache, "default", threads, sequences=most, unified=unified)
        for name, unified in (("llama.cpp", False), ("llama.cpp, one KV", True))
    ]
    runners: list[Runner] = [
        Together("engine", model, threads, most, prompt + tokens),
        OneAfterAnother(model, threads),
        *map(LlamaCppBatch, peers),
        Together("engine, int8 KV", int8_kv, threads, most, prompt + tokens),
    ]
    load = os.getloadavg()[0]
    turns = measure(runners, draw, rounds)
    for peer in peers:
        peer.close()
    print(*tables([runner.name for runner in runners], turns), sep="\n")
    print(f"{NOTES}\n")
    share = Quartiles.of([turn.outside for turn in turns[SHARED, "engine"]]).scaled(100)
    print(f"Outside the decoder's session, a step of {SHARED} rows spends {share} % of its time.")
    stall = measure_stall(Together("engine", model, threads, ANSWERS + 1, 2 * LONG), seed, LONG, vocabulary)
    print(f"When a prompt of {LONG} tokens came to {ANSWERS} answers, {stall}.")
    print(f"Load average before: {load:.1f}.\n")
    command = f"python -m bench.serve --rounds {rounds} --prompt {prompt} --tokens {tokens} --threads {threads}"
    print(f"{provenance(f'{command} --seed {seed}')} {LLAMA_CPP.versions}.")


if __name__ == "__main__":
    run_command(app)
