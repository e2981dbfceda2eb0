"""`python -m bench.reader`: accuracy of the bundled reader, and how well it discriminates good quantization from bad.

Prints the tables of its model card. Answers are those of `runtime` on exported folders (greedy, float32 activations);
only the acceptance of MTP drafts is measured in PyTorch.
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
from runtime.compare.gate import Gates
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure
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
RTN, GPTQ = "4-bit RTN", "4-bit GPTQ"
CORRUPTED = "model.language_model.layers.1.mlp.down_proj.weight"


def reading(model: Model, count: int, seed: int) -> dict[str, list[Scored]]:
    """Print one row for each of READINGS; return their scored documents."""
    print("| held-out documents | exact match | CER | ANLS |\n|---|---|---|---|")
    scored = {}
    for name, (kind, font) in READINGS.items():
        drawn = render.documents("evaluation", count, seed, kind, font)
        scored[name] = [score(model, document)[0] for document in track(drawn, name)]
        means = summary(scored[name])
        print(f"| {name} | {means['exact_match']:.3f} | {means['cer']:.4f} | {means['anls']:.3f} |", flush=True)
    return scored


def drafts(transcribed: list[Scored], count: int, seed: int) -> None:
    """Print the acceptance of one draft a call, on the greedy answers to the transcriptions."""
    drawn = render.documents("evaluation", count, seed, "transcription")
    share = draft_acceptance(READER, drawn, [scored.answer for scored in transcribed])
    print(f"\nMTP, one draft token, on the {count} transcriptions in PyTorch: {share:.3f} accepted\n", flush=True)


def corrupted(folder: Path) -> Model:
    """The FP16 reader with one damaged layer: the rows of its down projection are rotated by one."""
    shutil.copytree(READER, folder)
    weights = load_file(folder / "model.safetensors")
    weights[CORRUPTED] = weights[CORRUPTED].roll(1, 0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export(folder, "cpu", exact=True)
    return Model(folder, "cpu")


def discrimination(scratch: Path, baseline: Model, count: int, seed: int) -> None:
    """Print the divergence of RTN, GPTQ and a corrupted layer from FP16, and the verdict of the default gate."""
    drawn = open_documents("rendered", split="evaluation", count=count, seed=seed)
    models = {
        GPTQ: build(Format(GPTQ, {"bits": 4}), scratch / "gptq", seed, 128),
        RTN: build(Format(RTN, {"bits": 4, "solver": "rtn"}), scratch / "rtn", seed, 128),
        "one layer corrupted": corrupted(scratch / "corrupted"),
    }
    print("| against FP16 | mean KL, nats (95 %) | ANLS drop | default gate of `compare` |\n|---|---|---|---|")
    kl: dict[str, float] = {}
    for name, model in models.items():
        measured = [measure(FolderBaseline(baseline), [model], document) for document in track(drawn, name)]
        side = summarize_candidate(name, 0, measured, Gates())
        assert side.differences is not None
        kl[name] = side.mean_kl.value
        verdict, drop = "passes" if side.verdict.passed else "fails", -side.differences["anls"].value
        print("| {} | {:.5f} ({:.5f}–{:.5f})".format(name, *side.mean_kl) + f" | {drop:.4f} | {verdict} |", flush=True)
    print(f"\nRTN / GPTQ: {kl[RTN] / kl[GPTQ]:.1f}\n")


@app.command()
def main(
    count: Annotated[int, typer.Option(min=2, help="Held-out documents of each kind.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the documents.")] = 1,
) -> None:
    """Read held-out documents with the bundled reader, and compare good and bad quantizations of it with FP16."""
    with tempfile.TemporaryDirectory() as temporary:
        model = build(Format("FP16", None), Path(temporary) / "fp16", seed, 1)
        drafts(reading(model, count, seed)[TRANSCRIPTION], count, seed)
        discrimination(Path(temporary), model, count, seed)
    print(provenance(f"python -m bench.reader --count {count} --seed {seed}"))


if __name__ == "__main__":
    run_command(app)
