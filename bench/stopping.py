"""`python -m bench.stopping`: how every format of the bundled reader predicts control tokens and ends its answers.

Half of the held-out documents are answered with reasoning. What each figure is: `runtime.compare.stopping`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bench.formats import FORMATS, CalibrationCount, Count, Format, Seed, build
from bench.provenance import provenance
from calib_data.sources import open_documents
from console.errors import run_command
from console.progress import track
from runtime.compare.gate import Gates
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure
from runtime.compare.summary import summarize_candidate

if TYPE_CHECKING:
    from runtime.compare.result import Candidate, ControlToken, DocumentResult

app = typer.Typer(add_completion=False)
ROWS: tuple[Format, ...] = tuple(
    row for row in FORMATS if row.name in ("FP16", "8-bit GPTQ", "NF4 GPTQ", "4-bit GPTQ", "4-bit RTN")
)


def control_line(name: str, token: ControlToken) -> str:
    """One row of the table of control tokens."""
    kl = f"{1000 * token.kl.value:.3f} ({1000 * token.kl.low:.3f}–{1000 * token.kl.high:.3f})"
    return f"| {name} | {kl} | {token.probability:.4f} | {token.probability_change.with_signs(4)} | {token.rank:.3f} |"


def ending_line(name: str, candidate: Candidate) -> str:
    """One row of the table of endings."""
    endings, changes = candidate.endings, candidate.ending_changes
    assert endings is not None
    assert changes is not None
    assert changes.unfinished is not None
    ratio = "{:.3f} ({:.3f}–{:.3f})".format(*changes.length_ratio)
    return f"| {name} | {endings.finished:.3f} | {endings.loops:.3f} | {ratio} | {{:.3f}} ({{:.3f}}–{{:.3f}}) |".format(
        *changes.unfinished
    )


def _print_tables(summaries: dict[str, Candidate]) -> None:
    kinds = {"reasoning_end": "end of reasoning", "turn_end": "end of turn"}
    for kind, label in kinds.items():
        print(f"| {label} | KL, 10⁻³ nats (95 %) | probability | change (95 %) | mean rank |\n|---|---|---|---|---|")
        for name, candidate in summaries.items():
            print(control_line(name, next(token for token in candidate.control_tokens if token.kind == kind)))
        print()
    print("| greedy answers | end by themselves | in a loop | length ratio (95 %) | unfinished (95 %) |")
    print("|---|---|---|---|---|")
    for name, candidate in summaries.items():
        print(ending_line(name, candidate))


@app.command()
def main(
    count: Count = 200,
    calibration_count: CalibrationCount = 128,
    seed: Seed = 0,
) -> None:
    """Quantize the bundled reader to several formats, and measure how each stops."""
    drawn = open_documents("rendered:reasoning", split="evaluation", count=count // 2, seed=seed)
    drawn += open_documents("rendered", split="evaluation", count=count - count // 2, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(ROWS))]
        models = [
            build(row, folder, seed, calibration_count)
            for row, folder in zip(track(ROWS, "building"), folders, strict=True)
        ]
        measured: list[DocumentResult] = [
            measure(FolderBaseline(models[0]), models, document) for document in track(drawn, "comparing")
        ]
    _print_tables({row.name: summarize_candidate(row.name, n, measured, Gates()) for n, row in enumerate(ROWS)})
    command = f"python -m bench.stopping --count {count} --calibration-count {calibration_count} --seed {seed}"
    print(f"\n{provenance(command)}")


if __name__ == "__main__":
    run_command(app)
