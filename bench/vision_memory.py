"""`python -m bench.vision_memory`: memory that one call of the vision graph takes, up to the largest image.

The bundled reader, and random weights of 16 bits at the widths of EXAONE 4.5 33B: a block of windows and a block that
sees the whole image. Blocks run one after the other in the same buffers, so the release's 28 need no more than these
two. On the CPU it is the growth of the resident memory. For CUDA it is what ONNX Runtime's provider asks of a stand-in
device (tests/cuda_stub), whose kernels compute nothing: the flash kernel is chosen by the provider's own code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calib_data import READER
from calib_data.errors import run_command
from calib_data.progress import say
from export.graphs import export_folder
from quantize.checkpoint import read_json
from runtime.bundle import load_bundle
from tests.cuda_stub.build import CudaStub, build, missing

from .provenance import provenance
from .released_widths import RELEASED, make_checkpoint, shortened

if TYPE_CHECKING:
    from export.graphs import TargetName

app = typer.Typer(add_completion=False)
MIB = 1 << 20
PREPARE = """
import json, re, sys, time
from pathlib import Path
import numpy as np, onnxruntime as ort
from runtime.bundle import load_bundle
from runtime.generate import vision_feeds
from runtime.sessions import VisionSession, open_session

folder, side = Path(sys.argv[1]), int(sys.argv[2])
bundle = load_bundle(folder)
feeds = vision_feeds(np.full((side * side, 1176), 0.5, np.float32), [(1, side, side)], bundle.vision)
"""
ON_CPU = f"""{PREPARE}
vision = VisionSession(open_session(folder / bundle.targets["cpu"].vision, "cpu"))

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is resident now
before, started = peak(), time.process_time()
vision.run(feeds)
print(json.dumps([peak() - before, time.process_time() - started]))
"""
ON_CUDA = f"""{PREPARE}
from traffic import DeviceMemory

exactly = [("CUDAExecutionProvider", {{"arena_extend_strategy": "kSameAsRequested"}})]
vision = VisionSession(ort.InferenceSession(folder / bundle.targets["cuda"].vision, providers=exactly))
with DeviceMemory() as memory:
    vision.run(feeds)
print(json.dumps(memory.peak))
"""


@dataclass(frozen=True)
class Call:
    """One call of a vision graph. peak: bytes beyond weights and inputs. scores: bytes of all heads' N x N scores."""

    model: str
    target: TargetName
    patches: int
    peak: int
    seconds: float | None
    scores: int


def peak_on_cpu(folder: Path, side: int) -> tuple[int, float]:
    """Bytes and processor seconds of one image of side x side patches, in a fresh process."""
    command = [sys.executable, "-c", ON_CPU, str(folder), str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak, seconds = json.loads(done.stdout)
    return peak, seconds


def peak_on_cuda(folder: Path, side: int, stub: CudaStub) -> int:
    """Bytes of device memory of one image of side x side patches, and no computation."""
    peak = stub.run(ON_CUDA, folder, str(side))
    assert isinstance(peak, int)
    return peak


def make_released(folder: Path) -> None:
    """A folder with two vision blocks of the release's widths, and hardly a decoder."""
    config = shortened(read_json(RELEASED), layers=1, vision_blocks=2)
    config["text_config"] |= {"vocab_size": read_json(READER / "config.json")["text_config"]["vocab_size"]}
    config["text_config"] |= {"intermediate_size": 128}
    make_checkpoint(config, folder)


def measure(name: str, folder: Path, sides: list[int], stub: CudaStub | None) -> list[Call]:
    """Export a folder and run images of these sides, in patches, on both targets; on the CPU alone without a stub."""
    heads = read_json(folder / "config.json")["vision_config"]["num_heads"]
    calls: list[Call] = []
    targets: list[TargetName] = ["cpu", "cuda"] if stub else ["cpu"]
    for target in targets:
        export_folder(folder, target)
        wide = 4 if load_bundle(folder).targets[target].dtype == "float32" else 2
        for side in sides:
            seconds = None
            if target == "cuda":
                assert stub is not None
                peak = peak_on_cuda(folder, side, stub)
            else:
                peak, seconds = peak_on_cpu(folder, side)
            calls.append(Call(name, target, side**2, peak, seconds, heads * side**4 * wide))
            say(f"{name}, {target}, {side**2} patches: {peak / MIB:.0f} MiB")
    return calls


def table(calls: list[Call]) -> str:
    """Markdown, a line a call."""
    lines = ["| tower | target | patches | peak, MiB | N x N scores of one layer would be, MiB | processor seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for call in calls:
        seconds = "–" if call.seconds is None else f"{call.seconds:.1f}"
        sizes = f"{call.patches} | {call.peak / MIB:.0f} | {call.scores / MIB:.0f}"
        lines.append(f"| {call.model} | {call.target} | {sizes} | {seconds} |")
    return "\n".join(lines)


@app.command()
def main(side: Annotated[int, typer.Option(min=2, help="Patches along the larger image's side, even.")] = 128) -> None:
    """Measure the vision graph's memory at an image of half the side and one of the whole, on the CPU and for CUDA."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    reason = missing()
    if reason is not None:
        say(f"CUDA is left out: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        stub = None
        if reason is None:
            stub_folder = Path(scratch) / "stub"
            stub_folder.mkdir()
            stub = build(stub_folder)
        reader, released = Path(scratch) / "reader", Path(scratch) / "released"
        shutil.copytree(READER, reader)
        make_released(released)
        sides = [side // 4 * 2, side]
        calls = measure("bundled reader", reader, sides, stub)
        calls += measure("33 B widths, 2 blocks", released, sides, stub)
    print(table(calls))
    print(f"\n{provenance(f'python -m bench.vision_memory --side {side}')}")


if __name__ == "__main__":
    run_command(app)
