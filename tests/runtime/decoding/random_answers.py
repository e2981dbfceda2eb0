"""Answers of a model that knows nothing: random logits, with a bias for what ends strings, lists and answers."""

import numpy as np

from calib_data import READER
from runtime.chat import Chat
from runtime.decoding.sampling import Sampling
from runtime.decoding.structured import GrammarTokenizer

END_IDS = (53, 2)
VOCABULARY = 530  # more than the tokenizer's 512 tokens, as padded embeddings have
CHAT = Chat(READER)
TOKENIZER = GrammarTokenizer(CHAT, VOCABULARY, END_IDS)


def random_logits(seed, chat=CHAT, vocabulary=VOCABULARY, end_ids=END_IDS):
    """Logits [V] of the n-th token of an answer: the same for the same seed and n."""
    bias = np.zeros(vocabulary, np.float32)
    for text in '"}],0123456789s':
        bias[chat.encode_text(text)] = 5
    bias[[*end_ids, *([] if chat.think_end_id is None else [chat.think_end_id])]] = 3
    return lambda n: np.random.default_rng([seed, n]).normal(bias, 2).astype(np.float32)


def answer(sampler, logits, limit=600, end_ids=END_IDS):
    """Tokens of an answer; None where it does not end within the limit."""
    tokens = []
    while len(tokens) < limit:
        token = sampler(logits(len(tokens)), tokens)
        if token in end_ids:
            return tokens
        tokens.append(token)
    return None


def sampled(seed):
    return Sampling(seed=seed, temperature=1.0).sampler()
