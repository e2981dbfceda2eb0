"""`runtime.json`: what export writes about a model folder and its graphs, and the runtime reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from console.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.sizes import KvLayout

FILE = "runtime.json"
FORMAT = 5
HEADER_PREFIX = 8  # bytes of a .safetensors file that say how long its header is
_PIECE = 1 << 22  # bytes of a file read at once


@dataclass(frozen=True)
class StoredArray:
    """A row-major tensor inside a .safetensors file of the folder."""

    file: str
    offset: int
    """Bytes from the start of the file."""
    dtype: str
    """As numpy names it, or "bfloat16"."""
    shape: list[int]


@dataclass(frozen=True)
class WeightsFile:
    """State of a weights file at export. The graphs' offsets hold only for these bytes."""

    bytes: int
    header_sha256: str
    """Checked with the size whenever the folder is loaded: the header holds every offset."""
    crc32: int
    """Of the whole file; only `python -m export verify` checks it."""


@dataclass(frozen=True)
class Text:
    """Shape of the decoder."""

    hidden_size: int
    vocab_size: int
    kv_heads: int
    head_dim: int
    context: int
    """The longest sequence, in tokens."""
    windows: list[int | None]
    """Keys that a token sees, by layer; None: all of them."""
    mtp_windows: list[int | None]
    """The same for the MTP layer; empty without one."""
    rope: dict[str, Any]
    """What `runtime.ort.rope` reads of config.json."""


@dataclass(frozen=True)
class VisionSettings:
    """Shape of the vision encoder, as far as the host's index work needs it."""

    head_dim: int
    patch_size: int = 14
    """Pixels along a patch."""
    merge_size: int = 2
    """Patches along the block that becomes one image token."""
    window_size: int = 112
    """Pixels along an attention window."""
    rope_theta: float = 10000.0

    @property
    def window_tokens(self) -> int:
        """Merged tokens along one side of a window."""
        return self.window_size // self.merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches of a full window."""
        return (self.window_tokens * self.merge_size) ** 2


@dataclass(frozen=True)
class Target:
    """The graphs for one kind of device."""

    dtype: str
    """Of activations."""
    kv_dtype: str
    """Of the decoder's KV cache. The MTP layer's has the dtype of activations."""
    kv_layout: KvLayout
    """See `runtime.sizes.buffer_limits`."""
    exact: bool
    """No int8 activations."""
    block_size: int | None
    """32 where packed weights are in blocks of 32; None: as stored."""
    decoder: str
    """File name, as of the graphs below."""
    vision: str | None
    mtp: str | None
    rewind: str | None
    """Rolls the decoder's KV cache back; None where no buffer is a window."""
    mtp_rewind: str | None
    """Rolls the MTP layer's back."""
    head: dict[str, StoredArray]
    """Weights that the decoder and the MTP layer take as inputs, so that a GPU holds one copy; else empty."""
    versions: dict[str, str]
    """Of the packages that made the graphs."""


@dataclass(frozen=True)
class Manifest:
    """All of `runtime.json`."""

    text: Text
    vision: VisionSettings | None
    embeddings: StoredArray
    weights: dict[str, WeightsFile]
    targets: dict[str, Target]

    def target(self, folder: Path, kind: str) -> Target:
        """The graphs for a kind of device. Raises InputError where this folder was not exported for it."""
        if kind not in self.targets:
            raise InputError(
                f"{folder}: not exported for {kind}; run: python -m export --model {folder} --device {kind}"
            )
        return self.targets[kind]

    def save(self, path: Path) -> None:
        """Write what `load_manifest` reads."""
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Read `runtime.json` and check that the weights are still those that it was made for."""
    path = folder / FILE
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; give a model folder that export has added graphs to")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; give a model folder")
    if not path.is_file():
        raise InputError(f"{folder}: not exported yet; run: python -m export --model {folder}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("format")
        if version != FORMAT:
            raise InputError(f"{path}: format {version}, this version reads {FORMAT}; run python -m export again")
        manifest = Manifest(
            text=Text(**data.pop("text")),
            vision=VisionSettings(**vision) if (vision := data.pop("vision")) else None,
            embeddings=StoredArray(**data.pop("embeddings")),
            weights={name: WeightsFile(**entry) for name, entry in data.pop("weights").items()},
            targets={name: _target(entry) for name, entry in data.pop("targets").items()},
        )
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); check who may read it, or run python -m export again"
        raise InputError(f"{path}: {problem}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable ({error}); run python -m export again") from error
    for name, expected in manifest.weights.items():
        if describe_header(folder / name) != (expected.bytes, expected.header_sha256):
            raise InputError(f"{folder / name}: changed since the graphs were made; run python -m export again")
    return manifest


def _target(entry: dict[str, Any]) -> Target:
    return Target(**{**entry, "head": {name: StoredArray(**stored) for name, stored in entry["head"].items()}})


def describe_weights(path: Path) -> WeightsFile:
    """All that is kept of a .safetensors file; reads it from end to end."""
    return WeightsFile(*describe_header(path), checksum(path))


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def describe_header(path: Path) -> tuple[int, str]:
    """Size and header hash of a .safetensors file; the header holds every offset, so it is enough."""
    digest = hashlib.sha256(read_header(path)).hexdigest()  # before the size: it says what is wrong with the file
    return path.stat().st_size, digest


def read_header(path: Path) -> bytes:
    """What precedes the tensors of a .safetensors file: eight bytes that say how long its JSON is, and the JSON."""
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
