"""Answers to questions about images and videos, whole or as a stream of text; the command line uses the same code."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from console.errors import InputError, NoMemoryError
from console.progress import say
from runtime.decoding.draft_policy import MAX_DRAFTS, DraftPolicy
from runtime.decoding.generate import generate, token_limit
from runtime.decoding.sampling import Sampling
from runtime.decoding.speculative import Drafts
from runtime.prompt import embed_prompt

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from runtime.exported import ExportedModel
    from runtime.prompt import PromptInputs

MAX_NEW_TOKENS = 512
AUTO = "auto"
MAX_DRAFT_TOKENS = 8


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
    """Whether the model reasons first."""
    draft_tokens: int | DraftPolicy
    """Draft tokens ahead of each decoder call, or the policy that chooses the number."""

    def drafts(self) -> Drafts | None:
        """Counts of a new answer's draft tokens; None where none are drafted."""
        if isinstance(self.draft_tokens, DraftPolicy):
            return None if self.draft_tokens.disabled else Drafts(MAX_DRAFTS, self.draft_tokens)
        return Drafts(self.draft_tokens) if self.draft_tokens else None


def answer_settings(model: ExportedModel, policy: DraftPolicy, options: AnswerOptions) -> AnswerSettings:
    """Complete options by the model's generation_config.json.

    policy: chooses the number of draft tokens for "auto"; it learns from all answers that share it. Raises InputError
    for an option or recommendation out of its range, and TypeError for an unknown option.
    """
    if unknown := options.keys() - AnswerOptions.__annotations__.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    limit, seed = options.get("max_new_tokens", MAX_NEW_TOKENS), options.get("seed")
    if limit < 1:
        raise InputError(f"--max-new-tokens {limit}: must be 1 or more")
    given = {name: options.get(name) for name in ("temperature", "top_p", "top_k", "presence_penalty")}
    chosen = {name: value for name, value in given.items() if value is not None}
    Sampling(seed=seed, **chosen)  # type: ignore[arg-type]  # or the model's file would be blamed for a wrong option
    sampling = Sampling.recommended(model.generation, chosen, seed)
    number = parse_draft_tokens(options.get("draft_tokens", AUTO))
    refuse_captured_drafts(number, model.options.capture)
    draft_tokens: int | DraftPolicy | None = number
    if draft_tokens is None:
        # A captured step is a plain one. With a seed the same answer is wanted again, and the policy depends on time.
        drafts_nothing = model.target.mtp is None or model.options.capture or seed is not None
        draft_tokens = 0 if drafts_nothing else policy
    return AnswerSettings(sampling, limit, options.get("thinking", False), draft_tokens)


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


def open_answer_sessions(model: ExportedModel, settings: AnswerSettings) -> None:
    """Open the decoder and, for draft tokens, the MTP layer, where they are not open yet.

    Raises InputError where they cannot be opened. Where the policy may draft and the MTP layer does not fit in memory,
    answers come without drafts.
    """
    policy = settings.draft_tokens if isinstance(settings.draft_tokens, DraftPolicy) else None
    model.open_sessions(drafts=policy is None and settings.draft_tokens != 0)
    if policy is not None and not policy.disabled:
        try:
            model.open_sessions(drafts=True)
        except NoMemoryError as error:
            say(f"answering without drafts: {error}")
            policy.disabled = True


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    """The answer without its reasoning."""
    reasoning: str
    """What the model wrote before `</think>`; empty without `thinking`."""
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
        self._drafts = settings.drafts()
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
        answer = self._model.chat.decode_answer(tokens, thinking=self._settings.thinking)
        drafted = drafts is not None and (drafts.policy is None or drafts.calls > 0)
        return Answer(
            text=answer.text,
            reasoning=answer.reasoning,
            tokens=tokens,
            finish_reason="length" if len(tokens) == self._limit else "stop",
            prompt_tokens=len(self._inputs.ids),
            first_token_seconds=seconds[1] - seconds[0] if tokens else None,
            tokens_per_second=(len(tokens) - 1) / (seconds[-1] - seconds[1]) if len(tokens) > 1 else None,
            drafts=drafts if drafted else None,
        )

    def close(self) -> None:
        """Stop generating. The KV cache is free for the next answer."""
        self._coming.close()

    def _generate(self) -> Generator[int, None, None]:
        model, settings = self._model, self._settings
        self._seconds.append(time.perf_counter())
        prompt = embed_prompt(model, self._inputs)
        self._limit = token_limit(model, prompt, settings.max_new_tokens)
        for token in generate(model, prompt, settings.sampling.sampler(), settings.max_new_tokens, self._drafts):
            self._tokens.append(token)
            self._seconds.append(time.perf_counter())
            yield token
