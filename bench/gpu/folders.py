"""Model folders of the release's shape: graphs and headers come from a small archive, weights are random.

Tracing 64 layers takes minutes; `python -m bench.gpu.prepare` does that before the GPU is there.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.gpu.weights import fill
from bench.scale.folders import RELEASED, shortened
from bench.scale.quantized import make_quantized
from console.files import read_object
from export import export
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.plan.architecture import read_architecture
from runtime.ort.manifest import read_header

if TYPE_CHECKING:
    from bench.gpu.bench import Bench

Variant = Literal["stored", "block-32", "int8-kv", "full-kv"]
VARIANTS: dict[Variant, dict[str, Any]] = {
    "stored": {},
    "block-32": {"block_size": 32},
    "int8-kv": {"kv_bits": 8},
    "full-kv": {"kv_layout": "full"},
}
LARGEST_MAGNITUDE = 8.0  # of keys and values, for the scales of an int8 cache; the speed does not depend on it
_WEIGHTS = "weights"  # folder of the headers in an archive
_NARROW = {  # the release in miniature
    "text_config": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "sliding_window": 64,
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "out_hidden_size": 256,
    },
}


@dataclass(frozen=True)
class Shape:
    """The depth of a model, and its exports."""

    layers: int
    vision_blocks: int
    narrow: bool = False
    """Whether its widths are in miniature."""
    variants: tuple[Variant, ...] = ("stored",)
    """How it is exported."""

    def config(self) -> dict[str, Any]:
        """The raw config.json."""
        config = shortened(read_object(RELEASED), self.layers, self.vision_blocks)
        return {**config, **{part: config[part] | _NARROW[part] for part in _NARROW if self.narrow}}


WHOLE = Shape(64, 28, variants=tuple(VARIANTS))
FOUR_LAYERS = Shape(4, 2)
TINY = Shape(2, 2, narrow=True, variants=tuple(VARIANTS))


def pack(shape: Shape, target: Literal["cpu", "cuda"], archive: Path) -> None:
    """Write the graphs and runtime.json of each variant and the headers of weights files into a .tar.gz."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
        model = Path(temporary) / "model"
        make_quantized(shape.config(), model, sparse=True)
        _save_kv_ranges(model)
        with tarfile.open(archive, "w:gz") as tar:
            for path in sorted(model.iterdir()):
                if path.suffix == ".safetensors":
                    _add(tar, f"{_WEIGHTS}/{path.name}", read_header(path))
                else:
                    tar.add(path, path.name)
            for variant in shape.variants:
                export(model, target, **VARIANTS[variant])
                for path in [model / "runtime.json", *model.glob("*.onnx")]:
                    tar.add(path, f"{variant}/{path.name}")
                    path.unlink()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _save_kv_ranges(model: Path) -> None:
    """Write the ranges of keys and values that quantize would have recorded."""
    config = read_object(model / "config.json")
    architecture = read_architecture(config)
    text = architecture.text
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    seen = [[LARGEST_MAGNITUDE] * width] * text.num_key_value_heads
    blocks = architecture.family.decoder_blocks(architecture.config)
    ranges = {name: {"key": seen, "value": seen} for name in blocks}
    (model / KV_SCALES).write_text(json.dumps(ranges), encoding="utf-8")


def unpack(archive: Path, folder: Path) -> None:
    """Make a model folder of each variant in an archive. All have hard links to the same random weights."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    headers = {path.name: path.read_bytes() for path in (folder / _WEIGHTS).iterdir()}
    fill(headers, folder / _WEIGHTS)
    common = [path for path in folder.iterdir() if path.is_file()]
    for variant in (path for path in folder.iterdir() if path.is_dir() and path.name != _WEIGHTS):
        for path in [*common, *(folder / _WEIGHTS).iterdir()]:
            os.link(path, variant / path.name)  # no symbolic link: ONNX Runtime reads no weights outside a folder


def archive_name(shape: Shape) -> str:
    """File name of the archive of a shape."""
    return f"model-{shape.layers}.tar.gz"


def folder_of(bench: Bench, shape: Shape, variant: Variant = "stored") -> Path:
    """A model folder; the first call makes it, in minutes at 33 B unless bench.graphs has its archive."""
    folder = bench.scratch / f"model-{shape.layers}"
    if not folder.exists():
        archive = (bench.graphs or bench.scratch) / archive_name(shape)
        if not archive.exists():
            archive = bench.scratch / archive_name(shape)
            pack(shape, "cuda" if bench.on_gpu else "cpu", archive)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a stage that was killed
        partial.mkdir()
        unpack(archive, partial)
        partial.rename(folder)
    return folder / variant
