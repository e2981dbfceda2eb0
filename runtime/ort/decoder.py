"""The decoder graph, or that of the MTP layer, on a device: tokens in, logits out, the KV cache extended in place.

A step moves the embedded tokens, their number and the logits between host and device, nothing else.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from runtime.ort import graph_io
from runtime.ort.cache import KVCache, cache_bytes
from runtime.ort.huge_pages import HUGE, use_huge_pages
from runtime.ort.sessions import HOST, Buffer, Device, itemsize, map_stored, memory_for
from runtime.sizes import buffer_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.ort.manifest import Target, Text

_KEPT = 16  # calls of up to this many tokens keep their bindings: steps, and the checking of drafts
_SMALLER = "shorten the prompt, lower --max-new-tokens, or export with --kv-bits 8 where it was not"
_CAPTURES = itertools.count(1)
_CAPACITY_STEP = 1024  # tokens, on a card: caches of similar length are one, or take each other's place in the pool


def load_head(folder: Path, target: Target, device: Device) -> dict[str, Buffer]:
    """Weights of the head that the graphs of a target take as inputs, by name; none where they are initializers."""
    with memory_for(f"the head of {folder}", "quantize to fewer bits"):
        return {name: Buffer.of(map_stored(folder, data), data.dtype, device) for name, data in target.head.items()}


class Decoded(NamedTuple):
    """What a call gives.

    logits: float32 [B, L, V]. hidden: [B, T, H] behind the last norm, on the device; None where the graph has
    neither an MTP layer to feed nor an int8 cache. It is overwritten by the next call of as many tokens.
    """

    logits: NDArray[np.float32]
    hidden: Buffer | None


@dataclass
class _Call:
    """A shape of call over one cache: every input and output has its place, so that a step writes only what changed.

    thread: the thread that captured this call as a CUDA graph, which is the only one that can replay it; None where it
    is not captured.
    """

    binding: ort.IOBinding
    options: ort.RunOptions
    thread: threading.Thread | None
    embeds: Buffer
    seqlens_k: Buffer
    total: Buffer
    index: Buffer
    logits: Buffer
    hidden: Buffer | None
    wanted: NDArray[np.int64] | None = None  # what `index` holds


class DecoderSession:
    """A graph with a KV cache.

    weights: those that are inputs, by name. capture: the session was opened to replay single steps as CUDA graphs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        text: Text,
        dtype: str,
        kv_dtype: str,
        device: Device,
        weights: Mapping[str, Buffer],
        *,
        capture: bool = False,
    ) -> None:
        self._session = session
        self._text, self._dtype, self._kv_dtype, self._device = text, dtype, kv_dtype, device
        self._weights, self._capture = weights, capture
        self._spare: KVCache | None = None
        # Bindings to a cache's buffers; they go when the cache goes. None of them may hold on to the cache itself.
        self._calls: WeakKeyDictionary[KVCache, dict[tuple[int, int], _Call]] = WeakKeyDictionary()
        self._has_hidden = graph_io.HIDDEN in {output.name for output in session.get_outputs()}

    @classmethod
    def of(
        cls,
        session: ort.InferenceSession,
        text: Text,
        target: Target,
        device: Device,
        head: Mapping[str, Buffer],
        *,
        mtp: bool = False,
        capture: bool = False,
    ) -> DecoderSession:
        """The session of a target's decoder, or of its MTP layer, whose cache is never int8. head: of `load_head`."""
        kv_dtype = target.dtype if mtp else target.kv_dtype
        windows = text.mtp_windows if mtp else text.windows
        shape = replace(text, windows=buffer_limits(windows, target.kv_layout))
        return cls(session, shape, target.dtype, kv_dtype, device, head, capture=capture)

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """Buffers for `batch` sequences of up to `capacity` tokens each."""
        size = cache_bytes(self._text, batch, capacity, itemsize(self._kv_dtype))
        with memory_for(f"the KV cache of {capacity} tokens, {size / 2**20:.0f} MiB", _SMALLER):
            cache = KVCache(self._text, self._dtype, self._kv_dtype, self._device, capacity, batch)
        if self._device.kind == "cpu" and size >= HUGE:
            use_huge_pages()
        if self._capture:
            # To capture a step, ONNX Runtime runs it several times, and each would push rows out of a full window.
            step = np.zeros((batch, 1, self._text.hidden_size), np.float32)
            self.run(cache, step, np.zeros((batch, 1), np.int64))
            cache.lengths[:] = 0
        return cache

    @contextmanager
    def borrow_cache(self, capacity: int) -> Iterator[KVCache]:
        """An empty cache of one sequence of at least `capacity` tokens: the last one returned, where it is as long.

        On a card, ONNX Runtime keeps the memory of a cache that is given up, and a longer one does not fit there.
        While one is lent, another borrower gets another.
        """
        cache, self._spare = self._spare, None
        if cache is None or cache.capacity < capacity:
            cache = None  # its memory is given up before more is asked for
            cache = self.new_cache(self._coarse(capacity))
        cache.lengths[:] = 0
        try:
            yield cache
        finally:
            if self._spare is None or self._spare.capacity < cache.capacity:
                self._spare = cache

    def _coarse(self, capacity: int) -> int:
        if self._device.kind == "cpu":
            return capacity
        return max(capacity, min(-(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP, self._text.context))

    def run(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        wanted: NDArray[np.int64],
        previous_hidden: Buffer | None = None,
    ) -> Decoded:
        """Extend the cache by embeds [B, T, H] and predict at the `wanted` [B, L] of these T positions.

        A batch of several sequences takes one token each; a prompt goes into its `cache.row`. previous_hidden
        [B, T, H]: what the MTP layer reads beside embeddings.
        """
        batch, tokens, _ = embeds.shape
        lengths = cache.lengths + np.int32(tokens)
        if batch != len(cache.lengths) or (batch > 1 and tokens > 1):
            raise ValueError(f"{batch} sequences of {tokens} tokens do not fit a cache of {len(cache.lengths)}")
        if lengths.max() > cache.capacity:
            raise ValueError(f"{lengths.max()} tokens do not fit a cache of {cache.capacity}")
        advice = f"make its KV cache smaller: {_SMALLER}; or raise --memory-limit where it was given"
        with memory_for(f"a call of {tokens} tokens beside a KV cache of {cache.capacity}", advice):
            return self._run(cache, embeds, wanted, lengths, previous_hidden)

    def _run(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        wanted: NDArray[np.int64],
        lengths: NDArray[np.int32],
        previous_hidden: Buffer | None,
    ) -> Decoded:
        """The call itself. lengths: of the sequences after it."""
        call = self._call(cache, embeds.shape[1], wanted.shape[1])
        if call.thread not in (None, threading.current_thread()):
            raise RuntimeError("a captured step can only be replayed by the thread that captured it")
        call.embeds.write(embeds)
        call.seqlens_k.write(lengths - np.int32(1))
        if call.wanted is None or not np.array_equal(call.wanted, wanted):
            call.index.write(wanted)
            call.wanted = wanted.copy()
        # A captured step is replayed with the number it was captured with, which may be too large, not too small. Other
        # calls get the true one: by it attention knows a prompt, whose keys it takes as they are, not rounded to int8.
        call.total.write(np.array(lengths.max() if call.thread is None else cache.capacity, np.int32))
        if previous_hidden is not None:
            previous_hidden.bind_input(call.binding, graph_io.PREVIOUS_HIDDEN)
        self._session.run_with_iobinding(call.binding, call.options)
        cache.lengths[:] = lengths
        return Decoded(np.asarray(call.logits.read(), np.float32), call.hidden)

    def _call(self, cache: KVCache, tokens: int, selected: int) -> _Call:
        calls = self._calls.setdefault(cache, {})
        if (tokens, selected) in calls:
            return calls[tokens, selected]
        call = self._prepare(cache, tokens, selected)
        if tokens <= _KEPT:
            calls[tokens, selected] = call
        return call

    def _prepare(self, cache: KVCache, tokens: int, selected: int) -> _Call:
        batch, width, device = len(cache.lengths), self._text.hidden_size, self._device
        options = ort.RunOptions()
        # A row of a batch may be filled already.
        captured = self._capture and tokens == 1 == selected and not cache.lengths.any()
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", str(next(_CAPTURES) if captured else -1))
        call = _Call(
            binding=self._session.io_binding(),
            options=options,
            thread=threading.current_thread() if captured else None,
            embeds=Buffer.empty((batch, tokens, width), self._dtype, device),
            seqlens_k=Buffer.empty((batch,), "int32", device),
            total=Buffer.empty((), "int32", HOST),
            index=Buffer.empty((batch, selected), "int64", device),
            logits=Buffer.empty((batch, selected, self._text.vocab_size), "float32", device),
            hidden=Buffer.empty((batch, tokens, width), self._dtype, device) if self._has_hidden else None,
        )
        call.embeds.bind_input(call.binding, graph_io.INPUTS_EMBEDS)
        call.seqlens_k.bind_input(call.binding, graph_io.SEQLENS_K)
        call.total.bind_input(call.binding, graph_io.TOTAL_SEQUENCE_LENGTH)
        call.index.bind_input(call.binding, graph_io.LOGIT_INDEX)
        cache.rope_cos.bind_input(call.binding, graph_io.ROPE_COS)
        cache.rope_sin.bind_input(call.binding, graph_io.ROPE_SIN)
        for name, buffer in self._weights.items():
            buffer.bind_input(call.binding, name)
        layers = len(self._text.windows)
        for past, present, buffer in zip(
            graph_io.past_names(layers), graph_io.present_names(layers), cache.buffers, strict=True
        ):
            buffer.bind_input(call.binding, past)
            buffer.bind_output(call.binding, present)
        call.logits.bind_output(call.binding, graph_io.LOGITS)
        if call.hidden is not None:
            call.hidden.bind_output(call.binding, graph_io.HIDDEN)
        return call
