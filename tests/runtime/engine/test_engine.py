"""Any mix of requests: each answer is the one that `generate` gives alone, and no request disturbs another."""

import random
import shutil

import numpy as np
import pytest

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.decoding.forward import teacher_forced
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling, greedy
from runtime.decoding.structured import Grammar, GrammarTokenizer
from runtime.engine.request import Piece
from runtime.inputs.video import open_video
from runtime.model import Model
from runtime.prompt import embed_prompt, prompt_inputs

from .asking import alone, ask, damaged, engine_of, finish, random_ids, tokens_prompt

pytestmark = pytest.mark.slow


def pages(model, count):
    """Questions that are answered in dozens of tokens."""
    documents = open_documents(split="evaluation", count=count, seed=4, kind="transcription")
    return [prompt_inputs(model, document.prompt, [document.image]) for document in documents]


def mixed_inputs(model, count, seed):
    """Pages, short prompts, and prompts of several chunks."""
    documents = open_documents(split="evaluation", count=count, seed=seed)
    for number, document in enumerate(documents):
        if number % 3 == 0:
            yield prompt_inputs(model, document.prompt, [document.image])
        else:
            yield tokens_prompt(random_ids(number, 20 + 700 * (number % 3 == 2)))


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_answers_are_those_of_generate(rows, reader):
    """Requests come at random moments, so that rows are taken, left idle and taken again between steps."""
    engine, moment = engine_of(reader, rows), random.Random(rows)
    asked = []
    for number, inputs in enumerate(mixed_inputs(reader, 12, rows)):
        sampling = (
            Sampling(seed=number, temperature=0.7, top_p=0.9, presence_penalty=1.0) if number % 4 == 1 else Sampling()
        )
        asked.append(ask(engine, inputs, max_new_tokens=moment.choice([1, 5, 90]), sampling=sampling))
        for _ in range(moment.randrange(12)):
            engine.turn()
    finish(engine)
    assert (engine.waiting, engine.running) == (0, 0)
    for one in asked:
        expected = alone(reader, one.request)
        assert one.tokens == expected
        limit = one.request.max_new_tokens
        assert one.end.reason == ("length" if len(expected) == limit else "stop")
        assert (one.end.prompt_tokens, one.end.completion_tokens) == (len(one.request.inputs.ids), len(expected))


def test_int8_caches_answer_as_generate_does(exported):
    """Its keys are rounded, so a prompt is read in the chunks of `generate`, and none is continued."""
    model = Model(exported("w4", kv_bits=8), "cpu")
    engine = engine_of(model, 4)
    asked = [ask(engine, tokens_prompt(random_ids(seed, 1200)), 10) for seed in (1, 1, 2)]
    finish(engine)
    asked.append(ask(engine, asked[0].request.inputs, 10))
    finish(engine)
    assert [one.tokens for one in asked] == [alone(model, one.request) for one in asked]
    assert {one.end.cached_tokens for one in asked} == {0}


def test_text_comes_in_pieces_that_join(reader):
    engine = engine_of(reader, 2)
    asked = [ask(engine, inputs, 60) for inputs in mixed_inputs(reader, 4, 1)]
    finish(engine)
    for one in asked:
        assert one.texts == reader.chat.decode_answer(one.tokens, thinking=False)


def test_reasoning_has_a_budget_of_its_own_in_each_row(reader):
    engine = engine_of(reader, 2)
    inputs = prompt_inputs(reader, "Read the text.", thinking=True)
    asked = [ask(engine, inputs, 40, thinking=True, thinking_budget=tokens) for tokens in (3, 6)]
    finish(engine)
    for one, tokens in zip(asked, (3, 6), strict=True):
        end = one.tokens.index(reader.chat.think_end_id)
        assert end in (tokens, tokens + 1)  # the template writes a line break before it
        assert (one.end.reasoning_tokens, one.end.budget_spent) == (end, True)
        assert one.texts == reader.chat.decode_answer(one.tokens, thinking=True)


def test_a_stop_string_ends_the_answer_and_frees_its_row(reader):
    """The string is taken from the middle of the answer, and ends within a token or across tokens."""
    (inputs,) = pages(reader, 1)
    engine = engine_of(reader, 2)
    whole = ask(engine, inputs, 90)
    finish(engine)
    text = whole.texts[1]
    for start in range(10, 20):
        stop = text[start : start + 3]
        stopped = ask(engine, inputs, 90, stop=(stop, "never"))
        finish(engine)
        assert stopped.texts[1] == text[: text.index(stop)]
        assert stopped.end.reason == "stop"
        assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
        assert len(stopped.tokens) < len(whole.tokens)


def test_log_probabilities_are_those_of_the_model(reader):
    (inputs,) = pages(reader, 1)
    engine = engine_of(reader, 2)
    asked, plain = ask(engine, inputs, 15, top_logprobs=3), ask(engine, inputs, 15)
    finish(engine)
    assert plain.tokens == asked.tokens
    logits = np.concatenate(list(teacher_forced(reader, embed_prompt(reader, inputs), asked.tokens)))
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    for place, piece in enumerate(asked.events[:-1]):
        found = piece.logprobs
        assert found.token == asked.tokens[place]
        assert found.logprob == pytest.approx(expected[place, found.token], abs=1e-4)
        assert [token for token, _ in found.top] == np.argsort(-expected[place])[:3].tolist()
    assert all(piece.logprobs is None for piece in plain.events[:-1])


@pytest.mark.parametrize("thinking", [False, True])
def test_rows_are_held_to_grammars_of_their_own(thinking, reader):
    tokenizer = GrammarTokenizer(reader.chat, reader.manifest.text.vocab_size, sorted(reader.end_ids))
    engine = engine_of(reader, 4)
    inputs = prompt_inputs(reader, "Read the text.", thinking=thinking)
    options = {"thinking": thinking, "thinking_budget": 5 if thinking else None}
    choices = [("yes", "no"), ("12.50", "13.00")]
    asked = [ask(engine, inputs, 60, grammar=Grammar.choice(tokenizer, texts), **options) for texts in choices]
    free = ask(engine, inputs, 60, **options)
    finish(engine)
    for one, texts in zip(asked, choices, strict=True):
        assert one.texts[1] in texts
        assert one.end.reason == "stop"
    assert free.texts[1] not in ("yes", "no", "12.50", "13.00")


def test_a_long_prompt_delays_others_by_one_chunk_a_token(reader):
    """A running answer gets a token for every chunk of 256 that is read."""
    engine = engine_of(reader, 2)
    running = ask(engine, pages(reader, 1)[0], 90)
    while not running.events:
        engine.turn()
    long, before = ask(engine, tokens_prompt(random_ids(2, 1500)), 5), len(running.tokens)
    while not long.events:
        engine.turn()
    assert len(running.tokens) == before + -(-1500 // 256)


def test_the_lowest_free_row_is_taken(reader):
    engine = engine_of(reader, 4)
    asked = [ask(engine, inputs, 90) for inputs in pages(reader, 3)]
    while not asked[2].events:
        engine.turn()
    asked[1].sequence.cancel()
    later = ask(engine, tokens_prompt(random_ids(9, 30)))
    while engine.waiting:
        engine.turn()
    assert [row.number for row in engine._rows.used if row.sequence is later.sequence] == [1]


def test_a_cancelled_request_frees_its_row_before_the_next_step(reader):
    engine = engine_of(reader, 1)
    first, waiting, last = (ask(engine, tokens_prompt(random_ids(seed, 1500)), 30) for seed in range(3))
    engine.turn()  # reads a part of the first prompt
    first.sequence.cancel()
    waiting.sequence.cancel()
    finish(engine)
    assert (first.events, waiting.events) == ([], [])
    assert last.tokens == alone(reader, last.request)
    running = ask(engine, pages(reader, 1)[0], 90)
    while len(running.tokens) < 3:
        engine.turn()
    running.sequence.cancel()
    assert not engine.turn()
    assert len(running.tokens) == 3
    assert engine.running == 0


def test_a_cancelled_request_leaves_the_queue_at_once(reader):
    """It holds its images, and many clients may come and go while the first waits for a row."""
    engine = engine_of(reader, 1)
    first, second, *others = (ask(engine, tokens_prompt(random_ids(seed, 30)), 90) for seed in range(9))
    for other in others:
        other.sequence.cancel()
    engine.turn()
    assert (engine.running, engine.waiting) == (1, 1)
    finish(engine)
    assert [len(asked.events) > 0 for asked in (first, second, *others)] == [True, True] + [False] * 7


def test_nan_fails_one_request_alone(copied):
    """An embedding is damaged that one prompt has, and another answer is about to read."""
    whole = Model(copied, "cpu")
    expected = [alone(whole, ask(engine_of(whole, 1), tokens_prompt(random_ids(seed, 90))).request) for seed in (1, 2)]

    model = damaged(copied)
    engine = engine_of(model, 3)
    good, bad, other = (
        ask(engine, tokens_prompt(ids)) for ids in (random_ids(1, 90), [100, 70, 101] * 20, random_ids(2, 90))
    )
    finish(engine)
    assert "NaN or infinite" in bad.error
    assert [good.tokens, other.tokens] == expected
    again = ask(engine, tokens_prompt(random_ids(1, 90)))
    finish(engine)
    assert again.tokens == expected[0]


def test_a_video_is_decoded_when_it_is_asked_about_not_between_steps(reader, tmp_path):
    """Decoding may take minutes, in which no other answer would go on."""
    frames = tmp_path / "film"
    frames.mkdir()
    (document,) = open_documents(split="evaluation", count=1, seed=5, kind="line")
    for number in range(3):
        document.image.rotate(number, fillcolor="white").save(frames / f"{number}.png")
    engine, inputs = engine_of(reader, 2), prompt_inputs(reader, "Read.", videos=[open_video(frames, None)])
    expected = list(generate(reader, embed_prompt(reader, inputs), greedy, 20))
    asked = [ask(engine, inputs), ask(engine, inputs)]
    shutil.rmtree(frames)
    finish(engine)
    assert [one.tokens for one in asked] == [expected] * 2
    assert (engine.vision.misses, engine.vision.hits) == (1, 1)
    with pytest.raises(InputError, match=str(frames)):
        ask(engine, inputs)
    assert (engine.waiting, engine.running) == (0, 0)


def test_a_prompt_that_fills_a_row_is_refused(reader):
    engine = engine_of(reader, 1, context=100)
    with pytest.raises(InputError, match=r"^prompt: 100 tokens, but prompt and answer may have 100; shorten it$"):
        ask(engine, tokens_prompt(random_ids(1, 100)))
    asked = ask(engine, tokens_prompt(random_ids(1, 95)), 50, sampling=Sampling(seed=1, temperature=2.0))
    finish(engine)
    assert (asked.end.reason, asked.end.completion_tokens) in {("length", 5), ("stop", len(asked.tokens))}


def test_events_stop_with_the_last_token(reader):
    engine = engine_of(reader, 1)
    asked = ask(engine, tokens_prompt(random_ids(1, 20)), 1)
    finish(engine)
    assert [type(event) for event in asked.events] == [Piece, type(asked.end)]
