"""Peak memory of the vision graph for an image, up to the largest, and the memory that it keeps afterwards.

The bundled reader, and random 16-bit weights at the widths of EXAONE 4.5 33B. For CUDA: all 28 blocks, and the memory
that ONNX Runtime's provider requests from a stand-in device (tests/cuda_stub). Its kernels compute nothing, but the
provider's own code chooses the flash kernel. On the CPU: a block with windows and a block with global attention, and
the growth of the resident memory; all blocks use the same buffers in turn.
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
from typing import TYPE_CHECKING

from bench.provenance import provenance
from bench.scale.folders import RELEASED, make_checkpoint, shortened
from calib_data import READER
from console.files import read_object
from console.progress import say
from export import export
from runtime.ort.manifest import load_manifest
from tests.cuda_stub.build import CudaStub, build, missing

if TYPE_CHECKING:
    from export.folder import DeviceKind

MIB = 1 << 20
LARGEST = 128  # patches along the side of the largest image
PREPARE = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from runtime.ort.manifest import load_manifest
from runtime.inputs.vision import VisionSession
from runtime.ort.device import Device
from runtime.ort.sessions import open_session
from runtime.inputs.vision import vision_feeds

folder, target, side = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
manifest = load_manifest(folder)
vision = VisionSession(open_session(folder / manifest.targets[target].vision, Device(target), varying_shapes=True))

def image(rows):
    patches = np.full((rows * side, 1176), 0.5, np.float32)
    return vision_feeds(patches, [(1, rows, side)], manifest.vision)
"""
ON_CPU = f"""{PREPARE}
def resident(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

feeds = image(side)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
before, started = resident("VmHWM"), time.process_time()
vision.run(feeds)
print(json.dumps([resident("VmHWM") - before, resident("VmRSS") - before, time.process_time() - started]))
"""
ON_CUDA = f"""{PREPARE}
from traffic import DeviceMemory

with DeviceMemory() as memory:
    for rows in (side, side // 4 * 2, side):  # a call finds what the one before it left
        vision.run(image(rows))
print(json.dumps([memory.peak, memory.kept]))
"""


@dataclass(frozen=True)
class Call:
    """One image through a vision graph; on CUDA followed by its upper half and the image again."""

    model: str
    target: DeviceKind
    patches: int
    peak: int
    """Largest number of bytes beyond the weights; on the CPU also beyond the inputs."""
    kept: int
    """Bytes beyond the weights after the calls."""
    seconds: float | None
    """Processor time; None on CUDA, where nothing is computed."""
    scores: int
    """Bytes that all heads' N x N scores would take."""


def on_cpu(folder: Path, side: int) -> tuple[int, int, float]:
    """Peak and kept bytes and processor seconds for an image of side x side patches, in a fresh process."""
    command = [sys.executable, "-c", ON_CPU, str(folder), "cpu", str(side)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak, kept, seconds = json.loads(done.stdout)
    return peak, kept, seconds


def on_cuda(folder: Path, side: int, stub: CudaStub) -> tuple[int, int]:
    """Peak and kept bytes of device memory for an image of side x side patches; nothing is computed."""
    measured = stub.run(ON_CUDA, folder, "cuda", str(side))
    assert isinstance(measured, list)
    peak, kept = measured
    return peak, kept


def make_released(folder: Path, blocks: int) -> None:
    """Write a folder with vision blocks of the release's widths and a minimal decoder."""
    config = shortened(read_object(RELEASED), layers=1, vision_blocks=blocks)
    vocabulary = read_object(READER / "config.json")["text_config"]["vocab_size"]
    config["text_config"] |= {"vocab_size": vocabulary, "intermediate_size": 128}
    make_checkpoint(config, folder)


def measure(name: str, folder: Path, target: DeviceKind, sides: list[int], stub: CudaStub | None) -> list[Call]:
    """Export a folder and run square images; sides are in patches. Empty for CUDA without a stub."""
    if target == "cuda" and stub is None:
        return []
    export(folder, target)
    heads = read_object(folder / "config.json")["vision_config"]["num_heads"]
    wide = 4 if load_manifest(folder).targets[target].dtype == "float32" else 2
    calls: list[Call] = []
    for side in sides:
        peak, kept, *seconds = on_cpu(folder, side) if stub is None else on_cuda(folder, side, stub)
        calls.append(Call(name, target, side**2, peak, kept, seconds[0] if seconds else None, heads * side**4 * wide))
        say(f"{name}, {target}, {side**2} patches: {peak / MIB:.0f} MiB")
    return calls


def table(calls: list[Call]) -> str:
    """Markdown, one row a call."""
    columns = (
        "tower",
        "target",
        "patches",
        "peak, MiB",
        "kept, MiB",
        "N x N scores would be, MiB",
        "processor time, s",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for call in calls:
        sizes = " | ".join(f"{size / MIB:.0f}" for size in (call.peak, call.kept, call.scores))
        seconds = "–" if call.seconds is None else f"{call.seconds:.1f}"
        lines.append(f"| {call.model} | {call.target} | {call.patches} | {sizes} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the memory of the vision graph for two image sizes, on the CPU and for CUDA."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    reason = missing()
    if reason is not None:
        say(f"CUDA is skipped: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        stub = None
        if reason is None:
            stub_folder = Path(scratch) / "stub"
            stub_folder.mkdir()
            stub = build(stub_folder)
        reader, two, all_blocks = (Path(scratch) / name for name in ("reader", "two", "all"))
        shutil.copytree(READER, reader)
        make_released(two, 2)
        make_released(all_blocks, 28)
        sides = [LARGEST // 2, LARGEST]
        calls = measure("bundled reader", reader, "cpu", sides, None)
        calls += measure("bundled reader", reader, "cuda", sides, stub)
        calls += measure("33 B widths, 2 of 28 blocks", two, "cpu", sides, None)
        calls += measure("33 B widths", all_blocks, "cuda", sides, stub)
    print(table(calls))
    print(f"\n{provenance('python -m bench.scale vision-memory')}")
