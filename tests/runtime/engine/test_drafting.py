"""Drafts while one row is alone: answers, counts and rows are those without an engine, whoever comes and goes."""

import random

import numpy as np
import pytest

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.drafts import Drafts
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling
from runtime.decoding.structured import Grammar, GrammarTokenizer
from runtime.prompt import embed_prompt, prompt_inputs

from .asking import alone, ask, damaged, engine_of, finish, random_ids, tokens_prompt

pytestmark = pytest.mark.slow


def pages(model, count, seed=4, kind="transcription"):
    """Questions whose answers take dozens of tokens, most of which the MTP layer foresees."""
    documents = open_documents(split="evaluation", count=count, seed=seed, kind=kind)
    return [prompt_inputs(model, document.prompt, [document.image]) for document in documents]


def counts(drafts):
    return drafts.calls, drafts.drafted, drafts.accepted


@pytest.mark.parametrize(("rows", "drafts"), [(1, 3), (2, 1), (3, 2), (5, 8)])
def test_answers_are_those_of_generate(rows, drafts, reader):
    """Requests come at random moments: rows are alone, joined and left alone again, in prompts and in answers."""
    engine, moment = engine_of(reader, rows, draft_tokens=drafts), random.Random(drafts)
    prompts = pages(reader, 4) + [tokens_prompt(random_ids(seed, 20 + 700 * (seed % 3))) for seed in range(5)]
    moment.shuffle(prompts)
    asked = []
    for number, inputs in enumerate(prompts):
        sampling = Sampling(seed=number, temperature=0.7, presence_penalty=1.0) if number % 4 == 1 else Sampling()
        asked.append(ask(engine, inputs, moment.choice([1, 5, 90]), sampling=sampling))
        for _ in range(moment.choice([0, 3, 12, 40])):
            engine.turn()
    finish(engine)
    assert [one.tokens for one in asked] == [alone(reader, one.request) for one in asked]
    assert sum(one.end.drafts.accepted for one in asked) > 20
    if rows > 1:  # and some tokens came with those of other rows
        assert any(one.end.drafts.calls > one.end.drafts.drafted for one in asked)


@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_counts_are_those_of_generate(drafts, reader):
    engine = engine_of(reader, 2, draft_tokens=drafts)
    for inputs in pages(reader, 3):
        asked, expected = ask(engine, inputs, 90), Drafts(drafts)
        finish(engine)
        prompt = embed_prompt(reader, inputs)
        assert asked.tokens == list(generate(reader, prompt, Sampling().sampler(), 90, expected))
        assert counts(asked.end.drafts) == counts(expected)
        assert expected.accepted > 0


@pytest.mark.parametrize("tokens", [90, 1024, 1025, 2100])
def test_the_layer_that_drafts_reads_the_prompt_as_in_generate(tokens, reader):
    """Keys and values are the same, of prompts of one chunk and of several."""
    engine, inputs = engine_of(reader, 2, 3000, draft_tokens=2), tokens_prompt(random_ids(1, tokens))
    asked = ask(engine, inputs, 12)
    finish(engine)
    assert asked.tokens == list(generate(reader, embed_prompt(reader, inputs), Sampling().sampler(), 12, Drafts(2)))
    found = engine._drafting._cache
    with reader.drafter.session.borrow_cache(1) as lent:  # the one that generate has just used
        for ours, theirs in zip(found.buffers, lent.buffers, strict=True):
            assert (ours.read() == theirs.read()).all()


def test_a_second_request_ends_the_drafts_and_its_end_lets_them_begin_anew(reader):
    engine = engine_of(reader, 2, draft_tokens=2)
    first, second = pages(reader, 2)
    long = ask(engine, first, 90)
    while len(long.tokens) < 5:
        engine.turn()
    drafts = long.sequence.drafts
    assert drafts.drafted > 0
    short = ask(engine, second, 6)
    before, tokens = drafts.drafted, len(long.tokens)
    while not short.events or engine.running == 2:
        engine.turn()
    assert drafts.drafted == before
    assert len(long.tokens) > tokens + 4
    finish(engine)
    assert drafts.drafted > before
    assert counts(short.end.drafts) == (5, 0, 0)
    assert [one.tokens for one in (long, short)] == [alone(reader, one.request) for one in (long, short)]


def test_what_has_no_row_to_take_does_not_end_the_drafts(reader):
    engine = engine_of(reader, 1, draft_tokens=2)
    asked = [ask(engine, inputs, 40) for inputs in pages(reader, 3)]
    finish(engine)
    for one in asked:
        assert one.end.drafts.drafted >= one.end.drafts.calls
        assert one.tokens == alone(reader, one.request)


@pytest.mark.parametrize("drafts", [1, 4])
def test_a_drafted_row_is_reused(drafts, reader):
    """Its answer ended at an end token, at the limit or at a stop string: the row has its tokens, and none more."""
    engine = engine_of(reader, 1, draft_tokens=drafts)
    (inputs,) = pages(reader, 1)
    whole = ask(engine, inputs, 90)
    finish(engine)
    assert whole.end.reason == "stop"
    text = whole.texts[1]
    for number, (limit, stop) in enumerate([(90, ()), *((limit, ()) for limit in range(8, 14)), (90, (text[12:15],))]):
        (page,) = pages(reader, 1, seed=10 + number)
        first = ask(engine, inputs if stop else page, limit, stop=stop)
        finish(engine)
        row = engine._rows._all[0]
        known = len(first.request.inputs.ids) + len(first.tokens)
        read = row.length
        assert known - 1 <= read <= known
        assert row.content.tolist() == [*first.sequence.content, *first.tokens][:read]
        ids = [*first.request.inputs.ids, *first.tokens, *random_ids(number, 20)]
        turn = type(first.request.inputs)(np.array(ids), first.request.inputs.images, first.request.inputs.names, ())
        second = ask(engine, turn, 15)
        finish(engine)
        assert second.end.cached_tokens == read
        assert second.tokens == alone(reader, second.request)


def test_log_probabilities_are_those_without_drafts(reader):
    (inputs,) = pages(reader, 1)
    found = []
    for drafts in (0, 3):
        engine = engine_of(reader, 1, draft_tokens=drafts)
        asked = ask(engine, inputs, 40, top_logprobs=4)
        finish(engine)
        found.append([piece.logprobs for piece in asked.events[:-1]])
    for plain, drafted in zip(*found, strict=True):
        assert plain.token == drafted.token
        assert plain.logprob == pytest.approx(drafted.logprob, abs=1e-4)
        assert [token for token, _ in plain.top] == [token for token, _ in drafted.top]


@pytest.mark.parametrize("thinking", [False, True])
def test_stop_strings_grammars_and_budgets_hold(thinking, reader):
    tokenizer = GrammarTokenizer(reader.chat, reader.manifest.text.vocab_size, sorted(reader.end_ids))
    inputs = prompt_inputs(reader, "Read the text.", thinking=thinking)
    shared = {"thinking": thinking, "thinking_budget": 7 if thinking else None}
    schema = {"type": "object", "properties": {"total": {"type": "string", "maxLength": 9}}, "required": ["total"]}
    requests = [
        {},
        {"stop": ("e", "의")},
        {"grammar": Grammar.choice(tokenizer, ("yes", "no"))},
        {"grammar": Grammar.json_schema(tokenizer, schema)},
        {"grammar": Grammar.json_schema(tokenizer, schema), "sampling": Sampling(seed=3, temperature=1.2)},
    ]
    plain, drafting = engine_of(reader, 1), engine_of(reader, 1, draft_tokens=4)
    for options in requests:
        expected, found = (ask(engine, inputs, 60, **shared, **options) for engine in (plain, drafting))
        finish(plain)
        finish(drafting)
        assert (found.tokens, found.texts) == (expected.tokens, expected.texts)
        for name in ("reason", "reasoning_tokens", "budget_spent"):
            assert getattr(found.end, name) == getattr(expected.end, name)
        assert expected.end.drafts is None
        assert found.end.drafts.drafted > 0


def test_a_cancelled_answer_and_one_that_fails_leave_nothing_behind(reader):
    engine, (first, second) = engine_of(reader, 1, draft_tokens=3), pages(reader, 2)
    cancelled = ask(engine, first, 90)
    while len(cancelled.tokens) < 9:
        engine.turn()
    cancelled.sequence.cancel()
    failing = ask(engine, first, 90, sampling=FailingAt(11))
    finish(engine)
    assert failing.error == "no token can follow"
    assert failing.tokens == alone(reader, ask(engine_of(reader, 1), first, 11).request)
    row = engine._rows._all[0]
    assert row.content.tolist() == [*failing.sequence.content, *failing.tokens][: row.length]
    assert row.length >= len(first.ids) + 10
    again = [ask(engine, inputs, 90) for inputs in (first, second)]
    finish(engine)
    for one in again:
        assert one.tokens == alone(reader, one.request)


class FailingAt(Sampling):
    """Greedy, and after so many tokens none can follow, as in a grammar without an end."""

    def __init__(self, tokens):
        super().__init__()
        object.__setattr__(self, "tokens", tokens)

    def sampler(self):
        def choose(logits, generated):
            if len(generated) == self.tokens:
                raise InputError("no token can follow")
            return int(logits.argmax())

        return choose


def test_nan_fails_one_request_alone(copied):
    model = damaged(copied)
    engine = engine_of(model, 2, draft_tokens=2)
    for seed in range(2):
        bad = ask(engine, tokens_prompt([100, 70, 101] * 20))
        finish(engine)
        assert "NaN or infinite" in bad.error
        good, expected = ask(engine, pages(model, 1, seed)[0], 40), Drafts(2)
        finish(engine)
        prompt = embed_prompt(model, good.request.inputs)
        assert good.tokens == list(generate(model, prompt, Sampling().sampler(), 40, expected))
        assert counts(good.end.drafts) == counts(expected)


def test_auto_drafts_where_it_pays_and_never_with_a_seed(reader):
    """By a clock of this machine, so whatever the policy chose; its trial drafts in any case."""
    policy = DraftPolicy()
    engine = engine_of(reader, 2, draft_tokens=policy)
    asked = [ask(engine, inputs, 60) for inputs in pages(reader, 3)]
    finish(engine)
    seeded = ask(engine, pages(reader, 1, 7)[0], 60, sampling=Sampling(seed=1, temperature=1.0))
    finish(engine)
    assert sum(one.end.drafts.drafted for one in asked) > 0
    assert seeded.end.drafts is None
    assert [one.tokens for one in (*asked, seeded)] == [alone(reader, one.request) for one in (*asked, seeded)]
    policy.disabled = True
    off = ask(engine, pages(reader, 1, 8)[0], 10)
    finish(engine)
    assert off.end.drafts is None
