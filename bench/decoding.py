"""`python -m bench.decoding`: what drafts of the MTP layer and an int8 KV cache do to answers. Prints two tables.

The bundled reader at 4 bits on the CPU, greedy, on held-out documents; exact exports, and for drafts the default too.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from calib_data.errors import run_command
from calib_data.progress import track
from calib_data.sources import open_documents
from export.graphs import export_folder
from runtime.compare.baseline import FolderBaseline
from runtime.compare.gate import Gates
from runtime.compare.measure import Measured, measure
from runtime.compare.result import candidate_side
from runtime.generate import Model, Prompt
from runtime.sampling import greedy
from runtime.speculation import Drafts

from .formats import Format, build
from .provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calib_data.document import Document

app = typer.Typer(add_completion=False)
COUNTS = (1, 2, 3)
LONGEST = 512


def drafting(activations: str, model: Model, drawn: list[Document]) -> Iterator[str]:
    """Rows of a model: answers that differ from those without drafts, tokens a call, drafts that stood, speed."""
    prompts = [model.prompt(document.prompt, [document.image]) for document in drawn]
    model.load(drafts=True)
    start = perf_counter()
    plain = [list(model.generate(prompt, greedy, LONGEST)) for prompt in track(prompts, f"{activations}, no drafts")]
    seconds = perf_counter() - start
    for count in COUNTS:
        yield f"| {activations} " + with_drafts(model, count, prompts, plain, seconds)


def with_drafts(model: Model, count: int, prompts: list[Prompt], plain: list[list[int]], seconds: float) -> str:
    """One of these rows, but for its first cell."""
    changed, tokens, drafts, start = 0, 0, Drafts(count), perf_counter()
    for prompt, expected in zip(prompts, plain, strict=True):
        answer = list(model.generate(prompt, greedy, LONGEST, drafts))
        changed += answer != expected
        tokens += len(answer)
    speed = seconds / (perf_counter() - start)
    return f"| {count} | {changed} | {tokens / drafts.calls:.2f} | {drafts.acceptance:.3f} | {speed:.2f} |"


@app.command()
def main(
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents.")] = 128,
    seed: Annotated[int, typer.Option(help="Of both.")] = 0,
) -> None:
    """Quantize the bundled reader to 4 bits; answer with and without drafts, and with an int8 KV cache."""
    drawn = open_documents("rendered", split="evaluation", count=documents, seed=seed)
    with tempfile.TemporaryDirectory() as place:
        wide = build(Format("4-bit GPTQ", {"bits": 4}), Path(place) / "wide", seed, samples)
        shutil.copytree(wide.folder, Path(place) / "int8")
        export_folder(Path(place) / "int8", "cpu", exact=True, kv_bits=8)
        shutil.copytree(wide.folder, Path(place) / "default")
        export_folder(Path(place) / "default", "cpu")
        narrow = Model(Path(place) / "int8", "cpu")
        baseline = FolderBaseline(wide)
        compared = [measure(baseline, [narrow], document) for document in track(drawn, "int8 KV cache")]
        print_kv(compared)
        print("\n| activations | drafts | answers changed | tokens a call | drafts that stood | speed, of no drafts |")
        print("|---|---|---|---|---|---|")
        for activations, model in (("float32", wide), ("int8", Model(Path(place) / "default", "cpu"))):
            for row in drafting(activations, model, drawn):
                print(row)
    command = f"python -m bench.decoding --documents {documents} --samples {samples} --seed {seed}"
    print(f"\n{provenance(command)}")


def print_kv(measured: list[Measured]) -> None:
    """What the int8 KV cache changes, against the same weights with one as wide as the activations."""
    found = candidate_side("int8", 0, measured, Gates())
    largest = max(max(one.differences[0].kl) for one in measured)
    print("| KV cache | mean KL, nats (95 %) | largest of a token | token agreement | answers changed |")
    print("|---|---|---|---|---|")
    print(
        "| int8 | {:.6f} ({:.6f}–{:.6f})".format(*found.mean_kl)
        + f" | {largest:.4f} | {found.agreement.value:.4f} | {found.answers_changed} of {len(measured)} |"
    )


if __name__ == "__main__":
    run_command(app)
