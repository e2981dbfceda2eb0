"""What `POST /v1/chat/completions` answers with, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass
class Delta:
    """What is new of one answer."""

    reasoning: str = ""
    """Text of its reasoning."""
    content: str = ""
    """Text of the answer, tool calls left out."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Pieces of tool calls as OpenAI streams them: the first piece of a call has its id and name."""
    dropped: list[int] = field(default_factory=list)
    """Calls that broke off; their text follows as content."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Log probabilities of its tokens."""
    finish: FinishReason | None = None
    """Why it has ended; None if it goes on."""

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.reasoning or self.content or self.calls or self.logprobs or self.finish)

    def add(self, later: Delta) -> None:
        """Append what came later."""
        self.reasoning += later.reasoning
        self.content += later.content
        self.calls += later.calls
        self.dropped += later.dropped
        self.logprobs += later.logprobs
        self.finish = later.finish or self.finish


@dataclass
class Counts:
    """Tokens of all answers to one request."""

    prompt: int = 0
    """Of the prompt."""
    cached: int = 0
    """Of these, tokens that were still in the KV cache for every answer."""
    completion: int = 0
    """Of the answers, reasoning included."""
    reasoning: int = 0
    """Of the reasoning."""

    def usage(self) -> dict[str, Any]:
        """The counts as OpenAI names them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


@dataclass(frozen=True)
class Envelope:
    """What all objects of one response have in common."""

    model: str
    """Name of the model."""
    logprobs: bool
    """Whether choices have log probabilities."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    """Name of the response."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""

    def whole(self, answers: list[Delta], counts: Counts) -> dict[str, Any]:
        """The response to a request without stream."""
        choices = [self._choice(number, answer, "message", _message(answer)) for number, answer in enumerate(answers)]
        return self._object("chat.completion", choices) | {"usage": counts.usage()}

    def opening(self, number: int) -> dict[str, Any]:
        """The first piece of an answer in a stream."""
        return self.chunk(number, Delta(), {"role": "assistant", "content": ""})

    def chunk(self, number: int, delta: Delta, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        """One piece of an answer in a stream."""
        fields = _fields(delta) if fields is None else fields
        return self._object("chat.completion.chunk", [self._choice(number, delta, "delta", fields)])

    def usage(self, counts: Counts) -> dict[str, Any]:
        """The last piece of a stream that includes the usage."""
        return self._object("chat.completion.chunk", []) | {"usage": counts.usage()}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, number: int, delta: Delta, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        logprobs = {"content": delta.logprobs, "refusal": None} if self.logprobs and _has_logprobs(delta) else None
        return {"index": number, name: fields, "logprobs": logprobs, "finish_reason": delta.finish}


def _has_logprobs(delta: Delta) -> bool:
    return bool(delta.logprobs or delta.finish)


def _fields(delta: Delta) -> dict[str, Any]:
    """The fields of a delta that are not empty; the reasoning under both of its names."""
    fields: dict[str, Any] = {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    fields |= {"content": delta.content, "tool_calls": delta.calls}
    return {name: value for name, value in fields.items() if value}


def _message(answer: Delta) -> dict[str, Any]:
    """A whole answer. Its content is null where it has tool calls only, as OpenAI's is."""
    calls = _join_calls(answer)
    reasoning = answer.reasoning or None
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content or (None if calls else ""),
        "refusal": None,
        "reasoning": reasoning,
        "reasoning_content": reasoning,
    }
    return message | ({"tool_calls": calls} if calls else {})


def _join_calls(answer: Delta) -> list[dict[str, Any]]:
    """Tool calls of their pieces, without the index that only pieces have."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in answer.calls:
        function = piece["function"]
        if piece["index"] not in calls:
            calls[piece["index"]] = {"id": piece["id"], "type": "function", "function": dict(function)}
        else:
            calls[piece["index"]]["function"]["arguments"] += function["arguments"]
    return [call for index, call in calls.items() if index not in answer.dropped]
