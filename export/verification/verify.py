"""Every graph of an exported folder against the eager module it stands for, over the weights as they are now.

The eager module computes in float32, reads a product's weights when their turn comes and frees them after it, so a
folder larger than memory can be verified. Decoder and MTP layer get a prompt, a few tokens in one call and then single
ones, and all their logits are compared. A card's graphs compute in 16 bits: how far off they may be follows from how
far the eager module is when it does. The graphs that take back drafts stand for no module: what they restore must read
as it did before.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageDraw

from console.progress import track
from export.kv_scales import read_kv_scales
from export.modules import ops
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.vision import VisionEncoder
from export.modules.weights import Source, read_when_used
from export.verification.card import read_card
from export.verification.eager import cached_answer, difference
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from quantize.report import peak_mib
from runtime.inputs.images import ImageSettings, preprocess
from runtime.inputs.vision_inputs import vision_feeds
from runtime.ort import graph_io, manifest
from runtime.ort.decoder import DecoderSession, load_head
from runtime.ort.sessions import (
    Buffer,
    Device,
    Options,
    VisionSession,
    map_stored,
    open_session,
    placement,
    require_device,
)
from runtime.speculative import Rewinder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

TOKENS = 150  # more than two windows of the bundled reader; the released model's window is longer
DRAFTED, STEPS = 4, 6  # of them in one call behind the prompt, as drafts are checked; one by one
CALLS = [
    (0, TOKENS - STEPS - DRAFTED),
    (TOKENS - STEPS - DRAFTED, TOKENS - STEPS),
    *((at, at + 1) for at in range(TOKENS - STEPS, TOKENS)),
]
PAGE = (140, 168)  # pixels: 12 x 10 patches, whose windows have four sizes
SPEED_TOKENS, SPEED_SECONDS = 64, 10.0  # tokens are decoded until either is reached

# Largest differences that pass, relative to the largest value of the eager module.
EXACT = 2e-5  # weights dequantized inside the kernel, sums in another order
VISION = 1e-4  # the trained tower magnifies rounding
INT8_ACTIVATIONS = 0.08  # the eager module rounds to int8, too: where a value falls on the other side of a step
INT8_KV = 0.02  # as above, but for keys and values
# In 16 bits: this times what they cost the eager module over the same tokens. Its rounding and a card's are two draws
# of one error; with sums and roundings in other places the largest grew 2.5-fold at most (docs/architecture.md).
ROUNDING = 4.0


@dataclass(frozen=True)
class Rung:
    """One graph. error, tolerance: relative to the largest value. operators: nodes of the file, by operator.

    in_float: its packed products were given float32 activations, where by itself it rounds them to int8. nodes: those
    that ran, after ONNX Runtime's own optimisations, by provider.
    """

    graph: str
    in_float: bool
    error: float
    tolerance: float
    operators: dict[str, int]
    nodes: dict[str, int]

    @property
    def name(self) -> str:
        """What to call it in a table."""
        return f"{self.graph}, float32" if self.in_float else self.graph

    @property
    def passed(self) -> bool:
        """Whether the graph is what the eager module is; a NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What `verify` found. damaged: weights files whose bytes are not those that were exported.

    memory: the most MiB in use by the end of decoding: of a card by all processes; on the CPU by this one, None where
    the system does not say.
    """

    device: str
    about: str
    damaged: list[str]
    rungs: list[Rung]
    tokens_per_second: float
    memory: float | None

    @property
    def passed(self) -> bool:
        """Whether every graph does, over weights that are whole."""
        return not self.damaged and all(rung.passed for rung in self.rungs)


def verify(folder: Path, device: str) -> Verification:
    """Hold every graph of a target against its eager module. Raises InputError for a folder or device that cannot."""
    place = Device.parse(device)
    described = manifest.load_manifest(folder)
    described.target(folder, place.kind)
    require_device(place)
    damaged = [name for name, was in described.weights.items() if manifest.checksum(folder / name) != was.crc32]
    with tempfile.TemporaryDirectory() as profiles, torch.no_grad():
        graphs = _Graphs(folder, described, place, Path(profiles))
        speed, memory = graphs.speed()
        steps = graphs.steps()
        if not graphs.target.exact:
            steps += _Graphs(folder, described, place, Path(profiles), in_float=True).steps()
        rungs = [step() for step in track(steps, "Verifying")]
    return Verification(device, _about(place, graphs.target, rungs), damaged, rungs, speed, memory)


class _Graphs:
    """The graphs of one target and the eager modules they stand for.

    in_float: those with packed weights, made to multiply float32 activations: rounding to int8 would hide a graph that
    is a little wrong, such as one with a window too short by a token.
    """

    def __init__(
        self, folder: Path, described: manifest.Manifest, device: Device, profiles: Path, *, in_float: bool = False
    ) -> None:
        self.folder, self.device, self.profiles, self.in_float = folder, device, profiles, in_float
        self.text, self.vision_shape = described.text, described.vision
        target = described.target(folder, device.kind)
        self.target = replace(target, exact=True, rewind=None, mtp_rewind=None) if in_float else target
        self.dtype: torch.dtype = getattr(torch, self.target.dtype)
        self.checkpoint = open_checkpoint(folder)
        self.family, self.config = find_family(self.checkpoint.config), model_config(self.checkpoint.config)
        self.source = Source(self.checkpoint, load=False, exact=self.target.exact, block_size=target.block_size)
        self.options = Options(cutlass=target.block_size is not None)
        self.head = load_head(folder, self.target, device)
        ids = np.random.default_rng(0).integers(self.text.vocab_size, size=TOKENS + 1)
        self.embeds = map_stored(folder, described.embeddings)[ids].astype(np.float32)

    def speed(self) -> tuple[float, float | None]:
        """Tokens a second, one at a time after a prompt, and the memory in use by then, in MiB."""
        decoder = self._decoder(open_session(self.folder / self.target.decoder, self.device, self.options))
        cache = decoder.new_cache(TOKENS + SPEED_TOKENS)
        one = np.zeros((1, 1), np.int64)
        decoder.run(cache, self.embeds[None, :TOKENS], one)
        decoder.run(cache, self.embeds[None, :1], one)  # the first step has buffers to make
        done, seconds, started = 0, 0.0, time.perf_counter()
        while done < SPEED_TOKENS - 1 and seconds < SPEED_SECONDS:
            decoder.run(cache, self.embeds[None, :1], one)
            done, seconds = done + 1, time.perf_counter() - started
        return done / seconds, self._memory()

    def steps(self) -> list[Callable[[], Rung]]:
        """What makes the rung of each graph; the decoder's comes before that of the MTP layer, which reads from it."""
        target, steps = self.target, []
        if target.vision and self._wanted(target.vision):
            steps.append(self._vision)
        if self._wanted(target.decoder):
            steps += [self._decode, *([self._draft] if target.mtp else [])]
        if target.rewind:
            steps.append(partial(self._rewind, target.decoder, target.rewind))
        if target.mtp and target.mtp_rewind:
            steps.append(partial(self._rewind, target.mtp, target.mtp_rewind, mtp=True))
        return steps

    def _decode(self) -> Rung:
        graph, kv_dtype, drafts = self.target.decoder, self.target.kv_dtype, self.target.mtp is not None
        scales = read_kv_scales(self.folder, self.family, self.config) if kv_dtype == "int8" else None
        module = Decoder(self.source, self.family, self.config, with_hidden=drafts, kv_scales=scales)
        read_when_used(module, self.folder)
        answer = partial(cached_answer, module, self.text, [self.embeds[:TOKENS]])
        logits, self.hidden = answer([(0, TOKENS)], torch.float32)
        return self._rung(graph, *self._cached(graph), logits, lambda: answer(CALLS, self.dtype)[0])

    def _draft(self) -> Rung:
        graph = self.target.mtp
        assert graph is not None
        module = Mtp(self.source, self.family, self.config)
        read_when_used(module, self.folder)
        answer = partial(cached_answer, module, self.text, [self.embeds[1:], self.hidden])
        logits, _ = answer([(0, TOKENS)], torch.float32)
        return self._rung(graph, *self._cached(graph, self.hidden), logits, lambda: answer(CALLS, self.dtype)[0])

    def _vision(self) -> Rung:
        graph, shape = self.target.vision, self.vision_shape
        assert graph is not None and shape is not None
        patches, grid = preprocess(page(), ImageSettings.from_folder(self.folder))
        feeds = vision_feeds(patches, [grid], shape)
        on_cuda = self.device.kind == "cuda"

        def answer(dtype: torch.dtype) -> NDArray[np.float32]:
            module = VisionEncoder(self.source, self.family, self.config, on_cuda=on_cuda, dtype=dtype)
            read_when_used(module, self.folder)
            embeds: Tensor = module(*(torch.from_numpy(feeds[name]) for name in graph_io.VISION_INPUTS))
            return embeds.numpy()

        expected, session = answer(torch.float32), self._profiled(graph)
        found = VisionSession(session).run(feeds)
        return self._rung(graph, found, placement(session), expected, partial(answer, self.dtype))

    def _rewind(self, graph: str, rewinding: str, *, mtp: bool = False) -> Rung:
        """Read the same drafts twice behind full windows, taken back in between: both times they must mean the same."""
        windows = self.text.mtp_windows if mtp else self.text.windows
        behind = max(window for window in windows if window) + STEPS
        decoder = self._decoder(open_session(self.folder / graph, self.device, self.options), mtp=mtp)
        session = self._profiled(rewinding)
        rewinder, cache = Rewinder(session, windows), decoder.new_cache(behind + STEPS)
        random = np.random.default_rng(1)
        for buffer in cache.buffers:
            large = 127 if buffer.dtype == "int8" else 1
            buffer.write(random.uniform(-large, large, buffer.shape).astype(np.float32))
        cache.lengths[:] = behind
        drafts, wanted = self.embeds[None, :STEPS], np.arange(STEPS)[None]
        hidden = Buffer.of(random.normal(size=drafts.shape), self.target.dtype, self.device) if mtp else None
        kept = rewinder.keep(cache, STEPS)
        first = decoder.run(cache, drafts, wanted, hidden).logits
        rewinder.rewind(cache, kept, STEPS)
        again = decoder.run(cache, drafts, wanted, hidden).logits
        return self._rung(rewinding, again, placement(session), first)

    def _cached(
        self, graph: str, hidden: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], list[tuple[str, str]]]:
        """The same logits by a graph, a prompt, a few tokens and then single ones, and where its nodes ran."""
        session = self._profiled(graph)
        decoder = self._decoder(session, mtp=hidden is not None)
        embeds = self.embeds[:TOKENS] if hidden is None else self.embeds[1:]
        cache, logits = decoder.new_cache(TOKENS), []
        for start, stop in CALLS:
            previous = None if hidden is None else Buffer.of(hidden[None, start:stop], self.target.dtype, self.device)
            wanted = np.arange(stop - start)[None]
            logits.append(decoder.run(cache, embeds[None, start:stop], wanted, previous).logits[0])
        return np.concatenate(logits), placement(session)

    def _decoder(self, session: onnxruntime.InferenceSession, *, mtp: bool = False) -> DecoderSession:
        return DecoderSession.of(session, self.text, self.target, self.device, self.head, mtp=mtp)

    def _wanted(self, graph: str) -> bool:
        """Whether a graph is to be held: with float activations one that rounds them by itself."""
        return not self.in_float or "MatMulNBits" in self._operators(graph)

    def _operators(self, graph: str) -> Counter[str]:
        """Nodes of the file, by operator."""
        return Counter(node.op_type for node in onnx.load(self.folder / graph, load_external_data=False).graph.node)

    def _profiled(self, graph: str) -> onnxruntime.InferenceSession:
        changed = _in_float(self.folder / graph) if self.in_float else None
        options = replace(self.options, profile=self.profiles)
        return open_session(self.folder / graph, self.device, options, changed=changed)

    def _rung(
        self,
        graph: str,
        found: NDArray[np.float32],
        ran: list[tuple[str, str]],
        expected: NDArray[np.float32],
        rounded: Callable[[], NDArray[np.float32]] | None = None,
    ) -> Rung:
        """Compare. rounded: the eager module's answer in the target's own dtype; None for graphs that move bytes."""
        operators = self._operators(graph)
        providers = Counter(provider.removesuffix("ExecutionProvider") for _, provider in ran)
        tolerance = self._tolerance(graph, operators) if rounded else EXACT
        if rounded and self.dtype != torch.float32:
            tolerance = max(tolerance, ROUNDING * difference(rounded(), expected))
        error = difference(found, expected)
        return Rung(graph, self.in_float, error, tolerance, dict(operators.most_common()), dict(providers))

    def _tolerance(self, graph: str, operators: Counter[str]) -> float:
        """What a module's graph may be off where it computes in float32."""
        target = self.target
        kinds = [VISION if graph == target.vision else EXACT]
        if not target.exact and operators["MatMulNBits"]:
            kinds.append(INT8_ACTIVATIONS)
        if target.kv_dtype == "int8" and graph == target.decoder:
            kinds.append(INT8_KV)
        return max(kinds)

    def _memory(self) -> float | None:
        """MiB as `Verification` counts them; ONNX Runtime keeps a card's memory until its session ends."""
        if self.device.kind == "cuda":
            return read_card(self.device.index).used / 2**20
        return peak_mib()


def _in_float(graph: Path) -> bytes:
    """A graph whose packed products keep their activations as they are."""
    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = ops.EXACT
    return model.SerializeToString()


def page() -> Image.Image:
    """A small page of text: on noise a trained tower magnifies every rounding."""
    image = Image.new("L", PAGE, 255)
    lines = (f"{chr(65 + line)} {2**line * 37 % 10_000:04d} - {line * 29 % 100:02d}" for line in range(12))
    ImageDraw.Draw(image).multiline_text((8, 6), "\n".join(lines), fill=0)
    return image


def _about(device: Device, target: manifest.Target, rungs: list[Rung]) -> str:
    """The kind of graphs, the card or the processor, and the versions."""
    where = f"{platform.machine()} with {os.cpu_count()} cores"
    if device.kind == "cuda":
        card = read_card(device.index)
        where = f"{card.name} with {card.total / 2**30:.1f} GiB"
    rounded = any(rung.in_float for rung in rungs)
    activations = f"{target.dtype} activations{', int8 in packed products' if rounded else ''}"
    packages = f"onnxruntime {onnxruntime.__version__}, torch {version('torch')}"
    return f"{activations}, {target.kv_dtype} KV cache; {where}, Python {platform.python_version()}, {packages}"
