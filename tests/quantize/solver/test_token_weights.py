"""Which tokens count, and how they are scaled."""

import torch

from quantize.solver.token_weights import PROMPT, importance, predicting, weighted

IMAGE = 9


def test_images_and_what_predicts_the_answer_count():
    ids = torch.tensor([1, 9, 9, 2, 3, 4, 5, 6])  # two image tokens, two words, and an answer of three tokens
    assert importance(ids, 3, IMAGE).tolist() == [PROMPT, 1, 1, PROMPT, 1, 1, 1, PROMPT]
    assert predicting(8, 3).tolist() == [PROMPT, PROMPT, PROMPT, PROMPT, 1, 1, 1, PROMPT]


def test_without_an_answer_all_count():
    assert importance(torch.tensor([1, 9, 2, 3]), 0, IMAGE).tolist() == [1, 1, 1, 1]
    assert predicting(4, 0).tolist() == [1, 1, 1, 1]


def test_without_an_image():
    assert importance(torch.tensor([9, 2, 3]), 1, None).tolist() == [1, 1, 1]
    assert importance(torch.tensor([7, 2, 3]), 1, IMAGE).tolist() == [1, 1, 1]
    assert predicting(3, 1).tolist() == [PROMPT, 1, PROMPT]


def test_a_token_has_the_mean_square_of_its_importance_and_zeros_stay():
    X = torch.tensor([[3.0, 4.0], [0.0, 0.0], [300.0, -400.0]])
    scaled = weighted(X, torch.tensor([1.0, 1.0, 0.25]))
    assert torch.allclose(scaled.square().mean(-1), torch.tensor([1.0, 0.0, 0.25]))
    assert torch.allclose(scaled[2] / scaled[0], torch.tensor([0.5, -0.5]))
