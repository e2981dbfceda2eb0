"""`python -m bench.scale`: time, memory and disk at the widths of EXAONE 4.5 33B, on a CPU, with random weights."""

from __future__ import annotations

import typer

from bench.scale import drafting, export, host, make, quantize, run, sharing, vision_memory
from console.errors import run_command

app = typer.Typer(add_completion=False, no_args_is_help=True)
for module in (make, quantize, sharing, export, run, drafting, vision_memory, host):
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"))(module.main)

if __name__ == "__main__":
    run_command(app)
