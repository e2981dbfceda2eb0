"""`python -m bench.decoding`: greedy answers with an int8 KV cache, with drafts, and many at once, against plain ones.

The bundled reader at 4 bits on the CPU, on held-out documents. All with float32 activations; drafts and many at once
also with int8 activations, the default. `python -m bench.scale drafting` times drafts at the widths of EXAONE 4.5 33B.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import typer

from bench.formats import CalibrationCount, Count, Format, Seed, build
from bench.provenance import provenance
from bench.scale.drafting import COUNTS
from calib_data.sources import open_documents
from console.errors import run_command
from console.progress import track
from export import export
from runtime.compare.gate import Gates
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure
from runtime.compare.summary import summarize_candidate
from runtime.decoding.drafts import Drafts
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling, greedy
from runtime.engine.answer_all import answer_all, open_engine
from runtime.engine.request import Request
from runtime.model import Model
from runtime.prompt import Prompt, build_prompt, prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calib_data.document import Document
    from runtime.compare.result import DocumentResult

app = typer.Typer(add_completion=False)
LONGEST = 512  # tokens of an answer
ROWS = 8  # answers at once


def drafting(activations: str, model: Model, drawn: list[Document]) -> Iterator[str]:
    """Table rows of a model: answers changed by drafts and by others at once, tokens a call, acceptance and speed."""
    prompts = [build_prompt(model, document.prompt, [document.image]) for document in drawn]
    model.open_sessions(drafts=True)
    start = perf_counter()
    plain = [list(generate(model, prompt, greedy, LONGEST)) for prompt in track(prompts, f"{activations}, no drafts")]
    seconds = perf_counter() - start
    for count in COUNTS:
        yield f"| {activations} " + with_drafts(model, count, prompts, plain, seconds)
    yield f"| {activations} " + at_once(model, drawn, plain)


def with_drafts(model: Model, count: int, prompts: list[Prompt], plain: list[list[int]], seconds: float) -> str:
    """The cells of such a row after the first. plain, seconds: the answers without drafts, and their time."""
    changed, tokens, drafts, start = 0, 0, Drafts(count), perf_counter()
    for prompt, expected in zip(prompts, plain, strict=True):
        answer = list(generate(model, prompt, greedy, LONGEST, drafts))
        changed += answer != expected
        tokens += len(answer)
    speed = seconds / (perf_counter() - start)
    return f"| {count} | {changed} | {tokens / drafts.calls:.2f} | {drafts.acceptance:.3f} | {speed:.2f} |"


def at_once(model: Model, drawn: list[Document], plain: list[list[int]]) -> str:
    """The cells of the row of the engine, which has ROWS answers at a time, but for the first. plain: likewise."""
    inputs = [prompt_inputs(model, document.prompt, [document.image]) for document in drawn]
    engine = open_engine(model, ROWS, max(len(each.ids) for each in inputs) + LONGEST)
    answers = answer_all(engine, (Request(each, Sampling(), LONGEST) for each in inputs))
    changed = sum(answer.tokens != expected for answer, expected in zip(answers, plain, strict=True))
    return f"| none, {engine.plan.rows} at once | {changed} | – | – | – |"


def print_drafts(models: dict[str, Model], drawn: list[Document]) -> None:
    """Print the table of drafts. models: by the type of their activations."""
    print("| activations | drafts | answers changed | tokens a call | acceptance | speed against no drafts |")
    print("|---|---|---|---|---|---|")
    for activations, model in models.items():
        for row in drafting(activations, model, drawn):
            print(row)


def print_kv(measured: list[DocumentResult]) -> None:
    """Print the difference that the int8 KV cache makes, with the same weights and activations."""
    side = summarize_candidate("int8", 0, measured, Gates())
    largest = max(max(document.differences[0].kl) for document in measured)
    print("| KV cache | mean KL, nats (95 %) | largest of a token | token agreement | answers changed |")
    print("|---|---|---|---|---|")
    print(
        "| int8 | {:.6f} ({:.6f}–{:.6f})".format(*side.mean_kl)
        + f" | {largest:.4f} | {side.agreement.value:.4f} | {side.answers_changed} of {len(measured)} |\n"
    )


@app.command()
def main(
    count: Count = 200,
    calibration_count: CalibrationCount = 128,
    seed: Seed = 0,
) -> None:
    """Compare greedy answers of the reader with an int8 KV cache, with drafts, and many at once to plain ones."""
    drawn = open_documents("rendered", split="evaluation", count=count, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        exact, int8_kv, default = (Path(temporary) / name for name in ("exact", "int8-kv", "default"))
        model = build(Format("4-bit GPTQ", {"bits": 4}), exact, seed, calibration_count)
        for folder in (int8_kv, default):
            shutil.copytree(exact, folder)
        export(int8_kv, "cpu", exact=True, kv_bits=8)
        export(default, "cpu")
        baseline, narrow = FolderBaseline(model), Model(int8_kv, "cpu")
        print_kv([measure(baseline, [narrow], document) for document in track(drawn, "int8 KV cache")])
        print_drafts({"float32": model, "int8": Model(default, "cpu")}, drawn)
    options = f"--count {count} --calibration-count {calibration_count} --seed {seed}"
    print(f"\n{provenance(f'python -m bench.decoding {options}')}")


if __name__ == "__main__":
    run_command(app)
