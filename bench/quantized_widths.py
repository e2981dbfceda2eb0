"""`python -m bench.quantized_widths`: a 4-bit folder as wide as EXAONE 4.5 33B and as deep as one likes, in a minute.

Names, order and formats are those of `python -m quantize`, whose code lays it out. Weights are random codes, or
nothing: a sparse file has its full size and takes no space on disk, enough for whatever reads shapes and offsets only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path  # noqa: TC003 (typer reads the annotations when it runs)
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from bench.released_widths import RELEASED, STD, shortened
from calib_data import READER
from console.errors import InputError, run_command
from console.files import read_object
from console.progress import track
from quantize.checkpoint.formats import pack_weight, side_by_side, weight_metadata
from quantize.checkpoint.reader import open_checkpoint
from quantize.checkpoint.writer import SHARD_BYTES, CheckpointWriter
from quantize.model.families import full_paths
from quantize.output import copy_companions, write_json
from quantize.plan.sizes import read_architecture
from quantize.scheme import choose_quantizers, output_config
from quantize.settings import Settings
from quantize.solver.quantizers import UniformQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantize.model.families import Linears
    from quantize.plan.sizes import Architecture
    from quantize.scheme import Quantizers
    from quantize.solver.quantizers import Quantizer

    Named = list[tuple[str, torch.Tensor]]

app = typer.Typer(add_completion=False)


class SparseWriter(CheckpointWriter):
    """Leaves a hole where a tensor has no data: the file is as long as it would be."""

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        if not tensor.is_meta:
            super()._append(name, tensor)
            return
        assert self._file is not None
        start = self._file.tell() - self._header_bytes
        self._file.seek(start + self._header_bytes + tensor.nbytes)
        self._file.truncate()
        self._headers[-1][name]["data_offsets"] = [start, start + tensor.nbytes]
        self.total_bytes += tensor.nbytes


def make_quantized(
    config: dict[str, Any], folder: Path, *, sparse: bool, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the folder that `quantize --bits 4` would make of a raw config.json. Raises InputError where it exists.

    sparse: only what describes a weight is written, not the weights. Otherwise they are random, with a deviation of
    0.02; norms are one and biases zero.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; give another --output or remove it")
    settings, model = Settings(READER, folder), read_architecture(config)
    quantizers = choose_quantizers(settings, model.family, model.config)
    generator = torch.Generator().manual_seed(seed)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    try:
        with SparseWriter(partial, shard_bytes) as writer:
            for path, linears in track(model.family.blocks(model.config), "Writing"):
                tensors, small = lay_out(model, quantizers, settings, path, full_paths(path, linears))
                writer.write(tensors if sparse else _filled(tensors, quantizers, generator), small)
            writer.finish()
        write_json(partial / "config.json", config)
        checkpoint = open_checkpoint(partial)
        write_json(partial / "config.json", output_config(settings, checkpoint, model.family, quantizers, tied=False))
        copy_companions(READER, partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def lay_out(
    model: Architecture, quantizers: Quantizers, settings: Settings, path: str, groups: Linears
) -> tuple[Named, Named]:
    """What `quantize` writes of a block: its tensors without data, and the small ones that describe them."""
    rest = {name: shape for name, shape in model.shapes.items() if name.startswith(f"{path}.")}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    small: Named = []
    for linear in sum(groups, ()):
        shape, bias = rest.pop(f"{linear}.weight"), rest.pop(f"{linear}.bias", None)
        if quantizer := quantizers[linear]:
            parts[linear] = _quantized(shape, quantizer, settings)
            about = weight_metadata(torch.empty(shape, device="meta"), torch.empty(0), quantizer, settings)
            small += [(f"{linear}.{key}", tensor) for key, tensor in about.items()]
        else:
            parts[linear] = {"weight": _empty(shape, settings.torch_dtype)}
        if bias is not None:
            parts[linear]["bias"] = _empty(bias, settings.torch_dtype)
    return [
        *side_by_side(groups, parts),
        *((name, _empty(shape, settings.torch_dtype)) for name, shape in rest.items()),
    ], small


def _quantized(shape: tuple[int, ...], quantizer: Quantizer, settings: Settings) -> dict[str, torch.Tensor]:
    """Tensors of a weight [N, K] without data; the format stores row after row, so one row tells their shapes."""
    row = torch.zeros(1, shape[1], dtype=torch.int8)
    one = pack_weight(row, quantizer.fit(row), quantizer, settings.format)
    return {kind: _empty((shape[0], *tensor.shape[1:]), tensor.dtype) for kind, tensor in one.items()}


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _filled(tensors: Named, quantizers: Quantizers, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Random weights of the tensors' shapes: codes uniform, scales such that the deviation of their product is 0.02.

    Scales have either sign: codes are half a step below zero on average, and where all weights are, every output of a
    product is nearly the same sum, which for some tokens is nearly zero and then normalised.
    """
    for name, tensor in tensors:
        shape, dtype = tensor.shape, tensor.dtype
        linear, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            yield name, torch.empty(shape, dtype=dtype).random_(-(2**31), 2**31 - 1, generator=generator)
        elif kind == "weight_scale":
            quantizer = quantizers[linear]
            assert isinstance(quantizer, UniformQuantizer)
            signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
            yield name, (signs * (STD * 12**0.5 / 2**quantizer.bits)).to(dtype)
        elif len(shape) == 1:
            yield name, torch.full(shape, float(kind != "bias"), dtype=dtype)
        else:
            yield name, torch.empty(shape, dtype=dtype).normal_(0, STD, generator=generator)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    layers: Annotated[int, typer.Option(min=1, max=64, help="Decoder layers.")] = 64,
    vision_blocks: Annotated[int, typer.Option(min=1, max=28, help="Vision blocks.")] = 28,
    sparse: Annotated[bool, typer.Option("--sparse", help="Leave the weights out; files take no space.")] = False,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Write a 4-bit folder with the widths of EXAONE 4.5 33B and random weights."""
    make_quantized(shortened(read_object(RELEASED), layers, vision_blocks), output, sparse=sparse, seed=seed)
    stats = [path.stat() for path in output.glob("*.safetensors")]
    size, on_disk = sum(stat.st_size for stat in stats), sum(stat.st_blocks * 512 for stat in stats)
    print(json.dumps({"files": len(stats), "bytes": size, "bytes_on_disk": on_disk}))


if __name__ == "__main__":
    run_command(app)
