"""Read a checkpoint folder, one tensor at a time.

A safetensors file is 8 bytes of header length, a JSON header, then the data without gaps. Files are read without
memory-mapping them, so that memory holds one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from console.errors import InputError
from console.files import read_object
from quantize.checkpoint.weight_files import INDEX, weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PAGE = 4096
PIECES = 16  # of a tensor that a fingerprint reads: one page in all

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor on disk, in row-major order."""

    name: str
    """Name of the tensor."""
    file: Path
    """Its safetensors file."""
    dtype: str
    """Its dtype by the name of safetensors: F16, BF16, F32, I32, U8, I64, ..."""
    shape: tuple[int, ...]
    """Its shape."""
    offset: int
    """First byte, from the start of the file."""
    nbytes: int
    """Number of bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    folder: Path
    """The folder."""
    config: dict[str, Any]
    """Its config.json, as it is."""
    tensors: dict[str, StoredTensor]
    """Its tensors by name, in the order of the files."""

    def tensor(self, name: str) -> StoredTensor:
        """Return the place of a tensor. Raises InputError where the checkpoint has no such tensor."""
        if name not in self.tensors:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}; is it complete?")
        return self.tensors[name]

    def require_shape(self, name: str, expected: tuple[int, ...]) -> None:
        """Raise InputError where a tensor is missing or has another shape than config.json gives it."""
        shape = self.tensor(name).shape
        if shape != expected:
            raise InputError(f"{self.folder}: {name} is {list(shape)} in the weights, {list(expected)} by config.json")

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, converted to `dtype` where given. It has memory of its own.

        Raises InputError where the checkpoint has no such tensor.
        """
        stored = self.tensor(name)
        raw = torch.empty(stored.nbytes, dtype=torch.uint8)
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            if stored.nbytes and file.readinto(raw.numpy().data) != stored.nbytes:
                raise InputError(f"{stored.file} is truncated; download it again")
        tensor = raw.view(DTYPES[stored.dtype]).reshape(stored.shape)
        return tensor if dtype is None else tensor.to(dtype)

    def load_for(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor in its own dtype, and check that `dtype` can hold it.

        Raises InputError where it cannot, or where the tensor is not finite.
        """
        tensor = self.load(name)
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        lowest, highest = (float(bound) for bound in tensor.aminmax())
        if not math.isfinite(highest - lowest):
            file = self.tensors[name].file
            raise InputError(f"{file}: {name} has NaN or infinite values; the checkpoint is damaged, download it again")
        if max(highest, -lowest) > torch.finfo(dtype).max:
            maximum, narrow = f"{max(highest, -lowest):.3g}", str(dtype).removeprefix("torch.")
            raise InputError(f"{name} reaches {maximum}, which {narrow} cannot hold; use --dtype bfloat16")
        return tensor

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def fingerprint(self) -> str:
        """Hash a checkpoint without reading all of it.

        SHA-256 over the config, the name, size and header of each file, and 16 pieces of 256 bytes of each tensor, at
        equal distances from its first to its last bytes; all of a tensor no longer than a page. A change throughout a
        tensor is noticed, whichever tensor it is. A change of a few rows may not be.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in self.files:
            inside = [tensor for tensor in self.tensors.values() if tensor.file == path]
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(min(tensor.offset for tensor in inside)))
                for tensor in inside:
                    for place, length in _spread(tensor.nbytes):
                        file.seek(tensor.offset + place)
                        digest.update(file.read(length))
        return digest.hexdigest()


def _spread(nbytes: int) -> list[tuple[int, int]]:
    """List where a fingerprint reads in a tensor, and how many bytes there."""
    if nbytes <= PAGE:
        return [(0, nbytes)]
    length = PAGE // PIECES
    return [((nbytes - length) * i // (PIECES - 1), length) for i in range(PIECES)]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and the headers of a single-file or sharded safetensors folder.

    Tensors are those that transformers would load: `weight_files` says which files count, and of a tensor in two of
    them the last one counts. Raises InputError where the folder is missing, incomplete or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a model folder with config.json and safetensors files")
    config = read_object(folder / "config.json", "give a model folder")
    files, weight_map = weight_files(folder, config)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, stored in read_header(path).items():
            tensors.pop(name, None)  # its place, too, is in the last file
            tensors[name] = stored
    for name, file in weight_map.items():
        if name not in tensors:
            raise InputError(
                f"{folder / INDEX} places {name} in {file}, and no shard has it; download the folder again"
            )
    return Checkpoint(folder, config, tensors)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the places of all tensors of a safetensors file, by offset. Raises InputError for a damaged file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise InputError(f"{path} is truncated or no safetensors file ({size} bytes); download it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [_stored(name, path, entry, 8 + length) for name, entry in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} has a broken safetensors header ({error}); download it again") from None
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise InputError(
                f"{path} is damaged: the data of {tensor.name} begin at byte {tensor.offset}, those before it end at "
                f"{end}; download it again"
            )
        end += tensor.nbytes
    if end != size:
        problem = "truncated" if end > size else "too long"
        raise InputError(f"{path} is {problem}: {size} bytes where its header needs {end}; download it again")
    return {tensor.name: tensor for tensor in tensors}


def _stored(name: str, path: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    shape = tuple(int(n) for n in entry["shape"])
    first, last = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown type {entry['dtype']}")
    if first < 0 or last - first != math.prod(shape) * DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"the size of {name} does not fit its shape")
    return StoredTensor(name, path, entry["dtype"], shape, start + first, last - first)
