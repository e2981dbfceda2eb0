"""Answers a list of requests, many at a time, in their order."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from console.errors import InputError
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Failed, Finished, Piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.decoding.drafts import DraftTokens
    from runtime.engine.request import Event, Request
    from runtime.engine.sequence import Sequence
    from runtime.exported import ExportedModel

_AHEAD = 2  # requests for each row that are open: an answer that is long does not leave the other rows idle


@dataclass
class Collected:
    """A whole answer."""

    tokens: list[int] = field(default_factory=list)
    """Token ids, reasoning included, without the end token."""
    reasoning: str = ""
    """Text of the reasoning."""
    text: str = ""
    """Text of the answer."""
    end: Finished | Failed | None = None
    """How it ended; None before."""
    seconds: list[float] = field(default_factory=lambda: [time.perf_counter()])
    """When it was asked, and when each token came."""

    def deliver(self, event: Event) -> None:
        """Take an event of the engine."""
        if isinstance(event, Failed):
            self.end = event
            return
        self.reasoning += event.reasoning
        self.text += event.text
        if isinstance(event, Piece):
            self.tokens.append(event.token)
            self.seconds.append(time.perf_counter())
        else:
            self.end = event

    def finished(self) -> Finished:
        """How the answer ended. Raises the InputError of a request that failed."""
        if isinstance(self.end, Failed):
            raise self.end.error
        assert self.end is not None
        return self.end


def open_engine(model: ExportedModel, requests: int, context: int, draft_tokens: DraftTokens = 0) -> Engine:
    """An engine for a number of requests, whose prompts with their answers have at most `context` tokens.

    Steps that are captured as a CUDA graph are those of one row.
    """
    context = min(context, model.manifest.text.context)
    plan = plan_cache(model, 1 if model.options.capture else None, context, draft_tokens)
    if plan.rows > requests:
        plan = plan_cache(model, requests, context, draft_tokens)
    return Engine(model, plan, draft_tokens)


def answer_all(engine: Engine, requests: Iterable[Request]) -> Iterator[Collected]:
    """Answer requests in their order; each is taken from `requests` when its turn comes.

    Failed ones are given too. Raises InputError for a request that cannot be made or submitted, after the answers to
    those before it.
    """
    open_: deque[tuple[Sequence, Collected]] = deque()
    error = None
    coming = iter(requests)
    try:
        while error is None:
            try:
                request, collected = next(coming), Collected()
                open_.append((engine.submit(request, collected.deliver), collected))
            except StopIteration:
                break
            except InputError as problem:
                error = problem
            if len(open_) == _AHEAD * engine.plan.rows:
                yield _first(engine, open_)
        while open_:
            yield _first(engine, open_)
    finally:
        for sequence, _ in open_:
            sequence.cancel()
    if error is not None:
        raise error


def _first(engine: Engine, open_: deque[tuple[Sequence, Collected]]) -> Collected:
    while open_[0][1].end is None:
        engine.turn()
    return open_.popleft()[1]
