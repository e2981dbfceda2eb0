"""Messages of OpenAI's API become the prompt that the command line makes of the same files and question."""

import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from calib_data.images import open_image
from console.errors import InputError
from runtime.chat import TooLongError
from runtime.inputs.images import preprocess
from runtime.prompt import embed_prompt, open_prompt_inputs, prompt_inputs
from runtime.serve.conversation import open_conversation
from runtime.serve.media import Media, MediaLimits

from ..inputs.films import write_film
from .media.media_files import data_uri, pdf_pages


def opened(reader, *messages, tools=(), thinking=False, media=None, context=32768):
    return open_conversation(reader, messages, tools, thinking=thinking, media=media or Media(), context=context)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def words(text):
    return {"type": "text", "text": text}


def image_part(content):
    return {"type": "image_url", "image_url": {"url": data_uri(content)}}


def file_part(content):
    return {"type": "file", "file": {"file_data": data_uri(content, "application/pdf"), "filename": "a.pdf"}}


def png(*size, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("thinking", [False, True])
def test_a_question_about_a_picture_is_generates_prompt(reader, picture, thinking):
    message = user(image_part(picture.read_bytes()), words("Read the text."))
    ours = opened(reader, message, thinking=thinking)
    theirs = open_prompt_inputs(reader, "Read the text.", picture, thinking=thinking)
    assert ours.ids.tolist() == theirs.ids.tolist()
    np.testing.assert_array_equal(embed_prompt(reader, ours).embeds, embed_prompt(reader, theirs).embeds)
    assert ours.names == ["messages[0].content[0].image_url"]


@pytest.mark.parametrize("size", [(2000, 1500), (900, 33), (3, 500), (61, 37)])
def test_a_large_picture_is_kept_small_and_gives_the_same_patches(reader, tmp_path, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    (kept,) = opened(reader, user(image_part((tmp_path / "large.png").read_bytes()))).images
    settings = reader.image_settings
    assert kept.width * kept.height <= max(settings.max_pixels, size[0] * size[1] if size[0] < 100 else 0)
    ours, theirs = preprocess(kept, settings), preprocess(open_image(tmp_path / "large.png"), settings)
    assert ours[1] == theirs[1]
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_media_stay_where_they_are_in_a_message(reader, tmp_path):
    pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")
    import av

    write_film(av, tmp_path / "film.mp4", 8)
    video = {"type": "video_url", "video_url": {"url": data_uri((tmp_path / "film.mp4").read_bytes())}}
    message = user(words("A"), image_part(png(56, 56)), words("B"), video, words("C"), file_part(pdf_pages(2)))
    inputs = opened(reader, {"role": "developer", "content": "Be brief."}, message)
    chat = reader.chat
    shown = [chat.image_token_id, chat.video_token_id]
    text = chat._tokenizer.decode([i for i in inputs.ids.tolist() if i not in shown], skip_special_tokens=False)
    assert text == (
        "<|system|>\nBe brief.<|endofturn|>\n"
        "<|user|>\nA<vision></vision>B<vision></vision>C<vision></vision><vision></vision><|endofturn|>\n"
        "<|assistant|>\n<think>\n\n</think>\n\n"
    )
    assert len(inputs.videos) == 1
    assert inputs.names == [
        "messages[1].content[1].image_url",
        "messages[1].content[5].file: page 1",
        "messages[1].content[5].file: page 2",
    ]


def test_a_round_trip_of_tools(reader):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    called = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2]}'}}
    inputs = opened(
        reader,
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "reasoning": "I add.", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": [words("3")]},
        tools=tools,
        thinking=True,
    )
    expected = (
        f"<|tool_declare|>\n# Tools\n<tool>{json.dumps(tools[0])}</tool>\n<|endofturn|>\n"
        "<|user|>\n1 + 2?<|endofturn|>\n"
        '<|assistant|>\n<think>\n\n</think>\n\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
        "<|endofturn|>\n<|tool|>\n<tool_result>3</tool_result><|endofturn|>\n<|assistant|>\n<think>\n"
    )
    assert inputs.ids.tolist() == reader.chat.encode_text(expected)


def test_reasoning_of_earlier_turns_reaches_the_template(reader, monkeypatch):
    """EXAONE's leaves it out; another model's may not."""
    seen = []
    monkeypatch.setattr(
        "runtime.serve.conversation.prompt_inputs", lambda model, messages, *_, **__: seen.extend(messages)
    )
    opened(
        reader,
        {"role": "assistant", "content": "a", "reasoning_content": "Old."},
        {"role": "user", "content": "b"},
    )
    assert seen[0] == {"role": "assistant", "content": "a", "reasoning_content": "Old."}


ASKED = {"role": "user", "content": "Hi"}
BAD_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}


@pytest.mark.parametrize(
    ("messages", "place", "message"),
    [
        ([], "messages", "is empty"),
        ([{"role": "robot", "content": "Hi"}], "messages[0].role", "'robot' is none of system, developer, user"),
        ([ASKED, {"role": "assistant", "content": "Yes"}], "messages[1].role", "end with one of the user or of a tool"),
        ([{"role": "system", "content": "Be brief."}], "messages[0].role", "end with one of the user or of a tool"),
        ([{"role": "user", "content": " \n"}], "messages[0].content", "is empty"),
        ([{"role": "user", "content": None}], "messages[0].content", "is empty"),
        ([{"role": "user"}], "messages[0].content", "is empty"),
        ([user()], "messages[0].content", "is empty"),
        ([user(words(" "), words(""))], "messages[0].content", "is empty"),
        ([{"role": "user", "content": 3}], "messages[0].content", "is neither a text nor a list of parts"),
        ([user({"type": "audio"})], "messages[0].content[0].type", "'audio' is none of text, image_url"),
        ([user({})], "messages[0].content[0].type", "None is none of text"),
        ([user({"type": "text"})], "messages[0].content[0].text", "is not a text"),
        ([user({"type": "image_url", "image_url": {}})], "messages[0].content[0].image_url.url", "is missing"),
        ([user({"type": "file", "file": {}})], "messages[0].content[0].file.file_data", "is missing"),
        ([user({"type": "file", "file": {"file_id": "a"}})], "messages[0].content[0].file.file_id", "keeps no files"),
        ([user(words("a"), image_part(b"no"))], "messages[0].content[1].image_url", "is not an image"),
        ([{"role": "system", "content": [image_part(png(9, 9))]}, ASKED], "messages[0].content[0].type", "of the user"),
        (
            [ASKED, {"role": "tool", "content": "3", "tool_call_id": "x"}],
            "messages[1].tool_call_id",
            "no earlier message",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [BAD_CALL]}, ASKED],
            "messages[0].tool_calls[0].function.arguments",
            "is not JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [BAD_CALL | {"function": {"name": "f", "arguments": "[1]"}}]}, ASKED],
            "messages[0].tool_calls[0].function.arguments",
            "is not a JSON object",
        ),
        ([user(image_part(png(900, 2)))], "messages[0].content[0].image_url", "more than 200 times the other"),
        ([user(words("<|image_pad|>"))], "prompt", "remove <|image_pad|> from the text"),
    ],
)
def test_one_clear_error_with_its_place(reader, messages, place, message):
    with pytest.raises(InputError) as raised:
        opened(reader, *messages)
    assert str(raised.value).startswith(f"{place}: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("depth", [300, 800, 950, 5000])
def test_json_that_is_nested_deeply_is_no_crash(reader, depth):
    arguments = '{"a": ' + "[" * depth + "]" * depth + "}"
    called = BAD_CALL | {"function": {"name": "f", "arguments": arguments}}
    try:
        opened(reader, {"role": "assistant", "tool_calls": [called]}, ASKED)
    except InputError as error:
        assert depth > 300, error


def test_images_of_a_request_are_limited_pages_among_them(reader):
    media = Media(MediaLimits(images=2))
    opened(reader, user(file_part(pdf_pages(2)), words("Hi")), media=media)
    with pytest.raises(InputError, match=r"^messages\[1\]\.content\[0\]\.file: page 2: is more than 2 images"):
        opened(reader, user(image_part(png(56, 56))), user(file_part(pdf_pages(2))), media=media)


def test_images_that_do_not_fit_the_context_are_refused_one_by_one(reader, picture):
    """That of the server, which may be less than the model's."""
    part = image_part(picture.read_bytes())
    tokens = int((opened(reader, user(part, words("x"))).ids == reader.chat.image_token_id).sum())
    message, context = user(*[part] * 40, words("x")), 10 * tokens + 1
    with pytest.raises(
        TooLongError, match=rf"content\[10\]\.image_url: does not fit the context of {context} tokens; send fewer"
    ):
        opened(reader, message, context=context)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(reader):
    """Tokenizing 4 MB takes seconds and 600 MB of memory."""
    started = time.process_time()
    with pytest.raises(TooLongError, match=r"^prompt: \d+ characters, too many for a context of 2048 tokens"):
        opened(reader, user(words("12.50 " * 700_000)), context=2048)
    assert time.process_time() - started < 1
    for question in ("x", "Which of these lines is the longest?"):
        tokens = len(opened(reader, user(words(question))).ids)
        assert len(opened(reader, user(words(question)), context=tokens + 1).ids) == tokens
        with pytest.raises(TooLongError, match=rf"^prompt: {tokens} tokens, but the context is {tokens}; shorten it"):
            opened(reader, user(words(question)), context=tokens)


def test_a_text_only_model_reads_no_images_and_gets_plain_text(reader, monkeypatch):
    monkeypatch.setattr(reader, "manifest", replace(reader.manifest, vision=None))
    for part in (image_part(png(9, 9)), file_part(pdf_pages(1)), {"type": "video_url", "video_url": {"url": "data:"}}):
        with pytest.raises(InputError, match=rf"content\[1\]\.{part['type']}: this model reads text only"):
            opened(reader, user(words("Hi"), part))
    assert opened(reader, user(words("a"), words("b"))).ids.tolist() == prompt_inputs(reader, "a\nb").ids.tolist()
