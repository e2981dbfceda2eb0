"""Drafts change how fast an exact export answers, never what it says; taking them back leaves no trace in a cache."""

import numpy as np
import pytest

from calib_data.sources import open_documents
from console.errors import InputError
from runtime.decoding import speculative
from runtime.decoding.draft_policy import MAX_DRAFTS, DraftPolicy
from runtime.decoding.drafts import Drafts
from runtime.decoding.forward import decode
from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling, greedy
from runtime.model import Model
from runtime.prompt import build_prompt
from runtime.sizes import CHUNKINGS, Chunking

from ..damage import edit_json, set_context
from .prompts import random_prompt

WINDOW, LONGEST = 64, CHUNKINGS["cpu"].longest
SHORT = 256  # tokens of a chunk where what is asserted does not depend on it
SAME = 1e-5  # relative to the largest logit: sums over keys in another order


def transcription(reader):
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=1, kind="transcription")
    return build_prompt(reader, document.prompt, [document.image])


@pytest.mark.parametrize("before", [3, WINDOW - 3, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5])
@pytest.mark.parametrize(("added", "taken"), [(1, 1), (5, 5), (5, 2), (8, 0)])
def test_a_rewound_cache_is_one_that_never_saw_the_tokens(before, added, taken, reader):
    prompt = random_prompt(reader, before + added)
    cache, plain = (reader.decoder.new_cache(before + 40) for _ in range(2))
    decode(reader, cache, prompt.embeds[:before], np.array([0]))
    decode(reader, plain, prompt.embeds[: before + added - taken], np.array([0]))
    rollback = reader.drafter.decoder_rollback
    saved = rollback.save(cache, added)
    decode(reader, cache, prompt.embeds[before:], np.array([0]))
    rollback.roll_back(cache, saved, taken)
    assert cache.lengths == plain.lengths
    rest = reader.embed_tokens(np.arange(100, 120)), np.arange(20)
    found, expected = (decode(reader, one, *rest).logits for one in (cache, plain))
    assert np.abs(found - expected).max() < SAME * np.abs(expected).max()


def test_greedy_text_is_that_without_drafts(reader):
    """Documents have more tokens than the window, so that every rejection has rows to put back."""
    for document in open_documents("rendered", split="evaluation", count=4, seed=2):
        prompt = build_prompt(reader, document.prompt, [document.image])
        expected = list(generate(reader, prompt, greedy, 200))
        for count in (1, 2, 3, 8):
            drafts = Drafts(count)
            assert list(generate(reader, prompt, greedy, 200, drafts)) == expected
            assert drafts.calls * (count + 1) >= len(expected)
            assert len(expected) <= 2 + drafts.calls + drafts.accepted


def test_sampled_text_is_that_without_drafts(reader):
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=2, kind="transcription")
    prompt, sampling = build_prompt(reader, document.prompt, [document.image]), Sampling(seed=5, temperature=1.5)
    expected = list(generate(reader, prompt, sampling.sampler(), 100))
    assert expected != list(generate(reader, prompt, greedy, 100))
    assert list(generate(reader, prompt, sampling.sampler(), 100, Drafts(2))) == expected


@pytest.mark.parametrize("tokens", [1, LONGEST, LONGEST + 1])
def test_prompts_in_chunks(tokens, reader):
    prompt = random_prompt(reader, tokens)
    expected = list(generate(reader, prompt, greedy, 20))
    assert list(generate(reader, prompt, greedy, 20, Drafts(3))) == expected


class Scripted:
    """Chooses by a script, and gives up at its end."""

    def __init__(self, script):
        self.disabled, self.script, self.seen = False, list(script), []

    def choose(self, most):
        return min(self.script.pop(0), most) if self.script else 0

    def observe(self, drafts, accepted, seconds):
        self.seen.append((drafts, accepted))
        self.disabled = not self.script
        assert seconds > 0


@pytest.mark.parametrize(("plain", "waiting"), [(0, SHORT // 2), (3, SHORT // 2), (5, 2)])
@pytest.mark.parametrize("tokens", [90, SHORT, SHORT + 1, 2 * SHORT + 20])
def test_the_layer_that_drafts_reads_prompt_and_answer_whole(tokens, plain, waiting, reader, monkeypatch):
    """No text shows what it has read: keys and values are those of one call, up to the token before the first draft."""
    monkeypatch.setattr(speculative, "_MAX_PENDING", waiting)
    monkeypatch.setattr(reader, "chunking", Chunking(SHORT, 1))
    prompt, token, session = random_prompt(reader, tokens), 100, reader.drafter.session
    drafts = Drafts(1, Scripted([0] * plain + [1]))
    list(generate(reader, prompt, lambda *_: token, plain + 3, drafts))  # drafts once, at last
    assert drafts.drafted == 1
    with session.borrow_cache(1) as lent:  # the one that was just used
        found = [buffer.read() for buffer in lent.buffers]
    length = tokens + plain
    whole, own = reader.decoder.new_cache(length), session.new_cache(length)
    answer = reader.embed_tokens(np.full(plain + 1, token))
    embeds = np.concatenate((prompt.embeds, answer))
    hidden = decode(reader, whole, embeds[:-1], np.array([length - 1])).hidden
    session.run(own, embeds[None, 1:], np.array([[length - 1]]), hidden)
    for ours, buffer in zip(found, own.buffers, strict=True):
        expected = buffer.read()
        assert np.abs(ours - expected).max() < SAME * np.abs(expected).max()


@pytest.mark.parametrize("seed", range(4))
def test_text_is_the_same_whatever_is_chosen(seed, reader):
    """Plain steps and drafts in any order; documents have more tokens than the window."""
    random = np.random.default_rng(seed)
    for document in open_documents("rendered", split="evaluation", count=3, seed=3 + seed):
        prompt, policy = (
            build_prompt(reader, document.prompt, [document.image]),
            Scripted(random.choice([0, 0, 1, 2, 3], 25)),
        )
        expected = list(generate(reader, prompt, greedy, 200))
        drafts = Drafts(3, policy)
        assert list(generate(reader, prompt, greedy, 200, drafts)) == expected
        assert len(policy.seen) <= drafts.calls <= len(policy.seen) + 1
        assert all(accepted <= drafted for drafted, accepted in policy.seen)


def test_the_policy_itself_changes_no_text(reader):
    """One over several answers, by a clock of this machine: whatever it chose."""
    policy = DraftPolicy()
    for document in open_documents("rendered", split="evaluation", count=6, seed=2):
        prompt, drafts = build_prompt(reader, document.prompt, [document.image]), Drafts(MAX_DRAFTS, policy)
        expected = list(generate(reader, prompt, greedy, 100))
        assert list(generate(reader, prompt, greedy, 100, drafts)) == expected


def test_most_drafts_of_a_transcription_stand(reader):
    drafts = []
    for document in open_documents("rendered", split="evaluation", count=4, seed=1, kind="transcription"):
        drafts.append(Drafts(1))
        list(generate(reader, build_prompt(reader, document.prompt, [document.image]), greedy, 300, drafts[-1]))
    assert sum(one.accepted for one in drafts) > 0.8 * sum(one.calls for one in drafts)


def test_the_context_is_the_limit_with_drafts_too(copied):
    edit_json(copied / "generation_config.json", eos_token_id=[511])
    set_context(copied, 600)
    model = Model(copied, "cpu")
    prompt = random_prompt(model, 600 - 4)
    assert list(generate(model, prompt, greedy, 100, Drafts(3))) == list(generate(model, prompt, greedy, 100))


@pytest.mark.parametrize(("budget", "acceptance"), [(1, None), (2, None), (3, 1.0)])
def test_nothing_is_drafted_beyond_the_longest_answer(budget, acceptance, reader):
    """The prompt gives the first token, and a call of the decoder one more than drafts that stand."""
    prompt, drafts = transcription(reader), Drafts(8)
    expected = list(generate(reader, prompt, greedy, budget))
    assert list(generate(reader, prompt, greedy, budget, drafts)) == expected
    assert len(expected) == budget
    assert drafts.acceptance == acceptance


@pytest.mark.parametrize("budget", [4, 9, 10, 13])
def test_short_answers_with_many_drafts(budget, reader):
    """No round drafts more than there is capacity for beside the token that its call gives."""
    prompt, drafts = transcription(reader), Drafts(8)
    expected = list(generate(reader, prompt, greedy, budget))
    assert list(generate(reader, prompt, greedy, budget, drafts)) == expected
    assert len(expected) == budget
    assert drafts.accepted <= drafts.drafted <= sum(min(8, capacity - 1) for capacity in range(1, budget))


def test_a_model_without_a_layer_that_drafts(copied):
    edit_json(copied / "runtime.json", targets={"cpu": {**_target(copied), "mtp": None}})
    with pytest.raises(InputError, match="no MTP layer to draft with; leave out --draft-tokens"):
        _ = Model(copied, "cpu").drafter


def _target(folder):
    import json

    return json.loads((folder / "runtime.json").read_text())["targets"]["cpu"]
