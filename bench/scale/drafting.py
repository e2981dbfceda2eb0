"""Time of each part of a call with drafts, relative to a plain step, and the acceptance from which drafts pay.

Calls are timed at the widths of EXAONE 4.5 33B for two depths in turns; 64 layers are on the line through both.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from bench.provenance import provenance
from bench.scale.folders import RELEASED, shortened
from bench.scale.quantized import make_quantized
from bench.timing import Quartiles
from console.files import read_object
from console.progress import track
from export import export
from runtime.model import Model
from runtime.ort.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.ort.cache import KVCache

COUNTS = (1, 2, 3)  # numbers of drafts
DEPTHS = (4, 8)  # three of four layers have windows in both, as in the release
RELEASED_DEPTH = 64
CONTEXTS = (300, 4352)  # tokens in the cache; windows of 4096 are full at the second
_WARM_UP = 3  # rounds that are not counted: they bind buffers and fill caches


@dataclass(frozen=True)
class Calls:
    """Seconds of each kind of call, [rounds] each; all but steps by their number of drafts n.

    All kinds are timed in every round, so that calls of a round see the same load of the machine.
    """

    step: NDArray[np.float64]
    """The decoder reads one token."""
    draft: dict[int, NDArray[np.float64]]
    """The MTP layer drafts n tokens, then rewinds its own n - 1."""
    check: dict[int, NDArray[np.float64]]
    """The decoder reads n + 1 tokens."""
    keep: dict[int, NDArray[np.float64]]
    """The windows before these tokens are kept."""
    rewind: dict[int, NDArray[np.float64]]
    """The decoder rewinds n tokens."""


@dataclass(frozen=True)
class Cost:
    """Cost of each part of a call with drafts, in steps."""

    drafts: int
    """Drafts a call."""
    draft: Quartiles
    check: Quartiles
    keep: Quartiles
    rewind: Quartiles
    """Only in calls with a rejected draft."""

    def speed(self, acceptance: float) -> float:
        """Speed relative to plain steps. acceptance: probability of a draft, if those before it are accepted."""
        parts = self.draft.median + self.check.median + self.keep.median
        return self.tokens(acceptance) / (parts + (1 - acceptance**self.drafts) * self.rewind.median)

    def tokens(self, acceptance: float) -> float:
        """Mean tokens a call at an acceptance."""
        return float(sum(acceptance**n for n in range(self.drafts + 1)))

    @property
    def pays_from(self) -> float | None:
        """The acceptance from which drafts pay; None if not even 1 is enough."""
        return next((a for a in np.linspace(0, 1, 1001) if self.speed(a) >= 1), None)


def time_calls(models: Sequence[Model], tokens: int, rounds: int) -> list[Calls]:
    """Time every kind of call of each model, all in turns. The caches hold `tokens` random entries."""
    timers = [_Timer(model, tokens) for model in models]
    taken: list[dict[tuple[str, int], list[float]]] = [{key: [] for key in timer.calls} for timer in timers]
    for number in track(range(_WARM_UP + rounds), "timing"):
        for timer, times in zip(timers, taken, strict=True):
            for key, call in timer.calls.items():
                timer.reset()
                start = perf_counter()
                call()
                if number >= _WARM_UP:
                    times[key].append(perf_counter() - start)
    return [_calls({key: np.array(values) for key, values in times.items()}) for times in taken]


def deeper(shallow: Calls, deep: Calls, layers: tuple[int, int], wanted: int) -> Calls:
    """Extrapolate calls to `wanted` layers, from two models that were timed in the same rounds.

    layers: of the shallow and the deep model. Head and MTP layer do not grow with the depth.
    """
    steps = (wanted - layers[0]) / (layers[1] - layers[0])

    def at(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        return low + steps * (high - low)

    pairs = ((shallow.check, deep.check), (shallow.keep, deep.keep), (shallow.rewind, deep.rewind))
    check, keep, rewind = ({n: at(low[n], high[n]) for n in COUNTS} for low, high in pairs)
    return Calls(at(shallow.step, deep.step), shallow.draft, check, keep, rewind)


def costs(calls: Calls) -> list[Cost]:
    """For each number of drafts: the parts divided by the step of their round."""
    parts = (calls.draft, calls.check, calls.keep, calls.rewind)
    return [Cost(n, *(Quartiles.of(part[n] / calls.step) for part in parts)) for n in COUNTS]


def table(columns: str, rows: Sequence[tuple[str, Sequence[Cost]]]) -> list[str]:
    """A Markdown table of costs. columns: names of the first columns; rows: their cells, and the costs."""
    head = (
        f"| {columns} | drafts | draft | check | keep windows | rewind | drafts pay from, tokens a call (acceptance) "
        "| speed at acceptance 0.8 | at 1 |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for cells, by_count in rows:
        for cost in by_count:
            least = cost.pays_from
            pays = "never" if least is None else f"{cost.tokens(least):.2f} ({least:.2f})"
            lines.append(
                f"| {cells} | {cost.drafts} | {cost.draft} | {cost.check} | {cost.keep} | {cost.rewind} "
                f"| {pays} | {cost.speed(0.8):.2f} | {cost.speed(1):.2f} |"
            )
    return lines


class _Timer:
    """A model with filled caches, and the calls that are timed."""

    def __init__(self, model: Model, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        drafter, width = model.drafter, model.manifest.text.hidden_size
        capacity = tokens + max(COUNTS) + 1
        self._caches = [session.new_cache(capacity) for session in (model.decoder, drafter.session)]
        random = np.random.default_rng(0)
        for cache in self._caches:
            for buffer in cache.buffers:  # else it is one page of zeros, which costs nothing to read
                buffer.write(random.integers(-8, 8, buffer.shape, np.int8))
        self._embeds = model.embed_tokens(random.integers(0, model.manifest.text.vocab_size, max(COUNTS) + 1))
        self._hidden = Buffer.from_array(random.normal(size=(1, 1, width)), model.target.dtype, model.device)
        self.reset()
        self._kept = {n: drafter.decoder_rollback.save(self._cache, n + 1) for n in COUNTS}
        # In the order of an answer, for the call before decides what is in the processor's cache: steps follow steps.
        kinds = {"draft": self._draft, "keep": self._keep, "check": self._check, "rewind": self._rewind}
        self.calls = {(kind, n): partial(call, n) for n in COUNTS for kind, call in kinds.items()}
        self.calls |= {(kind, 0): partial(self._check, 0) for kind in ("before", "check")}

    @property
    def _cache(self) -> KVCache:
        return self._caches[0]

    def reset(self) -> None:
        """Set the lengths of both caches back."""
        for cache in self._caches:
            cache.lengths[:] = self._tokens

    def _draft(self, drafts: int) -> None:
        embed, known = self._model.embed_tokens, self._embeds[:1]
        self._model.drafter.draft(self._caches[1], known, self._hidden, drafts, embed)

    def _check(self, drafts: int) -> None:
        self._model.decoder.run(self._cache, self._embeds[None, : drafts + 1], np.arange(drafts + 1)[None])

    def _keep(self, drafts: int) -> None:
        self._model.drafter.decoder_rollback.save(self._cache, drafts + 1)

    def _rewind(self, drafts: int) -> None:
        self._cache.lengths += np.int32(drafts + 1)  # as if the decoder had read them
        self._model.drafter.decoder_rollback.roll_back(self._cache, self._kept[drafts], drafts)


def _calls(times: dict[tuple[str, int], NDArray[np.float64]]) -> Calls:
    kinds = ("draft", "check", "keep", "rewind")
    return Calls(times["check", 0], *({n: times[kind, n] for n in COUNTS} for kind in kinds))


def time_released(rounds: int, seed: int) -> list[tuple[str, list[Cost]]]:
    """Costs at each depth and context, and computed for the release: rows of the table."""
    rows: list[tuple[str, list[Cost]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / f"{layers}-layers" for layers in DEPTHS]
        for folder, layers in zip(folders, DEPTHS, strict=True):
            make_quantized(shortened(read_object(RELEASED), layers, 1), folder, sparse=False, seed=seed)
            export(folder, "cpu")
        models = [Model(folder, "cpu") for folder in folders]
        for tokens in CONTEXTS:
            shallow, deep = time_calls(models, tokens, rounds)
            released = deeper(shallow, deep, DEPTHS, RELEASED_DEPTH)
            rows += [(f"{n} | {tokens}", costs(calls)) for n, calls in zip(DEPTHS, (shallow, deep), strict=True)]
            rows.append((f"{RELEASED_DEPTH}, computed | {tokens}", costs(released)))
    return rows


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Repetitions of each call.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Time each part of a call with drafts; print from which acceptance drafts pay."""
    print(*table("layers | context", time_released(rounds, seed)), sep="\n")
    print(f"\n{provenance(f'python -m bench.scale drafting --rounds {rounds} --seed {seed}')}")
