"""Answers to questions about images and videos, whole or as a stream of text; the command line uses the same code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from console.errors import InputError
from runtime.decoding.drafts import Drafts
from runtime.decoding.generate import generate, token_limit
from runtime.decoding.sampling import RECOMMENDED, Sampling
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.prompt import embed_prompt

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from console.generation_config import GenerationConfig
    from runtime.chat import Chat
    from runtime.decoding.draft_policy import DraftPolicy
    from runtime.decoding.drafts import DraftTokens
    from runtime.exported import ExportedModel, ModelFolder
    from runtime.prompt import PromptInputs

MAX_NEW_TOKENS = 512
AUTO = "auto"
MAX_DRAFT_TOKENS = 8
_KINDS: dict[str, tuple[Any, str]] = {
    "max_new_tokens": (Integral, "a whole number"),
    **dict.fromkeys(("top_k", "seed", "thinking_budget"), (Integral | None, "a whole number")),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty"), (Real | None, "a number")),
    "thinking": (bool, "True or False"),
}


class AnswerOptions(TypedDict, total=False):
    """How to generate an answer. Every option may be left out; the command line has the same ones."""

    max_new_tokens: int
    """Longest answer, in tokens, reasoning included; 512 if left out."""
    temperature: float | None
    """Temperature of the sampling; 0 is greedy. None: what generation_config.json recommends, as for the next three."""
    top_p: float | None
    """Probability that the sampled tokens hold together (nucleus sampling), above 0 and up to 1."""
    top_k: int | None
    """Sample from the k likeliest tokens; 0 is off."""
    presence_penalty: float | None
    """Subtracted from the logit of every token already generated, -2 to 2; greedy takes no recommended one."""
    seed: int | None
    """Seed of the sampling; None draws a fresh one. With a seed, "auto" drafts nothing: it depends on measured time."""
    thinking: bool
    """Reason before answering; False if left out."""
    thinking_budget: int | None
    """Longest reasoning, in tokens; then `</think>` is forced. 0 is a prompt without reasoning; None is no limit."""
    draft_tokens: int | str
    """Draft tokens ahead of each decoder call, 0 to 8; "auto", if left out, drafts where it measures a gain."""


@dataclass(frozen=True)
class AnswerSettings:
    """`AnswerOptions`, checked and completed for one model."""

    sampling: Sampling
    """How tokens are sampled."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    thinking: bool
    """Whether the model reasons first; False for a thinking budget of 0."""
    thinking_budget: int | None
    """Longest reasoning, in tokens; None without a limit."""
    draft_tokens: DraftTokens
    """Draft tokens ahead of each decoder call, or the policy that chooses the number."""

    def budget(self, model: ExportedModel) -> ThinkingBudget | None:
        """The thinking budget of a new answer; None without reasoning or limit."""
        if self.thinking_budget is None or not self.thinking:
            return None
        chat = model.chat
        return ThinkingBudget(self.thinking_budget, chat.end_of_reasoning, chat.parse_reasoning(), model.end_ids)

    def used_fields(self, generation: GenerationConfig) -> dict[str, object]:
        """What is used of the fields of generation_config.json, by their names."""
        sampling = self.sampling
        used: dict[str, object] = {"max_new_tokens": self.max_new_tokens}
        if generation.values.get("do_sample"):
            used["do_sample"] = sampling.temperature > 0
        return used | {name: getattr(sampling, name) for name in RECOMMENDED}


def answer_settings(model: ModelFolder, policy: DraftPolicy, options: AnswerOptions) -> AnswerSettings:
    """Complete options by the model's generation_config.json.

    policy: chooses the number of draft tokens for "auto"; it learns from all answers that share it. Raises InputError
    for an option or recommendation out of its range, and TypeError for an unknown option.
    """
    if unknown := options.keys() - AnswerOptions.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    _check_kinds(options)
    limit, seed = options.get("max_new_tokens", MAX_NEW_TOKENS), options.get("seed")
    if limit < 1:
        raise InputError(f"--max-new-tokens {limit}: must be 1 or more")
    given = {name: options.get(name) for name in ("temperature", "top_p", "top_k", "presence_penalty")}
    chosen = {name: value for name, value in given.items() if value is not None}
    Sampling(seed=seed, **chosen)  # type: ignore[arg-type]  # or the model's file would be blamed for a wrong option
    sampling = Sampling.recommended(model.generation.values, chosen, seed)
    thinking, budget = options.get("thinking", False), options.get("thinking_budget")
    if budget is not None:
        check_thinking_budget(model.chat, budget, limit, thinking=thinking)
    draft_tokens = choose_draft_tokens(model, policy, options.get("draft_tokens", AUTO), seed)
    return AnswerSettings(sampling, limit, thinking and budget != 0, budget, draft_tokens)


def _check_kinds(options: AnswerOptions) -> None:
    """Raise InputError for a value of another kind. An answer of at most 1.5 tokens would never end."""
    for name, value in options.items():
        kind, expected = _KINDS.get(name, (object, ""))
        if not isinstance(value, kind):
            raise InputError(f"--{name.replace('_', '-')} {value!r}: must be {expected}")


def check_thinking_budget(chat: Chat, budget: int, max_new_tokens: int, *, thinking: bool) -> None:
    """Raise InputError for a budget without reasoning, or one that leaves no token for the answer."""
    if budget < 0:
        raise InputError(f"--thinking-budget {budget}: must be 0 or more")
    if not thinking:
        raise InputError(f"--thinking-budget {budget}: has no effect without --thinking; add it")
    if budget and budget + chat.end_of_reasoning.tokens >= max_new_tokens:
        raise InputError(
            f"--thinking-budget {budget}: leaves no tokens for the answer; give a smaller one, or more than "
            f"--max-new-tokens {max_new_tokens}"
        )


def choose_draft_tokens(
    model: ModelFolder, policy: DraftPolicy, value: int | str, seed: int | None = None
) -> DraftTokens:
    """A number of draft tokens, or for "auto" the policy where the model can draft. Raises InputError for others."""
    number = parse_draft_tokens(value)
    refuse_captured_drafts(number, model.options.capture)
    if number is not None:
        return number
    # A captured step is a plain one. With a seed the same answer is wanted again, and the policy depends on time.
    drafts_nothing = model.target.mtp is None or model.options.capture or seed is not None
    return 0 if drafts_nothing else policy


def refuse_captured_drafts(draft_tokens: int | None, cuda_graph: bool) -> None:
    """Raise InputError for a number of draft tokens with CUDA graphs."""
    if draft_tokens and cuda_graph:
        raise InputError("--cuda-graph, --draft-tokens: only single steps are replayed, not drafts; give one")


def parse_draft_tokens(value: int | str) -> int | None:
    """Read a number of draft tokens; None is "auto". Raises InputError for anything else."""
    if value == AUTO:
        return None
    if str(value) not in map(str, range(MAX_DRAFT_TOKENS + 1)):
        raise InputError(f"--draft-tokens {value}: write {AUTO}, or a number from 0 to {MAX_DRAFT_TOKENS}")
    return int(value)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    """The answer without its reasoning."""
    reasoning: str
    """What the model wrote before `</think>` or a tool call; empty without `thinking`."""
    reasoning_tokens: int
    """Tokens of the reasoning, without `</think>`."""
    budget_spent: bool
    """Whether `thinking_budget` ended the reasoning."""
    tokens: list[int]
    """Token ids, reasoning included, without the end token."""
    finish_reason: Literal["stop", "length"]
    """"stop" where the model ended its answer, "length" where max_new_tokens or the model's context cut it."""
    prompt_tokens: int
    """Tokens of the prompt, those of images and videos included."""
    first_token_seconds: float | None
    """Seconds from the start, vision encoder included, to the first token; None for an empty answer."""
    tokens_per_second: float | None
    """Speed after the first token; None for fewer than two tokens."""
    drafts: Drafts | None
    """Counts of draft tokens; None where no call could have any."""


class AnswerStream:
    """An answer while it is generated. Iterate once over the pieces of its text, then `finish` gives it whole.

    With `thinking`, the reasoning comes first, and a line `</think>` ends it.
    """

    def __init__(self, model: ExportedModel, inputs: PromptInputs, settings: AnswerSettings) -> None:
        self._model, self._inputs, self._settings = model, inputs, settings
        self._drafts, self._budget = Drafts.begin(settings.draft_tokens), settings.budget(model)
        self._limit = 0
        self._seconds: list[float] = []  # when it began, and when each token came
        self._tokens: list[int] = []
        self._coming = self._generate()

    def __iter__(self) -> Iterator[str]:
        text = self._model.chat.stream_answer(thinking=self._settings.thinking)
        for token in self._coming:
            if piece := text.push(token):
                yield piece
        if piece := text.finish():
            yield piece

    def finish(self) -> Answer:
        """Generate what is left, and return the whole answer."""
        for _ in self._coming:
            pass
        tokens, seconds, drafts = self._tokens, self._seconds, self._drafts
        chat, settings = self._model.chat, self._settings
        answer = chat.decode_answer(tokens, thinking=settings.thinking)
        return Answer(
            text=answer.text,
            reasoning=answer.reasoning,
            reasoning_tokens=chat.parse_reasoning(tokens).tokens if settings.thinking else 0,
            budget_spent=settings.thinking_budget == 0 if self._budget is None else self._budget.spent,
            tokens=tokens,
            finish_reason="length" if len(tokens) == self._limit else "stop",
            prompt_tokens=len(self._inputs.ids),
            first_token_seconds=seconds[1] - seconds[0] if tokens else None,
            tokens_per_second=(len(tokens) - 1) / (seconds[-1] - seconds[1]) if len(tokens) > 1 else None,
            drafts=drafts if drafts is not None and drafts.possible else None,
        )

    def close(self) -> None:
        """Stop generating. The KV cache is free for the next answer."""
        self._coming.close()

    def _generate(self) -> Generator[int, None, None]:
        model, settings = self._model, self._settings
        self._seconds.append(time.perf_counter())
        prompt = embed_prompt(model, self._inputs)
        self._limit = token_limit(model, prompt, settings.max_new_tokens)
        sampler = settings.sampling.sampler()
        if self._budget is not None:
            sampler = self._budget.limit(sampler)
        for token in generate(model, prompt, sampler, settings.max_new_tokens, self._drafts):
            self._tokens.append(token)
            self._seconds.append(time.perf_counter())
            yield token
