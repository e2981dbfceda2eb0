"""Prompts that several tests generate from."""

import numpy as np

from runtime.prompt import Prompt


def random_prompt(model, tokens):
    ids = np.random.default_rng(tokens).integers(80, 500, tokens)
    return Prompt(ids, model.embed_tokens(ids))
