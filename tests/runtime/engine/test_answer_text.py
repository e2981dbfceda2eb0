"""Reasoning and answer, token by token: the pieces join to what `Chat.decode_answer` gives for all of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.chat import Chat
from runtime.engine.answer_text import AnswerText

from ..decoding.random_answers import CHAT


@pytest.fixture(scope="module")
def chat(quantized):
    return Chat(quantized("fp16"))


def pieces(chat, ids, thinking):
    text = AnswerText(chat, thinking=thinking)
    shown = [text.push(token) for token in ids] + [text.finish()]
    return "".join(piece.reasoning for piece in shown), "".join(piece.text for piece in shown)


def random_answers(chat, seed):
    choose = random.Random(seed)
    texts = ["Total", " ", "\n\n", "한글", "é", "<th", "<", "</think", "ink>", "</think>", "<tool_call>", "12.50"]
    for _ in range(300):
        ids = chat.encode_text("".join(choose.choices(texts, k=choose.randrange(12))))
        for _ in range(choose.randrange(3)):
            ids.insert(choose.randrange(len(ids) + 1), choose.randrange(512))
        yield ids


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("single", ["both", "neither", "</think>", "<tool_call>"])
def test_pieces_join_to_the_whole_answer(thinking, single, chat):
    """single: which of the texts that end reasoning is a token of its own."""
    think_end, tool_call = chat.think_end_id, chat.tool_call_id
    try:
        if single not in ("both", "</think>"):
            chat.think_end_id = None
        if single not in ("both", "<tool_call>"):
            chat.tool_call_id = None
        chat._reasoning_ends = {"</think>": chat.think_end_id, "<tool_call>": chat.tool_call_id}
        for ids in random_answers(chat, 1):
            assert pieces(chat, ids, thinking) == tuple(chat.decode_answer(ids, thinking=thinking))
    finally:
        chat.think_end_id, chat.tool_call_id = think_end, tool_call
        chat._reasoning_ends = {"</think>": think_end, "<tool_call>": tool_call}


@pytest.mark.parametrize("thinking", [False, True])
def test_a_stop_string_of_white_space_ends_the_answer_at_once(thinking, chat):
    """Not when text follows: a model that writes nothing but line breaks would go on to its longest answer."""
    written = "\n\nTotal: 3 \n\n\nEnd"
    ids = chat.encode_text(("Hm.\n\n</think>" if thinking else "") + written)
    text, shown = AnswerText(chat, thinking=thinking, stop=("\n\n",)), ""
    for count, token in enumerate(ids, 1):  # noqa: B007
        shown += text.push(token).text
        if text.stopped:
            break
    assert shown + text.finish().text == "Total: 3 "
    assert chat.decode(ids[:count]).rstrip("\n").endswith("Total: 3 ")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text("ab \n", max_size=20), st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3))
def test_any_text_ends_where_plain_search_finds_a_stop_string(written, stop):
    text = AnswerText(CHAT, thinking=False, stop=stop)
    shown = "".join(text.push(token).text for token in CHAT.encode_text(written)) + text.finish().text
    whole = CHAT.decode(CHAT.encode_text(written)).lstrip()
    ends = [(whole.index(one) + len(one), whole.index(one)) for one in stop if one in whole]
    assert text.stopped == bool(ends)
    assert shown == (whole[: min(ends)[1]] if ends else whole.rstrip())
