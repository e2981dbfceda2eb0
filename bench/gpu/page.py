"""`python -m bench.gpu.page`: writes docs/gpu.md from the newest recorded run; nobody writes it by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bench.gpu.record import read_record
from bench.gpu.table import stage_lines
from console.errors import run_command

app = typer.Typer(add_completion=False)
ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "gpu.md"
NONE = """# On a GPU

**No run on a GPU has been recorded yet.** `python -m bench.gpu` makes one, and `python -m bench.gpu.page` writes this
page from it. It begins by tracing the graphs of 33 B, which takes minutes: to do that beforehand, on any machine, run
`python -m bench.gpu.prepare` and give its folder to `bench.gpu --graphs`.
"""


def page(results: Path) -> str:
    """The page of the newest run in a folder; of none where there is none."""
    dates = ((re.search(r"\d{4}-\d\d-\d\d(?:-\d+)?$", path.stem), path) for path in results.glob("gpu-*.json"))
    found = sorted((date[0], path) for date, path in dates if date and not path.name.startswith("gpu-cpu-"))
    runs = [path for _, path in found]
    if not runs:
        return NONE
    record = read_record(runs[-1])
    lines = ["# On a GPU", "", f"`bench/results/{runs[-1].name}`: {record['about']}", ""]
    for stage in record["stages"]:
        lines += stage_lines(stage["about"], stage["seconds"], stage["error"], stage["cut"], stage["figures"])
    return "\n".join(lines).rstrip() + "\n"


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="Folder of recorded runs.")] = RESULTS,
    output: Annotated[Path, typer.Option(help="Page to write.")] = PAGE,
) -> None:
    """Write the page of the newest recorded run."""
    output.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    run_command(app)
