"""Which tokens count, and how they are scaled."""

import torch

from quantize.solver.token_weights import PROMPT, last_layer_weights, token_factors, token_weights

IMAGE = 9


def test_images_and_what_predicts_the_answer_count():
    ids = torch.tensor([1, 9, 9, 2, 3, 4, 5, 6])  # two image tokens, two words, and an answer of three tokens
    assert token_weights(ids, 3, IMAGE).tolist() == [PROMPT, 1, 1, PROMPT, 1, 1, 1, PROMPT]
    assert last_layer_weights(8, 3).tolist() == [PROMPT, PROMPT, PROMPT, PROMPT, 1, 1, 1, PROMPT]


def test_without_an_answer_all_count():
    assert token_weights(torch.tensor([1, 9, 2, 3]), 0, IMAGE).tolist() == [1, 1, 1, 1]
    assert last_layer_weights(4, 0).tolist() == [1, 1, 1, 1]


def test_without_an_image():
    assert token_weights(torch.tensor([9, 2, 3]), 1, None).tolist() == [1, 1, 1]
    assert token_weights(torch.tensor([7, 2, 3]), 1, IMAGE).tolist() == [1, 1, 1]
    assert last_layer_weights(3, 1).tolist() == [PROMPT, 1, PROMPT]


def test_a_token_has_the_mean_square_of_its_importance_and_zeros_stay():
    X = torch.tensor([[3.0, 4.0], [0.0, 0.0], [300.0, -400.0]])
    scaled = X * token_factors(X, torch.tensor([1.0, 1.0, 0.25]))
    assert torch.allclose(scaled.square().mean(-1), torch.tensor([1.0, 0.0, 0.25]))
    assert torch.allclose(scaled[2] / scaled[0], torch.tensor([0.5, -0.5]))
