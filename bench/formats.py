"""`python -m bench.formats`: size, accuracy and speed of every format on the bundled reader, against FP16.

Each format is quantized, exported and compared on the same held-out documents. Speed is that of greedy decoding on this
machine's CPU, all formats interleaved document by document.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.provenance import provenance
from calib_data import READER
from calib_data.sources import open_documents
from console.errors import run_command
from console.progress import track
from export import export
from quantize.pipeline import quantize
from quantize.settings import Settings
from runtime.compare.gate import Gates
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure
from runtime.compare.summary import summarize_candidate
from runtime.evaluate import summary
from runtime.model import Model

if TYPE_CHECKING:
    from runtime.compare.result import DocumentResult

app = typer.Typer(add_completion=False)
# Options that `bench.decoding` and `bench.stopping` have too.
Count = Annotated[int, typer.Option(min=4, help="Held-out documents.")]
CalibrationCount = Annotated[int, typer.Option(min=1, help="Calibration documents.")]
Seed = Annotated[int, typer.Option(help="Seed of both.")]


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    name: str
    settings: dict[str, Any] | None
    """Settings of quantize; None leaves the reader in 16 bits."""
    exact: bool = True
    """Whether activations stay in float32."""


FORMATS = (
    Format("FP16", None),
    Format("8-bit GPTQ", {"bits": 8}),
    Format("NF4 GPTQ", {"quant_type": "nf4"}),
    Format("NF4 RTN (bitsandbytes)", {"quant_type": "nf4", "solver": "rtn"}),
    Format("4-bit GPTQ", {"bits": 4}),
    Format("4-bit GPTQ, int8 activations", {"bits": 4}, exact=False),
    Format("4-bit RTN", {"bits": 4, "solver": "rtn"}),
)


def build(row: Format, folder: Path, seed: int, documents: int) -> Model:
    """Quantize the reader on calibration documents of a seed, export it and load it."""
    if row.settings is None:
        shutil.copytree(READER, folder)
    else:
        quantize(Settings(READER, folder, seed=seed, count=documents, reference=0, **row.settings))
    export(folder, "cpu", exact=row.exact)
    model = Model(folder, "cpu")
    model.open_sessions()  # else it would count as time of the first document
    return model


def line(row: Format, model: Model, measured: list[DocumentResult]) -> str:
    """One row of the table."""
    side = summarize_candidate(row.name, 0, measured, Gates())
    scores, weights = side.scores, sum(entry.bytes for entry in model.manifest.weights.values()) / 2**20
    assert scores is not None
    kl = "–" if row.settings is None else "{:.5f} ({:.5f}–{:.5f})".format(*side.mean_kl)
    speed = summary([document.candidates[0].scored for document in measured if document.candidates[0].scored])[
        "tokens_per_second"
    ]
    return (
        f"| {row.name} | {weights:.1f} | {scores.exact_match:.3f} | {scores.cer:.4f} | {scores.anls:.3f} "
        f"| {kl} | {side.agreement.value:.4f} | {side.answers_changed} | {speed:.0f} |"
    )


@app.command()
def main(
    count: Count = 200,
    calibration_count: CalibrationCount = 128,
    seed: Seed = 0,
) -> None:
    """Quantize the bundled reader to every format and compare each with FP16."""
    drawn = open_documents("rendered", split="evaluation", count=count, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        models = [
            build(row, Path(temporary) / str(i), seed, calibration_count)
            for i, row in enumerate(track(FORMATS, "building"))
        ]
        compared: list[list[DocumentResult]] = [[] for _ in FORMATS]
        for document in track(drawn, "comparing"):
            for model, rows in zip(models, compared, strict=True):
                rows.append(measure(FolderBaseline(models[0]), [model], document))
        print(
            "| format | MiB | exact match | CER | ANLS | mean KL, nats (95 %) | token agreement | answers changed "
            "| tokens/s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for row, model, rows in zip(FORMATS, models, compared, strict=True):
            print(line(row, model, rows))
    command = f"python -m bench.formats --count {count} --calibration-count {calibration_count} --seed {seed}"
    print(f"\n{provenance(command)}")


if __name__ == "__main__":
    run_command(app)
