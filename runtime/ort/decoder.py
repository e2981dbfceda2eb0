"""Runs the decoder graph, or the MTP layer's, on a device: tokens in, logits out, the KV cache extended in place.

A step copies the embedded tokens, their number and the logits between host and device, and nothing else.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from console.errors import InputError
from runtime.ort import graph_io
from runtime.ort.buffer import Buffer
from runtime.ort.cache import KVCache
from runtime.ort.device import HOST, Device
from runtime.ort.huge_pages import HUGE, use_huge_pages
from runtime.ort.manifest import AGAIN
from runtime.ort.out_of_memory import report_failed_run, report_out_of_memory
from runtime.ort.sessions import require_inputs
from runtime.sizes import KvLayers, buffer_limits, logits_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.ort.manifest import Target, Text

_MAX_STEP = 16  # tokens; calls of up to so many keep their bindings: decode steps, and the checking of drafts
_SMALLER = "shorten the prompt, lower --max-new-tokens, or export with --kv-bits 8 where it was not"
_GRAPH_IDS = itertools.count(1)
_CAPACITY_STEP = 1024  # tokens; GPU caches of similar capacity are shared, or replace each other in the pool


def load_head(folder: Path, target: Target, device: Device) -> dict[str, Buffer]:
    """Load weights of the head that graphs take as inputs, by name; none where they are initializers."""
    with report_out_of_memory(f"the head of {folder}", "quantize to fewer bits"):
        return {name: Buffer.from_array(data.map(folder), data.dtype, device) for name, data in target.head.items()}


class Decoded(NamedTuple):
    """Results of a call."""

    logits: NDArray[np.float32]
    """[batch, positions, vocabulary]."""
    hidden: Buffer | None
    """[batch, tokens, hidden] after the last norm, on the device. The next call of as many tokens overwrites it.

    None where the graph has neither an MTP layer to feed nor an int8 cache.
    """


@dataclass
class Bindings:
    """Bound inputs and outputs for calls of one shape over one cache, so that a step writes only what changed."""

    binding: ort.IOBinding
    """Names of the graph, bound to the buffers below and to those of the cache."""
    options: ort.RunOptions
    """Which CUDA graph to replay, if any."""
    thread: threading.Thread | None
    """The thread that captured these calls as a CUDA graph, the only one that can replay it; None without capture."""
    embeds: Buffer
    """[batch, tokens, hidden]."""
    seqlens_k: Buffer
    """int32 [batch]."""
    total: Buffer
    """int32 scalar on the host."""
    index: Buffer
    """int64 [batch, positions]."""
    logits: Buffer
    """float32 [batch, positions, vocabulary]."""
    hidden: Buffer | None
    """[batch, tokens, hidden]."""
    positions: NDArray[np.int64] | None = None
    """Content of `index`; None before it is written."""


class DecoderSession:
    """The session of a target's decoder, or of its MTP layer, whose KV cache is never int8.

    head: weights from `load_head`. capture: the session was opened to replay single steps as CUDA graphs. bindings:
    for every cache that this session was called with, by tokens and positions of a call. They die with the cache.
    Raises InputError for a session whose inputs are not those of `text` and `target`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        text: Text,
        target: Target,
        device: Device,
        head: Mapping[str, Buffer],
        *,
        mtp: bool = False,
        capture: bool = False,
    ) -> None:
        limits = buffer_limits(text.mtp_windows if mtp else text.windows, target.kv_layout)
        self._layers = KvLayers(limits, text.kv_heads, text.head_dim)
        self._dtype, self._kv_dtype = target.dtype, target.dtype if mtp else target.kv_dtype
        self._require_shapes(session, text)
        self._session, self._text, self._device, self._head, self._capture = session, text, device, head, capture
        self._spare: KVCache | None = None
        self._has_hidden = graph_io.HIDDEN in {output.name for output in session.get_outputs()}
        self.bindings: WeakKeyDictionary[KVCache, dict[tuple[int, int], Bindings]] = WeakKeyDictionary()

    def _require_shapes(self, session: ort.InferenceSession, text: Text) -> None:
        """Raise InputError unless the graph takes the embeddings, caches and RoPE tables of runtime.json."""
        cache: Sequence[int | None] = (None, text.kv_heads, None, text.head_dim)
        layers = len(self._layers.limits)
        if graph_io.past_names(layers + 1)[-1] in {node.name for node in session.get_inputs()}:
            raise InputError(f"it has more layers than the {layers} of runtime.json; {AGAIN}")
        inputs = {
            graph_io.INPUTS_EMBEDS: (self._dtype, (None, None, text.hidden_size)),
            graph_io.ROPE_COS: (self._dtype, (None, text.head_dim // 2)),
            **dict.fromkeys(graph_io.past_names(layers), (self._kv_dtype, cache)),
        }
        require_inputs(session, inputs)

    def cache_bytes(self, capacity: int, batch: int = 1) -> int:
        """Bytes of keys and values of `batch` sequences of up to `capacity` tokens each."""
        return self._layers.bytes(capacity, np.dtype(self._kv_dtype).itemsize, batch)

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """Allocate buffers for `batch` sequences of up to `capacity` tokens each."""
        size = self.cache_bytes(capacity, batch)
        with report_out_of_memory(f"the KV cache of {capacity} tokens, {size / 2**20:.0f} MiB", _SMALLER):
            cache = KVCache(self._layers, self._text.rope, self._dtype, self._kv_dtype, self._device, capacity, batch)
        if self._device.kind == "cpu" and size >= HUGE:
            use_huge_pages()
        if self._capture:
            # To capture a step, ONNX Runtime runs it several times, and each would push rows out of a full window.
            step = np.zeros((batch, 1, self._text.hidden_size), np.float32)
            self.run(cache, step, np.zeros((batch, 1), np.int64))
            cache.lengths[:] = 0
        return cache

    def clear(self, cache: KVCache) -> None:
        """Empty a cache, or a row of one, whose keys or values may be NaN: on a GPU with zeros, as at the start."""
        cache.lengths[:] = 0
        if self._device.kind == "cpu":
            return
        for name, buffer in zip(graph_io.present_names(len(self._layers.limits)), cache.buffers, strict=True):
            buffer.clear(self._session.io_binding(), name)

    @contextmanager
    def borrow_cache(self, capacity: int) -> Iterator[KVCache]:
        """Lend an empty cache of one sequence with at least this capacity: the last one returned, where it fits.

        On a GPU, ONNX Runtime keeps the memory of a cache that was freed, and a longer one does not fit there.
        A second borrower at the same time gets another cache.
        """
        cache, self._spare = self._spare, None
        if cache is None or cache.capacity < capacity:
            cache = None  # frees its memory before more is allocated
            cache = self.new_cache(self._round_up(capacity))
        cache.lengths[:] = 0
        try:
            yield cache
        finally:
            if self._spare is None or self._spare.capacity < cache.capacity:
                self._spare = cache

    def _round_up(self, capacity: int) -> int:
        """Round a GPU cache's capacity up to a multiple of _CAPACITY_STEP, within the model's context."""
        if self._device.kind == "cpu":
            return capacity
        return max(capacity, min(-(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP, self._text.context))

    def run(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        previous_hidden: Buffer | None = None,
    ) -> Decoded:
        """Extend the cache by embeds [B, T, H] and predict at `positions` [B, L] of these T tokens.

        A batch of several sequences takes one token each; a prompt goes into its `cache.row`. previous_hidden
        [B, T, H]: what the MTP layer reads next to embeddings. Raises ValueError where the tokens do not fit the cache.
        """
        batch, tokens, _ = embeds.shape
        lengths = cache.lengths + np.int32(tokens)
        if batch != len(cache.lengths) or (batch > 1 and tokens > 1):
            raise ValueError(f"{batch} sequences of {tokens} tokens do not fit a cache of {len(cache.lengths)}")
        if lengths.max() > cache.capacity:
            raise ValueError(f"{lengths.max()} tokens do not fit a cache of {cache.capacity}")
        advice = f"make its KV cache smaller: {_SMALLER}; or raise --memory-limit where it was given"
        with report_out_of_memory(f"a call of {tokens} tokens over a KV cache of {cache.capacity}", advice):
            return self._run(cache, embeds, positions, lengths, previous_hidden)

    def _run(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        lengths: NDArray[np.int32],
        previous_hidden: Buffer | None,
    ) -> Decoded:
        """Make the call. lengths: tokens of the sequences after it."""
        bound = self._bound(cache, embeds.shape[1], positions.shape[1])
        if bound.thread not in (None, threading.current_thread()):
            raise RuntimeError("a captured step can only be replayed by the thread that captured it")
        bound.embeds.write(embeds)
        bound.seqlens_k.write(lengths - np.int32(1))
        if bound.positions is None or not np.array_equal(bound.positions, positions):
            bound.index.write(positions)
            bound.positions = positions.copy()
        # A captured step replays the total that it was captured with, which may be too large but not too small. Other
        # calls get the true total: attention recognizes a prompt by it, and reads its keys before int8 rounding.
        bound.total.write(np.array(lengths.max() if bound.thread is None else cache.capacity, np.int32))
        if previous_hidden is not None:
            previous_hidden.bind_input(bound.binding, graph_io.PREVIOUS_HIDDEN)
        with report_failed_run(f"a call of {embeds.shape[1]} tokens"):
            self._session.run_with_iobinding(bound.binding, bound.options)
        cache.lengths[:] = lengths
        return Decoded(np.asarray(bound.logits.read(), np.float32), bound.hidden)

    def _bound(self, cache: KVCache, tokens: int, positions: int) -> Bindings:
        """Bindings of a call's shape; kept for the next call where it is short."""
        kept = self.bindings.setdefault(cache, {})
        if (tokens, positions) in kept:
            return kept[tokens, positions]
        bound = self._bind(cache, tokens, positions)
        if tokens <= _MAX_STEP:
            kept[tokens, positions] = bound
        return bound

    def _bind(self, cache: KVCache, tokens: int, positions: int) -> Bindings:
        batch, width, device = len(cache.lengths), self._text.hidden_size, self._device
        options = ort.RunOptions()
        # Not captured in a cache that is filled, as a row of a batch may be: capturing runs the step several times.
        captured = self._capture and tokens == 1 == positions and not cache.lengths.any()
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", str(next(_GRAPH_IDS) if captured else -1))
        bound = Bindings(
            binding=self._session.io_binding(),
            options=options,
            thread=threading.current_thread() if captured else None,
            embeds=Buffer.empty((batch, tokens, width), self._dtype, device),
            seqlens_k=Buffer.empty((batch,), "int32", device),
            total=Buffer.empty((), "int32", HOST),
            index=Buffer.empty((batch, positions), "int64", device),
            logits=Buffer.empty(logits_shape(positions, self._text.vocab_size, batch), "float32", device),
            hidden=Buffer.empty((batch, tokens, width), self._dtype, device) if self._has_hidden else None,
        )
        layers = len(self._layers.limits)
        inputs = {
            graph_io.INPUTS_EMBEDS: bound.embeds,
            graph_io.SEQLENS_K: bound.seqlens_k,
            graph_io.TOTAL_SEQUENCE_LENGTH: bound.total,
            graph_io.LOGIT_INDEX: bound.index,
            graph_io.ROPE_COS: cache.rope_cos,
            graph_io.ROPE_SIN: cache.rope_sin,
            **self._head,
            **dict(zip(graph_io.past_names(layers), cache.buffers, strict=True)),
        }
        outputs = {
            graph_io.LOGITS: bound.logits,
            **({} if bound.hidden is None else {graph_io.HIDDEN: bound.hidden}),
            **dict(zip(graph_io.present_names(layers), cache.buffers, strict=True)),
        }
        for name, buffer in inputs.items():
            buffer.bind_input(bound.binding, name)
        for name, buffer in outputs.items():
            buffer.bind_output(bound.binding, name)
        return bound
