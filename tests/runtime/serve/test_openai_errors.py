"""What OpenAI's client is told of requests that are refused."""

import openai
import pytest

from .requests import OFF, USER, WEATHER, picture


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"user": "me"}, "user"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"extra_body": {"min_p": 0.1}}, "min_p"),
        ({"extra_body": {"no_such": 1}}, "no_such"),
        ({"extra_body": {"chat_template_kwargs": {"documents": []}}}, "chat_template_kwargs.documents"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 0.5}, "top_p"),  # the reader is greedy
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2048}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight"),
        ({"messages": [{"role": "user", "content": "x", "weight": None}]}, "messages[0].weight"),
        ({"messages": [*USER, {"role": "assistant", "audio": {}}, *USER]}, "messages[1].audio"),
        ({"messages": [*USER, {"role": "tool", "tool_call_id": "x", "content": ""}]}, "messages[1].tool_call_id"),
        ({"messages": picture("data:image/png;base64,AAAA")}, "messages[0].content[0].image_url"),
        ({"messages": picture("http://127.0.0.1/a.png")}, "messages[0].content[0].image_url"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "response_format.json_schema.schema",
        ),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs.regex"),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"thinking_token_budget": 24}}, "thinking_token_budget"),
        ({"extra_body": OFF | {"thinking_token_budget": 3}}, "thinking_token_budget"),
    ],
)
def test_what_is_wrong_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "fp16-cpu-exact=True", "messages": USER, "max_tokens": 24} | options)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.body["message"]


@pytest.mark.parametrize("words", [2000, 3_000_000])
def test_a_prompt_that_is_too_long_is_a_bad_request(chat, words):
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        chat([{"role": "user", "content": "many words " * words}])
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")


def test_another_model_is_not_found(chat):
    with pytest.raises(openai.NotFoundError) as refused:
        chat(model="gpt-9")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: Input should be a valid string"),
    ],
)
def test_a_field_of_several_types_is_judged_as_the_one_that_was_sent(client, options, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "reader", "messages": USER, **options})
    assert caught.value.body["message"].startswith(message)
