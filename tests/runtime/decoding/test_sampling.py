"""What is drawn from, against transformers' logits warpers, a sorting oracle and plain Python; and counted draws.

`dense` asks of every token what the sampler asks of the one it drew.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from console.errors import InputError
from runtime.decoding.sampling import Sampling, candidates, draw, greedy, likelier, shortlist

from .sampling_oracle import distribution

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_k=20, top_p=0.95),  # recommended for documents, penalty aside
    Sampling(temperature=0.3, top_k=3),
    Sampling(temperature=2.5, top_p=0.5),
    Sampling(temperature=1.0, top_k=1000, top_p=0.9),  # more than there are
    Sampling(temperature=0.7, top_k=1),
    Sampling(temperature=1.0, top_p=1e-9),
]
FLOAT32 = {"rtol": 2e-5, "atol": 1e-30}


def logits_of(seed, size=200):
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def dense(logits, generated, sampling):
    tokens, weights = candidates(sampling.sampler().penalised(logits, generated), sampling)
    mass = sampling.top_p * weights.sum(dtype=np.float64) if sampling.top_p < 1 else np.inf
    stands = [weights[likelier(weights, i)].sum(dtype=np.float64) < mass for i in range(len(weights))]
    full = np.zeros(len(logits))
    full[slice(None) if tokens is None else tokens] = np.where(stands, weights, 0)
    return full / full.sum()


def warped(logits, sampling):
    """What transformers samples from; the warpers keep their own order: temperature, top k, top p."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    scores = warpers(torch.zeros((1, 0), dtype=torch.long), torch.tensor(logits, dtype=torch.float64)[None])
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_distribution_equals_transformers(sampling, seed):
    logits = logits_of(seed)
    np.testing.assert_allclose(dense(logits, [], sampling), warped(logits, sampling), **FLOAT32)


def test_ties_with_the_last_of_the_top_k_stay():
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    sampling = Sampling(temperature=1.0, top_k=2)
    assert np.flatnonzero(dense(logits, [], sampling)).tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(dense(logits, [], sampling), warped(logits, sampling), **FLOAT32)


def naive(logits, generated, sampling):
    """The definition in plain Python, one step after the other."""
    scores = [float(x) for x in logits]
    for token in set(generated):
        scores[token] -= sampling.presence_penalty + sampling.frequency_penalty * generated.count(token)
    weights = {token: math.exp(score / sampling.temperature) for token, score in enumerate(scores)}
    ranked = sorted(weights, key=weights.get, reverse=True)[: sampling.top_k or None]
    total = sum(weights[token] for token in ranked)
    kept, mass = [], 0.0
    for token in ranked:
        if mass >= sampling.top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(scores))]


@pytest.mark.parametrize("seed", range(8))
def test_penalty_comes_before_everything(seed):
    logits = logits_of(seed, 30)
    likely = np.argsort(-logits)[:4].tolist()
    generated = [likely[0], likely[0], likely[2], likely[0]]
    sampling = Sampling(temperature=0.6, top_k=5, top_p=0.9, presence_penalty=1.5, frequency_penalty=-0.25)
    np.testing.assert_allclose(dense(logits, generated, sampling), naive(logits, generated, sampling), **FLOAT32)


def test_greedy():
    logits = np.array([0.0, 2.0, 2.0, 1.5], np.float32)
    assert greedy(logits, []) == 1
    assert Sampling(temperature=0).sampler()(logits, []) == 1
    assert Sampling(temperature=0, presence_penalty=0.1).sampler()(logits, [1]) == 2
    assert Sampling(temperature=0, presence_penalty=1.0).sampler()(logits, [1, 2, 1]) == 3
    assert logits.tolist() == [0.0, 2.0, 2.0, 1.5]  # the caller's buffer is left alone


def test_a_tiny_temperature_is_greedy_without_overflow():
    assert Sampling(temperature=1e-30).sampler()(logits_of(1), []) == greedy(logits_of(1), [])


def assert_as_the_oracle(logits, generated, sampling):
    """The same probabilities; where the masses of float32 lie on the other side of p, those of a p next to it."""
    found = dense(logits, generated, sampling)
    nearby = [min(sampling.top_p + shift, 1.0) for shift in (0, 1e-6, -1e-6)]
    expected = [distribution(logits, generated, replace(sampling, top_p=top_p)) for top_p in nearby]
    assert any(np.allclose(found, one, **FLOAT32) for one in expected), (found, expected[0])


@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 10**6])
@pytest.mark.parametrize("top_p", [1e-5, 0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3, 0.6, 1.0, 100.0])
def test_distribution_equals_the_sorting_oracle(temperature, top_p, top_k):
    """Logits of every width, with ties and masked tokens; a penalty of either sign, or none."""
    random = np.random.default_rng([int(top_p * 1e5), top_k])
    for penalty, frequency, spread in itertools.product([0, 1.5, -0.7], [0, 0.4], [0.1, 1, 10]):
        logits = random.normal(0, spread, 150).astype(np.float32)
        logits[random.integers(0, 150, 30)] = logits[random.integers(0, 150, 30)]
        logits[random.integers(0, 150, 30)] = -np.inf
        logits[[3, 140]] = logits.max() + penalty  # two likeliest
        generated = random.integers(0, 150, 40).tolist()
        penalties = {"presence_penalty": penalty, "frequency_penalty": frequency}
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, **penalties)
        assert_as_the_oracle(logits, generated, sampling)


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_any_temperature_leaves_numbers(temperature):
    tokens, weights = candidates(logits_of(1), Sampling(temperature=temperature))
    assert tokens is None
    np.testing.assert_array_equal(weights, np.ones(200))


@pytest.mark.parametrize("top_k", [1, 20, 100, 3000])
@pytest.mark.parametrize("size", [3001, 20000])
def test_top_k_of_many(size, top_k):
    """Of sorted, tied and random logits: those that a full sort keeps."""
    logits = logits_of(4, size)
    for scores in (logits, np.sort(logits), np.sort(logits)[::-1].copy(), np.round(logits)):
        tokens, _ = candidates(scores, Sampling(temperature=1.0, top_k=top_k))
        np.testing.assert_array_equal(tokens, np.flatnonzero(scores >= np.sort(scores)[-top_k]))


@pytest.mark.parametrize("top_p", [0.0001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("spread", [0.1, 1, 4])
def test_the_shortlist_holds_the_nucleus(spread, top_p):
    logits = logits_of(6, 50000) * np.float32(spread / 3)
    _, weights = candidates(logits, Sampling(temperature=1.0))
    tokens = shortlist(weights, top_p * weights.sum(dtype=np.float64))
    nucleus = np.flatnonzero(distribution(logits, [], Sampling(temperature=1.0, top_p=top_p)))
    if tokens is None:
        assert top_p == 0.5
    else:
        assert np.isin(nucleus, tokens).all()
        assert len(tokens) <= 50000 / 4


def test_penalties_of_a_growing_answer_are_those_of_all_its_tokens():
    for penalties in ({"presence_penalty": 1.5}, {"frequency_penalty": 0.3}, {"frequency_penalty": 2.0}):
        logits, sampling = logits_of(5), Sampling(**penalties)
        sample, generated = sampling.sampler(), []
        for _ in range(30):
            token = sample(logits, generated)
            assert token == distribution(logits, generated, sampling).argmax()
            generated += [token, token]
        assert sampling.sampler()(logits, generated) == sample(logits, generated)


COUNTED = [
    Sampling(seed=11, temperature=1.0),
    Sampling(seed=12, temperature=1.5, top_k=6, top_p=0.9),
    Sampling(seed=13, temperature=5.0, top_p=0.3),
    Sampling(seed=14, temperature=5.0, top_p=0.6),
    Sampling(seed=15, temperature=3.0, top_p=0.9, presence_penalty=2.0),
]


@pytest.mark.parametrize("size", [12, 700])
@pytest.mark.parametrize("sampling", COUNTED, ids=str)
def test_draws_follow_the_distribution(sampling, size):
    """Pearson's chi-square over 5000 draws stays under the 99.9 % quantile (Wilson-Hilferty approximation).

    Of many tokens, neighbours are counted together, in a dozen groups.
    """
    logits = np.sort(logits_of(2, size))  # so that some blocks hold no token of the nucleus
    logits[size // 2 :: 5] = logits[size // 2]  # ties, some of them in the nucleus
    expected = distribution(logits, [1, 4, 4], sampling) * 5000
    sample = sampling.sampler()
    counts = np.bincount([sample(logits, [1, 4, 4]) for _ in range(5000)], minlength=size)
    assert counts[expected == 0].sum() == 0
    counts, expected = (np.add.reduceat(x, np.arange(0, size, size // 12)) for x in (counts, expected))
    rare = expected < 5  # are counted together
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    possible = expected > 0
    degrees = possible.sum() - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < quantile


@pytest.mark.parametrize("top_p", [0.02, 0.3, 0.9])
def test_draws_of_a_nucleus_of_many(top_p):
    """Of 20000 tokens: the mean score of a draw, within four deviations; one nucleus is found on a shortlist."""
    logits, random = logits_of(8, 20000) / np.float32(3), np.random.default_rng(9)
    sampling = Sampling(temperature=1.0, top_p=top_p)
    _, weights = candidates(logits, sampling)
    expected = distribution(logits, [], sampling)
    drawn = [draw(weights.copy(), top_p, random) for _ in range(2000)]
    mean = expected @ logits
    deviation = math.sqrt(expected @ (logits - mean) ** 2 / len(drawn))
    assert (expected[drawn] > 0).all()
    assert abs(logits[drawn].mean() - mean) < 4 * deviation


def test_a_seed_fixes_the_draws():
    logits = logits_of(3)

    def draws(seed):
        sample = Sampling(seed=seed, temperature=1.0).sampler()
        return [sample(logits, []) for _ in range(50)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, r"--temperature -0\.1"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"temperature": math.inf}, "--temperature inf"),
        ({"top_p": 0.0}, r"--top-p 0\.0"),
        ({"top_p": 1.01}, r"--top-p 1\.01"),
        ({"top_p": math.nan}, "--top-p nan"),
        ({"top_k": -1}, "--top-k -1"),
        ({"presence_penalty": 3.0}, r"--presence-penalty 3\.0"),
        ({"presence_penalty": math.nan}, "--presence-penalty nan"),
        ({"frequency_penalty": -2.1}, r"--frequency-penalty -2\.1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


def test_masked_tokens_are_never_drawn():
    logits = np.full(10, -np.inf, np.float32)
    logits[[2, 5]] = 0
    sample = Sampling(seed=1, temperature=1.0).sampler()
    assert {sample(logits, []) for _ in range(50)} == {2, 5}


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("top_k", [1, 2, 3, 20])
def test_top_k_of_what_a_mask_left(top_k, size):
    """No more than there is, even where that is less than k."""
    logits = np.full(size, -np.inf, np.float32)
    logits[[2, 5, 7]] = [0, 3, 1]
    tokens, weights = candidates(logits, Sampling(temperature=1.0, top_k=top_k))
    kept = np.flatnonzero(weights) if tokens is None else tokens
    assert kept.tolist() == [[5], [5, 7], [2, 5, 7]][min(top_k, 3) - 1]
    assert (weights[weights > 0] == np.exp(logits[kept] - 3)).all()


RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "presence_penalty": 1.5}


@pytest.mark.parametrize(
    ("generation", "chosen", "expected"),
    [
        (RECOMMENDED, {}, Sampling(temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5)),
        (RECOMMENDED, {"top_k": 0, "temperature": 1.0}, Sampling(temperature=1.0, top_p=0.95, presence_penalty=1.5)),
        ({"do_sample": True, "top_p": 0.9, "top_k": None}, {}, Sampling(temperature=1.0, top_p=0.9)),
        ({"do_sample": False, "temperature": 0.6}, {}, Sampling(temperature=0.0)),
        ({}, {}, Sampling(temperature=0.0)),
        ({"presence_penalty": 1.5}, {"temperature": 0.3}, Sampling(temperature=0.3, presence_penalty=1.5)),
    ],
)
def test_what_is_not_chosen_is_recommended(generation, chosen, expected):
    assert Sampling.recommended(generation, chosen, None) == expected


def test_greedy_takes_a_penalty_only_where_one_is_chosen():
    def first_and_second(**chosen):
        sample = Sampling.recommended(RECOMMENDED, {"temperature": 0.0, **chosen}, 1).sampler()
        logits = np.array([0, 3, 2], np.float32)
        return sample(logits, []), sample(logits, [1])

    assert first_and_second() == (1, 1)
    assert first_and_second(presence_penalty=1.5) == (1, 2)


@pytest.mark.parametrize("chosen", [{"top_p": 0.9}, {"top_k": 3, "presence_penalty": 1.0}])
def test_a_choice_that_a_greedy_model_ignores_is_an_error(chosen):
    with pytest.raises(InputError, match="give --temperature too"):
        Sampling.recommended({"do_sample": False}, chosen, None)
    assert Sampling.recommended({}, {"temperature": 0.0, **chosen}, None) == Sampling(temperature=0.0, **chosen)
