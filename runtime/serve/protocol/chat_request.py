"""The body of `POST /v1/chat/completions`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from runtime.serve.protocol.errors import RequestError
from runtime.serve.protocol.given import Given, Text
from runtime.serve.protocol.messages import Conversation

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    # OpenAI's
    **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction"), ()),
    **dict.fromkeys(("audio", "web_search_options", "reasoning_effort", "function_call", "moderation"), ()),
    **dict.fromkeys(("logit_bias", "metadata"), ({},)),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    # vLLM's
    **dict.fromkeys(("min_p", "min_tokens", "priority"), (0,)),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), (1,)),
    **dict.fromkeys(("use_beam_search", "ignore_eos", "include_stop_str_in_output", "echo"), (False,)),
    **dict.fromkeys(("continue_final_message", "add_special_tokens", "return_token_ids"), (False,)),
    **dict.fromkeys(("return_tokens_as_token_ids",), (False,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "add_generation_prompt"), (True,)),
    **dict.fromkeys(("stop_token_ids", "bad_words", "documents"), ([],)),
    **dict.fromkeys(("chat_template", "prompt_logprobs", "allowed_token_ids", "truncate_prompt_tokens"), ()),
}


Stop = Annotated[Text, Field(min_length=1, max_length=1000)]


class StreamOptions(Given):
    """What a stream has besides the answer."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "continuous_usage_stats": (False,),
        "include_obfuscation": (False,),
    }

    include_usage: bool = False
    """Send the usage before the end, in a chunk without choices."""


class NamedFunction(Given):
    """The name of a function."""

    name: Text


class NamedTool(Given):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Given):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Given):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Given):
    """A JSON schema with a name."""

    name: Text
    content: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    """Not shown to the model; describe the format in the prompt."""
    strict: bool = False
    """Answers match the schema, whether this is set or not."""


class SchemaFormat(Given):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Given):
    """vLLM's name for what an answer must match; one of the three."""

    content: dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema."""
    regex: Text | None = None
    """A regular expression for the whole answer."""
    choice: Annotated[list[Text], Field(fail_fast=True, min_length=1)] | None = None
    """Answers to choose from."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give one of json, regex and choice")
        return self


class ChatRequest(Conversation):
    """A conversation, and how to answer it."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT

    model: str | None = None
    """Name of the model, as `/v1/models` lists it; may be absent."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens, reasoning included; what the context leaves if absent."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The same, under its older name."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 is greedy; what generation_config.json recommends if absent, as for the next four."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Probability that the sampled tokens hold together."""
    top_k: int | None = Field(default=None, ge=-1)
    """Sample from the k likeliest tokens; 0 and -1 are off."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted once from the logit of every token already generated."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from the logit of a token each time that it was generated."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Seed of the sampling; choice i gets seed + i. Random if absent."""
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] = Field(default=[])
    """Texts that end the answer, which is then without them."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Number of answers."""
    logprobs: bool = False
    """Return the log probability of each token of the answer, reasoning included."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Likeliest tokens whose log probability comes with each token; needs logprobs."""
    stream: bool = False
    """Send the answer as it comes, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Whether a function is called: none, auto (the default with tools), required, or the one that is named."""
    response_format: ResponseFormat | None = None
    """What the answer, after its reasoning, must match."""
    structured_outputs: StructuredOutputs | None = None
    """The same as vLLM names it."""
    thinking_token_budget: int | None = Field(default=None, ge=0)
    """Longest reasoning in tokens; then the answer begins. 0 answers at once."""
    include_reasoning: bool = True
    """Whether the reasoning is returned."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def longest(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its limit."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def callable_tools(self) -> bool:
        """Whether the answer may have tool calls."""
        return bool(self.tools) and self.tool_choice != "none"

    def refuse_contradictions(self) -> None:
        """Raise RequestError for fields that are right one by one, but not together."""
        for wrong, param, problem in self._contradictions():
            if wrong:
                raise RequestError(400, f"{param}: {problem}", param=param)

    def _contradictions(self) -> list[tuple[bool, str, str]]:
        """Pairs of fields: whether they contradict each other, the field to change, and why."""
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        format_given = self.response_format is not None and self.response_format.type != "text"
        names = [tool.function.name for tool in self.tools]
        lengths = {self.max_tokens, self.max_completion_tokens} - {None}
        return [
            (self.stream_options is not None and not self.stream, "stream_options", "is only for stream: true"),
            (self.top_logprobs is not None and not self.logprobs, "top_logprobs", "needs logprobs: true"),
            (len(lengths) > 1, "max_tokens", "differs from max_completion_tokens; give one of them"),
            (len(set(names)) < len(names), "tools", "has two functions of one name"),
            (forced and not names, "tool_choice", "needs tools"),
            (named is not None and named not in names, "tool_choice", f"{named} is none of the tools"),
            (
                format_given and self.structured_outputs is not None,
                "structured_outputs",
                "contradicts response_format; give one of them",
            ),
            (
                self.callable_tools and (format_given or self.structured_outputs is not None),
                "response_format" if format_given else "structured_outputs",
                'cannot go with tools, unless tool_choice is "none"',
            ),
        ]
