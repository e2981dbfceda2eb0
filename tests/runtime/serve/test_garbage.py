"""Bodies that make no sense: each gets an answer or an error in OpenAI's shape, and the server goes on."""

import copy
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.serve.protocol.chat_request import ChatRequest

from .server import CHAT, error_of

VALID = {
    "model": "fp16-cpu-exact=True",
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Read."}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "auto",
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 5,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "seed": 1,
    "stop": ["x"],
    "n": 1,
    "logprobs": True,
    "top_logprobs": 1,
    "stream": False,
    "response_format": {"type": "text"},
    "chat_template_kwargs": {"enable_thinking": True},
    "thinking_token_budget": 1,
    "include_reasoning": True,
}
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("\ud800")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
OPTIONS = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def places(value, path=()):
    """Paths of everything inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def check(server, body):
    status, _, text = response = server.get(CHAT, body)
    if status == 200:
        assert "choices" in text
    else:
        assert error_of(response)[0] in (400, 404), text


@OPTIONS
@given(place=st.sampled_from(list(places(VALID))), value=VALUES, drop=st.booleans(), name=st.text(max_size=5))
def test_one_field_is_wrong(server, place, value, drop, name):
    body = copy.deepcopy(VALID)
    *path, last = place
    holder = body
    for key in path:
        holder = holder[key]
    if drop:
        del holder[last]
    else:
        holder[last] = value
    if name and isinstance(holder, dict):
        holder.setdefault(name, value)
    check(server, json.dumps({"max_tokens": 12} | body).encode())


@OPTIONS
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(server, body):
    check(server, body)


@pytest.mark.parametrize(
    "wrong",
    [
        {str(number): 0 for number in range(1000)},
        {"messages": [0] * 1000},
        {"messages": [{"role": "user", "content": [0] * 1000}] * 1000},
        {"messages": [{"role": "user", "content": "x"} | {str(number): 0 for number in range(1000)}] * 1000},
        {"messages": [{"role": "assistant", "tool_calls": [0] * 128}] * 1000},
        {"messages": [{"role": "tool", "tool_call_id": "a", "content": [0] * 1000}] * 1000},
        {"tools": [0] * 128},
        {"stop": [0] * 16},
        {"structured_outputs": {"choice": [0] * 1000}},
    ],
)
def test_many_mistakes_are_few_errors(wrong):
    """An error takes a kilobyte: those of a body of 64 MB took all memory."""
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate(VALID | wrong)
    assert raised.value.error_count() <= 3  # a union has one for each of its members


PART = {"type": "text", "text": "x"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [{"role": "user", "content": [PART] * 1024}, {"role": "assistant", "tool_calls": [CALL] * 128}],
)
def test_more_parts_than_can_be_checked_in_the_event_loop_are_refused(message):
    """Half a million took ten seconds, in which no stream went on."""
    started = time.process_time()
    with pytest.raises(ValidationError, match="has more than 16384 parts and tool calls"):
        ChatRequest.model_validate({"messages": [message] * 500})
    assert time.process_time() - started < 0.5


def test_the_server_answers_afterwards(server):
    """Runs after the others."""
    server.idle()
    assert server.get(CHAT, {"max_tokens": 12} | VALID)[0] == 200
    assert not [line for line in server.log if "Traceback" in line or " 500 " in line]
