"""`python -m bench.gpu.page`: write docs/gpu.md from the newest recorded run. Do not edit that page by hand."""

from __future__ import annotations

import re
from pathlib import Path

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
    """The page of the newest run in a folder, or a page that says that there is none."""
    dates = ((re.search(r"\d{4}-\d\d-\d\d(?:-\d+)?$", path.stem), path) for path in results.glob("gpu-*.json"))
    runs = sorted((date[0], path) for date, path in dates if date and not path.name.startswith("gpu-cpu-"))
    if not runs:
        return NONE
    _, newest = runs[-1]
    record = read_record(newest)
    lines = ["# On a GPU", "", f"`bench/results/{newest.name}`: {record['provenance']}", ""]
    for stage in record["stages"]:
        lines += stage_lines(**{key: stage[key] for key in ("title", "seconds", "error", "timed_out", "figures")})
    return "\n".join(lines).rstrip() + "\n"


@app.command()
def main() -> None:
    """Write docs/gpu.md from the newest run in bench/results."""
    PAGE.write_text(page(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    run_command(app)
