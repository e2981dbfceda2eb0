"""An exported folder on one device: its settings, tokenizer and ONNX Runtime sessions."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError, naming
from console.files import RESTORE
from console.generation_config import read_generation_config
from runtime.chat import Chat
from runtime.inputs.images import ImageSettings
from runtime.inputs.video import VideoSettings
from runtime.inputs.vision import VisionSession
from runtime.ort import graph_io
from runtime.ort.cache_rollback import CacheRollback
from runtime.ort.decoder import DecoderSession, load_head
from runtime.ort.device import Device, require_device
from runtime.ort.drafter import Drafter
from runtime.ort.manifest import AGAIN, load_manifest
from runtime.ort.sessions import Options, open_session, require_inputs
from runtime.sizes import CHUNKINGS, buffer_limits

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    from runtime.ort.buffer import Buffer
    from runtime.ort.manifest import Manifest

_LOOKUP = 1024  # embeddings that are read at once


class ModelFolder:
    """The settings and the tokenizer of one exported folder; the device need not be there."""

    def __init__(self, folder: Path, device: str, options: Options, manifest: Manifest) -> None:
        """Read them. Raises InputError for a folder that was not exported for the device."""
        self.folder, self.device = folder, Device.parse(device)
        self.manifest = manifest
        self.target = self.manifest.target(self.folder, self.device.kind)
        self.chunking = CHUNKINGS[self.device.kind]
        """Lengths of the calls that a prompt is split into."""
        self.options = replace(options, cutlass=self.target.block_size is not None)
        self.chat = Chat(self.folder)
        self.generation = read_generation_config(self.folder, self.manifest.text.vocab_size)
        """Recommended sampling and end tokens."""
        self.end_ids = self.generation.end_ids
        """Tokens that end an answer; the first ends a turn."""

    @cached_property
    def image_settings(self) -> ImageSettings:
        """How images are resized and normalized. Raises InputError for a folder without these settings."""
        settings = ImageSettings.from_folder(self.folder)
        self._require_same_patches(settings)
        return settings

    @cached_property
    def video_settings(self) -> VideoSettings:
        """How frames are sampled, resized and normalized. Raises InputError for a folder without these settings."""
        settings = VideoSettings.from_folder(self.folder)
        self._require_same_patches(settings.image)
        return settings

    def _require_same_patches(self, settings: ImageSettings) -> None:
        """Raise InputError unless the vision encoder takes patches as the processor cuts them."""
        shape = self.manifest.vision
        cut = (settings.patch_size, settings.merge_size)
        if shape is not None and cut != (shape.patch_size, shape.merge_size):
            raise InputError(
                f"{self.folder}: its image processor has a patch_size and merge_size of {cut}, its graphs "
                f"{(shape.patch_size, shape.merge_size)}; {RESTORE}, or {AGAIN}"
            )


class ExportedModel(ModelFolder):
    """An exported folder with its sessions, on one device.

    A session opens at its first use, so wrong input is reported before gigabytes are read. `unload` closes all of them.
    Raises InputError for a folder that was not exported for the device, and for a device that is not there.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", options: Options | None = None) -> None:
        super().__init__(Path(folder), device, options or Options(), load_manifest(Path(folder)))
        require_device(self.device)
        self._embeddings = self.manifest.embeddings.map(self.folder)

    def open_sessions(self, *, drafts: bool = False) -> None:
        """Open the decoder before its first use, and with `drafts` the MTP layer too."""
        if drafts:
            _ = self.drafter  # first: a model without MTP layer is refused before the decoder is read
        _ = self.decoder

    def unload(self) -> None:
        """Free the memory of all sessions; each opens again at its next use."""
        for name in ("decoder", "vision", "drafter", "_head"):
            vars(self).pop(name, None)

    def unload_drafter(self) -> None:
        """Free the memory of the MTP layer; it opens again at its next use."""
        vars(self).pop("drafter", None)

    @cached_property
    def decoder(self) -> DecoderSession:
        """The decoder with its head."""
        head = self._head  # first: a GPU too small for it needs to read no more
        path, text, capture = self._graph(self.target.decoder), self.manifest.text, self.options.capture
        session = open_session(path, self.device, self.options)
        with naming(str(path)):
            return DecoderSession(session, text, self.target, self.device, head, capture=capture)

    @cached_property
    def _head(self) -> dict[str, Buffer]:
        """Weights that the decoder and the MTP layer share."""
        return load_head(self.folder, self.target, self.device)

    @cached_property
    def vision(self) -> VisionSession:
        """The vision encoder. The model must have one."""
        shape = self.manifest.vision
        assert self.target.vision is not None
        assert shape is not None
        session = self._open(self.target.vision, varying_shapes=True)
        with naming(str(self.folder / self.target.vision)):
            require_inputs(
                session,
                {
                    graph_io.PATCH_COS: ("float32", (None, shape.head_dim)),
                    graph_io.WINDOW_GATHER: ("int64", (None, shape.window_patches)),
                },
            )
        return VisionSession(session)

    @cached_property
    def drafter(self) -> Drafter:
        """The MTP layer and the rollback graphs. Raises InputError for a model without MTP layer."""
        target, text = self.target, self.manifest.text
        if target.mtp is None:
            raise InputError(f"{self.folder}: this model has no MTP layer to draft with; leave out --draft-tokens")
        path, session = self.folder / target.mtp, self._open(target.mtp)
        with naming(str(path)):
            mtp = DecoderSession(session, text, target, self.device, self._head, mtp=True)
        limits, mtp_limits = (buffer_limits(windows, target.kv_layout) for windows in (text.windows, text.mtp_windows))
        return Drafter(
            mtp,
            CacheRollback(target.rewind and self._open(target.rewind), limits),
            CacheRollback(target.mtp_rewind and self._open(target.mtp_rewind), mtp_limits),
        )

    def _open(self, graph: str, *, varying_shapes: bool = False) -> ort.InferenceSession:
        options = replace(self.options, capture=False)
        return open_session(self._graph(graph), self.device, options, varying_shapes=varying_shapes)

    def _graph(self, name: str) -> Path:
        """Path of a graph that is as it was exported, or missing."""
        self.target.check_graph(self.folder / name)
        return self.folder / name

    def embed_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [T, H] of token ids [T]."""
        return look_up(self._embeddings, ids)


def look_up(embeddings: NDArray[np.generic], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy rows `ids` [T] of a memory-mapped embedding table [V, H] to float32 [T, H], some at a time."""
    embeds = np.empty((len(ids), embeddings.shape[1]), np.float32)
    for start in range(0, len(ids), _LOOKUP):
        part = slice(start, start + _LOOKUP)
        embeds[part] = embeddings[ids[part]]
    return embeds
