"""One stage in a process of its own: `python -m bench.gpu.stage MODULE BENCH FIGURES`, started by `bench.gpu`.

A process ends with what it took of the GPU, and one that crashes takes no other stage with it.
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
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Stage:
    """What is measured together. weight: its share of the time, relative to the others."""

    name: str
    about: str
    weight: float
    module: str = ""
    """What has its `measure`, where that is not the stage's own name."""


OUT_OF_TIME = 75  # the exit code of a stage that the clock has cut off: EX_TEMPFAIL of sysexits.h
STAGES = (
    Stage("card", "The card", 3),
    Stage("right", "The bundled reader on the GPU against the CPU's exact graphs", 26),
    Stage("products", "Products at the released widths", 13),
    Stage("whole", "33 B whole: 64 layers of random 4-bit codes", 18),
    Stage("block-32", "33 B in blocks of 32, for CUTLASS kernels", 8, "variant"),
    Stage("full-kv", "33 B with full-length KV buffers", 5, "variant"),
    Stage("int8-kv", "33 B with an int8 KV cache", 4, "variant"),
    Stage("vision", "Vision: all blocks at the released widths", 5),
    Stage("quantize", "Quantizing one decoder layer of the released widths", 10),
    Stage("beside", "Beside transformers: four layers of the released widths", 8),
)
"""In order of value: what is cut off is what is needed least."""


def to_json(bench: Bench) -> str:
    """All of a Bench, for another process."""
    return json.dumps(asdict(bench), default=str)


def from_json(text: str) -> Bench:
    """Read what `to_json` made."""
    values = json.loads(text)
    graphs = values.pop("graphs")
    return Bench(scratch=Path(values.pop("scratch")), graphs=Path(graphs) if graphs else None, **values)


def read_figures(path: Path) -> list[Figure]:
    """Figures that a stage has written so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what stands behind the last newline is unfinished
    return [Figure(**json.loads(line)) for line in lines]


def main() -> None:
    """Run the stage and append each figure as a line of JSON when it is there."""
    module, bench, path = sys.argv[1], from_json(sys.argv[2]), Path(sys.argv[3])
    measure: Callable[[Bench], Iterator[Figure]] = importlib.import_module(f"bench.gpu.{module}").measure
    with path.open("a", encoding="utf-8") as file:
        try:
            for figure in measure(bench):
                file.write(json.dumps(asdict(figure)) + "\n")
                file.flush()
        except OutOfTimeError:
            sys.exit(OUT_OF_TIME)
        except InputError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
