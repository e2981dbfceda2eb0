"""`python -m bench.reader`: what the bundled reader reads, and that it tells good quantization from bad.

Prints the tables of its model card. Answers are those of `runtime` on exported folders (greedy, float32 activations);
only the MTP layer, which the runtime does not use yet, is measured in PyTorch.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from safetensors.torch import load_file, save_file

from bench.formats import Format, build
from bench.provenance import provenance
from calib_data import READER
from calib_data.rendered import fonts, render
from calib_data.sources import open_documents
from console.errors import run_command
from console.progress import track
from export import export
from runtime.compare.baseline import FolderBaseline
from runtime.compare.gate import Gates
from runtime.compare.measure import measure
from runtime.compare.summary import summarize_candidate
from runtime.evaluate import Scored, score, summary
from runtime.model import Model
from training.evaluation import draft_acceptance

if TYPE_CHECKING:
    from calib_data.rendered.render import Kind

app = typer.Typer(add_completion=False)
TRANSCRIPTION = "transcription"
READINGS: dict[str, tuple[Kind, str | None]] = {
    "one field of a document": ("field", None),
    "one field, unseen font": ("field", fonts.HELD_OUT_FONT),
    TRANSCRIPTION: ("transcription", None),
    "transcription, unseen font": ("transcription", fonts.HELD_OUT_FONT),
    "single line": ("line", None),
}
NEAREST, SOLVED = "4-bit nearest", "4-bit GPTQ"
CORRUPTED = "model.language_model.layers.1.mlp.down_proj.weight"


def reading(model: Model, documents: int, seed: int) -> dict[str, list[Scored]]:
    """Print one row for each of READINGS; returns the scored documents of each."""
    print("| held-out documents | exact match | CER | ANLS |\n|---|---|---|---|")
    read = {}
    for name, (kind, font) in READINGS.items():
        drawn = render.documents("evaluation", documents, seed, kind, font)
        read[name] = [score(model, document)[0] for document in track(drawn, name)]
        means = summary(read[name])
        print(f"| {name} | {means['exact_match']:.3f} | {means['cer']:.4f} | {means['anls']:.3f} |", flush=True)
    return read


def drafts(transcribed: list[Scored], documents: int, seed: int) -> None:
    """Print how many greedy tokens of the transcriptions the MTP layer drafts one step ahead."""
    drawn = render.documents("evaluation", documents, seed, "transcription")
    share = draft_acceptance(READER, drawn, [scored.answer for scored in transcribed])
    print(f"\nMTP, one draft token, on the {documents} transcriptions in PyTorch: {share:.3f} accepted\n", flush=True)


def corrupted(folder: Path) -> Model:
    """FP16 but for one layer: the rows of its down projection are out of order."""
    shutil.copytree(READER, folder)
    weights = load_file(folder / "model.safetensors")
    weights[CORRUPTED] = weights[CORRUPTED].roll(1, 0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export(folder, "cpu", exact=True)
    return Model(folder, "cpu")


def telling(place: Path, baseline: Model, documents: int, seed: int) -> None:
    """Print the divergence of nearest, GPTQ and a corrupted layer from FP16, and what the default gate says."""
    drawn = open_documents("rendered", split="evaluation", count=documents, seed=seed)
    models = {
        SOLVED: build(Format(SOLVED, {"bits": 4}), place / "solved", seed, 128),
        NEAREST: build(Format(NEAREST, {"bits": 4, "solver": "rtn"}), place / "nearest", seed, 128),
        "one layer corrupted": corrupted(place / "corrupted"),
    }
    print("| against FP16 | mean KL, nats (95 %) | ANLS drop | default gate of `compare` |\n|---|---|---|---|")
    kl: dict[str, float] = {}
    for name, model in models.items():
        measured = [measure(FolderBaseline(baseline), [model], document) for document in track(drawn, name)]
        found = summarize_candidate(name, 0, measured, Gates())
        assert found.differences is not None
        kl[name] = found.mean_kl.value
        verdict, drop = "passes" if found.verdict.passed else "fails", -found.differences["anls"].value
        print("| {} | {:.5f} ({:.5f}–{:.5f})".format(name, *found.mean_kl) + f" | {drop:.4f} | {verdict} |", flush=True)
    print(f"\nnearest / GPTQ: {kl[NEAREST] / kl[SOLVED]:.1f}\n")


@app.command()
def main(
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents of each kind.")] = 500,
    compared: Annotated[int, typer.Option(min=2, help="Held-out documents to compare folders on.")] = 500,
    seed: Annotated[int, typer.Option(help="Which documents are drawn.")] = 1,
) -> None:
    """Read held-out documents with the bundled reader, and compare good and bad quantizations of it with FP16."""
    with tempfile.TemporaryDirectory() as place:
        model = build(Format("FP16", None), Path(place) / "fp16", seed, 1)
        drafts(reading(model, documents, seed)[TRANSCRIPTION], documents, seed)
        telling(Path(place), model, compared, seed)
    print(provenance(f"python -m bench.reader --documents {documents} --compared {compared} --seed {seed}"))


if __name__ == "__main__":
    run_command(app)
