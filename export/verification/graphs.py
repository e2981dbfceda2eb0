"""The graphs of one device in an exported folder: sessions to run them, PyTorch modules to compare them with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from export.checkpoint import open_model
from export.kv_scales import read_kv_scales
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.products import EXACT
from export.modules.vision import VisionEncoder
from export.modules.weights import Source, load_on_use
from export.verification.inputs import TOKENS
from export.verification.reference import run_with_cache
from runtime.ort.decoder import DecoderSession, load_head
from runtime.ort.sessions import Options, open_session

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    from quantize.model.families import Family
    from runtime.ort.buffer import Buffer
    from runtime.ort.device import Device
    from runtime.ort.manifest import Manifest, Target


@dataclass
class Graphs:
    """The graphs of one target, what is needed to run them, and their PyTorch modules.

    A module reads the weights of a product when it needs them and frees them afterwards, so folders larger than memory
    can be verified.
    """

    folder: Path
    """The model folder."""
    manifest: Manifest
    """Its runtime.json."""
    target: Target
    """The graphs."""
    device: Device
    """Where they run."""
    profiles: Path
    """Folder for ONNX Runtime's records of the nodes that ran."""
    float32: bool = False
    """Give float32 activations to packed products that round them to int8.

    Rounding would hide a graph that is slightly wrong, such as one whose window is too short by one token.
    """

    def in_float32(self) -> Graphs:
        """The same graphs with float32 activations, without those that move only bytes."""
        return replace(self, target=replace(self.target, exact=True, rewind=None, mtp_rewind=None), float32=True)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of activations."""
        dtype: torch.dtype = getattr(torch, self.target.dtype)
        return dtype

    @cached_property
    def embeds(self) -> NDArray[np.float32]:
        """Embeddings [TOKENS + 1, H] of random tokens."""
        ids = np.random.default_rng(0).integers(self.manifest.text.vocab_size, size=TOKENS + 1)
        return self.manifest.embeddings.map(self.folder)[ids].astype(np.float32)

    @cached_property
    def hidden(self) -> NDArray[np.float32]:
        """The decoder's hidden states [TOKENS, H], which the MTP layer reads."""
        return self.expected_logits_and_hidden[1]

    @cached_property
    def expected_logits_and_hidden(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the decoder module computes in float32 in one call."""
        return self.decoder_module([(0, TOKENS)], torch.float32)

    @cached_property
    def decoder_module(self) -> partial[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """`run_with_cache` of the PyTorch decoder; takes calls and dtype."""
        source, family, config = self._model
        scales = read_kv_scales(self.folder, family, config) if self.target.kv_dtype == "int8" else None
        module = Decoder(source, family, config, with_hidden=self.target.mtp is not None, kv_scales=scales)
        load_on_use(module, self.folder)
        return partial(run_with_cache, module, self.manifest.text, [self.embeds[:TOKENS]])

    @cached_property
    def mtp_module(self) -> partial[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """`run_with_cache` of the PyTorch MTP layer; takes calls and dtype."""
        module = Mtp(*self._model)
        load_on_use(module, self.folder)
        return partial(run_with_cache, module, self.manifest.text, [self.embeds[1:], self.hidden])

    def vision_module(self, dtype: torch.dtype) -> VisionEncoder:
        """The PyTorch vision encoder with activations of a dtype."""
        module = VisionEncoder(*self._model, on_cuda=self.device.kind == "cuda", dtype=dtype)
        load_on_use(module, self.folder)
        return module

    @cached_property
    def _model(self) -> tuple[Source, Family, PreTrainedConfig]:
        checkpoint, family, config = open_model(self.folder)
        source = Source(checkpoint, load=False, exact=self.target.exact, block_size=self.target.block_size)
        return source, family, config

    @cached_property
    def _head(self) -> dict[str, Buffer]:
        return load_head(self.folder, self.target, self.device)

    def operators(self, graph: str) -> Counter[str]:
        """Number of nodes in a graph's file, by operator."""
        return Counter(node.op_type for node in onnx.load(self.folder / graph, load_external_data=False).graph.node)

    def rounds_activations(self, graph: str) -> bool:
        """Whether a graph has products that can round activations to int8."""
        return self.operators(graph)["MatMulNBits"] > 0

    def open(self, graph: str, *, profile: bool = True) -> onnxruntime.InferenceSession:
        """Open a session. profile: record which nodes run, for `runtime.ort.sessions.placement`."""
        path = self.folder / graph
        options = Options(cutlass=self.target.block_size is not None, profile=self.profiles if profile else None)
        return open_session(path, self.device, options, graph=_with_float32_activations(path) if self.float32 else None)

    def decoder(self, session: onnxruntime.InferenceSession, *, mtp: bool = False) -> DecoderSession:
        """Run a session as the decoder, or as the MTP layer."""
        return DecoderSession(session, self.manifest.text, self.target, self.device, self._head, mtp=mtp)


def _with_float32_activations(path: Path) -> bytes:
    """A CPU graph whose packed products keep their activations in float32, without its weights."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = EXACT
    return bytes(model.SerializeToString())
