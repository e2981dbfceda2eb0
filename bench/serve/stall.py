"""What a long prompt costs the answers that are being generated when it comes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError

if TYPE_CHECKING:
    from bench.serve.runners import Together

ANSWERS = 4
STEPS = 16  # of the answers alone, before the prompt comes
LENGTH = 128  # tokens of an answer, more than steps while the prompt is read


@dataclass(frozen=True)
class Stall:
    """Seconds between two tokens of an answer."""

    alone: float
    """Before the prompt comes, the median."""
    longest: float
    """While it is read."""
    call: float
    """The longest call of the decoder meanwhile."""
    reading: float
    """Until the first token of the prompt's answer."""

    def __str__(self) -> str:
        return (
            f"at most {self.longest * 1e3:.0f} ms passed between two tokens of an answer ({self.alone * 1e3:.0f} ms "
            f"before; the longest call took {self.call * 1e3:.0f} ms), for {self.reading:.1f} s until it was read"
        )


def measure_stall(engine: Together, seed: int, prompt: int, vocabulary: int) -> Stall:
    """Let a prompt of so many tokens come while ANSWERS answers are generated."""
    random = np.random.default_rng(seed)
    running = [engine.submit(random.integers(vocabulary, size=16).tolist(), LENGTH) for _ in range(ANSWERS)]
    engine.work(until=lambda: all(len(answer.times) > STEPS for answer in running))
    came = engine.now()
    late = engine.submit(random.integers(vocabulary, size=prompt).tolist(), 1)
    engine.work(until=lambda: bool(late.times))
    alone = np.diff([time for time in running[-1].times if time < came])
    call = max(stop - start for start, stop in engine.session.calls if start > came)
    gaps = [b - a for answer in running for a, b in pairwise(answer.times) if b > came]
    engine.work()
    if any(answer.times[-1] < late.times[0] for answer in running):
        raise InputError(f"answers of {LENGTH} tokens ended before the prompt was read")
    return Stall(float(np.median(alone)), max(gaps), call, late.times[0] - came)
