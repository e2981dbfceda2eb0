"""KL divergence of predictions, over all tokens and over the likeliest, against torch and by hand."""

import tracemalloc

import numpy as np
import pytest
import torch

from runtime.compare.measuring.predictions import Predictions, kl_divergence

LOGITS = np.random.default_rng(0).normal(size=(2, 40, 300)).astype(np.float32) * 4


def truncated(whole: Predictions, count: int) -> Predictions:
    ids = np.argsort(-whole.logits, -1)[:, :count]
    logsumexp = torch.from_numpy(whole.logits).double().logsumexp(-1).numpy()
    return Predictions.from_top_k(np.take_along_axis(whole.logits, ids, -1), logsumexp, ids)


def test_divergence_is_that_of_torch():
    log_p, log_q = (torch.from_numpy(part).double().log_softmax(-1) for part in LOGITS)
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(kl_divergence(*map(Predictions.from_logits, LOGITS)), expected, rtol=1e-12)


def test_divergence_of_distributions_known_by_hand():
    p, q = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3]), np.array([[0.25, 0.25, 0.5], [1 / 3] * 3])
    pair = [Predictions.from_logits(np.log(part).astype(np.float32) + 7) for part in (p, q)]
    np.testing.assert_allclose(kl_divergence(*pair), [0.25 * np.log(2), 0], atol=1e-6)
    huge = np.array([[3e4, 0, -3e4]], np.float32)
    of = Predictions.from_logits
    np.testing.assert_allclose(kl_divergence(of(huge), of(huge / 2)), [0], atol=1e-12)
    np.testing.assert_allclose(kl_divergence(of(huge[:, ::-1]), of(huge)), [6e4])


@pytest.mark.parametrize("count", [1, 8, 128, 299])
def test_the_likeliest_tokens_give_a_lower_bound(count):
    """It is the divergence of the distributions in which all other tokens are one."""
    p, q = map(Predictions.from_logits, LOGITS)
    known = truncated(p, count)
    found = kl_divergence(known, q)
    assert (found <= kl_divergence(p, q) + 1e-12).all()
    for row in range(3):
        merged = []
        for part in (p, q):
            probabilities = np.exp(part.log_probabilities(row))
            kept = probabilities[known.ids[row]]
            merged.append([*kept, probabilities.sum() - kept.sum()])
        one, other = map(np.array, merged)
        assert found[row] == pytest.approx((one * np.log(one / other)).sum(), rel=1e-9)


def test_where_the_rest_is_unlikely_the_bound_is_close():
    p, q = (Predictions.from_logits(part * 3) for part in LOGITS)
    np.testing.assert_allclose(kl_divergence(truncated(p, 128), q).mean(), kl_divergence(p, q).mean(), rtol=1e-4)


def test_tokens_that_were_not_kept_are_unknown():
    p = Predictions.from_logits(LOGITS[0])
    known = truncated(p, 5)
    tokens = known.ids[:, 3].copy()
    expected = torch.from_numpy(LOGITS[0]).double().log_softmax(-1)[range(40), tokens]
    np.testing.assert_allclose(p.log_likelihood(tokens), expected, rtol=1e-12)
    np.testing.assert_allclose(known.log_likelihood(tokens), expected, rtol=1e-12)
    tokens[7] = np.argmin(p.logits[7])
    assert np.isnan(known.log_likelihood(tokens)).nonzero()[0].tolist() == [7]
    np.testing.assert_array_equal(known.top_tokens, p.top_tokens)
    np.testing.assert_array_equal(p.top_tokens, LOGITS[0].argmax(-1))


def test_ranks_are_those_of_sorting():
    tokens = np.random.default_rng(1).integers(0, 300, 40)
    order = (-torch.from_numpy(LOGITS[0])).argsort(-1)
    expected = (order == torch.from_numpy(tokens)[:, None]).int().argmax(-1) + 1
    whole = Predictions.from_logits(LOGITS[0])
    np.testing.assert_array_equal(whole.rank(tokens), expected)
    kept = truncated(whole, 100)
    known = ~np.isnan(kept.log_likelihood(tokens))
    np.testing.assert_array_equal(kept.rank(tokens)[known], expected[known])
    assert (expected[known] <= 100).all()
    assert (expected[~known] > 100).all()


def test_all_that_is_read_of_predictions_takes_a_few_rows_of_memory():
    """Beside the logits that were given: float64 copies of them all would take twice as much each."""
    logits = np.random.default_rng(0).normal(size=(2, 256, 5000)).astype(np.float32)
    tracemalloc.start()
    p, q = map(Predictions.from_logits, logits)
    kl_divergence(p, q), p.top_tokens == q.top_tokens, p.log_likelihood(q.top_tokens), p.rank(q.top_tokens)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 5000 * 8
