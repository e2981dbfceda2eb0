"""Normalisation and changes of shape: ONNX Runtime against PyTorch."""

import torch

from export.modules.basic_ops import reshape, rms_norm, select_positions, split

from .operators import check


def test_rms_norm():
    check(lambda x, w: rms_norm(x, w, 1e-5), (torch.randn(2, 3, 64) * 7, torch.rand(64)), ({0: "b"}, {}))


def test_split_reshape_and_selection():
    x = torch.randn(2, 6, 12)
    check(lambda x: split(x, [8, 3, 1]), (x,), ({0: "b"},), count=3)
    check(lambda x: reshape(x, 0, -1, 3), (x,), ({0: "b"},))
    check(select_positions, (x, torch.tensor([[5, 0], [1, 1]])), ({0: "b"}, {0: "b"}))
