"""From a chat request to what the engine is asked, in a worker thread: images are decoded, grammars compiled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.decoding.sampling import Sampling
from runtime.decoding.structured import Grammar
from runtime.engine.request import Request
from runtime.serve.conversation import open_conversation
from runtime.serve.protocol.chat_request import JsonFormat, NamedTool, SchemaFormat
from runtime.serve.protocol.errors import TOO_LONG, RequestError

if TYPE_CHECKING:
    from runtime.exported import ExportedModel
    from runtime.prompt import PromptInputs
    from runtime.serve.protocol.chat_request import ChatRequest
    from runtime.serve.protocol.messages import Conversation
    from runtime.serve.service import Service

_SAMPLED = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")
_NEUTRAL = {"top_p": 1.0, "top_k": 0}


def engine_requests(service: Service, body: ChatRequest) -> list[Request]:
    """One request to the engine for each choice. Raises InputError and RequestError for what cannot be answered."""
    model = service.model
    sampling, thinking = _sampling(model, body), thinks(model, body)
    if body.thinking_token_budget is not None and not thinking:
        raise _wrong("thinking_token_budget", "has no effect without thinking; leave it out")
    thinking = thinking and body.thinking_token_budget != 0
    grammar = _grammar(service, body)
    if body.logprobs:
        _ = service.grammar_tokenizer  # made here, where it stops no stream: tokens are written with it
    inputs = open_inputs(service, body, thinking=thinking, tools=body.tool_choice != "none")
    limit = _longest(body, len(inputs.ids), service.context)
    _check_budget(model, body, limit)
    request = Request(
        inputs,
        sampling,
        limit,
        thinking=thinking,
        thinking_budget=body.thinking_token_budget if thinking else None,
        stop=body.stops,
        grammar=grammar,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    if body.seed is None:
        return [request] * body.n
    seeds = [(body.seed + choice) % 2**64 for choice in range(body.n)]
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def thinks(model: ExportedModel, conversation: Conversation) -> bool:
    """Whether the model reasons first: as the request says, else as the chat template has it."""
    wanted = conversation.chat_template_kwargs.enable_thinking
    if wanted and not model.chat.can_think:
        raise _wrong("chat_template_kwargs.enable_thinking", "this model's chat template has no reasoning")
    return model.chat.thinks_by_default if wanted is None else wanted


def open_inputs(service: Service, conversation: Conversation, *, thinking: bool, tools: bool = True) -> PromptInputs:
    """Render a conversation and open its images. Raises InputError for one that cannot be read."""
    declared = conversation.tool_dicts() if tools else []
    messages = conversation.message_dicts()
    media, context = service.media, service.context
    return open_conversation(service.model, messages, declared, thinking=thinking, media=media, context=context)


def _sampling(model: ExportedModel, body: ChatRequest) -> Sampling:
    """What the request says, completed by generation_config.json."""
    chosen = {name: value for name in _SAMPLED if (value := getattr(body, name)) is not None}
    if "top_k" in chosen:
        chosen["top_k"] = max(0, chosen["top_k"])
    if "temperature" not in chosen and not model.generation.values.get("do_sample"):
        for name in _NEUTRAL.keys() & chosen.keys():
            if chosen.pop(name) != _NEUTRAL[name]:
                raise _wrong(name, "has no effect as this model is greedy; give temperature too")
    return Sampling.recommended(model.generation.values, chosen, None)


def _longest(body: ChatRequest, prompt_tokens: int, context: int) -> int:
    """Longest answer in tokens: what the request says, or all that the context leaves."""
    (name, longest), left = body.longest, context - prompt_tokens
    if longest is not None and longest > left:
        message = f"{name}: {longest} is too large; the prompt leaves {left} of {context} tokens"
        raise RequestError(400, message, param=name, code=TOO_LONG)
    return left if longest is None else longest


def _check_budget(model: ExportedModel, body: ChatRequest, limit: int) -> None:
    """Raise RequestError for a thinking budget that leaves no token for the answer."""
    budget = body.thinking_token_budget
    if budget and budget + model.chat.end_of_reasoning.tokens >= limit:
        raise _wrong("thinking_token_budget", f"leaves no tokens for the answer, which may have {limit} in all")


def _grammar(service: Service, body: ChatRequest) -> Grammar | None:
    """What the answer must match. Raises RequestError for what no grammar can be made of."""
    field, make, content = _constraint(body)
    if make is None:
        return None
    try:
        grammar: Grammar = make(service.grammar_tokenizer, *content)
    except InputError as error:
        raise _wrong(field, str(error)) from error
    return grammar


def _constraint(body: ChatRequest) -> tuple[str, Any, tuple[Any, ...]]:
    """The field that constrains the answer, what makes its grammar, and of what; None where nothing does."""
    wanted, structured, choice = body.response_format, body.structured_outputs, body.tool_choice
    forced = choice.function.name if isinstance(choice, NamedTool) else None
    if forced is not None or choice == "required":
        functions = [tool.function for tool in body.tools if forced in (None, tool.function.name)]
        schemas = {function.name: function.parameters for function in functions}
        return "tools", partial(Grammar.tool_calls, several=forced is None), (schemas,)
    if isinstance(wanted, SchemaFormat):
        return "response_format.json_schema.schema", Grammar.json_schema, (wanted.json_schema.content,)
    if isinstance(wanted, JsonFormat):
        return "response_format", Grammar.json_object, ()
    if structured is None:
        return "", None, ()
    for name, make, content in (
        ("json", Grammar.json_schema, structured.content),
        ("regex", Grammar.regex, structured.regex),
    ):
        if content is not None:
            return f"structured_outputs.{name}", make, (content,)
    return "structured_outputs.choice", Grammar.choice, (structured.choice,)


def _wrong(param: str, problem: str) -> RequestError:
    return RequestError(400, f"{param}: {problem}", param=param)
