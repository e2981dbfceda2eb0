"""What a caller asks of the engine, and what it is told while the answer comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from console.errors import InputError
    from runtime.decoding.drafts import Drafts
    from runtime.decoding.logprobs import TokenLogprobs
    from runtime.decoding.sampling import Sampling
    from runtime.decoding.structured import Grammar
    from runtime.prompt import PromptInputs


@dataclass(frozen=True)
class Request:
    """A prompt, and how to answer it."""

    inputs: PromptInputs
    """A rendered prompt, and its images and videos."""
    sampling: Sampling
    """How tokens are sampled."""
    max_new_tokens: int
    """Longest answer, in tokens, reasoning included."""
    thinking: bool = False
    """Whether the prompt ends after `<think>`."""
    thinking_budget: int | None = None
    """Longest reasoning, in tokens; then `</think>` is forced. None: no limit. Only with thinking."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which is then without them. Reasoning may contain them."""
    grammar: Grammar | None = None
    """What the answer, after its reasoning, must match."""
    top_logprobs: int | None = None
    """Likeliest tokens whose log probability comes with each token; None for none, nor for the token itself."""


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer."""

    reasoning: str
    """Text of the reasoning; empty inside a character and for special tokens."""
    text: str
    """Text of the answer; likewise."""
    token: int
    """Its id."""
    logprobs: TokenLogprobs | None
    """Log probabilities, where the request wants them."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length"]
    """"stop" where the model or a stop string ended it; "length" where max_new_tokens or the row's capacity did."""
    reasoning: str
    """Text that was held back until the end, as it might have begun a stop string or a character."""
    text: str
    """The same of the answer."""
    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Of these, tokens whose keys and values were still in a row."""
    completion_tokens: int
    """Tokens of the answer, reasoning included, without the end token."""
    reasoning_tokens: int
    """Tokens of the reasoning, without `</think>`."""
    budget_spent: bool
    """Whether `thinking_budget` ended the reasoning."""
    drafts: Drafts | None
    """Counts of draft tokens, which only a row that is alone gets; None where no call could have any."""


@dataclass(frozen=True)
class Failed:
    """The end of a request that cannot be answered; others are not affected."""

    error: InputError
    """What is wrong, in one line."""


Event = Piece | Finished | Failed
Deliver = Callable[[Event], None]
"""Takes each event of one answer in order; `Finished` or `Failed` is the last. It is called in the engine's thread."""
