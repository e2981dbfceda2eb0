"""What users do with OpenAI's client, against a real server; answers against those of the Python API."""

import base64
import io
import json

import jsonschema
import openai
import pytest

from calib_data.sources import open_documents

from .requests import CLOCK, OFF, QUESTION, SCHEMA, USER, WEATHER, picture


@pytest.fixture(scope="module")
def document():
    (document,) = open_documents(split="evaluation", count=1, seed=5, kind="line")
    return document


@pytest.fixture(scope="module")
def image(document):
    """The data URI of a rendered line of text."""
    file = io.BytesIO()
    document.image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def pdf(document, tmp_path_factory):
    path = tmp_path_factory.mktemp("pdf") / "line.pdf"
    document.image.save(path, "PDF", resolution=72)
    return path


def read(stream):
    """The parts of a streamed answer: reasoning, content, tool calls, log probabilities, finish reason and usage."""
    whole = {"reasoning": "", "content": "", "calls": {}, "logprobs": [], "finish": None, "usage": None}
    for number, chunk in enumerate(stream):
        if not chunk.choices:
            whole["usage"] = chunk.usage
            continue
        (choice,) = chunk.choices
        assert (choice.delta.role == "assistant") == (number == 0)
        whole["reasoning"] += getattr(choice.delta, "reasoning", None) or ""
        whole["content"] += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            known = whole["calls"].setdefault(call.index, [call.id, call.function.name, ""])
            known[2] += call.function.arguments
        whole["logprobs"] += choice.logprobs.content if choice.logprobs else []
        whole["finish"] = choice.finish_reason or whole["finish"]
    return whole


def test_models(client, server):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("fp16-cpu-exact=True", "model", 2048)
    assert client.models.retrieve(model.id) == model


@pytest.mark.parametrize("thinking", [False, True])
def test_a_picture_is_answered_as_by_the_python_api(chat, reader, document, image, thinking):
    answer = chat(picture(image), {"chat_template_kwargs": {"enable_thinking": thinking}}, max_tokens=100)
    expected = reader.ask(QUESTION, images=document.image, thinking=thinking, max_new_tokens=100)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert (choice.message.reasoning or "") == (choice.message.reasoning_content or "") == expected.reasoning
    assert choice.finish_reason == expected.finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))
    assert usage.completion_tokens_details.reasoning_tokens == expected.reasoning_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("thinking", [False, True])
def test_a_stream_has_the_same_answer(chat, image, thinking):
    extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
    message = chat(picture(image), extra, max_tokens=60).choices[0].message
    streamed = read(chat(picture(image), extra, max_tokens=60, stream=True))
    assert (streamed["content"], streamed["reasoning"]) == (message.content, message.reasoning or "")
    assert streamed["finish"] == "stop"
    assert streamed["usage"] is None


def test_thinking_is_the_templates_default(chat):
    assert chat(extra={}, max_tokens=60).choices[0].message.reasoning == "I read the lines."
    assert chat(extra={"include_reasoning": False}, max_tokens=60).choices[0].message.reasoning is None


def test_a_pdf_is_read(chat, reader, pdf):
    data = "data:application/pdf;base64," + base64.b64encode(pdf.read_bytes()).decode()
    content = [{"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}, {"type": "text", "text": QUESTION}]
    answer = chat([{"role": "user", "content": content}])
    expected = reader.ask(QUESTION, images=pdf, max_new_tokens=24)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens


def test_two_pictures_and_a_detail_that_asks_for_nothing(chat, image):
    part = {"type": "image_url", "image_url": {"url": image, "detail": "auto"}}
    one, two = (chat([{"role": "user", "content": [*[part] * n, {"type": "text", "text": "Read."}]}]) for n in (1, 2))
    assert two.usage.prompt_tokens == one.usage.prompt_tokens + 18  # 8 x 2 tokens, and one on each side


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be short."}, *USER],
        [{"role": "developer", "content": "Be short."}, *USER],
        [*USER, {"role": "assistant", "content": "ABC"}, *USER],
        [*USER, {"role": "assistant", "content": "ABC", "reasoning_content": "I read.", "refusal": None}, *USER],
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
    ],
)
def test_several_turns(chat, server, messages):
    answer = chat(messages)
    body = {"messages": messages, **OFF}
    count = json.loads(server.get("/tokenize", body)[2])["count"]
    assert answer.usage.prompt_tokens == count
    assert answer.choices[0].message.role == "assistant"


def test_an_answer_of_the_client_can_be_sent_back(chat):
    message = chat(extra={}, max_tokens=60).choices[0].message
    assert chat([*USER, message, *USER]).choices[0].message.content


@pytest.mark.parametrize(
    "limit",
    [
        {"max_tokens": 3},
        {"max_tokens": openai.omit, "max_completion_tokens": 3},
        {"max_tokens": 3, "max_completion_tokens": 3},
    ],
)
def test_the_longest_answer(chat, limit):
    answer = chat(**limit)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_the_context_is_the_limit(chat):
    question = [{"role": "user", "content": "Write. " * 260}]
    answer = chat(question, OFF | {"structured_outputs": {"regex": "[ab]{3000}"}}, max_tokens=openai.omit)
    assert answer.usage.total_tokens == 2048
    assert answer.usage.completion_tokens > 100
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 1, "top_p": 0.5, "seed": 1},
        {"temperature": 1, "seed": -1},
        {"temperature": 1, "presence_penalty": 2, "seed": 1},
        {"temperature": 1, "frequency_penalty": 2, "seed": 1},
        {"top_p": 1},
    ],
)
def test_sampling_is_that_of_the_python_api(chat, reader, options):
    answer = chat(**options).choices[0].message.content
    if "frequency_penalty" in options or options.get("seed") == -1:  # the Python API has neither
        assert answer == chat(**options).choices[0].message.content
        assert answer != chat().choices[0].message.content
    else:
        given = {name: value for name, value in options.items() if name != "top_p" or value != 1}
        assert answer == reader.ask(QUESTION, max_new_tokens=24, **given).text


@pytest.mark.parametrize(("top_k", "same"), [(1, True), (0, False), (-1, False)])
def test_top_k(chat, top_k, same):
    """Of one token only the likeliest is left."""
    answer = chat(temperature=2, seed=3, extra=OFF | {"top_k": top_k}).choices[0].message.content
    assert (answer == chat(temperature=0).choices[0].message.content) == same


def test_without_a_seed_answers_differ(chat):
    assert len({chat(temperature=2).choices[0].message.content for _ in range(2)}) == 2


def test_n_choices_have_the_seeds_that_follow(chat):
    answer = chat(n=3, temperature=1, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    alone = [chat(temperature=1, seed=7 + n) for n in range(3)]
    assert [choice.message.content for choice in answer.choices] == [one.choices[0].message.content for one in alone]
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert answer.usage.prompt_tokens == alone[0].usage.prompt_tokens


def test_n_choices_in_a_stream(chat):
    texts = {0: "", 1: ""}
    for chunk in chat(n=2, temperature=1, seed=7, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [c.message.content for c in chat(n=2, temperature=1, seed=7).choices]


@pytest.mark.parametrize("stop", ["e", ["zz", "e"], ["re"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop(chat, stop, stream):
    free = chat().choices[0].message.content
    wanted = free[: min(free.find(text) for text in ([stop] if isinstance(stop, str) else stop) if text in free)]
    if stream:
        streamed = read(chat(stop=stop, stream=True))
        assert (streamed["content"].rstrip(), streamed["finish"]) == (wanted.rstrip(), "stop")
    else:
        (choice,) = chat(stop=stop).choices
        assert (choice.message.content.rstrip(), choice.finish_reason) == (wanted.rstrip(), "stop")


@pytest.mark.parametrize("top", [None, 0, 1, 20])
def test_logprobs(chat, top):
    (choice,) = chat(logprobs=True, top_logprobs=openai.omit if top is None else top).choices
    tokens = choice.logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode().strip() == choice.message.content
    assert all(token.logprob <= 0 for token in tokens)
    assert {len(token.top_logprobs) for token in tokens} == {top or 0}
    if top:  # greedy: the token is the likeliest
        assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)


def test_logprobs_in_a_stream_are_those_of_the_whole(chat):
    whole = chat(extra={}, max_tokens=40, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = read(chat(extra={}, max_tokens=40, logprobs=True, top_logprobs=2, stream=True))["logprobs"]
    assert [token.bytes for token in streamed] == [token.bytes for token in whole]
    # How many tokens a step drafts depends on the time that steps take, and the last digits on a step's shape.
    for one, other in zip(streamed, whole, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        likeliest = {top.token: top.logprob for top in one.top_logprobs}
        assert likeliest == pytest.approx({top.token: top.logprob for top in other.top_logprobs}, abs=1e-4)


def test_usage_in_a_stream(chat):
    usage = read(chat(stream=True, stream_options={"include_usage": True}))["usage"]
    whole = chat().usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)


def test_a_prompt_that_was_read_before_is_cached(chat):
    messages = [{"role": "user", "content": "Which of these lines is the longest?"}]
    chat(messages)
    usage = chat(messages).usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(chat, thinking, stream):
    wanted = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": SCHEMA, "strict": True}}
    extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
    answer = chat(extra=extra, max_tokens=400, response_format=wanted, stream=stream)
    content = read(answer)["content"] if stream else answer.choices[0].message.content
    jsonschema.validate(json.loads(content), SCHEMA)


def test_json_object(chat):
    answer = chat(max_tokens=1500, temperature=1, seed=1, response_format={"type": "json_object"})
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.startswith("{")


def test_text_format_asks_for_nothing(chat):
    assert chat(response_format={"type": "text"}).choices[0].message.content == chat().choices[0].message.content


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"json": SCHEMA}, lambda text: json.loads(text)["kind"] in "ab"),
        ({"regex": "[0-9]{4}-[0-9]{2}"}, lambda text: len(text) == 7 and text[4] == "-"),
        ({"choice": ["invoice", "receipt"]}, lambda text: text in ("invoice", "receipt")),
    ],
)
def test_structured_outputs_of_vllm(chat, wanted, fits):
    (choice,) = chat(extra=OFF | {"structured_outputs": wanted}, max_tokens=400).choices
    assert fits(choice.message.content)
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_call(chat, choice, stream):
    answer = chat(tools=[WEATHER], tool_choice=choice, max_tokens=400, stream=stream)
    if stream:
        streamed = read(answer)
        calls, finish, content = list(streamed["calls"].values()), streamed["finish"], streamed["content"]
    else:
        message, finish = answer.choices[0].message, answer.choices[0].finish_reason
        calls = [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls]
        content = message.content or ""
    assert finish == "tool_calls"
    assert content == ""
    assert len({name_id for name_id, _, _ in calls}) == len(calls) > 0
    for _, name, arguments in calls:
        assert name == "weather"
        jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])


def test_a_round_trip_of_a_tool(chat):
    message = chat(tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=400).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": '{"sky": "blue"}'} for call in message.tool_calls]
    answer = chat([*USER, message, *results], tools=[WEATHER, CLOCK])
    assert answer.usage.prompt_tokens > chat(tools=[WEATHER, CLOCK]).usage.prompt_tokens


@pytest.mark.parametrize("choice", ["auto", openai.omit])
def test_tools_that_need_not_be_called(chat, choice):
    answer = chat(tools=[WEATHER], tool_choice=choice)
    assert answer.usage.prompt_tokens > chat().usage.prompt_tokens
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_tools_that_must_not_be_called_are_not_shown(chat):
    assert chat(tools=[WEATHER], tool_choice="none").usage.prompt_tokens == chat().usage.prompt_tokens


@pytest.mark.parametrize(("budget", "tokens"), [(0, 0), (3, 4), (200, 18)])  # a forced end has a line break
def test_thinking_budget(chat, budget, tokens):
    answer = chat(extra={"thinking_token_budget": budget}, max_tokens=400)
    assert answer.usage.completion_tokens_details.reasoning_tokens == tokens
    assert answer.choices[0].message.content


def test_null_is_absence(chat):
    nothing = dict.fromkeys(("seed", "stop", "logit_bias", "user", "temperature", "top_p", "response_format", "tools"))
    answer = chat(extra=OFF | nothing | dict.fromkeys(("tool_choice", "n", "logprobs", "metadata", "reasoning_effort")))
    assert answer.choices[0].message.content == chat().choices[0].message.content


def test_neutral_values_ask_for_nothing(chat):
    options = {"logit_bias": {}, "store": False, "service_tier": "auto", "parallel_tool_calls": True}
    assert chat(**options).choices[0].message.content == chat().choices[0].message.content
