"""`python -m bench.decoding`: what drafts of the MTP layer and an int8 KV cache do to answers. Prints two tables.

The bundled reader at 4 bits on the CPU, greedy, on held-out documents; exact exports, and for drafts the default too.
With `--widths released` instead: what drafts cost at the widths of EXAONE 4.5 33B, random codes, a few layers deep.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.drafting import COUNTS, costs, deeper, table, time_calls
from bench.formats import Format, build
from bench.provenance import provenance
from bench.quantized_widths import make_quantized
from bench.released_widths import RELEASED, shortened
from calib_data.sources import open_documents
from console.errors import run_command
from console.files import read_object
from console.progress import track
from export import export
from runtime.compare.baseline import FolderBaseline
from runtime.compare.gate import Gates
from runtime.compare.measure import measure
from runtime.compare.summary import summarize_candidate
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.decoding.speculative import Drafts
from runtime.model import Model
from runtime.prompt import Prompt, build_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calib_data.document import Document
    from runtime.compare.result import DocumentResult

app = typer.Typer(add_completion=False)
LONGEST = 512
DEPTHS = (4, 8)  # three of four layers have windows in both, as in the release
RELEASED_DEPTH = 64
BEHIND = (300, 4352)  # tokens in the cache; windows of 4096 are full behind the second


def drafting(activations: str, model: Model, drawn: list[Document]) -> Iterator[str]:
    """Rows of a model: answers that differ from those without drafts, tokens a call, drafts that stood, speed."""
    prompts = [build_prompt(model, document.prompt, [document.image]) for document in drawn]
    model.open_sessions(drafts=True)
    start = perf_counter()
    plain = [list(generate(model, prompt, greedy, LONGEST)) for prompt in track(prompts, f"{activations}, no drafts")]
    seconds = perf_counter() - start
    for count in COUNTS:
        yield f"| {activations} " + with_drafts(model, count, prompts, plain, seconds)


def with_drafts(model: Model, count: int, prompts: list[Prompt], plain: list[list[int]], seconds: float) -> str:
    """One of these rows, but for its first cell."""
    changed, tokens, drafts, start = 0, 0, Drafts(count), perf_counter()
    for prompt, expected in zip(prompts, plain, strict=True):
        answer = list(generate(model, prompt, greedy, LONGEST, drafts))
        changed += answer != expected
        tokens += len(answer)
    speed = seconds / (perf_counter() - start)
    return f"| {count} | {changed} | {tokens / drafts.calls:.2f} | {drafts.acceptance:.3f} | {speed:.2f} |"


def reader_tables(documents: int, samples: int, seed: int) -> None:
    """Quantize the bundled reader to 4 bits; answer with and without drafts, and with an int8 KV cache."""
    drawn = open_documents("rendered", split="evaluation", count=documents, seed=seed)
    with tempfile.TemporaryDirectory() as place:
        wide = build(Format("4-bit GPTQ", {"bits": 4}), Path(place) / "wide", seed, samples)
        shutil.copytree(wide.folder, Path(place) / "int8")
        export(Path(place) / "int8", "cpu", exact=True, kv_bits=8)
        shutil.copytree(wide.folder, Path(place) / "default")
        export(Path(place) / "default", "cpu")
        narrow = Model(Path(place) / "int8", "cpu")
        baseline = FolderBaseline(wide)
        compared = [measure(baseline, [narrow], document) for document in track(drawn, "int8 KV cache")]
        print_kv(compared)
        print("\n| activations | drafts | answers changed | tokens a call | drafts that stood | speed, of no drafts |")
        print("|---|---|---|---|---|---|")
        for activations, model in (("float32", wide), ("int8", Model(Path(place) / "default", "cpu"))):
            for row in drafting(activations, model, drawn):
                print(row)


def released_table(rounds: int, seed: int) -> None:
    """Time what drafts take at the released widths, two depths in turns; 64 layers are on the line through both."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / f"{layers}-layers" for layers in DEPTHS]
        for folder, layers in zip(folders, DEPTHS, strict=True):
            make_quantized(shortened(read_object(RELEASED), layers, 1), folder, sparse=False, seed=seed)
            export(folder, "cpu")
        models = [Model(folder, "cpu") for folder in folders]
        rows = []
        for tokens in BEHIND:
            shallow, deep = time_calls(models, tokens, rounds)
            whole = deeper(shallow, deep, DEPTHS, RELEASED_DEPTH)
            rows += [(f"{n} | {tokens}", costs(calls)) for n, calls in zip(DEPTHS, (shallow, deep), strict=True)]
            rows.append((f"{RELEASED_DEPTH}, computed | {tokens}", costs(whole)))
    print(*table("layers | tokens before", rows), sep="\n")


@app.command()
def main(
    widths: Annotated[Literal["reader", "released"], typer.Option(help="Of the bundled reader, or of 33B.")] = "reader",
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents, of the reader.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Calibration documents, of the reader.")] = 128,
    rounds: Annotated[int, typer.Option(min=2, help="Times that each call is timed at the released widths.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the documents, or of the random codes.")] = 0,
) -> None:
    """Measure drafts: whole answers of the reader (and an int8 KV cache), or single calls at the released widths."""
    if widths == "reader":
        reader_tables(documents, samples, seed)
        options = f"--documents {documents} --samples {samples}"
    else:
        released_table(rounds, seed)
        options = f"--widths released --rounds {rounds}"
    print(f"\n{provenance(f'python -m bench.decoding {options} --seed {seed}')}")


def print_kv(measured: list[DocumentResult]) -> None:
    """What the int8 KV cache changes, against the same weights with one as wide as the activations."""
    found = summarize_candidate("int8", 0, measured, Gates())
    largest = max(max(one.differences[0].kl) for one in measured)
    print("| KV cache | mean KL, nats (95 %) | largest of a token | token agreement | answers changed |")
    print("|---|---|---|---|---|")
    print(
        "| int8 | {:.6f} ({:.6f}–{:.6f})".format(*found.mean_kl)
        + f" | {largest:.4f} | {found.agreement.value:.4f} | {found.answers_changed} of {len(measured)} |"
    )


if __name__ == "__main__":
    run_command(app)
