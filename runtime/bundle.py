"""The contract between export and runtime: names of graph inputs and outputs, and `runtime.json`.

Export writes it, the runtime reads it, nobody else spells a name of an input or output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from calib_data.errors import InputError
from runtime.windows import VisionSettings

if TYPE_CHECKING:
    from pathlib import Path

FILE = "runtime.json"
FORMAT = 5
KvLayout = Literal["window", "full"]
HEADER_PREFIX = 8  # bytes of a .safetensors file that say how long its header is
_PIECE = 1 << 22  # bytes of a file read at once

# Decoder: prompt and step are one graph.
INPUTS_EMBEDS = "inputs_embeds"  # [batch, tokens, hidden], the target's dtype
SEQLENS_K = "seqlens_k"  # int32 [batch]: tokens in the cache after this call, less one
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"  # int32 scalar on the host: the longest row's tokens after this call
LOGIT_INDEX = "logit_index"  # int64 [batch, selected]: positions of this call whose logits are wanted
ROPE_COS, ROPE_SIN = "rope_cos", "rope_sin"  # [context, head_dim/2], the target's dtype
LOGITS = "logits"  # float32 [batch, selected, vocabulary]
HIDDEN = "hidden"  # [batch, tokens, hidden] behind the last norm, where there is an MTP layer or an int8 cache

# The MTP layer: inputs_embeds are of the next tokens; its own hidden states are what the next draft reads.
PREVIOUS_HIDDEN = "previous_hidden"  # [batch, tokens, hidden]: of the decoder, or of the draft before

# Taking back drafts, `export.rewind`: of each window buffer, kept rows [start, stop), then its own first rows.
REWIND_START, REWIND_STOP, REWIND_ROWS = "start", "stop", "rows"  # int64 [1] on the host

# Vision: images and frames of videos, of any sizes.
PATCHES = "patches"  # float32 [patches, channels * temporal * patch * patch], the image processor's order
PATCH_COS, PATCH_SIN = "patch_cos", "patch_sin"  # float32 [patches, head_dim], window order
WINDOW_INDEX = "window_index"  # int64 [patches / merge^2]: merged token at each place of the window order
WINDOW_INVERSE = "window_inverse"  # int64 [patches / merge^2]: its inverse
WINDOW_GATHER = "window_gather"  # int64 [windows, window_patches]: row of each slot of the padded windows, or -1
WINDOW_SCATTER = "window_scatter"  # int64 [patches]: slot of each row
WINDOW_LENGTHS = "window_lengths"  # int32 [windows]: patches of each window
FRAME_GATHER = "frame_gather"  # int64 [frames, longest]: row of each slot of the padded frames, or -1
FRAME_SCATTER = "frame_scatter"  # int64 [patches]: slot of each row
FRAME_LENGTHS = "frame_lengths"  # int32 [frames]: patches of each frame
FRAME_LENGTH = "frame_length"  # int32 scalar on the host: the longest of them
VISION_INPUTS = (
    PATCHES,
    PATCH_COS,
    PATCH_SIN,
    WINDOW_INDEX,
    WINDOW_INVERSE,
    WINDOW_GATHER,
    WINDOW_SCATTER,
    WINDOW_LENGTHS,
    FRAME_GATHER,
    FRAME_SCATTER,
    FRAME_LENGTHS,
    FRAME_LENGTH,
)
IMAGE_EMBEDS = "image_embeds"  # float32 [patches / merge^2, hidden]


def past_names(layers: int) -> list[str]:
    """Names of the KV inputs, key and value of each layer in turn; each [batch, kv_heads, room, head_dim]."""
    return _buffer_names("past", layers)


def present_names(layers: int) -> list[str]:
    """Names of the KV outputs, in the order of `past_names`; each may be the very buffer of its input."""
    return _buffer_names("present", layers)


def kept_names(layers: int) -> list[str]:
    """Names of the rows that were kept of each KV buffer, in the order of `past_names`."""
    return _buffer_names("kept", layers)


def buffer_limits(windows: list[int | None], layout: KvLayout) -> list[int | None]:
    """Rows that the KV buffers of each layer are limited to; None for all that a cache has room for."""
    return windows if layout == "window" else [None] * len(windows)


def _buffer_names(what: str, layers: int) -> list[str]:
    return [f"{what}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def decoder_inputs(layers: int, *, mtp: bool = False) -> list[str]:
    """Every input of the decoder graph, or of the MTP layer's, in order."""
    first = [INPUTS_EMBEDS, PREVIOUS_HIDDEN] if mtp else [INPUTS_EMBEDS]
    return [*first, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, LOGIT_INDEX, ROPE_COS, ROPE_SIN, *past_names(layers)]


def decoder_outputs(layers: int, *, hidden: bool) -> list[str]:
    """Every output of the decoder graph, or of the MTP layer's, in order. hidden: HIDDEN is one of them."""
    return [LOGITS, *([HIDDEN] if hidden else []), *present_names(layers)]


@dataclass(frozen=True)
class StoredArray:
    """A tensor inside a .safetensors file of the folder: row-major, `dtype` as numpy or "bfloat16" names it."""

    file: str
    offset: int
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file looked like when the graphs were made: their offsets hold only for these bytes.

    crc32: of the whole file, for `python -m export verify`; to load it, the other two are enough.
    """

    bytes: int
    header_sha256: str
    crc32: int


@dataclass(frozen=True)
class Text:
    """Shape of the decoder.

    windows: per layer, how many keys a token sees; None for all of them. mtp_windows: the same of the MTP layer; empty
    without one.
    """

    hidden_size: int
    vocab_size: int
    kv_heads: int
    head_dim: int
    context: int
    windows: list[int | None]
    mtp_windows: list[int | None]
    rope: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """The graphs of one kind of device.

    dtype: of activations. kv_dtype: of the decoder's KV cache; that of the MTP layer has the activations'. kv_layout:
    "full" where buffers of sliding layers are as long as all others, see `buffer_limits`. exact: no int8 activations.
    block_size: 32 where packed weights are in such blocks, None where they are as stored. rewind, mtp_rewind: take back
    drafts where buffers are windows. head: weights that are inputs of the decoder and of the MTP layer, so that a card
    holds one copy; elsewhere they are initializers of both.
    """

    dtype: str
    kv_dtype: str
    kv_layout: KvLayout
    exact: bool
    block_size: int | None
    decoder: str
    vision: str | None
    mtp: str | None
    rewind: str | None
    mtp_rewind: str | None
    head: dict[str, StoredArray]
    versions: dict[str, str]


@dataclass(frozen=True)
class Bundle:
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
                f"{folder}: not exported for {kind}; run: python -m export --model {folder} --target {kind}"
            )
        return self.targets[kind]

    def save(self, path: Path) -> None:
        """Write what `load_bundle` reads."""
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n", encoding="utf-8")


def load_bundle(folder: Path) -> Bundle:
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
        bundle = Bundle(
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
    for name, expected in bundle.weights.items():
        if describe_header(folder / name) != (expected.bytes, expected.header_sha256):
            raise InputError(f"{folder / name}: changed since the graphs were made; run python -m export again")
    return bundle


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
