"""One check for each kind of graph.

Decoder and MTP layer are given a prompt, a few tokens in one call and then single tokens; all logits are compared. A
rewind graph was not traced from a module: reading the same drafts again after it must give the same logits.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.verification.inputs import CALLS, STEPS, TOKENS, page
from export.verification.reference import relative_error
from export.verification.report import Check
from export.verification.tolerances import EXACT, tolerance
from runtime.inputs.images import ImageSettings, preprocess
from runtime.inputs.vision import VisionSession, vision_feeds
from runtime.ort import graph_io
from runtime.ort.buffer import Buffer
from runtime.ort.cache_rollback import CacheRollback
from runtime.ort.sessions import placement

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnxruntime
    from numpy.typing import NDArray
    from torch import Tensor

    from export.verification.graphs import Graphs


def all_checks(graphs: Graphs) -> list[Callable[[], Check]]:
    """The checks of a target, to be called in this order; with float32 activations only of graphs that round them."""
    target = graphs.target
    compared: list[tuple[str | None, Callable[[Graphs], Check]]] = [
        (target.vision, check_vision),
        (target.decoder, check_decoder),
        (target.mtp, check_mtp),
        (target.rewind, check_rewind),
        (target.mtp_rewind, partial(check_rewind, mtp=True)),
    ]
    return [
        partial(check, graphs)
        for graph, check in compared
        if graph is not None and (not graphs.float32 or graphs.rounds_activations(graph))
    ]


def check_vision(graphs: Graphs) -> Check:
    """Compare the embeddings of a page."""
    graph, shape = graphs.target.vision, graphs.manifest.vision
    assert graph is not None and shape is not None
    patches, grid = preprocess(page(), ImageSettings.from_folder(graphs.folder))
    feeds = vision_feeds(patches, [grid], shape)

    def expected(dtype: torch.dtype) -> NDArray[np.float32]:
        inputs = (torch.from_numpy(feeds[name]) for name in graph_io.VISION_INPUTS)
        embeds: Tensor = graphs.vision_module(dtype)(*inputs)
        return embeds.numpy()

    session = graphs.open(graph)
    embeds = VisionSession(session).run(feeds)
    return _compare(graphs, graph, session, embeds, expected)


def check_decoder(graphs: Graphs) -> Check:
    """Compare logits."""

    def expected(dtype: torch.dtype) -> NDArray[np.float32]:
        if dtype == torch.float32:
            return graphs.expected_logits_and_hidden[0]
        return graphs.decoder_module(CALLS, dtype)[0]

    session, logits = _run_calls(graphs, graphs.target.decoder, graphs.embeds[:TOKENS])
    return _compare(graphs, graphs.target.decoder, session, logits, expected)


def check_mtp(graphs: Graphs) -> Check:
    """Compare logits of the MTP layer over the hidden states of the PyTorch decoder."""
    graph = graphs.target.mtp
    assert graph is not None

    def expected(dtype: torch.dtype) -> NDArray[np.float32]:
        return graphs.mtp_module([(0, TOKENS)] if dtype == torch.float32 else CALLS, dtype)[0]

    session, logits = _run_calls(graphs, graph, graphs.embeds[1:], graphs.hidden)
    return _compare(graphs, graph, session, logits, expected)


def check_rewind(graphs: Graphs, *, mtp: bool = False) -> Check:
    """Read the same drafts twice after full windows, and take them back in between: the logits must be the same."""
    target, text = graphs.target, graphs.manifest.text
    graph, rewind = (target.mtp, target.mtp_rewind) if mtp else (target.decoder, target.rewind)
    windows = text.mtp_windows if mtp else text.windows
    assert graph is not None and rewind is not None
    length = max(window for window in windows if window) + STEPS
    decoder = graphs.decoder(graphs.open(graph, profile=False), mtp=mtp)
    session = graphs.open(rewind)
    rollback, cache = CacheRollback(session, windows), decoder.new_cache(length + STEPS)
    random = np.random.default_rng(1)
    for buffer in cache.buffers:
        largest = 127 if buffer.dtype == "int8" else 1
        buffer.write(random.uniform(-largest, largest, buffer.shape).astype(np.float32))
    cache.lengths[:] = length
    drafts, positions = graphs.embeds[None, :STEPS], np.arange(STEPS)[None]
    hidden = Buffer.from_array(random.normal(size=drafts.shape), target.dtype, graphs.device) if mtp else None
    saved = rollback.save(cache, STEPS)
    first = decoder.run(cache, drafts, positions, hidden).logits
    rollback.roll_back(cache, saved, STEPS)
    again = decoder.run(cache, drafts, positions, hidden).logits
    return _check(graphs, rewind, session, relative_error(again, first), EXACT)


def _run_calls(
    graphs: Graphs, graph: str, embeds: NDArray[np.float32], hidden: NDArray[np.float32] | None = None
) -> tuple[onnxruntime.InferenceSession, NDArray[np.float32]]:
    """Run all calls through a decoder graph, or an MTP graph over hidden states; its session and logits [T, V]."""
    session = graphs.open(graph)
    decoder = graphs.decoder(session, mtp=hidden is not None)
    cache, logits = decoder.new_cache(TOKENS), []
    for start, stop in CALLS:
        read = (
            hidden
            if hidden is None
            else Buffer.from_array(hidden[None, start:stop], graphs.target.dtype, graphs.device)
        )
        positions = np.arange(stop - start)[None]
        logits.append(decoder.run(cache, embeds[None, start:stop], positions, read).logits[0])
    return session, np.concatenate(logits)


def _compare(
    graphs: Graphs,
    graph: str,
    session: onnxruntime.InferenceSession,
    values: NDArray[np.float32],
    expected: Callable[[torch.dtype], NDArray[np.float32]],
) -> Check:
    """Compare with a PyTorch module. expected: its outputs when it computes in a dtype."""
    exact = expected(torch.float32)
    rounding = None if graphs.dtype == torch.float32 else relative_error(expected(graphs.dtype), exact)
    allowed = tolerance(
        vision=graph == graphs.target.vision,
        int8_activations=not graphs.target.exact and graphs.rounds_activations(graph),
        int8_kv=graphs.target.kv_dtype == "int8" and graph == graphs.target.decoder,
        rounding_error=rounding,
    )
    return _check(graphs, graph, session, relative_error(values, exact), allowed)


def _check(graphs: Graphs, graph: str, session: onnxruntime.InferenceSession, error: float, allowed: float) -> Check:
    """Make the check of a graph whose session has run."""
    nodes = Counter(provider.removesuffix("ExecutionProvider") for _, provider in placement(session))
    return Check(graph, graphs.float32, error, allowed, dict(graphs.operators(graph).most_common()), dict(nodes))
