"""Prompts and decoding equal transformers' tokenizer; a stream never shows half a character."""

import json
import threading
import time
import unicodedata

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from calib_data import READER
from console.errors import InputError
from runtime.chat import Chat
from runtime.decoding.thinking_budget import ThinkingBudget
from runtime.inputs.messages import user_turn

# The turns of EXAONE 4.5, with the Jinja features that chat templates of this family use.
TEMPLATE = """\
{%- set marks = {'system': '<|system|>\\n', 'user': '<|user|>\\n', 'assistant': '<|assistant|>\\n'} -%}
{%- for message in messages %}
    {%- if message.role not in marks %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
    {{- marks[message.role] }}
    {%- if message.content is string %}
        {{- message.content + '<|endofturn|>\\n' }}
        {%- continue %}
    {%- endif %}
    {%- for part in message.content %}
        {%- if part.type == 'image' %}
            {{- '<vision><|image_pad|></vision>' }}
        {%- elif part.type == 'video' %}
            {{- '<vision><|video_pad|></vision>' }}
        {%- else %}
            {{- part.text }}
        {%- endif %}
    {%- endfor %}
    {{- '<|endofturn|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- marks['assistant'] }}
{%- if enable_thinking is defined and enable_thinking %}<think>
{% else %}<think>

</think>

{% endif %}
{% endif %}
"""
SPECIAL = [
    "[PAD]",
    "<|endofturn|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<vision>",
    "</vision>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
]
KOREAN = "합계는 얼마입니까? 영수증의 글을 읽으세요."


def write_folder(folder, *, think_tokens=True, image_token=True, template=TEMPLATE):
    """A small byte-level tokenizer and a template, as a model folder has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in SPECIAL if image_token or "_pad|>" not in token]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["What is the total? Read the text. 합계는 얼마입니까?"] * 9, trainer)
    if think_tokens:
        tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.enable_truncation(4)  # left over from training: must not cut a prompt
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endofturn|>", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module", params=["reader", "small"])
def folder(request, tmp_path_factory):
    return READER if request.param == "reader" else write_folder(tmp_path_factory.mktemp("model"))


def message(text, images, videos=0):
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(("images", "videos"), [(0, 0), (1, 0), (3, 0), (0, 1), (1, 2)])
@pytest.mark.parametrize("text", ["What is the total?", KOREAN, " <b>\n\n{{ 7 * 7 }} & \"'\\ ", ""])
def test_prompts_equal_transformers(folder, text, images, videos, thinking):
    chat = Chat(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        [message(text, images, videos)], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert chat.render(user_turn(text, images, videos), thinking=thinking) == expected
    counts = {"image": [1, 12, 5][:images], "video": [7, 2][:videos]}
    for kind, tokens in counts.items():  # as transformers' processor does: the text first, then its ids
        for count in tokens:
            expected = expected.replace(f"<|{kind}_pad|>", "<placeholder>" * count, 1)
        expected = expected.replace("<placeholder>", f"<|{kind}_pad|>")
    ids = chat.encode(text, *counts.values(), thinking=thinking)
    assert ids.dtype == np.int64
    assert ids.tolist() == theirs(expected, add_special_tokens=False)["input_ids"]
    assert (ids == chat.image_token_id).sum() == sum(counts["image"])
    assert (ids == chat.video_token_id).sum() == sum(counts["video"])


def test_template_filters_and_special_tokens(tmp_path):
    template = "{{ eos_token }}{{ messages[0] | tojson }}{{ strftime_now('%Y')[:1] }}"
    folder = write_folder(tmp_path, template=template)
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "<a> & 합계"}]
    assert Chat(folder).render("<a> & 합계") == theirs.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(("text", "images"), [("<|image_pad|>", []), ("see <|image_pad|> here", [4])])
def test_the_text_cannot_bring_image_places(folder, text, images):
    counts = f"{len(images) + 1} placeholders for {len(images)}"
    with pytest.raises(InputError, match=rf"{counts} images, remove <\|image_pad\|>"):
        Chat(folder).encode(text, images)
    text = text.replace("image", "video")
    with pytest.raises(InputError, match=rf"{counts} videos, remove <\|video_pad\|>"):
        Chat(folder).encode(text, [], images)


def test_a_model_without_images_says_so(tmp_path):
    chat = Chat(write_folder(tmp_path, image_token=False, template="{{ messages[-1].content }}"))
    assert chat.image_token_id is chat.video_token_id is None
    assert len(chat.encode("Read the text.")) > 0
    with pytest.raises(InputError, match="takes no images; ask without --image"):
        chat.encode("Read the text.", [4])
    with pytest.raises(InputError, match="takes no videos; ask without --video"):
        chat.encode("Read the text.", [], [4])


def random_ids(tokenizer, seed):
    random = np.random.default_rng(seed)
    if seed % 2:
        return random.integers(0, tokenizer.vocab_size + 2, 40).tolist()
    characters = list("합계는 얼마? 1,200₩ héllo 漢字 🧾👩‍👩‍👧 \n\t")
    return tokenizer("".join(random.choice(characters, 60)), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_joins_to_the_whole_text(folder, seed):
    """Even seeds are text, odd ones arbitrary ids: broken characters and special tokens among them."""
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = random_ids(theirs, seed)
    chat = Chat(folder)
    stream = chat.stream()
    pieces = [stream.push(token) for token in ids]
    whole = theirs.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) + stream.finish() == whole == chat.decode(ids)
    if seed % 2 == 0:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
        assert stream.finish() == ""


def byte_ids(chat, content):
    """The id of each single byte: GPT-2 writes a printable byte as itself, the others as characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    names = [chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in content]
    return [chat._tokenizer.token_to_id(name) for name in names]


def test_a_syllable_appears_with_its_last_byte(folder):
    chat = Chat(folder)
    stream = chat.stream()
    assert [stream.push(token) for token in byte_ids(chat, "A한B".encode())] == ["A", "", "", "한", "B"]
    assert stream.finish() == ""


def test_an_unfinished_character_is_shown_at_the_end(folder):
    chat = Chat(folder)
    stream = chat.stream()
    assert [stream.push(token) for token in byte_ids(chat, "A한".encode()[:-1])] == ["A", "", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("think_tokens", [True, False])
def test_reasoning_is_separated_from_the_answer(tmp_path, think_tokens):
    chat = Chat(write_folder(tmp_path, think_tokens=think_tokens))
    encode = AutoTokenizer.from_pretrained(tmp_path)
    done = encode("I look for 합계.\n</think>\n\n1,200<|endofturn|>", add_special_tokens=False)["input_ids"]
    cut = encode("I look for", add_special_tokens=False)["input_ids"]
    assert (chat.think_end_id is not None) == think_tokens
    assert chat.decode_answer(done, thinking=True) == ("I look for 합계.", "1,200")
    assert chat.decode_answer(cut, thinking=True) == ("I look for", "")
    assert chat.decode_answer(cut, thinking=False) == ("", "I look for")


def test_reasoning_marks_may_be_special_tokens():
    """In the reader's tokenizer they are: decoding skips them, so text alone could not tell the parts apart."""
    chat = Chat(READER)
    ids = AutoTokenizer.from_pretrained(READER)("합계 읽는다.\n</think>\n\n1,200<|endofturn|>")["input_ids"]
    assert "</think>" not in chat.decode(ids)
    assert chat.decode_answer(ids, thinking=True) == ("합계 읽는다.", "1,200")


@pytest.mark.parametrize("tool_token", [True, False])
@pytest.mark.parametrize("think_tokens", [True, False])
def test_a_tool_call_ends_reasoning_too(tmp_path, think_tokens, tool_token):
    write_folder(tmp_path, think_tokens=think_tokens)
    if tool_token:
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat = Chat(tmp_path)
    ids = chat.encode_text("I look for 합계.\n<tool_call>{}</tool_call> </think>")
    assert chat.decode_answer(ids, thinking=True) == ("I look for 합계.", "<tool_call>{}</tool_call> </think>")
    assert chat.parse_reasoning(ids).tokens == len(chat.encode_text("I look for 합계.\n"))


@pytest.mark.parametrize("special", [True, False])
def test_tool_calls_are_shown_special_tokens_or_not(tmp_path, special):
    """Decoding skips special tokens, and a call is part of the answer."""
    write_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in ("<tool_call>", "</tool_call>")])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chat, call = Chat(tmp_path), '<tool_call>{"name": "읽기"}</tool_call>'
    ids = chat.encode_text(f"Look.</think>{call}<|endofturn|>")
    assert ids == tokenizer.encode(f"Look.</think>{call}<|endofturn|>", add_special_tokens=False).ids
    assert chat.tool_call_id in ids
    assert chat.decode_answer(ids, thinking=True) == ("Look.", call)
    assert chat.decode_answer(chat.encode_text(call), thinking=False) == ("", call)
    stream = chat.stream()
    assert "".join(map(stream.push, chat.encode_text(call))) + stream.finish() == call


@pytest.mark.parametrize("think_tokens", [True, False])
def test_reasoning_is_counted_without_what_ends_it(tmp_path, think_tokens):
    """Also where `</think>` takes several tokens: it is forced whole."""
    chat = Chat(write_folder(tmp_path, think_tokens=think_tokens))
    text, line, ending = chat.encode_text("I look for 합계."), chat.encode_text("\n"), chat.end_of_reasoning
    reasoning, marker = text + line, list(ending.marker)
    assert (list(ending.line), chat.decode(marker), ending.text) == (line, "</think>\n\n", "\n\n")
    assert len(marker) == len(chat.encode_text("</think>")) + len(chat.encode_text("\n\n"))
    parser = chat.parse_reasoning([*reasoning, *marker, *chat.encode_text("1,200")])
    assert (parser.tokens, parser.marker) == (len(reasoning), "</think>")
    assert chat.parse_reasoning(reasoning).tokens == len(reasoning)
    for written, forced in ((reasoning, marker), (text, line + marker)):  # a line break that is there is not repeated
        choose = ThinkingBudget(len(written), ending, chat.parse_reasoning()).limit(lambda _, __: 99)
        tokens: list[int] = []
        while len(tokens) < len(written) + len(forced) + 2:
            chosen = choose(None, tokens)
            tokens.append(written[len(tokens)] if len(tokens) < len(written) else chosen)
        assert tokens == [*written, *forced, 99, 99]


def test_the_reader_closes_its_reasoning_as_its_template_does():
    chat = Chat(READER)
    end, line = chat.end_of_reasoning, chat.encode_text("\n")
    assert end.marker == (chat.think_end_id, *chat.encode_text("\n\n"))
    reasoning = chat.encode_text("I look.")
    assert [*reasoning, *end.line, *end.marker] == chat.encode_answer("", "I look.")
    assert list(end.line) == line


def test_a_template_without_a_line_break_gets_none(tmp_path):
    template = "{{ messages[0].content }}<think>{{ '' if enable_thinking else '</think>' }}"
    chat = Chat(write_folder(tmp_path, template=template))
    assert chat.end_of_reasoning == ((), (chat.think_end_id,), "")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}", "I look.\n</think>\n\n1,200"),
        ("{{ '' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}", "<think>\nI look.\n</think>\n\n1,200"),
        ("<think>{{ '' if enable_thinking else '</think>' }}", "I look.</think>1,200"),
    ],
)
def test_a_known_answer_is_written_as_the_template_writes_it(tmp_path, written, expected):
    """Reasoning goes where a prompt without thinking has none."""
    chat = Chat(write_folder(tmp_path, template="{{ messages[0].content }}" + written))
    assert chat.encode_answer("1,200", "I look.") == chat.encode_text(expected)
    assert chat.encode_answer("1,200", None) == chat.encode_text("1,200")


def test_reasoning_for_a_template_without_it_is_refused(tmp_path):
    chat = Chat(write_folder(tmp_path, template="{{ messages[0].content }}"))
    with pytest.raises(InputError, match=r"chat_template\.jinja: does not show how reasoning ends .enable_thinking"):
        chat.encode_answer("1,200", "I look.")


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}", "{% if enable_thinking %}<think>{% endif %}</think>"]
)
def test_a_template_that_closes_no_reasoning_is_named(tmp_path, template):
    with pytest.raises(InputError, match="does not show how reasoning ends; leave out --thinking-budget"):
        _ = Chat(write_folder(tmp_path, template=template)).end_of_reasoning


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_folder(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        Chat(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "{", "is not valid JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("chat_template.jinja", "{% for %}", "is not a valid Jinja template"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (write_folder(tmp_path) / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        Chat(tmp_path)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages + 1 }}", "{{ ''.__class__.mro() }}"])
def test_a_template_that_fails_is_one_line(tmp_path, template):
    """The last one tries to reach Python's internals: the sandbox stops it."""
    chat = Chat(write_folder(tmp_path, template=template))
    with pytest.raises(InputError, match=r"chat_template\.jinja: cannot be rendered"):
        chat.encode("Hello")


@pytest.mark.parametrize("think_tokens", [True, False])
def test_a_streamed_answer_is_the_decoded_answer(tmp_path, think_tokens):
    """Reasoning, a line that ends it, the answer; white space around them is dropped, inside it is not."""
    chat = Chat(write_folder(tmp_path, think_tokens=think_tokens))
    encode = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["\n Look for 합계. \n\n Found 🧾.\n</think>\n\n 1,200 \n 원 \n", "</think>", "\n", "", "합계 </think>\n"]
    for text in texts:
        ids = encode(text, add_special_tokens=False)["input_ids"]
        stream = chat.stream_answer(thinking=True)
        shown = "".join([stream.push(token) for token in ids]) + stream.finish()
        reasoning, answer = chat.decode_answer(ids, thinking=True)
        if think_tokens:
            assert shown == (f"{reasoning}\n</think>\n\n{answer}" if "</think>" in text else reasoning)
        else:  # the mark is plain text, which stays as the model wrote it
            assert shown == text.strip()
        stream = chat.stream_answer(thinking=False)
        shown = "".join([stream.push(token) for token in ids]) + stream.finish()
        assert ("", shown) == chat.decode_answer(ids, thinking=False)


def test_the_end_of_reasoning_is_shown_where_decoding_skips_its_mark():
    chat = Chat(READER)
    ids = [*chat.encode_text("합계 읽는다.\n"), chat.think_end_id, *chat.encode_text("\n\n1,200\n")]
    stream = chat.stream_answer(thinking=True)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == "합계 읽는다.\n</think>\n\n1,200"


def test_a_prompt_that_is_not_utf8_is_named(folder):
    with pytest.raises(InputError, match=r"prompt: 'a\\udcff' is not valid UTF-8"):
        Chat(folder).encode("a\udcff")


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.NFD(), normalizers.NFKC()])
def test_text_that_looks_the_same_gives_the_same_tokens(normalizer, tmp_path):
    """NFC, unless the checkpoint's own tokenizer wants another form: its normalizer comes last."""
    write_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = f"{KOREAN}\ncafé １２ ㄱㅏ"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    chat = Chat(tmp_path)
    asked = chat.encode(text).tolist()
    for form in ("NFC", "NFD"):
        same = unicodedata.normalize(form, text).replace("\n", "\r\n")
        assert chat.encode_text(same) == expected
        assert chat.encode(same).tolist() == asked
    assert chat.encode_text("１２") != chat.encode_text("12") or isinstance(normalizer, normalizers.NFKC)


def test_other_threads_run_while_a_long_text_is_tokenized():
    """A server's answers come from one of them."""
    chat, turns, done = Chat(READER), [], threading.Event()

    def turn():
        while not done.wait(0.001):
            turns.append(time.monotonic())

    other = threading.Thread(target=turn)
    other.start()
    begin = time.monotonic()
    assert len(chat.encode_text("\uac00" * 100_000)) >= 100_000
    end = time.monotonic()
    done.set()
    other.join()
    assert len([moment for moment in turns if begin + (end - begin) / 4 < moment < begin + (end - begin) * 3 / 4]) > 1
