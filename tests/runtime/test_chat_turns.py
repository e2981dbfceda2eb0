"""Conversations of several turns, with tools, equal transformers' rendering and what EXAONE's template writes."""

import unicodedata

import pytest
from transformers import AutoTokenizer

from calib_data import READER
from console.errors import InputError
from runtime.chat import Chat

TOOL = {
    "type": "function",
    "function": {
        "name": "read_page",
        "description": "쪽을 <읽는다>",
        "parameters": {"type": "object", "properties": {"page": {"type": "integer"}}},
    },
}
DECLARED = (
    '<tool>{"type": "function", "function": {"name": "read_page", "description": "쪽을 <읽는다>", '
    '"parameters": {"type": "object", "properties": {"page": {"type": "integer"}}}}}</tool>\n'
)


def call(page, **others):
    return {"type": "function", "function": {"name": "read_page", "arguments": {"page": page}}, **others}


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "총액?"}],
    },
    {"role": "assistant", "content": "", "reasoning_content": "Old.", "tool_calls": [call(1), call(2)]},
    {"role": "tool", "content": "1,200", "tool_call_id": "a"},
    {"role": "tool", "content": [{"type": "text", "text": "3,400"}], "tool_call_id": "b"},
    {"role": "assistant", "content": "Once more.", "tool_calls": [call(3)]},
    {"role": "tool", "content": "", "tool_call_id": "c"},
    {"role": "assistant", "content": "<think>\nOld.\n</think>\n\n4,600"},
    {"role": "user", "content": "Sure?"},
]
RENDERED = (
    "<|tool_declare|>\n# Tools\n" + DECLARED + "<|endofturn|>\n"
    "<|system|>\nBe brief.<|endofturn|>\n"
    "<|user|>\nLook: <vision><|image_pad|></vision>총액?<|endofturn|>\n"
    "<|assistant|>\n<think>\n\n</think>\n\n"
    '<tool_call>{"name": "read_page", "arguments": {"page": 1}}</tool_call>\n'
    '<tool_call>{"name": "read_page", "arguments": {"page": 2}}</tool_call><|endofturn|>\n'
    "<|tool|>\n<tool_result>1,200</tool_result>\n<tool_result>3,400</tool_result><|endofturn|>\n"
    "<|assistant|>\n<think>\n\n</think>\n\nOnce more.\n"
    '<tool_call>{"name": "read_page", "arguments": {"page": 3}}</tool_call><|endofturn|>\n'
    "<|tool|>\n<tool_result></tool_result><|endofturn|>\n"
    "<|assistant|>\n<think>\n\n</think>\n\n4,600<|endofturn|>\n"
    "<|user|>\nSure?<|endofturn|>\n"
    "<|assistant|>\n<think>\n"
)


@pytest.fixture(scope="module")
def chat():
    return Chat(READER)


def folder_with(tmp_path, template):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((READER / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    return Chat(tmp_path)


def test_tools_and_turns_are_written_as_exaones_template_does(chat):
    theirs = AutoTokenizer.from_pretrained(READER)
    rendered = chat.render(MESSAGES, tools=[TOOL], thinking=True)
    assert rendered == RENDERED
    assert rendered == theirs.apply_chat_template(
        MESSAGES, tools=[TOOL], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    ids = chat.encode(MESSAGES, [3], tools=[TOOL], thinking=True)
    expected = theirs(RENDERED.replace("<|image_pad|>", "<|image_pad|>" * 3), add_special_tokens=False)["input_ids"]
    assert ids.tolist() == expected


def test_a_prompt_without_tools_is_what_it_was(chat):
    assert chat.render("Hi") == "<|user|>\nHi<|endofturn|>\n<|assistant|>\n<think>\n\n</think>\n\n"
    for absent in ({}, {"tools": []}):
        assert chat.encode("Hi", [2], **absent).tolist() == chat.encode_text(
            "<|user|>\n<vision><|image_pad|><|image_pad|></vision>Hi<|endofturn|>\n<|assistant|>\n<think>\n\n</think>\n\n"
        )


def test_texts_of_all_turns_are_canonical(chat):
    decomposed = unicodedata.normalize("NFD", "총액\ncafé")
    written = [{"role": "user", "content": [{"type": "text", "text": decomposed.replace("\n", "\r\n")}]}]
    plain = [{"role": "user", "content": "총액\ncafé"}]
    assert chat.encode(written).tolist() == chat.encode(plain).tolist()
    tools = [
        [{"type": "function", "function": {"name": "f", "description": text}}] for text in (decomposed, "총액\ncafé")
    ]
    assert chat.encode(plain, tools=tools[0]).tolist() == chat.encode(plain, tools=tools[1]).tolist()


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([{"role": "user", "content": "a\udcff"}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a\udcff"}]}], r"messages\[0\]\.content\[0\]\.text"),
    ],
)
def test_half_a_surrogate_pair_is_named_with_its_place(chat, messages, place):
    with pytest.raises(InputError, match=rf"^{place}: 'a\\udcff' is not valid UTF-8"):
        chat.encode(messages)


@pytest.mark.parametrize("template", ["{{ messages[-1].content }}", "{% if tools and false %}x{% endif %}"])
def test_a_template_that_ignores_tools_is_found_out(tmp_path, template):
    chat = folder_with(tmp_path, template)
    question = [{"role": "user", "content": "Hi"}]
    chat.encode(question)
    with pytest.raises(InputError, match="this model's chat template takes no tools"):
        chat.encode(question, tools=[TOOL])


def test_a_template_that_ignores_tool_calls_is_found_out(tmp_path):
    chat = folder_with(tmp_path, "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="takes no tool calls"):
        chat.encode([{"role": "assistant", "content": "", "tool_calls": [call(1)]}], tools=[TOOL])


def test_a_role_that_the_template_refuses_is_one_line(tmp_path):
    chat = folder_with(
        tmp_path, "{% if messages[0].role != 'user' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"cannot be rendered \(no system role\)"):
        chat.encode([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])


def test_a_placeholder_in_a_text_never_takes_an_images_place(tmp_path):
    """Where the template leaves an image out, the number of placeholders alone would be right."""
    chat = folder_with(tmp_path, "{{ messages[0].content }}{% for p in messages[1].content %}{{ p.text }}{% endfor %}")
    messages = [
        {"role": "user", "content": "<|image_pad|>"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
    ]
    with pytest.raises(InputError, match=r"remove <\|image_pad\|> from the text"):
        chat.encode(messages, [4])


@pytest.mark.parametrize("place", ["content", "tool", "arguments"])
def test_placeholders_are_refused_wherever_text_is(chat, place):
    texts = dict.fromkeys(("content", "tool", "arguments"), "a") | {place: "<|video_pad|>"}
    used = call(1) | {"function": {"name": "f", "arguments": {"x": texts["arguments"]}}}
    messages = [
        {"role": "user", "content": texts["content"]},
        {"role": "assistant", "content": "", "tool_calls": [used]},
        {"role": "tool", "content": texts["tool"]},
    ]
    with pytest.raises(InputError, match=r"1 placeholders for 0 videos, remove <\|video_pad\|>"):
        chat.encode(messages)


def test_an_image_that_the_template_leaves_out_is_said(tmp_path):
    template = "{% for p in messages[0].content %}{{ '<|image_pad|>' if p.type == 'image' and loop.first }}{% endfor %}"
    chat = folder_with(tmp_path, template)
    with pytest.raises(InputError, match="shows 1 of 2 images"):
        chat.encode([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], [4, 4])


def test_a_control_token_in_a_text_is_read_as_one(chat):
    """As in transformers and vLLM: a decision, written in `Chat.encode`."""
    end = chat.vocabulary["<|endofturn|>"]
    assert chat.encode("a<|endofturn|>b").tolist().count(end) == 2
