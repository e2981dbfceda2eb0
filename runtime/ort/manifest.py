"""`runtime.json`: export writes it into a model folder, the runtime reads it. It describes the graphs and weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
import zlib
from typing import TYPE_CHECKING, Annotated, Any

import ml_dtypes  # noqa: F401 - lets numpy know "bfloat16"
import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from console.errors import InputError
from console.files import Size, read_object, to_type
from runtime.ort.rope import inverse_frequencies
from runtime.sizes import KvLayout

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "runtime.json"
AGAIN = "run python -m export again"
FORMAT = 6
HEADER_PREFIX = 8  # bytes of a .safetensors file that hold the length of its header
_PIECE = 1 << 22  # bytes of a file read at once

ByteCount = Annotated[int, Field(ge=0, le=1 << 62)]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]
"""A file in the folder itself."""
FloatType = Annotated[str, Field(pattern="^(float32|float16|bfloat16)$")]
DeviceKind = Annotated[str, Field(pattern="^(cpu|cuda)$")]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class StoredArray:
    """A row-major tensor inside a .safetensors file of the folder."""

    file: FileName
    """Name of the file."""
    offset: ByteCount
    """Bytes before the first element."""
    dtype: Annotated[str, Field(pattern="^(float32|float16|bfloat16|uint8|int8|int32)$")]
    """As numpy names it, or "bfloat16"."""
    shape: list[Size]
    """Rows first."""

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def map(self, folder: Path) -> NDArray[np.generic]:
        """Map the tensor into memory; its pages are read when they are used."""
        return np.memmap(folder / self.file, self.dtype, "r", self.offset, tuple(self.shape))


@dataclass(frozen=True, config=_STRICT)
class WeightsFile:
    """A weights file as it was when the graphs were made: their offsets hold only for these bytes."""

    bytes: ByteCount
    """Size of the file."""
    header_sha256: str
    """Hash of its header. With the size, it is enough to load the file."""
    crc32: Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
    """Checksum of the whole file, for `python -m export verify`."""


@dataclass(frozen=True, config=_STRICT)
class Text:
    """Shape of the decoder."""

    hidden_size: Size
    """Channels of a hidden state."""
    vocab_size: Size
    """Tokens of the vocabulary."""
    kv_heads: Size
    """Key and value heads of a layer."""
    head_dim: Size
    """Channels of a head."""
    context: Size
    """Tokens of the longest sequence."""
    windows: Annotated[list[Size | None], Field(min_length=1)]
    """Keys that a token sees in each layer; None for all of them."""
    mtp_windows: list[Size | None]
    """The same for the MTP layer; empty without one."""
    rope: dict[str, Any]
    """The part of config.json that `runtime.ort.rope` reads."""


@dataclass(frozen=True, config=_STRICT)
class VisionSettings:
    """Shape of the vision encoder, for its indices. Sizes are in pixels, except merge_size in patches."""

    head_dim: Size
    """Channels of a head."""
    patch_size: Size = 14
    """Side of a patch."""
    merge_size: Size = 2
    """Side of a block of patches that becomes one token."""
    window_size: Size = 112
    """Side of an attention window."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies."""

    @property
    def window_tokens(self) -> int:
        """Merged tokens along one side of a window."""
        return self.window_size // self.merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches of a full window."""
        return (self.window_tokens * self.merge_size) ** 2


@dataclass(frozen=True, config=_STRICT)
class Target:
    """The graphs for one kind of device. Fields that name graphs hold file names, or None without such a graph."""

    dtype: FloatType
    """Of activations, and of the MTP layer's KV cache."""
    kv_dtype: Annotated[str, Field(pattern="^(float32|float16|bfloat16|int8)$")]
    """Of the decoder's KV cache."""
    kv_layout: KvLayout
    """Rows of sliding layers' KV buffers; see `runtime.sizes.buffer_limits`."""
    exact: bool
    """Packed weights multiply float activations, not int8 ones."""
    block_size: int | None
    """32 where packed weights are in blocks of 32; None where groups are as stored."""
    decoder: FileName
    """The decoder, for prompts and steps."""
    vision: FileName | None
    """The vision encoder."""
    mtp: FileName | None
    """The MTP layer."""
    rewind: FileName | None
    """Takes rejected drafts back from the decoder's window buffers."""
    mtp_rewind: FileName | None
    """The same for the MTP layer's."""
    head: dict[str, StoredArray]
    """Head weights that decoder and MTP layer take as inputs, so that a GPU holds one copy; empty: initializers."""
    graphs: dict[FileName, str]
    """SHA-256 of each graph: one of another export may load, and read these weights at its own offsets."""
    versions: dict[str, str]
    """Packages that made the graphs."""

    def check_graph(self, path: Path) -> None:
        """Raise InputError for a graph that is there, but is not the one that was exported."""
        if path.is_file() and hash_file(path) != self.graphs.get(path.name):
            raise InputError(f"{path}: is damaged, or of another export; {AGAIN}")


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """Content of `runtime.json`."""

    text: Text
    """Shape of the decoder."""
    vision: VisionSettings | None
    """Shape of the vision encoder; None for a text model."""
    embeddings: StoredArray
    """Token embeddings [vocabulary, hidden]."""
    weights: dict[FileName, WeightsFile]
    """The .safetensors files, by name."""
    targets: dict[DeviceKind, Target]
    """Graphs by kind of device."""

    def target(self, folder: Path, kind: str) -> Target:
        """Graphs for a kind of device. Raises InputError where the folder was not exported for it."""
        if kind not in self.targets:
            raise InputError(
                f"{folder}: not exported for {kind}; run: python -m export --model {folder} --device {kind}"
            )
        return self.targets[kind]

    def save(self, path: Path) -> None:
        """Write what `load_manifest` reads."""
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Read `runtime.json`, and check that the weights are those that it was made for.

    Raises InputError for a folder that is not exported, and for weights that changed since.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.weights.items():
        if describe_header(folder / name) != (expected.bytes, expected.header_sha256):
            raise InputError(f"{folder / name}: changed since the graphs were made; {AGAIN}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `runtime.json` alone; the weights need not be there. Raises InputError for a folder that is not exported."""
    path = folder / FILE
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; give a model folder that export has added graphs to")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; give a model folder")
    if not path.is_file():
        raise InputError(f"{folder}: not exported yet; run: python -m export --model {folder}")
    content = read_object(path, AGAIN)
    version = content.pop("format", None)
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, this version reads {FORMAT}; {AGAIN}")
    manifest = to_type(Manifest, content, path, AGAIN)
    if contradiction := _contradiction(manifest):
        raise InputError(f"{path}: {contradiction}; {AGAIN}")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """Say which values of a manifest rule each other out; None where they agree."""
    text, embeddings, vision = manifest.text, manifest.embeddings, manifest.vision
    if embeddings.shape != [text.vocab_size, text.hidden_size]:
        return f"embeddings.shape is {embeddings.shape}, not text.vocab_size and text.hidden_size"
    if text.rope.get("head_dim") != text.head_dim:
        return f"text.rope.head_dim is {text.rope.get('head_dim')!r}, not text.head_dim, {text.head_dim}"
    try:
        inverse_frequencies(text.rope)
    except InputError as error:
        return f"text.rope: {error}"
    if vision and vision.window_tokens < 1:
        return f"vision.window_size is {vision.window_size}, less than a block of merge_size patches"
    for target, graphs in manifest.targets.items():
        if vision and graphs.vision is None:
            return f"targets.{target}.vision is null, but vision is not"
        if graphs.mtp and not text.mtp_windows:
            return f"targets.{target}.mtp is {graphs.mtp!r}, but text.mtp_windows is empty"
    stored = [embeddings, *(array for graphs in manifest.targets.values() for array in graphs.head.values())]
    for array in stored:
        file = manifest.weights.get(array.file)
        if file is None or array.offset + array.nbytes > file.bytes:
            return f"{array.file} has no {array.nbytes} bytes at {array.offset}"
    return None


def describe_weights(path: Path) -> WeightsFile:
    """Describe a .safetensors file for the manifest; reads all of it."""
    return WeightsFile(*describe_header(path), checksum(path))


def hash_file(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def describe_header(path: Path) -> tuple[int, str]:
    """Size and header hash of a .safetensors file. The header holds every offset, so they tell two files apart."""
    digest = hashlib.sha256(read_header(path)).hexdigest()  # before the size, for its messages about a broken file
    return path.stat().st_size, digest


def read_header(path: Path) -> bytes:
    """Read what precedes the tensors of a .safetensors file: the length of its JSON header in 8 bytes, and the header.

    Raises InputError for a file that is missing, unreadable or truncated.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(HEADER_PREFIX)
            (length,) = struct.unpack("<Q", prefix)
            if length > path.stat().st_size:
                raise InputError(f"{path}: truncated: its header alone is longer than the file")
            return prefix + file.read(length)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; copy it from where the folder was made") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check who may read it") from error
    except struct.error as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); copy it again") from error
