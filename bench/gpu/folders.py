"""Model folders of the release's shape: their graphs and headers in one small archive, their weights made on the spot.

Tracing 64 layers takes minutes, which a GPU should not wait for: `python -m bench.gpu.prepare` does it beforehand.
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
from bench.quantized_widths import make_quantized
from bench.released_widths import RELEASED, shortened
from console.files import read_object
from export import export
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.plan.sizes import read_architecture
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
LARGEST_MAGNITUDE = 8.0  # of keys and values, for the steps of an int8 cache; any will do for its speed
_WEIGHTS = "weights"  # the folder of headers in an archive
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
    """How deep a model is, and whether in miniature."""

    layers: int
    vision_blocks: int
    narrow: bool = False
    variants: tuple[Variant, ...] = ("stored",)

    def config(self) -> dict[str, Any]:
        """Its raw config.json."""
        config = shortened(read_object(RELEASED), self.layers, self.vision_blocks)
        return {**config, **{part: config[part] | _NARROW[part] for part in _NARROW if self.narrow}}


WHOLE = Shape(64, 28, variants=tuple(VARIANTS))
FOUR_LAYERS = Shape(4, 2)
TINY = Shape(2, 2, narrow=True, variants=tuple(VARIANTS))


def pack(shape: Shape, target: Literal["cpu", "cuda"], archive: Path) -> None:
    """Write graphs of each variant, runtime.json and headers of weights files into a .tar.gz; takes minutes at 33 B."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as place:
        model = Path(place) / "model"
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
    """What quantize would have seen of keys and values."""
    config = read_object(model / "config.json")
    architecture = read_architecture(config)
    text = architecture.text
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    seen = [[LARGEST_MAGNITUDE] * width] * text.num_key_value_heads
    blocks = architecture.family.decoder_blocks(architecture.config)
    ranges = {name: {"key": seen, "value": seen} for name in blocks}
    (model / KV_SCALES).write_text(json.dumps(ranges), encoding="utf-8")


def unpack(archive: Path, folder: Path) -> None:
    """Make a model folder of each variant in an archive. Their weights are one set of random files, linked by name."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    headers = {path.name: path.read_bytes() for path in (folder / _WEIGHTS).iterdir()}
    fill(headers, folder / _WEIGHTS)
    common = [path for path in folder.iterdir() if path.is_file()]
    for variant in (path for path in folder.iterdir() if path.is_dir() and path.name != _WEIGHTS):
        for path in [*common, *(folder / _WEIGHTS).iterdir()]:
            os.link(path, variant / path.name)  # no symbolic link: ONNX Runtime reads no weights outside a folder


def archive_name(shape: Shape) -> str:
    """What the archive of a shape is called in the folder that `bench.gpu.prepare` makes."""
    return f"model-{shape.layers}.tar.gz"


def folder_of(bench: Bench, shape: Shape, variant: Variant = "stored") -> Path:
    """A model folder, made when it is first asked for; `python -m bench.gpu.prepare` saves the minutes at 33 B."""
    place = bench.scratch / f"model-{shape.layers}"
    if not place.exists():
        archive = (bench.graphs or bench.scratch) / archive_name(shape)
        if not archive.exists():
            archive = bench.scratch / archive_name(shape)
            pack(shape, "cuda" if bench.on_gpu else "cpu", archive)
        partial = place.with_name(place.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a stage that was cut off
        partial.mkdir()
        unpack(archive, partial)
        partial.rename(place)
    return place / variant
