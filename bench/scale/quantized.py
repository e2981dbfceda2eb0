"""A 4-bit folder of EXAONE 4.5 33B's widths, as deep as the machine can afford, in a minute.

Names, order and formats are those of `python -m quantize`, whose code lays the folder out. Weights are random codes, or
holes in sparse files: these have their full size but take no disk space, and serve whatever reads only headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bench.scale.folders import STD, new_folder, random_weight
from calib_data import READER
from console.progress import track
from quantize.checkpoint.formats import pack_weight, side_by_side, weight_metadata
from quantize.checkpoint.reader import open_checkpoint
from quantize.checkpoint.writer import SHARD_BYTES, CheckpointWriter
from quantize.model.families import full_paths
from quantize.output import copy_companions, write_json
from quantize.plan.architecture import read_architecture
from quantize.scheme import choose_quantizers, output_config
from quantize.settings import Settings
from quantize.solver.quantizers import UniformQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from quantize.model.families import Linears
    from quantize.plan.architecture import Architecture
    from quantize.scheme import Quantizers
    from quantize.solver.quantizers import Quantizer

    Named = list[tuple[str, torch.Tensor]]


class SparseWriter(CheckpointWriter):
    """Leaves a hole for a tensor without data: the file has its full length."""

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
    """Write the folder that `quantize --bits 4` would make of a raw config.json. Raises InputError if it exists.

    sparse: write only the small tensors that describe weights. Otherwise weights are random with a standard deviation
    of 0.02, norms are one and biases zero.
    """
    settings, model = Settings(READER, folder), read_architecture(config)
    quantizers = choose_quantizers(settings, model.family, model.config)
    generator = torch.Generator().manual_seed(seed)
    with new_folder(folder) as partial:
        with SparseWriter(partial, shard_bytes) as writer:
            for path, linears in track(model.family.blocks(model.config), "Writing"):
                tensors, small = lay_out(model, quantizers, settings, path, full_paths(path, linears))
                writer.write(tensors if sparse else _filled(tensors, quantizers, generator), small)
            writer.finish()
        write_json(partial / "config.json", config)
        checkpoint = open_checkpoint(partial)
        write_json(partial / "config.json", output_config(settings, checkpoint, model.family, quantizers, tied=False))
        copy_companions(READER, partial)


def lay_out(
    model: Architecture, quantizers: Quantizers, settings: Settings, path: str, groups: Linears
) -> tuple[Named, Named]:
    """The tensors that `quantize` writes for a block, without data, and the small ones that describe them."""
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
    """Tensors of a weight [N, K] without data. The format stores row after row, so one row gives their shapes."""
    row = torch.zeros(1, shape[1], dtype=torch.int8)
    parts = pack_weight(row, quantizer.fit(row), quantizer, settings.format)
    return {kind: _empty((shape[0], *tensor.shape[1:]), tensor.dtype) for kind, tensor in parts.items()}


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _filled(tensors: Named, quantizers: Quantizers, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Fill tensors: codes uniform, scales such that the standard deviation of a weight is 0.02.

    Scales have either sign. Codes are half a step below zero on average: with scales of one sign every output of a
    product would be nearly the same sum, which is close to zero for some tokens and is then normalised.
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
        else:
            yield name, random_weight(name, shape, dtype, generator)
