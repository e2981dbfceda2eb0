"""Speed and memory of all 64 layers of EXAONE 4.5 33B: loading, prompts, steps, batches, drafts.

Peak memory is compared with `quantize plan`. Weights are random codes and caches keep their initial values: the time of
a kernel depends on neither. Exports other than `stored` are stages of their own, as ONNX Runtime keeps the memory of
caches, and two kinds of caches would not fit.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.bench import BANDWIDTH, PRODUCT
from bench.gpu.figures import Figure
from bench.gpu.folders import TINY, VARIANTS, WHOLE, Variant, folder_of
from bench.gpu.memory import PeakMemory
from bench.gpu.stages.vision import LARGEST, LARGEST_TINY, image_feeds
from bench.scale.drafting import costs, time_calls
from bench.timing import Quartiles, timed
from console.files import read_object
from quantize.checkpoint.reader import open_checkpoint
from quantize.plan.architecture import read_architecture
from quantize.plan.plan import make_plan
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import prefill
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
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
    """Lengths of prompts; for each the lengths of chunks."""
    variants_prompts: dict[int, tuple[int, ...]]
    """The same for exports other than `stored`."""
    batch_context: int
    """Context of each sequence of a batch: a page, its question and an answer."""


RELEASED = Sizes(
    (32768, 16384, 4200, 128),
    (32, 16, 8, 4, 2, 1),
    {8192: (4096, 1024), 1024: (1024,), 32768: (4096,)},
    {8192: (4096,)},
    4200,
)
MINIATURE = Sizes((200, 70), (4, 1), {100: (64, 16)}, {100: (64,)}, 70)
# The largest first: ONNX Runtime keeps the memory of a cache that is freed, and a smaller one fits into it.


def measure(bench: Bench) -> Iterator[Figure]:
    """Time a first question as in `runtime generate`, then its parts; for other exports only the parts."""
    shape = TINY if bench.tiny else WHOLE
    for variant in VARIANTS:
        if variant == bench.stage:
            yield from _variant(bench, variant)
            return
    started = time.perf_counter()
    folder = folder_of(bench, shape)
    yield Figure("make the folder", time.perf_counter() - started, "s", note="random codes")
    sizes = MINIATURE if bench.tiny else RELEASED
    yield from _first(bench, folder, sizes)
    yield from _variant(bench, "stored")


def _first(bench: Bench, folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """A first question: the largest image, a long prompt, an answer with drafts. Then the parts."""
    context, side = max(sizes.contexts), LARGEST_TINY if bench.tiny else LARGEST
    model = Model(folder, bench.device)
    with PeakMemory(bench) as memory:
        started = time.perf_counter()
        model.open_sessions(drafts=True)
        yield Figure("load decoder and MTP layer", time.perf_counter() - started, "s")
        yield Figure("memory after loading", memory.bytes / GIB, "GiB")
        model.vision.run(image_feeds(model, side, side))
        prompt = _prompt(model, context - ANSWER)
        list(generate(model, prompt, greedy, ANSWER, Drafts(3)))
    note = f"image of {side**2} patches, {context} tokens, three drafts"
    yield Figure("peak memory", memory.bytes / GIB, "GiB", note=note)
    if bench.on_gpu:
        plan = make_plan(folder, 80 * 10**9, context)
        planned = next(size for size in plan.footprints if size.precision.name == "4-bit").total["fp16"]
        yield Figure("peak memory / quantize plan", memory.bytes / planned, note=f"planned {planned / GIB:.2f} GiB")
    yield from _steps(bench, model, "stored, not captured", sizes)
    yield from _prompts(bench, model, "stored", sizes.prompts)
    yield from _drafts(bench, model, sizes.batch_context)
    del model
    gc.collect()


def _variant(bench: Bench, variant: Variant) -> Iterator[Figure]:
    """Loading, batches, steps and prompts of one export; on CUDA steps are captured as CUDA graphs."""
    sizes, folder = MINIATURE if bench.tiny else RELEASED, folder_of(bench, TINY if bench.tiny else WHOLE, variant)
    started = time.perf_counter()
    model = Model(folder, bench.device, Options(capture=bench.on_gpu))
    model.open_sessions()
    yield Figure(f"{variant}: load the decoder", time.perf_counter() - started, "s")
    name = f"{variant}, captured" if bench.on_gpu else variant
    yield from _batches(bench, model, name, sizes)
    yield from _steps(bench, model, name, sizes)
    if variant != "stored":  # `stored` has its prompts already: they are never captured
        yield from _prompts(bench, model, variant, sizes.variants_prompts)


def _steps(bench: Bench, model: Model, name: str, sizes: Sizes) -> Iterator[Figure]:
    """One token after contexts of several lengths."""
    for context in bench.within(list(sizes.contexts)):
        timing = _step(model, context, 1)
        share = bench.share_of(BANDWIDTH, _bytes_read(model) / timing.median)
        note = "weights alone; share of the bandwidth"
        yield Figure.of(f"{name}: step at {context} tokens", timing, share=share, note=note)


def _batches(bench: Bench, model: Model, name: str, sizes: Sizes) -> Iterator[Figure]:
    for batch in bench.within(list(sizes.batches)):
        timing = _step(model, sizes.batch_context, batch)
        note = f"{sizes.batch_context} tokens each; {timing.median / batch * 1e3:.2f} ms a token"
        yield Figure.of(f"{name}: step of {batch} sequences", timing, note=note)


def _step(model: Model, context: int, batch: int) -> Quartiles:
    """Time a step of a batch of sequences of one length; the lengths are set back each time."""
    cache = model.decoder.new_cache(context + 8, batch)
    embeds = _embeds(model, batch).reshape(batch, 1, -1)
    last = np.zeros((batch, 1), np.int64)

    def step() -> None:
        cache.lengths[:] = context
        model.decoder.run(cache, embeds, last)

    return timed(step)


def _prompts(bench: Bench, model: Model, name: str, prompts: dict[int, tuple[int, ...]]) -> Iterator[Figure]:
    """Prompts of several lengths, each in chunks of several lengths."""
    usual, tasks = model.chunking, [(length, chunk) for length, chunks in prompts.items() for chunk in chunks]
    for length, chunk in bench.within(tasks, seconds=0 if bench.tiny else 2):
        model.chunking = Chunking(chunk, min(usual.multiple, chunk))
        prompt = _prompt(model, length)
        with model.decoder.borrow_cache(length) as cache:
            timing = timed(partial(_read, model, cache, prompt), least=2, most=5, warm_up=1)
        operations = 2 * _parameters(model.folder) * length
        share = bench.share_of(PRODUCT, operations / timing.median)
        note = "products alone; share of the matrix rate"
        label = f"{name}: prompt of {length} tokens in chunks of {chunk}"
        yield Figure.rate(label, timing, length, "tokens/s", share=share, note=note)
    model.chunking = usual


def _read(model: Model, cache: KVCache, prompt: Prompt) -> None:
    cache.lengths[:] = 0
    prefill(model, cache, prompt)


def _drafts(bench: Bench, model: Model, context: int) -> Iterator[Figure]:
    """Costs of calls with drafts, in steps, and their speed relative to steps."""
    rounds = 3 if bench.tiny else 10
    for cost in costs(time_calls([model], context, rounds)[0]):
        note = f"draft {cost.draft}, keep windows {cost.keep}, rewind {cost.rewind} steps"
        yield Figure.of(f"drafts: checking {cost.drafts}", cost.check, "steps", note=note)
        pays = "never pays" if cost.pays_from is None else f"pays from acceptance {cost.pays_from:.2f}"
        name = f"drafts: {cost.drafts} at acceptance 0.8, speed against steps"
        yield Figure(name, cost.speed(0.8), note=pays)


def _prompt(model: Model, tokens: int) -> Prompt:
    return Prompt(np.zeros(tokens, np.int64), _embeds(model, tokens))


def _embeds(model: Model, tokens: int) -> NDArray[np.float32]:
    """Embeddings [T, H] of random tokens."""
    return model.embed_tokens(np.random.default_rng(0).integers(model.manifest.text.vocab_size, size=tokens))


def _is_read(name: str) -> bool:
    """Whether a step reads a tensor: those of the decoder's layers and the head."""
    return "language_model.layers." in name or name.startswith("lm_head.")


def _bytes_read(model: Model) -> int:
    """Bytes of weights that a step reads; blocks of 32 repeat scales."""
    block, size = model.target.block_size or GROUP, 0
    for tensor in open_checkpoint(model.folder).tensors.values():
        repeats = GROUP // block if tensor.name.endswith("_scale") and not tensor.name.startswith("lm_head.") else 1
        size += _is_read(tensor.name) * tensor.nbytes * repeats
    return size


def _parameters(folder: Path) -> int:
    """Number of weights that every token of a prompt is multiplied with: without the head, which reads the last one."""
    shapes = read_architecture(read_object(folder / "config.json")).shapes
    return sum(math.prod(shape) for name, shape in shapes.items() if _is_read(name) and not name.startswith("lm_head."))
