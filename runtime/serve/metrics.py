"""Figures for Prometheus, each server's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.decoding.drafts import Drafts
    from runtime.serve.protocol.chat_response import Counts

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class PictureCounts(Collector):
    """Images and videos of prompts, which the engine counts. counts: encoded, and those whose embeddings were kept."""

    def __init__(self, counts: Callable[[], tuple[int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters as they are now."""
        encoded, kept = self._counts()
        yield CounterMetricFamily("exaone_pictures_encoded", "Images and videos that were encoded.", value=encoded)
        yield CounterMetricFamily("exaone_pictures_kept", "Those whose embeddings were still there.", value=kept)


class Metrics:
    """What `/metrics` shows. running, waiting: answers right now. pictures: encoded and kept ones so far."""

    def __init__(
        self, running: Callable[[], int], waiting: Callable[[], int], pictures: Callable[[], tuple[int, int]]
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(PictureCounts(pictures))
        self._gauge("exaone_answers_running", "Answers that have a row.", running)
        self._gauge("exaone_answers_waiting", "Answers that are prepared or wait for a row.", waiting)
        self._requests = Counter(
            "exaone_http_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self._finished = Counter(
            "exaone_answers", "Answers by the reason why they ended.", ("reason",), registry=self._registry
        )
        self._prompt = self._counter("exaone_prompt_tokens", "Tokens of prompts.")
        self._cached = self._counter("exaone_cached_prompt_tokens", "Of these, tokens that were in the KV cache.")
        self._completion = self._counter("exaone_completion_tokens", "Tokens of answers.")
        self._drafted = self._counter("exaone_draft_tokens", "Draft tokens of answers that ran alone.")
        self._accepted = self._counter("exaone_accepted_draft_tokens", "Of these, tokens that were accepted.")
        self._first = self._histogram("exaone_time_to_first_token_seconds", "From request to first token.", _SECONDS)
        self._token = self._histogram("exaone_time_per_token_seconds", "From token to token.", _TOKEN_SECONDS)
        self._whole = self._histogram("exaone_answer_seconds", "From request to last token.", _SECONDS)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def request(self, route: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(route, str(status)).inc()

    def tokens(self, counts: Counts) -> None:
        """Count the tokens of a request that was answered."""
        self._prompt.inc(counts.prompt)
        self._cached.inc(counts.cached)
        self._completion.inc(counts.completion)

    def drafts(self, drafts: Drafts) -> None:
        """Count the draft tokens of a finished answer."""
        self._drafted.inc(drafts.drafted)
        self._accepted.inc(drafts.accepted)

    def first_token(self, seconds: float) -> None:
        """Record how long the first token of an answer took."""
        self._first.observe(seconds)

    def finished(self, reason: str, seconds: float, per_token: float | None) -> None:
        """Record a finished answer. seconds: from the request on. per_token: mean; None for fewer than two tokens."""
        self._finished.labels(reason).inc()
        self._whole.observe(seconds)
        if per_token is not None:
            self._token.observe(per_token)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=buckets)
