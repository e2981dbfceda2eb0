"""Ranges of keys and values against what transformers' own cache holds when it runs the finished folder."""

import json

import torch
from transformers import AutoModelForImageTextToText, DynamicCache

from quantize.calibration.kv_ranges import RangeRecorder
from quantize.calibration.samples import read_samples


def test_the_largest_magnitude_of_each_channel():
    recorder = RangeRecorder()
    key = torch.zeros(1, 2, 3, 4)
    key[0, 1, 2, 3], key[0, 0, 0, 0] = -5, 2
    kept, value = recorder.update(key, key / 2)
    assert torch.equal(kept, key)
    assert torch.equal(value, key / 2)
    recorder.update(key.flip(2) * 0.5, 3 * torch.ones(1, 2, 1, 4), 7)
    assert recorder.ranges() == {"key": [[2, 0, 0, 0], [0, 0, 0, 5]], "value": [[3] * 4, [3] * 4]}


@torch.no_grad()
def test_the_folder_says_how_large_keys_and_values_were(w8):
    """At 8 bits, where the ranges before and after quantization hardly differ."""
    found = json.loads((w8.folder / "kv_scales.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(w8.folder, dtype=torch.float32).eval()
    text = model.config.text_config
    assert list(found) == [f"model.language_model.layers.{i}" for i in range(text.num_hidden_layers)]
    expected = RangeRecorder(), RangeRecorder(), RangeRecorder(), RangeRecorder()
    for sample in read_samples(w8.settings, model.config):
        cache = DynamicCache()  # without the config it keeps all tokens of sliding layers, too
        model(
            input_ids=sample.ids[None],
            pixel_values=sample.patches,
            image_grid_thw=sample.grid,
            past_key_values=cache,
            use_cache=True,
        )
        for recorder, layer in zip(expected, cache.layers, strict=True):
            recorder.update(layer.keys, layer.values)
    for recorder, ranges in zip(expected, found.values(), strict=True):
        for name, largest in recorder.maxima.items():
            assert largest.shape == (text.num_key_value_heads, text.head_dim)
            torch.testing.assert_close(torch.tensor(ranges[name]), largest, rtol=0.05, atol=0.02)
