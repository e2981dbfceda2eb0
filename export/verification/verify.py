"""`verify`: compare every graph of an exported folder with the PyTorch module it was traced from.

The modules compute in float32 with the weights as they are now. CUDA graphs compute in 16 bits; how far they may be off
follows from how far the module is off when it computes in 16 bits (`export.verification.tolerances`).
"""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import torch

from console.progress import track
from export.verification.checks import all_checks
from export.verification.gpu import read_gpu
from export.verification.graphs import Graphs
from export.verification.report import Check, Verification
from export.verification.speed import measure
from runtime.ort.device import Device, require_device
from runtime.ort.manifest import checksum, load_manifest

if TYPE_CHECKING:
    from runtime.ort.manifest import Target


def verify(model: Path | str, device: str = "cpu") -> Verification:
    """Compare every graph of a device with its PyTorch module, and measure decoding speed.

    model: exported folder.
    device: "cpu", "cuda", or "cuda:1" for the second GPU.

    Raises InputError for a folder that was not exported for the device, or a device that cannot be used.
    """
    folder, where = Path(model), Device.parse(device)
    manifest = load_manifest(folder)
    target = manifest.target(folder, where.kind)
    require_device(where)
    damaged = [name for name, exported in manifest.weights.items() if checksum(folder / name) != exported.crc32]
    with tempfile.TemporaryDirectory() as profiles, torch.no_grad():
        graphs = Graphs(folder, manifest, target, where, Path(profiles))
        speed, memory = measure(graphs)
        pending = all_checks(graphs)
        if not target.exact:
            pending += all_checks(graphs.in_float32())
        checks = [check() for check in track(pending, "Verifying")]
    return Verification(device, _about(where, target, checks), damaged, checks, speed, memory)


def _about(device: Device, target: Target, checks: list[Check]) -> str:
    """Describe the graphs, the hardware and the versions."""
    hardware = f"{platform.machine()} with {os.cpu_count()} cores"
    if device.kind == "cuda":
        gpu = read_gpu(device.index)
        hardware = f"{gpu.name} with {gpu.total / 2**30:.1f} GiB"
    int8 = any(check.float32 for check in checks)
    activations = f"{target.dtype} activations{', int8 in packed products' if int8 else ''}"
    packages = f"onnxruntime {onnxruntime.__version__}, torch {version('torch')}"
    return f"{activations}, {target.kv_dtype} KV cache; {hardware}, Python {platform.python_version()}, {packages}"
