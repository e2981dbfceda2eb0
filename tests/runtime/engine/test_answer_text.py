"""Reasoning and answer, token by token: the pieces join to what `Chat.decode_answer` gives for all of it."""

import random

import pytest

from runtime.chat import Chat
from runtime.engine.answer_text import AnswerText


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
