"""Adds the graphs of one target to a model folder, and what the runtime must know about them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch

from console.errors import InputError
from console.locks import lock, unlock
from export.formats import floating
from export.kv_scales import read_kv_scales
from export.modules.decoder import Decoder, head_dim
from export.modules.mtp import Mtp
from export.modules.vision import VisionEncoder
from export.modules.weights import Source, spans
from export.rewind import save_rewind
from export.trace import Axes, save, trace
from quantize.checkpoint.reader import DTYPES, Checkpoint, open_checkpoint
from quantize.model.families import Family, find_family, model_config
from quantize.scheme import has_mtp
from runtime.inputs.windows import VisionSettings
from runtime.ort import graph_io, manifest
from runtime.ort.rope import inverse_frequencies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx_ir as ir
    from torch import Tensor
    from transformers import PreTrainedConfig

TargetName = Literal["cpu", "cuda"]
BlockSize = Literal[32]
KvBits = Literal[8, 16]
_NUMPY_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def export_folder(
    folder: Path,
    target: TargetName,
    *,
    exact: bool = False,
    kv_bits: KvBits = 16,
    kv_layout: manifest.KvLayout = "window",
    block_size: BlockSize | None = None,
) -> manifest.Manifest:
    """Trace the graphs of a model for a target, write them and `runtime.json`, return its content.

    The folder may be one that quantize wrote or any EXAONE 4.x checkpoint in safetensors. Graphs of another target that
    are there stay usable. exact: packed weights multiply float32 activations on the CPU, not int8 ones. kv_bits: 8
    keeps keys and values as int8, by the ranges that quantize saw; 16 keeps them as activations are. kv_layout: "full"
    gives sliding layers buffers as long as all others. block_size: packed weights in blocks of so many, each scale
    repeated, for ONNX Runtime's CUTLASS kernels; None leaves groups as stored.
    Raises InputError for a folder that cannot be exported, or that another run writes; an export that fails or is
    stopped leaves the graphs that were there.
    """
    checkpoint = open_checkpoint(folder)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    _check_runtime(checkpoint, family, config)
    source = Source(checkpoint, load=False, exact=exact or target == "cuda", block_size=block_size)
    dtype = _name(activation_dtype(checkpoint, family, target))
    entry = manifest.Target(
        dtype=dtype,
        kv_dtype="int8" if kv_bits == 8 else dtype,
        kv_layout=kv_layout,
        exact=source.exact,
        block_size=block_size,
        decoder=f"decoder.{target}.onnx",
        vision=f"vision.{target}.onnx" if family.vision else None,
        mtp=f"mtp.{target}.onnx" if has_mtp(checkpoint, family) and family.mtp_layers(config) > 0 else None,
        rewind=None,
        mtp_rewind=None,
        head={},
        versions={name: version(name) for name in ("torch", "transformers", "onnx")},
    )
    with _all_or_none(folder) as place:
        entry = _export_graphs(source, family, config, target, entry, place)
        described = describe(checkpoint, family, config, {**_other_targets(folder, target), target: entry})
        described.save(place(manifest.FILE))
    return described


def _export_graphs(
    source: Source,
    family: Family,
    config: PreTrainedConfig,
    target: TargetName,
    entry: manifest.Target,
    place: Callable[[str], Path],
) -> manifest.Target:
    """Write every graph of a target; returns its entry with what only the graphs say."""
    folder, dtype, full_buffers = source.checkpoint.folder, getattr(torch, entry.dtype), entry.kv_layout == "full"
    scales = read_kv_scales(folder, family, config) if entry.kv_dtype == "int8" else None
    with_hidden = entry.mtp is not None or scales is not None
    decoder = Decoder(source, family, config, with_hidden=with_hidden, kv_scales=scales, full_buffers=full_buffers)
    head = _stored_head(decoder) if entry.mtp and target == "cuda" else {}
    save(trace_decoder(decoder, config, dtype), decoder, place(entry.decoder), head)
    if entry.vision:
        vision = VisionEncoder(source, family, config, on_cuda=target == "cuda", dtype=dtype)
        save(trace_vision(vision, config), vision, place(entry.vision))
    if entry.mtp is None:
        return entry
    mtp = Mtp(source, family, config, full_buffers=full_buffers)
    save(trace_decoder(mtp, config, dtype), mtp, place(entry.mtp), head)
    rewinds = _export_rewinds(config, target, entry, place)
    return replace(entry, head=head, rewind=rewinds.get("rewind"), mtp_rewind=rewinds.get("mtp_rewind"))


@contextmanager
def _all_or_none(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Give a place to write each file of these names; they get their names when all are written, minutes later.

    A run that is killed while they do leaves no runtime.json, which is the last: nothing takes half of one export and
    half of another for a model. Raises InputError while another run writes the folder.
    """
    names: list[str] = []

    def place(name: str) -> Path:
        names.append(name)
        return folder / f"{name}.partial"

    held = lock(folder)
    try:
        yield place
        (folder / manifest.FILE).unlink(missing_ok=True)
        for name in names:
            (folder / f"{name}.partial").replace(folder / name)
    finally:
        for name in names:
            (folder / f"{name}.partial").unlink(missing_ok=True)
        unlock(held)


def _stored_head(decoder: Decoder) -> dict[str, manifest.StoredArray]:
    """Where the weights of the head lie, by the names of their initializers."""
    return {
        f"head.{name}": manifest.StoredArray(
            span.file,
            span.offset,
            _name(decoder.head.get_buffer(name).dtype),
            list(decoder.head.get_buffer(name).shape),
        )
        for name, span in spans(decoder.head).items()
    }


def _export_rewinds(
    config: PreTrainedConfig, target: TargetName, entry: manifest.Target, place: Callable[[str], Path]
) -> dict[str, str]:
    """Write the graphs that take back drafts from window buffers, of decoder and MTP layer; returns their names.

    Full buffers push nothing out: a smaller length takes drafts back.
    """
    text, names = config.get_text_config(), {}
    caches = {"rewind": (windows(config), entry.kv_dtype), "mtp_rewind": (mtp_windows(config), entry.dtype)}
    for name, (limits, stored) in caches.items():
        limits = manifest.buffer_limits(limits, entry.kv_layout)
        if any(limits):
            names[name] = f"{name}.{target}.onnx"
            save_rewind(limits, text.num_key_value_heads, head_dim(text), stored, place(names[name]))
    return names


def activation_dtype(checkpoint: Checkpoint, family: Family, target: TargetName) -> torch.dtype:
    """float32 on the CPU; on CUDA what the checkpoint stores, which must be 16 bits wide (attention has no other)."""
    stored = DTYPES[floating(checkpoint.tensor(f"{family.embeddings}.weight")).dtype]
    if target == "cpu":
        return torch.float32
    if stored not in (torch.float16, torch.bfloat16):
        raise InputError(f"{checkpoint.folder}: stored in {stored}; CUDA graphs need float16 or bfloat16 weights")
    return stored


def trace_decoder(decoder: Decoder | Mtp, config: PreTrainedConfig, dtype: torch.dtype) -> ir.Model:
    """The decoder, or the MTP layer, as an ONNX model, its weights still to be bound."""
    text = config.get_text_config()
    width, heads = head_dim(text), text.num_key_value_heads
    batch, tokens, selected, context = 2, 3, 2, 11
    past: list[Tensor] = []
    past_axes: list[Axes] = []
    is_mtp = isinstance(decoder, Mtp)
    layout: manifest.KvLayout = "full" if decoder.full_buffers else "window"
    limits = manifest.buffer_limits(mtp_windows(config) if is_mtp else windows(config), layout)
    kv_dtype = torch.int8 if isinstance(decoder, Decoder) and decoder.kv_scales else dtype
    for limit in limits:
        capacity = 7 if limit is None else 5
        buffer_axes = {0: "batch", 2: "capacity" if limit is None else "window_capacity"}
        past += [torch.zeros(batch, heads, capacity, width, dtype=kv_dtype) for _ in range(2)]
        past_axes += [buffer_axes, buffer_axes]
    table = torch.zeros(context, width // 2, dtype=dtype)
    read: list[Tensor | list[Tensor]] = [
        torch.zeros(batch, tokens, text.hidden_size, dtype=dtype) for _ in range(2 if is_mtp else 1)
    ]
    inputs = [
        *read,
        torch.zeros(batch, dtype=torch.int32),
        torch.zeros((), dtype=torch.int32),
        torch.zeros(batch, selected, dtype=torch.int64),
        table,
        table.clone(),
        past,
    ]
    axes: list[Axes | list[Axes]] = [
        *({0: "batch", 1: "tokens"} for _ in read),
        {0: "batch"},
        {},
        {0: "batch", 1: "selected"},
        {0: "context"},
        {0: "context"},
        past_axes,
    ]
    outputs = graph_io.decoder_outputs(len(limits), hidden=isinstance(decoder, Mtp) or decoder.with_hidden)
    return trace(decoder, inputs, axes, graph_io.decoder_inputs(len(limits), mtp=is_mtp), outputs)


def trace_vision(vision: VisionEncoder, config: PreTrainedConfig) -> ir.Model:
    """The vision encoder as an ONNX model, its weights still to be bound."""
    settings = config.vision_config
    width = settings.hidden_size // settings.num_heads
    pixels = settings.in_channels * settings.temporal_patch_size * settings.patch_size**2
    slots = (settings.window_size // settings.patch_size) ** 2
    merge, tokens, windows_, frames = settings.spatial_merge_size**2, 6, 3, 2

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    patches = f"{merge}*image_tokens"  # said here, or torch traces once more when it has found out
    by_name: dict[str, tuple[Tensor, Axes]] = {
        graph_io.PATCHES: (zeros(tokens * merge, pixels), {0: patches}),
        graph_io.PATCH_COS: (zeros(tokens * merge, width), {0: patches}),
        graph_io.PATCH_SIN: (zeros(tokens * merge, width), {0: patches}),
        graph_io.WINDOW_INDEX: (zeros(tokens, dtype=torch.int64), {0: "image_tokens"}),
        graph_io.WINDOW_INVERSE: (zeros(tokens, dtype=torch.int64), {0: "image_tokens"}),
        graph_io.WINDOW_GATHER: (zeros(windows_, slots, dtype=torch.int64), {0: "windows"}),
        graph_io.WINDOW_SCATTER: (zeros(tokens * merge, dtype=torch.int64), {0: patches}),
        graph_io.WINDOW_LENGTHS: (zeros(windows_, dtype=torch.int32), {0: "windows"}),
        graph_io.FRAME_GATHER: (zeros(frames, tokens * merge, dtype=torch.int64), {0: "frames", 1: "longest_frame"}),
        graph_io.FRAME_SCATTER: (zeros(tokens * merge, dtype=torch.int64), {0: patches}),
        graph_io.FRAME_LENGTHS: (zeros(frames, dtype=torch.int32), {0: "frames"}),
        graph_io.FRAME_LENGTH: (zeros(dtype=torch.int32), {}),
    }
    inputs = [by_name[name][0] for name in graph_io.VISION_INPUTS]
    axes = [by_name[name][1] for name in graph_io.VISION_INPUTS]
    return trace(vision, inputs, axes, graph_io.VISION_INPUTS, [graph_io.IMAGE_EMBEDS])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def windows(config: PreTrainedConfig) -> list[int | None]:
    """Per decoder layer, how many keys a token sees; None for all of them."""
    text = config.get_text_config()
    return [text.sliding_window if kind == "sliding_attention" else None for kind in text.layer_types]


def mtp_windows(config: PreTrainedConfig) -> list[int | None]:
    """The same of the MTP layer, which slides wherever the decoder has layers that do."""
    return [config.get_text_config().sliding_window]


def describe(
    checkpoint: Checkpoint, family: Family, config: PreTrainedConfig, targets: dict[str, manifest.Target]
) -> manifest.Manifest:
    """What the runtime must know about a folder."""
    text = config.get_text_config()
    embeddings = checkpoint.tensors[f"{family.embeddings}.weight"]
    vision = None
    if family.vision:
        tower = config.vision_config
        vision = VisionSettings(
            patch_size=tower.patch_size,
            merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            head_dim=tower.hidden_size // tower.num_heads,
            rope_theta=tower.rope_parameters["rope_theta"],
        )
    return manifest.Manifest(
        text=manifest.Text(
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            kv_heads=text.num_key_value_heads,
            head_dim=head_dim(text),
            context=text.max_position_embeddings,
            windows=windows(config),
            mtp_windows=mtp_windows(config) if any(target.mtp for target in targets.values()) else [],
            rope=_rope(config),
        ),
        vision=vision,
        embeddings=manifest.StoredArray(
            file=embeddings.file.name,
            offset=embeddings.offset,
            dtype=_NUMPY_NAMES[embeddings.dtype],
            shape=list(embeddings.shape),
        ),
        weights={path.name: manifest.describe_weights(path) for path in checkpoint.files},
        targets=targets,
    )


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    """What `runtime.ort.rope` needs of config.json."""
    text = config.get_text_config()
    return {
        "head_dim": head_dim(text),
        "max_position_embeddings": text.max_position_embeddings,
        "rope_parameters": dict(text.rope_parameters),
    }


def _check_runtime(checkpoint: Checkpoint, family: Family, config: PreTrainedConfig) -> None:
    """Refuse at once what the runtime would only stop at when it is asked a question."""
    try:
        inverse_frequencies(_rope(config))
    except InputError as error:
        raise InputError(f"{checkpoint.folder}: {error}") from error
    text, embeddings = config.get_text_config(), checkpoint.tensor(f"{family.embeddings}.weight")
    if embeddings.shape != (text.vocab_size, text.hidden_size):
        raise InputError(
            f"{embeddings.name}: {list(embeddings.shape)}, config.json says {[text.vocab_size, text.hidden_size]}; "
            "download the folder again"
        )


def _other_targets(folder: Path, target: str) -> dict[str, manifest.Target]:
    """Targets exported earlier over the same weights; an unreadable or outdated `runtime.json` has none."""
    try:
        earlier = manifest.load_manifest(folder).targets
    except InputError:
        return {}
    return {name: entry for name, entry in earlier.items() if name != target}
