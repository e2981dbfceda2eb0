"""Drafts change how fast an exact export answers, never what it says; taking them back leaves no trace in a cache."""

import numpy as np
import pytest

from calib_data.errors import InputError
from calib_data.sources import open_documents
from runtime.chunks import CHUNKINGS
from runtime.generate import Model, Prompt
from runtime.sampling import Sampling, greedy
from runtime.speculation import Drafts

from .damage import edit_json, set_context

WINDOW, LONGEST = 64, CHUNKINGS["cpu"].longest
SAME = 1e-5  # relative to the largest logit: sums over keys in another order


def random_prompt(reader, tokens):
    ids = np.random.default_rng(tokens).integers(80, 500, tokens)
    return Prompt(ids, reader.embed_tokens(ids))


def transcription(reader):
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=1, kind="transcription")
    return reader.prompt(document.prompt, [document.image])


@pytest.mark.parametrize("before", [3, WINDOW - 3, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5])
@pytest.mark.parametrize(("added", "taken"), [(1, 1), (5, 5), (5, 2), (8, 0)])
def test_a_rewound_cache_is_one_that_never_saw_the_tokens(before, added, taken, reader):
    prompt = random_prompt(reader, before + added)
    cache, plain = (reader.decoder.new_cache(before + 40) for _ in range(2))
    reader.decode(cache, prompt.embeds[:before], np.array([0]))
    reader.decode(plain, prompt.embeds[: before + added - taken], np.array([0]))
    rewinder = reader.drafter.decoder_rewinder
    kept = rewinder.keep(cache, added)
    reader.decode(cache, prompt.embeds[before:], np.array([0]))
    rewinder.rewind(cache, kept, taken)
    assert cache.lengths == plain.lengths
    rest = reader.embed_tokens(np.arange(100, 120)), np.arange(20)
    found, expected = (reader.decode(one, *rest).logits for one in (cache, plain))
    assert np.abs(found - expected).max() < SAME * np.abs(expected).max()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_greedy_text_is_that_without_drafts(count, reader):
    """Documents have more tokens than the window, so that every rejection has rows to put back."""
    for document in open_documents("rendered", split="evaluation", count=6, seed=2):
        prompt, drafts = reader.prompt(document.prompt, [document.image]), Drafts(count)
        expected = list(reader.generate(prompt, greedy, 200))
        assert list(reader.generate(prompt, greedy, 200, drafts)) == expected
        assert drafts.calls * (count + 1) >= len(expected)
        assert len(expected) <= 2 + drafts.calls + drafts.accepted


def test_sampled_text_is_that_without_drafts(reader):
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=2, kind="transcription")
    prompt, sampling = reader.prompt(document.prompt, [document.image]), Sampling(seed=5, temperature=1.5)
    expected = list(reader.generate(prompt, sampling.sampler(), 100))
    assert expected != list(reader.generate(prompt, greedy, 100))
    assert list(reader.generate(prompt, sampling.sampler(), 100, Drafts(2))) == expected


@pytest.mark.parametrize("tokens", [1, LONGEST, LONGEST + 1])
def test_prompts_in_chunks(tokens, reader):
    prompt = random_prompt(reader, tokens)
    expected = list(reader.generate(prompt, greedy, 20))
    assert list(reader.generate(prompt, greedy, 20, Drafts(3))) == expected


@pytest.mark.parametrize("tokens", [LONGEST, LONGEST + 1, 2 * LONGEST + 20])
def test_the_layer_that_drafts_reads_a_prompt_whole(tokens, reader):
    """No text shows what it has read: keys and values are those of one call, up to the first token of the answer."""
    prompt, first, session = random_prompt(reader, tokens), 100, reader.drafter.session
    list(reader.generate(prompt, lambda *_: first, 3, Drafts(1)))  # drafts once, after that token
    with session.borrow_cache(1) as lent:  # the one that was just used
        found = [buffer.read() for buffer in lent.buffers]
    whole, own = reader.decoder.new_cache(tokens), session.new_cache(tokens)
    hidden = reader.decode(whole, prompt.embeds, np.array([tokens - 1])).hidden
    following = np.concatenate((prompt.embeds[1:], reader.embed_tokens(np.array([first]))))
    session.run(own, following[None], np.array([[tokens - 1]]), hidden)
    for ours, buffer in zip(found, own.buffers, strict=True):
        expected = buffer.read()
        assert np.abs(ours - expected).max() < SAME * np.abs(expected).max()


def test_most_drafts_of_a_transcription_stand(reader):
    drafts = []
    for document in open_documents("rendered", split="evaluation", count=4, seed=1, kind="transcription"):
        drafts.append(Drafts(1))
        list(reader.generate(reader.prompt(document.prompt, [document.image]), greedy, 300, drafts[-1]))
    assert sum(one.accepted for one in drafts) > 0.8 * sum(one.calls for one in drafts)


def test_the_context_is_the_limit_with_drafts_too(copied):
    edit_json(copied / "generation_config.json", eos_token_id=[511])
    set_context(copied, 600)
    model = Model(copied, "cpu")
    prompt = random_prompt(model, 600 - 4)
    assert list(model.generate(prompt, greedy, 100, Drafts(3))) == list(model.generate(prompt, greedy, 100))


@pytest.mark.parametrize(("budget", "acceptance"), [(1, None), (2, None), (3, 1.0)])
def test_nothing_is_drafted_beyond_the_longest_answer(budget, acceptance, reader):
    """The prompt gives the first token, and a call of the decoder one more than drafts that stand."""
    prompt, drafts = transcription(reader), Drafts(8)
    expected = list(reader.generate(prompt, greedy, budget))
    assert list(reader.generate(prompt, greedy, budget, drafts)) == expected
    assert len(expected) == budget
    assert drafts.acceptance == acceptance


@pytest.mark.parametrize("budget", [4, 9, 10, 13])
def test_short_answers_with_many_drafts(budget, reader):
    """No round drafts more than there is room for beside the token that its call gives."""
    prompt, drafts = transcription(reader), Drafts(8)
    expected = list(reader.generate(prompt, greedy, budget))
    assert list(reader.generate(prompt, greedy, budget, drafts)) == expected
    assert len(expected) == budget
    assert drafts.accepted <= drafts.drafted <= sum(min(8, room - 1) for room in range(1, budget))


def test_a_model_without_a_layer_that_drafts(copied):
    edit_json(copied / "runtime.json", targets={"cpu": {**_target(copied), "mtp": None}})
    with pytest.raises(InputError, match="no MTP layer to draft with; leave out --draft-tokens"):
        _ = Model(copied, "cpu").drafter


def _target(folder):
    import json

    return json.loads((folder / "runtime.json").read_text())["targets"]["cpu"]
