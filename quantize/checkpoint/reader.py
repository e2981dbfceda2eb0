"""A checkpoint folder on disk, read one tensor at a time.

The safetensors format is 8 bytes of header length, a JSON header, then the data without holes. Files are read here
without a map over them, so that memory holds one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from console.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PAGE = 4096
PIECES = 16  # of a tensor, for a fingerprint: a page in all

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
    """Where a tensor lies: `nbytes` bytes of `shape` in row-major order at the absolute `offset` of `file`.

    dtype is the safetensors name: F16, BF16, F32, I32, U8, I64, ...
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A model folder: its raw config.json and where its tensors lie, in file order."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def tensor(self, name: str) -> StoredTensor:
        """Tell where a tensor lies. Raises InputError when the checkpoint has no such tensor."""
        if name not in self.tensors:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}; is it complete?")
        return self.tensors[name]

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor into memory of its own, converted to `dtype` when given.

        Raises InputError when the checkpoint has no such tensor.
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
        """Read a tensor as it is stored, for a folder of `dtype`.

        Raises InputError when it is not finite or `dtype` cannot hold it.
        """
        tensor = self.load(name)
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        lowest, highest = (float(bound) for bound in tensor.aminmax())
        if not math.isfinite(highest - lowest):
            file = self.tensors[name].file
            raise InputError(f"{file}: {name} has NaN or infinite values; the checkpoint is damaged, download it again")
        if max(highest, -lowest) > torch.finfo(dtype).max:
            largest, held = f"{max(highest, -lowest):.3g}", str(dtype).removeprefix("torch.")
            raise InputError(f"{name} reaches {largest}, which {held} cannot hold; use --dtype bfloat16")
        return tensor

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def fingerprint(self) -> str:
        """Hash what tells two checkpoints apart without reading all of them.

        SHA-256 over the config, of each file the name, the size and the header, and of each tensor 16 pieces of 256
        bytes at equal distances, its first and last bytes among them; all of it where it is no longer than a page. A
        tensor that was changed throughout is noticed, whichever it is; one of which a few rows were changed may not be.
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
    """Where a fingerprint reads in a tensor of so many bytes, and how much there."""
    if nbytes <= PAGE:
        return [(0, nbytes)]
    length = PAGE // PIECES
    return [((nbytes - length) * i // (PIECES - 1), length) for i in range(PIECES)]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and the headers of a single-file or sharded safetensors folder.

    Raises InputError for a folder that is missing, incomplete, broken, or whose weights lie elsewhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a model folder with config.json and safetensors files")
    config = read_json(folder / "config.json")
    tensors: dict[str, StoredTensor] = {}
    for path, names in _weight_files(folder).items():
        _refuse_outside(path, folder)
        stored = read_header(path)
        missing = sorted(names - stored.keys())
        if missing:
            raise InputError(f"{path} lacks the tensor {missing[0]} that {INDEX} expects in it; download it again")
        tensors.update(stored if not names else {name: t for name, t in stored.items() if name in names})
    return Checkpoint(folder, config, tensors)


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """Find the safetensors files, in order, and the tensors expected in each (empty: whatever is there)."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} has no weight_map; download it again")
        files: dict[Path, set[str]] = {folder / name: set() for name in sorted(set(weight_map.values()))}
        for tensor, name in weight_map.items():
            files[folder / name].add(tensor)
        for path in files:
            if not path.exists():
                raise InputError(f"{folder / INDEX} names {path.name}, which is not there; download it")
        return files
    if not (folder / SINGLE).exists():
        raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights")
    return {folder / SINGLE: set()}


def _refuse_outside(path: Path, folder: Path) -> None:
    """ONNX Runtime opens no external data outside the graph's folder, so say it before any work is done."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{path} is a symbolic link out of its folder (a hub cache?), and graphs can only use weights inside it; "
            "get a plain folder with `hf download ORGANISATION/MODEL --local-dir FOLDER`"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder. Raises InputError when it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}; give a model folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); restore it from the original") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; restore it from the original")
    return value


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read where the tensors of one safetensors file lie, ordered by offset. Raises InputError for a broken file."""
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
    tensors.sort(key=lambda tensor: tensor.offset)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors), default=0)
    if end > size:
        raise InputError(f"{path} is truncated: {size} bytes where its header needs {end}; download it again")
    return {tensor.name: tensor for tensor in tensors}


def _stored(name: str, path: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    shape = tuple(int(n) for n in entry["shape"])
    first, last = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown type {entry['dtype']}")
    if first < 0 or last - first != math.prod(shape) * DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"the size of {name} does not fit its shape")
    return StoredTensor(name, path, entry["dtype"], shape, start + first, last - first)
