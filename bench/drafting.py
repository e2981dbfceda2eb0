"""What drafts cost a loaded model, call by call, and from how many tokens a call they pay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from console.progress import track
from runtime.ort.sessions import Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.model import Model
    from runtime.ort.cache import KVCache

COUNTS = (1, 2, 3)
_WARM_UP = 3  # rounds that are not counted: they bind buffers and fill caches


@dataclass(frozen=True)
class Calls:
    """Seconds of each kind of call, [rounds] each. All kinds are timed in every round, so a round has one machine load.

    step: the decoder reads one token. Others by number of drafts n. draft: the MTP layer drafts n, and takes its own
    n - 1 back. check: the decoder reads n + 1 tokens. keep: its windows are kept for these. rewind: n are taken back.
    """

    step: NDArray[np.float64]
    draft: dict[int, NDArray[np.float64]]
    check: dict[int, NDArray[np.float64]]
    keep: dict[int, NDArray[np.float64]]
    rewind: dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        """Of values of any number."""
        return cls(*(float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))))

    def __str__(self) -> str:
        return f"{self.median:z.2f} ({self.low:z.2f}–{self.high:z.2f})"


@dataclass(frozen=True)
class Cost:
    """What each part of a call with so many drafts costs, in steps. Only a call with a rejected draft has a rewind."""

    drafts: int
    draft: Spread
    check: Spread
    keep: Spread
    rewind: Spread

    def speed(self, acceptance: float) -> float:
        """Against plain steps, where each draft behind accepted ones is accepted with this probability."""
        parts = self.draft.median + self.check.median + self.keep.median
        return self.tokens(acceptance) / (parts + (1 - acceptance**self.drafts) * self.rewind.median)

    def tokens(self, acceptance: float) -> float:
        """Tokens a call, of drafts that are accepted so."""
        return float(sum(acceptance**n for n in range(self.drafts + 1)))

    @property
    def pays_from(self) -> float | None:
        """The acceptance from which drafts pay; None where not even 1 is enough."""
        return next((a for a in np.linspace(0, 1, 1001) if self.speed(a) >= 1), None)


def time_calls(models: Sequence[Model], tokens: int, rounds: int) -> list[Calls]:
    """Time every kind of call of each model, all in turns, behind `tokens` that are random and were never read."""
    benches = [_Bench(model, tokens) for model in models]
    taken: list[dict[tuple[str, int], list[float]]] = [{key: [] for key in bench.calls} for bench in benches]
    for number in track(range(_WARM_UP + rounds), "timing"):
        for bench, times in zip(benches, taken, strict=True):
            for key, call in bench.calls.items():
                bench.reset()
                start = perf_counter()
                call()
                if number >= _WARM_UP:
                    times[key].append(perf_counter() - start)
    return [_calls({key: np.array(values) for key, values in times.items()}) for times in taken]


def deeper(shallow: Calls, deep: Calls, layers: tuple[int, int], wanted: int) -> Calls:
    """Calls of a model of `wanted` layers, on the line through two of `layers` that were timed in the same rounds.

    Head and MTP layer do not grow with it.
    """
    steps = (wanted - layers[0]) / (layers[1] - layers[0])

    def at(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        return low + steps * (high - low)

    pairs = ((shallow.check, deep.check), (shallow.keep, deep.keep), (shallow.rewind, deep.rewind))
    check, keep, rewind = ({n: at(low[n], high[n]) for n in COUNTS} for low, high in pairs)
    return Calls(at(shallow.step, deep.step), shallow.draft, check, keep, rewind)


def costs(calls: Calls) -> list[Cost]:
    """By number of drafts: each part over the step of its round."""
    parts = (calls.draft, calls.check, calls.keep, calls.rewind)
    return [Cost(n, *(Spread.of(part[n] / calls.step) for part in parts)) for n in COUNTS]


def table(what: str, rows: Sequence[tuple[str, Sequence[Cost]]]) -> list[str]:
    """A Markdown table of costs, each with what they are of: cells under the names in `what`."""
    head = (
        f"| {what} | drafts | draft | check | keep windows | take back | drafts pay from, tokens a call (accepted) "
        "| speed at 0.8 accepted | at 1 |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for name, found in rows:
        for cost in found:
            least = cost.pays_from
            pays = "never" if least is None else f"{cost.tokens(least):.2f} ({least:.2f})"
            lines.append(
                f"| {name} | {cost.drafts} | {cost.draft} | {cost.check} | {cost.keep} | {cost.rewind} "
                f"| {pays} | {cost.speed(0.8):.2f} | {cost.speed(1):.2f} |"
            )
    return lines


class _Bench:
    """A model behind full caches, and what of it is timed."""

    def __init__(self, model: Model, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        drafter, width = model.drafter, model.manifest.text.hidden_size
        capacity = tokens + max(COUNTS) + 1
        self._caches = [session.new_cache(capacity) for session in (model.decoder, drafter.session)]
        random = np.random.default_rng(0)
        for cache in self._caches:
            for buffer in cache.buffers:  # memory that was never written is one page of zeros, read at no cost
                buffer.write(random.integers(-8, 8, buffer.shape, np.int8))
        self._embeds = model.embed_tokens(random.integers(0, model.manifest.text.vocab_size, max(COUNTS) + 1))
        self._hidden = Buffer.of(random.normal(size=(1, 1, width)), model.target.dtype, model.device)
        self.reset()
        self._kept = {n: drafter.decoder_rollback.save(self._cache, n + 1) for n in COUNTS}
        # In the order of an answer, as what ran before decides what the processor's cache holds: a step follows a step.
        kinds = {"draft": self._draft, "keep": self._keep, "check": self._check, "rewind": self._rewind}
        self.calls = {(kind, n): partial(call, n) for n in COUNTS for kind, call in kinds.items()}
        self.calls |= {(kind, 0): partial(self._check, 0) for kind in ("before", "check")}

    @property
    def _cache(self) -> KVCache:
        return self._caches[0]

    def reset(self) -> None:
        """Have both caches hold as many tokens as at first."""
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
        self._cache.lengths += np.int32(drafts + 1)  # as if they had been read
        self._model.drafter.decoder_rollback.roll_back(self._cache, self._kept[drafts], drafts)


def _calls(times: dict[tuple[str, int], NDArray[np.float64]]) -> Calls:
    kinds = ("draft", "check", "keep", "rewind")
    return Calls(times["check", 0], *({n: times[kind, n] for n in COUNTS} for kind in kinds))
