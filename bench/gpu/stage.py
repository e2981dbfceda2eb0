"""Run one stage in a process of its own: `python -m bench.gpu.stage MODULE BENCH FIGURES`, started by `bench.gpu`.

The GPU's memory is free again when the process ends, and a crash does not affect other stages.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu.bench import Bench, OutOfTimeError
from bench.gpu.figures import Figure
from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Stage:
    """Figures that are measured together."""

    name: str
    title: str
    """Heading of its table."""
    weight: float
    """Its share of the time, relative to the others."""
    module: str = ""
    """The module in bench.gpu.stages, if its name is not that of the stage."""


OUT_OF_TIME = 75  # exit code of a stage whose time ran out: EX_TEMPFAIL of sysexits.h
STAGES = (
    Stage("hardware", "Hardware", 3),
    Stage("correctness", "The bundled reader on the GPU against the CPU's exact graphs", 26),
    Stage("kernels", "Matrix products at the released widths", 13),
    Stage("decode", "33 B: all 64 layers, random 4-bit codes", 18),
    Stage("engine", "33 B: many requests at once", 8),
    Stage("block-32", "33 B in blocks of 32, for CUTLASS kernels", 8, "decode"),
    Stage("full-kv", "33 B with full-length KV buffers", 5, "decode"),
    Stage("int8-kv", "33 B with an int8 KV cache", 4, "decode"),
    Stage("vision", "Vision: all blocks at the released widths", 5),
    Stage("quantize", "Quantizing one decoder layer of the released widths", 10),
    Stage("peer", "Against transformers: four layers of the released widths", 8),
)
"""Most valuable first, for the time may run out."""


def measure(module: str, bench: Bench) -> Iterator[Figure]:
    """Run the stage of a module in bench.gpu.stages, figure by figure."""
    figures: Iterator[Figure] = importlib.import_module(f"bench.gpu.stages.{module}").measure(bench)
    return figures


def to_json(bench: Bench) -> str:
    """A Bench as JSON, for another process."""
    return json.dumps(asdict(bench), default=str)


def from_json(text: str) -> Bench:
    """The Bench of a JSON text."""
    values = json.loads(text)
    graphs = values.pop("graphs")
    return Bench(scratch=Path(values.pop("scratch")), graphs=Path(graphs) if graphs else None, **values)


def read_figures(path: Path) -> list[Figure]:
    """Read the figures that a stage has written so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be unfinished
    return [Figure(**json.loads(line)) for line in lines]


def main() -> None:
    """Run the stage and append each figure as a line of JSON at once."""
    module, bench, path = sys.argv[1], from_json(sys.argv[2]), Path(sys.argv[3])
    with path.open("a", encoding="utf-8") as file:
        try:
            for figure in measure(module, bench):
                file.write(json.dumps(asdict(figure)) + "\n")
                file.flush()
        except OutOfTimeError:
            sys.exit(OUT_OF_TIME)
        except InputError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
