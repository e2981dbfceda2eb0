"""What drafts cost a loaded model, call by call, and from how many tokens a call they pay."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from calib_data.progress import track
from runtime.sessions import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from runtime.cache import KVCache
    from runtime.generate import Model

COUNTS = (1, 2, 3)
_WARM_UP = 3  # rounds that are not counted: they bind buffers and fill caches


@dataclass(frozen=True)
class Calls:
    """Seconds of each kind of call, [rounds] each: rounds are in turns, so that one holds what one state of a machine did.

    step: one token. check: by number of drafts n, n + 1 tokens. draft: the MTP layer drafts n, its own rewinds
    included. rewind: the decoder's windows are kept for n + 1 tokens, and n taken back.
    """

    step: NDArray[np.float64]
    check: dict[int, NDArray[np.float64]]
    draft: dict[int, NDArray[np.float64]]
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
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Cost:
    """What a round with so many drafts costs, in steps: drafting, checking, and taking all of them back.

    Drafts pay where a round gives more tokens than `total`.
    """

    drafts: int
    check: Spread
    draft: Spread
    rewind: Spread
    total: Spread

    @property
    def acceptance(self) -> float | None:
        """The share of drafts, each after an accepted one, from which they pay; None where not even 1 is enough."""
        ways = np.linspace(0, 1, 1001)
        tokens = sum(ways**n for n in range(self.drafts + 1))
        paying = ways[tokens >= self.total.median]
        return float(paying[0]) if len(paying) else None


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
        grown: NDArray[np.float64] = low + steps * np.median(high - low)
        return grown

    return Calls(
        at(shallow.step, deep.step),
        {n: at(shallow.check[n], deep.check[n]) for n in COUNTS},
        shallow.draft,
        {n: at(shallow.rewind[n], deep.rewind[n]) for n in COUNTS},
    )


def costs(calls: Calls) -> list[Cost]:
    """By number of drafts: each kind of call over the step of its round."""
    found = []
    for n in COUNTS:
        parts = calls.check[n], calls.draft[n], calls.rewind[n]
        found.append(Cost(n, *(Spread.of(part / calls.step) for part in (*parts, sum(parts)))))  # type: ignore[operator]
    return found


def table(rows: Sequence[tuple[str, Sequence[Cost]]]) -> list[str]:
    """A Markdown table of costs, each with the model that they are of."""
    lines = [
        "| layers | drafts | draft | check | take back | a call in all: tokens from which drafts pay "
        "| that is, accepted | speed if all are |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows:
        for cost in found:
            accepted = "never" if cost.acceptance is None else f"{cost.acceptance:.2f}"
            best = (cost.drafts + 1) / cost.total.median
            lines.append(
                f"| {name} | {cost.drafts} | {cost.draft} | {cost.check} | {cost.rewind} | {cost.total} "
                f"| {accepted} | {best:.2f} |"
            )
    return lines


class _Bench:
    """A model behind full caches, and what of it is timed."""

    def __init__(self, model: Model, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        drafter, width = model.drafter, model.bundle.text.hidden_size
        room = tokens + max(COUNTS) + 1
        self._caches = [session.new_cache(room) for session in (model.decoder, drafter.session)]
        random = np.random.default_rng(0)
        for cache in self._caches:
            for buffer in cache.buffers:  # memory that was never written is one page of zeros, read at no cost
                buffer.write(random.integers(-8, 8, buffer.shape, np.int8))
        self._embeds = model.embed_tokens(random.integers(0, model.bundle.text.vocab_size, max(COUNTS) + 1))
        hidden = random.normal(size=(1, 1, width))
        self._hidden = Buffer.of(hidden, model.target.dtype, model.device)
        self.calls: dict[tuple[str, int], Callable[[], object]] = {("check", 0): lambda: self._check(0)}
        for n in COUNTS:
            self.calls[("check", n)] = lambda n=n: self._check(n)  # type: ignore[misc]
            self.calls[("draft", n)] = lambda n=n: self._draft(n)  # type: ignore[misc]
            self.calls[("rewind", n)] = lambda n=n: self._rewind(n)  # type: ignore[misc]

    @property
    def _cache(self) -> KVCache:
        return self._caches[0]

    def reset(self) -> None:
        """Have both caches hold as many tokens as at first."""
        for cache in self._caches:
            cache.lengths[:] = self._tokens

    def _check(self, drafts: int) -> None:
        self._model.decoder.run(self._cache, self._embeds[None, : drafts + 1], np.arange(drafts + 1)[None])

    def _draft(self, drafts: int) -> None:
        embed, known = self._model.embed_tokens, self._embeds[:1]
        self._model.drafter.draft(self._caches[1], known, self._hidden, drafts, embed)

    def _rewind(self, drafts: int) -> None:
        rewinder = self._model.drafter.decoder_rewinder
        kept = rewinder.keep(self._cache, drafts + 1)
        self._cache.lengths += np.int32(drafts + 1)  # as if they had been read
        rewinder.rewind(self._cache, kept, drafts)


def _calls(times: dict[tuple[str, int], NDArray[np.float64]]) -> Calls:
    return Calls(
        times["check", 0],
        *({n: times[kind, n] for n in COUNTS} for kind in ("check", "draft", "rewind")),
    )
