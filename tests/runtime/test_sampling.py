"""The sampled distribution, against transformers' logits warpers, a naive oracle, and counted draws."""

import math

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from calib_data.errors import InputError
from runtime.sampling import Sampling, distribution, greedy, ignored

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_k=20, top_p=0.95),  # recommended for documents, penalty aside
    Sampling(temperature=0.3, top_k=3),
    Sampling(temperature=2.5, top_p=0.5),
    Sampling(temperature=1.0, top_k=1000, top_p=0.9),  # more than there are
    Sampling(temperature=0.7, top_k=1),
    Sampling(temperature=1.0, top_p=1e-9),
]


def logits_of(seed, size=200):
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def dense(logits, generated, sampling):
    tokens, probabilities = distribution(logits, generated, sampling)
    full = np.zeros(len(logits))
    full[tokens] = probabilities
    return full


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
    np.testing.assert_allclose(dense(logits, [], sampling), warped(logits, sampling), rtol=1e-12, atol=0)


def test_ties_with_the_last_of_the_top_k_stay():
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    sampling = Sampling(temperature=1.0, top_k=2)
    assert np.flatnonzero(dense(logits, [], sampling)).tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(dense(logits, [], sampling), warped(logits, sampling), rtol=1e-12)


def naive(logits, generated, sampling):
    """The definition in plain Python, one step after the other."""
    scores = [float(x) for x in logits]
    for token in set(generated):
        scores[token] -= sampling.presence_penalty
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
    sampling = Sampling(temperature=0.6, top_k=5, top_p=0.9, presence_penalty=1.5)
    np.testing.assert_allclose(dense(logits, generated, sampling), naive(logits, generated, sampling), rtol=1e-9)


def test_greedy():
    logits = np.array([0.0, 2.0, 2.0, 1.5], np.float32)
    assert greedy(logits, []) == 1
    assert Sampling(temperature=0).sampler()(logits, []) == 1
    assert Sampling(temperature=0, presence_penalty=0.1).sampler()(logits, [1]) == 2
    assert Sampling(temperature=0, presence_penalty=1.0).sampler()(logits, [1, 2, 1]) == 3
    assert logits.tolist() == [0.0, 2.0, 2.0, 1.5]  # the caller's buffer is left alone


def test_a_tiny_temperature_is_greedy_without_overflow():
    assert Sampling(temperature=1e-30).sampler()(logits_of(1), []) == greedy(logits_of(1), [])


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=11, temperature=1.0), Sampling(seed=12, temperature=1.5, top_k=6, top_p=0.9)]
)
def test_draws_follow_the_distribution(sampling):
    """Pearson's chi-square over 20000 draws stays under the 99.9 % quantile (Wilson-Hilferty approximation)."""
    logits = logits_of(2, 12)
    expected = dense(logits, [], sampling) * 20000
    sample = sampling.sampler()
    counts = np.bincount([sample(logits, []) for _ in range(20000)], minlength=12)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    degrees = possible.sum() - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < quantile


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


@pytest.mark.parametrize(
    "wrong", [{"top_p": 1.5}, {"temperature": "hot"}, {"top_k": 2.5}, {"top_k": -3}, {"presence_penalty": [1]}]
)
def test_impossible_recommendations_name_their_file(wrong):
    with pytest.raises(InputError, match=r"^generation_config\.json: "):
        Sampling.recommended({**RECOMMENDED, **wrong}, {}, None)


def test_recommendations_that_nothing_here_follows_are_named():
    neutral = {"repetition_penalty": 1.0, "min_p": None, "no_repeat_ngram_size": 0, "num_beams": 1}
    assert ignored({**RECOMMENDED, **neutral}) == []
    assert ignored({**neutral, "repetition_penalty": 1.1, "min_p": 0.05}) == ["repetition_penalty 1.1", "min_p 0.05"]
