"""The runners that answer the same requests: our engine, `generate` one after another, and llama.cpp's batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench.llama_cpp.runners import clock
from console.errors import InputError
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling, greedy
from runtime.engine.cache_plan import CachePlan
from runtime.engine.engine import Engine
from runtime.engine.request import Failed, Piece, Request
from runtime.prompt import Prompt, PromptInputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnxruntime as ort

    from bench.llama_cpp.runners import LlamaCpp
    from runtime.engine.request import Event
    from runtime.model import Model


@dataclass(frozen=True)
class Task:
    """Requests that come at the same moment."""

    prompts: list[list[int]]
    """Token ids of each."""
    new_tokens: int
    """Tokens to generate greedily for each."""


@dataclass(frozen=True)
class Turn:
    """How fast a task was done."""

    rate: float
    """New tokens a second, from the arrival of the requests to the last token."""
    first: float
    """Seconds until the first token of an answer: the median over the requests."""
    step: float
    """Seconds of a step while all requests are answered."""
    outside: float = 0.0
    """Share of these steps that was spent outside the decoder's session; of the engine alone."""


class Runner(Protocol):
    """One column of the tables."""

    name: str

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        ...


class TimedSession:
    """A decoder's session that keeps when each of its calls began and ended."""

    def __init__(self, session: ort.InferenceSession, now: Callable[[], float]) -> None:
        self._session, self._now = session, now
        self.calls: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the session has
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: object) -> None:
        """Run the graph."""
        start = self._now()
        self._session.run_with_iobinding(*arguments)
        self.calls.append((start, self._now()))

    def seconds(self, start: float, stop: float) -> float:
        """Time inside the calls of a period."""
        return sum(last - first for first, last in self.calls if start <= first and last <= stop)


class Arrivals:
    """The tokens of an answer, and when each came."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.times: list[float] = []
        self.tokens: list[int] = []

    def deliver(self, event: Event) -> None:
        """Take what the engine says."""
        if isinstance(event, Piece):
            self.times.append(self._now())
            self.tokens.append(event.token)
        elif isinstance(event, Failed):
            raise event.error


class Together:
    """Our engine: all requests at once. context: most tokens of a prompt and its answer.

    The model no longer ends an answer, as one of random weights may at any token.
    """

    def __init__(self, name: str, model: Model, threads: int, rows: int, context: int) -> None:
        self.name, self.now = name, clock(threads)
        self.session = TimedSession(model.decoder._session, self.now)
        """The decoder's session."""
        model.decoder._session = self.session
        model.end_ids = []
        self._engine = Engine(model, CachePlan(rows, context, model.decoder.cache_bytes(context, rows)))

    def submit(self, prompt: Sequence[int], new_tokens: int) -> Arrivals:
        """Hand in a request."""
        arrivals, inputs = Arrivals(self.now), PromptInputs(np.array(prompt), (), (), ())
        self._engine.submit(Request(inputs, Sampling(), new_tokens), arrivals.deliver)
        return arrivals

    def work(self, until: Callable[[], bool] = lambda: False) -> None:
        """Make turns until nothing is left, or until a condition holds after one."""
        while self._engine.turn() and not until():
            pass

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        self.session.calls.clear()
        start = self.now()
        answers = [self.submit(prompt, task.new_tokens) for prompt in task.prompts]
        self.work()
        times = [answer.times for answer in answers]
        # The steps of all answers lie between the last first token and the first last one.
        begin, end = max(own[0] for own in times), min(own[-1] for own in times)
        if begin >= end:
            raise InputError("the first answer ended before the last began; give more --tokens")
        steps = np.diff([time for time in times[0] if begin <= time <= end])
        outside = 1 - self.session.seconds(begin, end) / (end - begin)
        seconds, first = max(own[-1] for own in times) - start, [own[0] - start for own in times]
        return replace(_turn(task, seconds, first, np.median(steps)), outside=outside)


class OneAfterAnother:
    """Our `generate`, which knows one request."""

    name = "one after another"

    def __init__(self, model: Model, threads: int) -> None:
        self._model, self._now = model, clock(threads)

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        start = self._now()
        first: list[float] = []
        steps: list[float] = []
        for prompt in task.prompts:
            ids = np.array(prompt)
            times = [
                self._now()
                for _ in generate(self._model, Prompt(ids, self._model.embed_tokens(ids)), greedy, task.new_tokens)
            ]
            first.append(times[0] - start)
            steps.extend(np.diff(times))
        return _turn(task, self._now() - start, first, np.median(steps))


class LlamaCppBatch:
    """llama.cpp: prompts are read one after another, then each `llama_batch` has one token of every sequence."""

    def __init__(self, peer: LlamaCpp) -> None:
        self.name, self._peer = peer.name, peer

    def turn(self, task: Task) -> Turn:
        """Do the task once."""
        answer = self._peer.answer(task.prompts, task.new_tokens)
        seconds = answer["first"][-1] + answer["decode"]
        return _turn(task, seconds, answer["first"], answer["decode"] / (task.new_tokens - 1))


def _turn(task: Task, seconds: float, first: list[float], step: float | np.floating[Any]) -> Turn:
    """The figures of a turn."""
    return Turn(len(task.prompts) * task.new_tokens / seconds, float(np.median(first)), float(step))
