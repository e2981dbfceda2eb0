"""Write weights files of random codes from their headers, at the speed of memory: 17 GB in seconds.

A random tile is repeated: the time of a kernel does not depend on the codes, and the tile is larger than any cache.
Norms are one, biases zero, and weights have the standard deviation of a trained model's.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from bench.scale.folders import STD
from runtime.ort.manifest import HEADER_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

TILE = 1 << 25  # values
DTYPES: dict[str, Any] = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


def fill(headers: Mapping[str, bytes], folder: Path, group: int = 128, seed: int = 0) -> None:
    """Write a .safetensors file for each header, keyed by file name. group: weights that share a scale."""
    tiles = _Tiles(seed)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(_fill_file, folder / name, header, tiles, group) for name, header in headers.items()]:
            done.result()


class _Tiles:
    """Random values to repeat: codes, and normal numbers in each type."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.codes = random.integers(0, 256, TILE, np.uint8)
        normal = STD * random.standard_normal(TILE // 4, np.float32)
        signs = np.where(random.random(TILE // 4) < 0.5, -1, 1).astype(np.float32)
        self.normal: dict[str, NDArray[Any]] = {name: normal.astype(dtype) for name, dtype in DTYPES.items()}
        # By type and bits of a code; of either sign, else all weights would be below zero on average.
        self.scales: dict[tuple[str, int], NDArray[Any]] = {
            (name, bits): (STD * 12**0.5 / 2**bits * signs).astype(dtype)
            for name, dtype in DTYPES.items()
            for bits in (4, 8)
        }


def _fill_file(path: Path, header: bytes, tiles: _Tiles, group: int) -> None:
    entries = json.loads(header[HEADER_PREFIX:])
    entries.pop("__metadata__", None)
    with path.open("wb") as file:
        file.write(header)
        for name, entry in sorted(entries.items(), key=lambda item: int(item[1]["data_offsets"][0])):
            start, stop = entry["data_offsets"]
            file.seek(len(header) + start)
            _repeat(file, _values(name, entry, entries, tiles, group), stop - start)


def _values(name: str, entry: dict[str, Any], entries: dict[str, Any], tiles: _Tiles, group: int) -> NDArray[Any]:
    """The values of a tensor, or a tile to fill it with."""
    linear, _, kind = name.rpartition(".")
    dtype, shape = entry["dtype"], entry["shape"]
    if kind == "weight_packed":
        return tiles.codes
    if kind == "weight_shape":
        return np.array([shape_of(linear, entries, group)], {"I32": np.int32, "I64": np.int64}[dtype])
    if kind == "weight_scale":
        packed = entries[f"{linear}.weight_packed"]["shape"]
        return tiles.scales[dtype, packed[1] * 32 // (shape[1] * group)]
    if len(shape) == 1:
        return np.full(shape, float(kind != "bias"), DTYPES[dtype])
    return tiles.normal[dtype]


def shape_of(linear: str, entries: dict[str, Any], group: int) -> tuple[int, int]:
    """Outputs and inputs of a packed linear."""
    outputs, groups = entries[f"{linear}.weight_scale"]["shape"]
    return outputs, groups * group


def _repeat(file: BinaryIO, tile: NDArray[Any], size: int) -> None:
    """Write `size` bytes by repeating a tile."""
    raw = np.ascontiguousarray(tile).view(np.uint8).reshape(-1).data
    while size > 0:
        size -= file.write(raw[: min(size, len(raw))])
