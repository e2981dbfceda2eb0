"""A checkpoint folder on disk: read one tensor at a time, written one block at a time.

The safetensors format is 8 bytes of header length, a JSON header, then the data without holes. Files are read here
without a map over them, so that memory holds one tensor, and written here because the order and the alignment of
tensors matter to us: neighbours in the file become one ONNX initializer, and the data starts on a page.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import torch

from calib_data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PAGE = 4096
HEADER_ROOM = 32 * PAGE  # bytes kept free in front of the data of a file we write: about 900 tensors
SHARD_BYTES = 4 << 30

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

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor into memory of its own, converted to `dtype` when given.

        Raises InputError when the checkpoint has no such tensor.
        """
        if name not in self.tensors:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}; is it complete?")
        stored = self.tensors[name]
        raw = torch.empty(stored.nbytes, dtype=torch.uint8)
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            if stored.nbytes and file.readinto(raw.numpy().data) != stored.nbytes:
                raise InputError(f"{stored.file} is truncated; download it again")
        tensor = raw.view(DTYPES[stored.dtype]).reshape(stored.shape)
        return tensor if dtype is None else tensor.to(dtype)

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def fingerprint(self) -> str:
        """Hash what tells two checkpoints apart without reading all of them.

        SHA-256 over the config, and of each file the name, the size, the header and 64 pages spread over the data.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in self.files:
            size = path.stat().st_size
            start = min(tensor.offset for tensor in self.tensors.values() if tensor.file == path)
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(start))
                for i in range(64):
                    file.seek(start + (size - start) * i // 64)
                    digest.update(file.read(PAGE))
        return digest.hexdigest()


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


class CheckpointWriter:
    """Writes tensors to safetensors files in the order given, without holding more than a block in memory.

    The header comes first in the file but is known last, so room is left for it and filled with spaces. A file is full
    when it has `shard_bytes` of data or no room left in its header; tensors of one `write` stay in one file, so that
    what is meant to be adjacent is. Use it in a `with` statement: leaving it gives the files their names.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, header_room: int = HEADER_ROOM) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._header_room = header_room
        self._headers: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._small: list[tuple[str, torch.Tensor]] = []
        self.total_bytes = 0

    def write(
        self, tensors: Iterable[tuple[str, torch.Tensor]], small: Iterable[tuple[str, torch.Tensor]] = ()
    ) -> None:
        """Append tensors that belong together, such as one block, in this order.

        small: tensors of odd sizes, which go to the end of the file, where they leave the others aligned.
        """
        together, ends = list(tensors), list(small)
        entries = {name: _entry(tensor) for name, tensor in together + ends}
        written = [name for name in entries if any(name in header for header in self._headers)]
        if written or len(entries) < len(together) + len(ends):
            raise ValueError(f"a tensor is written twice: {written}")
        if self._file is None or self._file.tell() >= self._shard_bytes or not self._has_room(entries):
            self._next_shard()
        if not self._has_room(entries):
            raise ValueError(f"the header of {len(entries)} tensors does not fit in {self._header_room} bytes")
        self._headers[-1].update(entries)
        for name, tensor in together:
            self._append(name, tensor)
        self._small += ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def _finish(self) -> None:
        """Give the files their final names and write the index."""
        self._close_shard()
        count = len(self._headers)
        weight_map: dict[str, str] = {}
        for i, header in enumerate(self._headers):
            name = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            self._shard(i).rename(self._folder / name)
            weight_map.update(dict.fromkeys((key for key in header if key != "__metadata__"), name))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _append(self, name: str, tensor: torch.Tensor) -> None:
        assert self._file is not None
        start = self._file.tell() - self._header_room
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)
        self._headers[-1][name]["data_offsets"] = [start, start + flat.nbytes]
        self.total_bytes += flat.nbytes

    def _has_room(self, entries: Mapping[str, Any]) -> bool:
        return len(_header({**self._headers[-1], **entries})) <= self._header_room - 8

    def _shard(self, i: int) -> Path:
        return self._folder / f"model-{i + 1:05d}.writing"

    def _next_shard(self) -> None:
        self._close_shard()
        self._headers.append({"__metadata__": {"format": "pt"}})
        self._file = self._shard(len(self._headers) - 1).open("wb")
        self._file.write(b" " * self._header_room)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        for name, tensor in self._small:
            self._append(name, tensor)
        self._small = []
        length = self._header_room - 8
        with self._file as file:
            file.seek(0)
            file.write(length.to_bytes(8, "little") + _header(self._headers[-1]).ljust(length))
        self._file = None


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    # Offsets of this width stand for any that may come, so that a header never outgrows what was checked.
    return {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [10**15, 10**15]}


def _header(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
