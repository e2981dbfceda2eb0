"""The distribution that a sampler draws from, by its definition: everything sorted, and float64 but for the penalty."""

import numpy as np


def distribution(logits, generated, sampling):
    """Probabilities of all tokens, [V] float64; a temperature of 0 is the likeliest token's."""
    scores = logits.copy()
    for token in set(generated):
        times = generated.count(token)
        scores[token] -= np.float32(sampling.presence_penalty + times * sampling.frequency_penalty)
    scores = scores.astype(np.float64)
    dense = np.zeros(len(scores))
    if sampling.temperature == 0:
        dense[scores.argmax()] = 1
        return dense
    tokens = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.sort(scores)[-sampling.top_k])
    scores = scores[tokens]
    probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        tokens, probabilities = _nucleus(tokens, probabilities, sampling.top_p)
    dense[tokens] = probabilities
    return dense


def _nucleus(tokens, probabilities, top_p):
    """Drop the unlikeliest tokens that together hold no more than 1 - p (Holtzman et al. 2020, section 3.1)."""
    order = np.argsort(probabilities, kind="stable")
    kept = order[np.cumsum(probabilities[order]) > 1 - top_p]
    if not len(kept):  # rounding, at a p near 0
        kept = order[-1:]
    return tokens[kept], probabilities[kept] / probabilities[kept].sum()
