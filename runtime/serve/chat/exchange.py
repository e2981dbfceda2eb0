"""One chat request while it is answered: from what the engine says to what is new of each answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runtime.engine.request import Failed, Finished, Piece
from runtime.serve.chat.token_text import token_logprobs
from runtime.serve.chat.tool_calls import Arguments, CallDropped, CallStarted, Content, ToolCallParser
from runtime.serve.protocol.chat_response import Counts, Delta, Envelope
from runtime.serve.protocol.errors import of_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.engine.request import Event
    from runtime.serve.chat.answers import Answers
    from runtime.serve.chat.tool_calls import Delta as CallDelta
    from runtime.serve.protocol.chat_request import ChatRequest
    from runtime.serve.service import Service


class Exchange:
    """The answers to one chat request."""

    def __init__(self, service: Service, body: ChatRequest, answers: Answers, arrival: float) -> None:
        self.body, self.answers = body, answers
        self.envelope = Envelope(service.name, logprobs=body.logprobs)
        """What all objects of the response have in common."""
        self.counts = Counts()
        """Tokens of the answers that have ended."""
        self.deadline = arrival + service.limits.max_request_seconds
        """When the answers must be there, by `time.monotonic`."""
        self._service, self._arrival = service, arrival
        self._choices = [_Choice(service, body) for _ in range(body.n)]

    async def deltas(self, beat: float) -> AsyncIterator[list[tuple[int, Delta]]]:
        """What is new of each answer, by number, until all have ended; empty after `beat` seconds.

        Raises RequestError where the engine could not finish an answer.
        """
        running = self.body.n
        while running:
            batch = await self.answers.batch(beat)
            new = {said.choice: Delta() for said in batch}
            for number, event in batch:
                if isinstance(event, Failed):
                    raise of_engine(event.error, self._service.model.folder)
                self._measure(self._choices[number], event)
                new[number].add(self._choices[number].read(event))
            yield [(number, delta) for number, delta in new.items() if delta]
            running -= sum(isinstance(said.event, Finished) for said in batch)
        self._service.metrics.tokens(self.counts)

    def _measure(self, choice: _Choice, event: Event) -> None:
        now, metrics = time.monotonic(), self._service.metrics
        if isinstance(event, Piece):
            if choice.first is None:
                choice.first = now
                metrics.first_token(now - self._arrival)
            choice.last = now
        elif isinstance(event, Finished):
            steps = event.completion_tokens - 1
            span = None if choice.first is None or steps < 1 else (choice.last - choice.first) / steps
            metrics.finished(event.reason, now - self._arrival, span)
            if event.drafts is not None:
                metrics.drafts(event.drafts)
            counts = self.counts
            counts.cached = event.cached_tokens if not counts.prompt else min(counts.cached, event.cached_tokens)
            counts.prompt = event.prompt_tokens
            counts.completion += event.completion_tokens
            counts.reasoning += event.reasoning_tokens


class _Choice:
    """One of the answers: its tool calls and log probabilities in OpenAI's form."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.first: float | None = None
        """When the first token came."""
        self.last = 0.0
        """When the latest token came."""
        self._service, self._with_reasoning = service, body.include_reasoning
        self._tools = ToolCallParser() if body.callable_tools else None
        self._calls = 0

    def read(self, event: Event) -> Delta:
        """What an event adds."""
        delta = Delta()
        if isinstance(event, Failed):
            return delta
        if self._with_reasoning:
            delta.reasoning = event.reasoning
        self._add_text(delta, event.text)
        if isinstance(event, Finished):
            self._finish(delta, event)
        elif event.logprobs is not None:
            delta.logprobs = [token_logprobs(self._service.grammar_tokenizer, event.logprobs)]
        return delta

    def _add_text(self, delta: Delta, text: str) -> None:
        if self._tools is None:
            delta.content += text
            return
        for piece in self._tools.push(text):
            self._add_piece(delta, piece)

    def _add_piece(self, delta: Delta, piece: CallDelta) -> None:
        match piece:
            case Content(text):
                delta.content += text
            case CallStarted(index, name_id, name):
                self._calls += 1
                function = {"name": name, "arguments": ""}
                delta.calls.append({"index": index, "id": name_id, "type": "function", "function": function})
            case Arguments(index, text):
                if delta.calls and delta.calls[-1]["index"] == index:
                    delta.calls[-1]["function"]["arguments"] += text
                else:
                    delta.calls.append({"index": index, "function": {"arguments": text}})
            case CallDropped(index):
                self._calls -= 1
                delta.dropped.append(index)

    def _finish(self, delta: Delta, event: Finished) -> None:
        for piece in self._tools.finish() if self._tools is not None else []:
            self._add_piece(delta, piece)
        delta.finish = "tool_calls" if self._calls and event.reason == "stop" else event.reason
