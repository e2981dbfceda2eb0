"""Reads the linear weights of a model folder, dequantized from any of its formats."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from console.errors import InputError
from runtime.ort.manifest import HEADER_PREFIX, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
}
NF4_STATE = ".weight.quant_state.bitsandbytes__nf4"
_PACKED = ".weight_packed"


class Weights:
    """The linears of a folder's .safetensors files; each is read when it is asked for."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._tensors: dict[str, tuple[Path, int, str, tuple[int, ...]]] = {}
        for name in files:
            path = folder / name
            header = read_header(path)
            for tensor, entry in json.loads(header[HEADER_PREFIX:]).items():
                if tensor != "__metadata__":
                    start = len(header) + entry["data_offsets"][0]
                    self._tensors[tensor] = (path, start, entry["dtype"], tuple(entry["shape"]))

    def linears(self) -> list[str]:
        """Names of all linears, sorted: matrices other than embeddings, and the convolution over patches."""
        names = {name.removesuffix(_PACKED) for name in self._tensors if name.endswith(_PACKED)}
        names |= {name.removesuffix(NF4_STATE) for name in self._tensors if name.endswith(NF4_STATE)}
        for name, (*_, shape) in self._tensors.items():
            if name.endswith(".weight") and len(shape) > 1 and "embed_tokens" not in name:
                names.add(name.removesuffix(".weight"))
        return sorted(names)

    def bits(self, linear: str) -> int:
        """Bits of one weight of a linear."""
        if linear + _PACKED in self._tensors:
            width = int(self._load(f"{linear}.weight_shape")[1])
            return self._tensors[linear + _PACKED][3][1] * 32 // width
        if linear + NF4_STATE in self._tensors:
            return 4
        return 8 * int(np.dtype(_DTYPES[self._tensors[f"{linear}.weight"][2]]).itemsize)

    def shape(self, linear: str) -> tuple[int, int]:
        """Rows and columns of a linear; a convolution is flattened to [N, K]."""
        if linear + _PACKED in self._tensors:
            rows, width = self._load(f"{linear}.weight_shape").tolist()
        elif linear + NF4_STATE in self._tensors:
            rows, width = json.loads(bytes(self._load(linear + NF4_STATE)))["shape"]
        else:
            rows, *others = self._tensors[f"{linear}.weight"][3]
            width = math.prod(others)
        return rows, width

    def load(self, linear: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Weight [N, K] of a linear, or some of its rows. Raises InputError for a name that is not there.

        For NF4, rows must start and stop at multiples of 64, which are block boundaries for any K.
        """
        if linear + _PACKED in self._tensors:
            return self._unpack(linear, rows)
        if linear + NF4_STATE in self._tensors:
            return self._unpack_nf4(linear, rows)
        if f"{linear}.weight" not in self._tensors:
            raise InputError(f"no linear {linear} among the weights; give two folders of one model")
        weight = self._load(f"{linear}.weight")[rows].astype(np.float32)
        return weight.reshape(len(weight), -1)

    def _load(self, name: str) -> NDArray[Any]:
        path, offset, dtype, shape = self._tensors[name]
        return np.memmap(path, _DTYPES[dtype], "r", offset, shape)

    def _unpack(self, linear: str, rows: slice) -> NDArray[np.float32]:
        """Dequantize compressed-tensors `pack-quantized`: unsigned codes, zero point in the middle, low bits first."""
        packed, bits = np.ascontiguousarray(self._load(linear + _PACKED)[rows]).view(np.uint8), self.bits(linear)
        scales = self._load(f"{linear}.weight_scale")[rows].astype(np.float32)
        codes = packed if bits == 8 else np.stack((packed & 15, packed >> 4), -1)
        grouped = codes.reshape(*scales.shape, -1).astype(np.float32) - 2 ** (bits - 1)
        values: NDArray[np.float32] = grouped * scales[..., None]
        return values.reshape(len(scales), -1)

    def _unpack_nf4(self, linear: str, rows: slice) -> NDArray[np.float32]:
        """Dequantize bitsandbytes NF4 without double quantization: high half of a byte first."""
        count, width = self.shape(linear)
        first, last, _ = rows.indices(count)
        packed, levels = self._load(f"{linear}.weight").ravel(), self._load(f"{linear}.weight.quant_map")
        absmax = self._load(f"{linear}.weight.absmax").astype(np.float32)
        block = count * width // len(absmax)
        packed, absmax = packed[first * width // 2 : last * width // 2], absmax[first * width // block :]
        absmax = absmax[: (last - first) * width // block]
        codes = np.stack((packed >> 4, packed & 15), -1).reshape(len(absmax), -1)
        values: NDArray[np.float32] = levels.astype(np.float32)[codes] * absmax[:, None]
        return values.reshape(-1, width)
