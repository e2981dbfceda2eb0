"""Log probabilities equal a float64 log-softmax, and the top tokens a full sort."""

import numpy as np
import pytest
import torch

from runtime.decoding.logprobs import token_logprobs


@pytest.mark.parametrize("top", [0, 1, 5, 20])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_log_probabilities_equal_log_softmax(scale, top):
    for size in (20, 700, 20000):
        logits = np.random.default_rng(size).normal(0, scale, size).astype(np.float32)
        expected = torch.tensor(logits, dtype=torch.float64).log_softmax(0).numpy()
        found = token_logprobs(logits, 7, top)
        assert found.token == 7
        assert found.logprob == pytest.approx(expected[7], rel=1e-12, abs=1e-12)
        assert [token for token, _ in found.top] == np.argsort(-logits, kind="stable")[:top].tolist()
        np.testing.assert_allclose(
            [value for _, value in found.top], expected[[token for token, _ in found.top]], 1e-12
        )


def test_equal_logits_come_by_their_ids():
    logits = np.array([1, 3, 2, 2, 2, 3], np.float32)
    assert [token for token, _ in token_logprobs(logits, 0, 4).top] == [1, 5, 2, 3]
    assert [token for token, _ in token_logprobs(logits, 0, 20).top] == [1, 5, 2, 3, 4, 0]


def test_the_logits_are_left_alone():
    logits = np.array([0.5, 2.0], np.float32)
    assert token_logprobs(logits, 1, 1).logprob == pytest.approx(-np.log1p(np.exp(-1.5)), rel=1e-12)
    assert logits.tolist() == [0.5, 2.0]
