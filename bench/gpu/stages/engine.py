"""Many requests at once, at 33 B: tokens a second, time to the first token, and what a long prompt stalls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.gpu.figures import Figure
from bench.gpu.folders import TINY, WHOLE, folder_of
from bench.gpu.memory import PeakMemory
from bench.serve.runners import OneAfterAnother, Task, Together
from bench.serve.stall import ANSWERS, measure_stall
from runtime.engine.cache_plan import plan_cache
from runtime.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.gpu.bench import Bench

COUNTS, COUNTS_TINY = (16, 8, 4, 2, 1), (8, 1)
SIZES, SIZES_TINY = (1024, 64), (100, 16)  # tokens of a prompt and of its answer
LONG, LONG_TINY = 8192, 512  # tokens of the prompt that comes late
GIB = 2**30


def measure(bench: Bench) -> Iterator[Figure]:
    """Plan the cache as a server does, answer 1 to 16 requests, then let a long prompt come."""
    model = Model(folder_of(bench, TINY if bench.tiny else WHOLE), bench.device)
    length, tokens = SIZES_TINY if bench.tiny else SIZES
    counts, long = (COUNTS_TINY, LONG_TINY) if bench.tiny else (COUNTS, LONG)
    context, vocabulary = 2 * long, model.manifest.text.vocab_size
    with PeakMemory(bench) as memory:
        plan = plan_cache(model, max(counts), context)
        yield Figure(f"KV cache of {plan.rows} rows of {plan.context} tokens", plan.bytes / GIB, "GiB")
        engine, random = Together("engine", model, 0, plan.rows, context), np.random.default_rng(0)

        def task(count: int) -> Task:
            return Task(random.integers(vocabulary, size=(count, length)).tolist(), tokens)

        engine.turn(task(2))  # to warm up
        alone = OneAfterAnother(model, 0).turn(task(2))
        yield Figure("one after another", alone.rate, "tokens/s", note=f"prompts of {length}, answers of {tokens}")
        for count in bench.within(list(counts), seconds=0 if bench.tiny else 5):
            turn = engine.turn(task(count))
            yield Figure(f"{count} at once", turn.rate, "tokens/s", note=f"{turn.rate / alone.rate:.2f} times as fast")
            yield Figure(f"{count} at once: first token", turn.first * 1e3, "ms")
            note = f"{turn.outside:.1%} outside the decoder's session"
            yield Figure(f"{count} at once: a step of all", turn.step * 1e3, "ms", note=note)
        stall = measure_stall(engine, 0, long, vocabulary)
        note = f"{stall.alone * 1e3:.1f} ms before, read in {stall.reading * 1e3:.0f} ms"
        name = f"longest gap in {ANSWERS} answers while a prompt of {long} tokens is read"
        yield Figure(name, stall.longest * 1e3, "ms", note=note)
    yield Figure("peak memory", memory.bytes / GIB, "GiB")
