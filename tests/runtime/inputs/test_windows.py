"""Window order, positions and padded layouts, against transformers and against their own definitions."""

import time

import numpy as np
import pytest
import torch
from transformers.models.exaone4_5.configuration_exaone4_5 import Exaone4_5_VisionConfig
from transformers.models.exaone4_5.modeling_exaone4_5 import Exaone4_5_VisionRotaryEmbedding
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from runtime.inputs.windows import vision_index
from runtime.ort.manifest import VisionSettings

SETTINGS = VisionSettings(head_dim=32)
WIDE = VisionSettings(head_dim=64, window_size=84)  # 3 x 3 merged tokens


def random_grids(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 5))
    return [
        (int(random.integers(1, 4)), 2 * int(random.integers(1, 14)), 2 * int(random.integers(1, 14)))
        for _ in range(count)
    ]


GRIDS = [
    [(1, 2, 2)],  # one merged token
    [(1, 2, 34)],  # one row
    [(1, 34, 2)],  # one column
    [(1, 8, 8)],  # exactly one window
    [(1, 16, 24)],  # whole windows only
    [(1, 12, 10)],  # unequal windows
    [(1, 10, 12), (1, 2, 2), (1, 18, 6)],  # several images
    [(3, 10, 12), (1, 8, 8), (2, 2, 6)],  # frames
    *(random_grids(seed) for seed in range(12)),
]


@pytest.mark.parametrize("settings", [SETTINGS, WIDE], ids=["8x8", "6x6"])
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_order_and_lengths_equal_transformers(grids, settings):
    index = vision_index(grids, settings)
    tensor = torch.tensor(grids)
    order, cumulative = get_vision_window_index(tensor, settings.merge_size, settings.window_size, settings.patch_size)
    np.testing.assert_array_equal(index.window_index, order.numpy())
    np.testing.assert_array_equal(index.window_lengths, np.diff(cumulative.numpy()))
    np.testing.assert_array_equal(index.inverse_index, torch.argsort(order).numpy())
    np.testing.assert_array_equal(index.frame_lengths, np.diff(get_vision_cu_seqlens(tensor).numpy()))
    assert index.window_lengths.dtype == index.frame_lengths.dtype == np.int32
    assert index.window_index.dtype == index.inverse_index.dtype == np.int64


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_rotary_tables_equal_transformers(grids):
    index = vision_index(grids, SETTINGS)
    config = Exaone4_5_VisionConfig(hidden_size=128, num_heads=4, num_key_value_heads=2, depth=1)
    positions = get_vision_position_ids(torch.tensor(grids), SETTINGS.merge_size)
    expected = Exaone4_5_VisionRotaryEmbedding(config)(torch.zeros(1), positions)
    for ours, theirs in zip((index.cos, index.sin), expected, strict=True):
        in_window_order = theirs.numpy().reshape(-1, 4, SETTINGS.head_dim)[index.window_index].reshape(ours.shape)
        # float32 angles, as transformers has them, are off by up to position * 2^-23; positions here stay below 40.
        np.testing.assert_allclose(ours, in_window_order, rtol=0, atol=5e-6)
        assert ours.dtype == np.float32
        assert ours.shape == (sum(t * h * w for t, h, w in grids), SETTINGS.head_dim)


def test_rotary_tables_by_hand():
    """2 x 4 patches in blocks of 2 x 2; the two frequencies of a head of 8 are 1 and 1/100."""
    index = vision_index([(1, 2, 4)], VisionSettings(head_dim=8))
    positions = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    angles = [[r, r * 0.01, c, c * 0.01, r, r * 0.01, c, c * 0.01] for r, c in positions]
    np.testing.assert_allclose(index.cos, np.cos(angles), rtol=0, atol=6e-8)
    np.testing.assert_allclose(index.sin, np.sin(angles), rtol=0, atol=6e-8)


def pad_slowly(rows, lengths, width):
    padded, start = [], 0
    for length in lengths:
        padded += [*rows[start : start + length], *[-1] * (width - length)]
        start += length
    return np.array(padded)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_padded_layouts_hold_every_row_once(grids):
    index = vision_index(grids, SETTINGS)
    rows = np.arange(len(index.cos)) + 1000
    for lengths, width, gather, scatter in (
        (index.window_lengths, SETTINGS.window_patches, index.window_gather, index.window_scatter),
        (index.frame_lengths, index.frame_lengths.max(), index.frame_gather, index.frame_scatter),
    ):
        padded = np.where(gather < 0, -1, rows[gather])
        np.testing.assert_array_equal(padded, pad_slowly(rows, lengths, width))
        np.testing.assert_array_equal(padded[scatter], rows)
        assert gather.dtype == scatter.dtype == np.int64


def test_window_size_in_patches():
    assert SETTINGS.window_patches == 64
    assert WIDE.window_patches == 36


@pytest.mark.parametrize("grids", [[], [(1, 3, 2)], [(1, 2, 5)], [(0, 2, 2)], [(1, 0, 2)]], ids=str)
def test_impossible_grids_are_refused(grids):
    with pytest.raises(ValueError, match="multiples of 2"):
        vision_index(grids, SETTINGS)


def test_the_largest_image_takes_milliseconds():
    settings = VisionSettings(head_dim=64)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        vision_index([(1, 128, 128)], settings)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # about 5 ms on an idle core; the margin is for busy machines
