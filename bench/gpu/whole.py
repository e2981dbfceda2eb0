"""The whole model at 33 B: loading, memory against `quantize plan`, prompts, steps, batches and drafts.

Weights are random codes and the cache is as it was created: a kernel's time depends on neither.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.drafting import costs, time_calls
from bench.gpu.card import BANDWIDTH, PRODUCT
from bench.gpu.figures import Figure, Timing, timed
from bench.gpu.folders import TINY, WHOLE, Variant, folder_of
from bench.gpu.memory import PeakMemory
from bench.gpu.vision import LARGEST, LARGEST_TINY, picture
from console.files import read_object
from quantize.checkpoint.reader import open_checkpoint
from quantize.plan.plan import make_plan
from quantize.plan.sizes import read_architecture
from runtime.decoding.forward import prefill
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.decoding.speculative import Drafts
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import Prompt
from runtime.sizes import Chunking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from bench.gpu.bench import Bench
    from runtime.ort.cache import KVCache

GIB = 2**30
ANSWER = 64  # tokens
GROUP = 128  # weights that share a scale as stored


@dataclass(frozen=True)
class Sizes:
    """Tokens and sequences to measure at."""

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    prompts: dict[int, tuple[int, ...]]
    """Lengths, and for each the lengths of chunks."""
    variants_prompts: dict[int, tuple[int, ...]]
    """The same for other variants."""
    batch_context: int
    """Of the batches: a page, its question and an answer."""


RELEASED = Sizes(
    (32768, 16384, 4200, 128),
    (32, 16, 8, 4, 2, 1),
    {8192: (4096, 1024), 1024: (1024,), 32768: (4096,)},
    {8192: (4096,)},
    4200,
)
MINIATURE = Sizes((200, 70), (4, 1), {100: (64, 16)}, {100: (64,)}, 70)
# The largest first: ONNX Runtime keeps the memory of a cache that is given up, and a smaller one fits into it.


def measure(bench: Bench) -> Iterator[Figure]:
    """A first question as `runtime generate` answers it; then part by part, steps launched and steps captured."""
    shape = TINY if bench.tiny else WHOLE
    started = time.perf_counter()
    folder = folder_of(bench, shape)
    yield Figure("make the folder", time.perf_counter() - started, "s", note="random codes in memory")
    sizes = MINIATURE if bench.tiny else RELEASED
    yield from _first(bench, folder, sizes)
    yield from measure_variant(bench, "stored")


def _first(bench: Bench, folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """As a user asks first: a picture of the largest size, a long prompt, an answer with drafts. Then part by part."""
    context, side = max(sizes.contexts), LARGEST_TINY if bench.tiny else LARGEST
    model = Model(folder, bench.device)
    with PeakMemory(bench) as memory:
        started = time.perf_counter()
        model.open_sessions(drafts=True)
        yield Figure("load decoder and MTP layer", time.perf_counter() - started, "s")
        yield Figure("memory after loading", memory.bytes / GIB, "GiB")
        model.vision.run(picture(model, side, side))
        prompt = _prompt(model, context - ANSWER)
        list(generate(model, prompt, greedy, ANSWER, Drafts(3)))
    note = f"picture of {side**2} patches, {context} tokens, three drafts"
    yield Figure("peak memory", memory.bytes / GIB, "GiB", note=note)
    if bench.on_gpu:
        plan = make_plan(folder, 80 * 10**9, context)
        planned = next(one for one in plan.footprints if one.choice.name == "4-bit").total["fp16"]
        yield Figure("peak memory, of quantize plan", memory.bytes / planned, note=f"planned {planned / GIB:.2f} GiB")
    yield from _steps(bench, model, "stored, not captured", sizes)
    yield from _prompts(bench, model, "stored", sizes.prompts)
    yield from _drafts(bench, model, sizes.batch_context)
    del model
    gc.collect()


def measure_variant(bench: Bench, variant: Variant) -> Iterator[Figure]:
    """Loading, batches, steps and prompts of one variant; steps captured as CUDA graphs, where there is CUDA."""
    sizes, folder = MINIATURE if bench.tiny else RELEASED, folder_of(bench, TINY if bench.tiny else WHOLE, variant)
    started = time.perf_counter()
    model = Model(folder, bench.device, Options(capture=bench.on_gpu))
    model.open_sessions()
    yield Figure(f"{variant}: load the decoder", time.perf_counter() - started, "s")
    name = f"{variant}, captured" if bench.on_gpu else variant
    yield from _batches(bench, model, name, sizes)
    yield from _steps(bench, model, name, sizes)
    if variant != "stored":  # whose prompts have been read before: they are never captured
        yield from _prompts(bench, model, variant, sizes.variants_prompts)


def _steps(bench: Bench, model: Model, name: str, sizes: Sizes) -> Iterator[Figure]:
    """One token after contexts of several lengths."""
    for context in bench.within(list(sizes.contexts)):
        timing = _step(model, context, 1)
        share = bench.share_of(BANDWIDTH, _bytes_read(model) / timing.median)
        note = "weights alone, of the bandwidth"
        yield Figure.of(f"{name}: step at {context} tokens", timing, share=share, note=note)


def _batches(bench: Bench, model: Model, name: str, sizes: Sizes) -> Iterator[Figure]:
    for batch in bench.within(list(sizes.batches)):
        timing = _step(model, sizes.batch_context, batch)
        note = f"{sizes.batch_context} tokens each; {timing.median / batch * 1e3:.2f} ms a token"
        yield Figure.of(f"{name}: step of {batch} sequences", timing, note=note)


def _step(model: Model, context: int, batch: int) -> Timing:
    """A step of each sequence at one length; what it adds is forgotten each time."""
    cache = model.decoder.new_cache(context + 8, batch)
    embeds = _embeds(model, batch).reshape(batch, 1, -1)
    wanted = np.zeros((batch, 1), np.int64)

    def step() -> None:
        cache.lengths[:] = context
        model.decoder.run(cache, embeds, wanted)

    return timed(step)


def _prompts(bench: Bench, model: Model, name: str, prompts: dict[int, tuple[int, ...]]) -> Iterator[Figure]:
    """Prompts of several lengths, each in chunks of several."""
    usual, tasks = model.chunking, [(length, chunk) for length, chunks in prompts.items() for chunk in chunks]
    for length, chunk in bench.within(tasks, seconds=0 if bench.tiny else 2):
        model.chunking = Chunking(chunk, min(usual.multiple, chunk))
        prompt = _prompt(model, length)
        with model.decoder.borrow_cache(length) as cache:
            timing = timed(partial(_read, model, cache, prompt), least=2, most=5, warm_up=1)
        operations = 2 * _parameters(model.folder) * length
        share = bench.share_of(PRODUCT, operations / timing.median)
        note = "products alone, of the matrix rate"
        label = f"{name}: prompt of {length} tokens in chunks of {chunk}"
        yield Figure.rate(label, timing, length, "tokens/s", share=share, note=note)
    model.chunking = usual


def _read(model: Model, cache: KVCache, prompt: Prompt) -> None:
    cache.lengths[:] = 0
    prefill(model, cache, prompt)


def _drafts(bench: Bench, model: Model, context: int) -> Iterator[Figure]:
    """What checking drafts costs, and what a call with drafts brings, against steps."""
    rounds = 3 if bench.tiny else 10
    for cost in costs(time_calls([model], context, rounds)[0]):
        check, note = cost.check, f"drafting {cost.draft}, keeping {cost.keep}, taking back {cost.rewind} steps"
        name = f"drafts: checking {cost.drafts}"
        yield Figure(name, check.median, "steps", check.low, check.high, rounds, note=note)
        pays = "never" if cost.pays_from is None else f"from {cost.pays_from:.0%} accepted"
        yield Figure(
            f"drafts: {cost.drafts} of which 80 % are accepted", cost.speed(0.8), "of steps", note=f"pays {pays}"
        )


def _prompt(model: Model, tokens: int) -> Prompt:
    return Prompt(np.zeros(tokens, np.int64), _embeds(model, tokens))


def _embeds(model: Model, tokens: int) -> NDArray[np.float32]:
    """Embeddings [T, H] of tokens drawn at random."""
    return model.embed_tokens(np.random.default_rng(0).integers(model.manifest.text.vocab_size, size=tokens))


def _is_read(name: str) -> bool:
    """Whether a step reads a tensor: of the decoder's layers or the head."""
    return "language_model.layers." in name or name.startswith("lm_head.")


def _bytes_read(model: Model) -> int:
    """Bytes of weights that a step reads, scales as often as blocks of 32 repeat them."""
    block, size = model.target.block_size or GROUP, 0
    for tensor in open_checkpoint(model.folder).tensors.values():
        repeats = GROUP // block if tensor.name.endswith("_scale") and not tensor.name.startswith("lm_head.") else 1
        size += _is_read(tensor.name) * tensor.nbytes * repeats
    return size


def _parameters(folder: Path) -> int:
    """Weights that every token of a prompt is multiplied with; the head is for the last one only."""
    shapes = read_architecture(read_object(folder / "config.json")).shapes
    return sum(math.prod(shape) for name, shape in shapes.items() if _is_read(name) and not name.startswith("lm_head."))
