"""What all routes share: the model, its engine, and how many requests may wait for it."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from console.progress import say
from runtime.decoding.structured import GrammarTokenizer
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.thread import EngineThread
from runtime.serve.daemon import Workers
from runtime.serve.metrics import Metrics
from runtime.serve.protocol.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.decoding.drafts import DraftTokens
    from runtime.exported import ExportedModel
    from runtime.serve.media import Media

PREPARING = 4
"""Prompts that are prepared at the same time: images decoded, grammars compiled."""
Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServiceLimits:
    """How much a server takes on."""

    max_rows: int | None = None
    """Answers that are generated at the same time; None for what the device holds."""
    max_context: int | None = None
    """Tokens of a prompt and its answer; None for what the device holds."""
    max_queue: int = 64
    """Answers that may wait for a row."""
    max_request_seconds: float = 600
    """Longest time from a request to the end of its answer."""


class Service:
    """A model that loads, answers, and stops. All methods but `load` are called in the event loop."""

    def __init__(
        self, model: ExportedModel, name: str, limits: ServiceLimits, media: Media, draft_tokens: DraftTokens = 0
    ) -> None:
        self.model, self.name, self.limits, self.media = model, name, limits, media
        self.created = int(time.time())
        """When it started, in seconds since 1970."""
        self.stopping = False
        """Whether it takes no more requests."""
        self.admitted = 0
        """Answers that are prepared, wait, or run."""
        self.metrics = Metrics(
            lambda: self.running, lambda: max(0, self.admitted - self.running), lambda: self._pictures
        )
        self._draft_tokens = draft_tokens
        self._thread: EngineThread | None = None
        self._workers = Workers(PREPARING, "prepare")
        self._seconds = 1.0  # of an answer, lately
        self._give_up = 0.0  # when draining ends

    def load(self) -> None:
        """Read the weights, allocate the KV cache and start the engine. Takes minutes; called in a thread."""
        plan = plan_cache(self.model, self.limits.max_rows, self.limits.max_context, self._draft_tokens)
        say(str(plan))
        self._thread = EngineThread(Engine(self.model, plan, self._draft_tokens))

    @property
    def status(self) -> str:
        """What it does: "loading", "ok", "stopping", or "dead" where the engine's thread has ended by itself."""
        if self.stopping:
            return "stopping"
        if self._thread is None:
            return "loading"
        return "ok" if self._thread.alive else "dead"

    @property
    def engine(self) -> EngineThread:
        """The running engine. Raises RequestError 503 where there is none."""
        if self.status != "ok" or self._thread is None:
            raise RequestError(503, f"the server is not ready: {self.status}", headers={"retry-after": "5"})
        return self._thread

    @cached_property
    def grammar_tokenizer(self) -> GrammarTokenizer:
        """The tokenizer as grammars take it; made at its first use, which may be in any thread."""
        model = self.model
        return GrammarTokenizer(model.chat, model.manifest.text.vocab_size, model.end_ids)

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer; of the model itself while it loads."""
        return self.model.manifest.text.context if self._thread is None else self._thread.engine.plan.context

    @property
    def running(self) -> int:
        """Rows that have a request."""
        return 0 if self._thread is None else self._thread.engine.running

    @property
    def _pictures(self) -> tuple[int, int]:
        """Images and videos that were encoded, and those whose embeddings were kept."""
        if self._thread is None:
            return 0, 0
        vision = self._thread.engine.vision
        return vision.misses, vision.hits

    @contextmanager
    def place(self, answers: int) -> Iterator[None]:
        """Hold places for the answers to one request. Raises RequestError 429 where too many wait."""
        most = self.engine.engine.plan.rows + self.limits.max_queue
        if answers > most:
            raise RequestError(400, f"n: the server takes at most {most} answers at once", param="n")
        if self.admitted + answers > most:
            wait = str(min(60, max(1, round(self._seconds))))
            raise RequestError(429, "too many requests wait; try again later", headers={"retry-after": wait})
        self.admitted += answers
        start = time.monotonic()
        try:
            yield
        finally:
            self.admitted -= answers
            self._seconds += 0.2 * (time.monotonic() - start - self._seconds)

    async def in_thread(
        self, function: Callable[Given, Result], *arguments: Given.args, **named: Given.kwargs
    ) -> Result:
        """Run what takes longer than the event loop may wait; a bounded number at a time."""
        return await self._workers.run(lambda: function(*arguments, **named))

    async def drain(self, seconds: float) -> bool:
        """Take no more requests and finish those that run. False where some were not finished in time."""
        self.stopping = True
        self._give_up = time.monotonic() + seconds
        while self.admitted and self._thread is not None and self._thread.alive and time.monotonic() < self._give_up:
            await asyncio.sleep(0.05)
        return not self.admitted

    def give_up(self) -> None:
        """Let `drain` wait no longer."""
        self._give_up = 0.0

    def close(self) -> None:
        """End the engine; answers that still run fail."""
        self.stopping = True
        if self._thread is not None and self._thread.alive:
            self._thread.close(0)
