"""Sizes of EXAONE 4.5 33B by hand, and a module that quantize may import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.sizes import KvLayers, buffer_limits, fits_blocks, logits_shape, rope_shape

CONFIG = Path(__file__).parents[1] / "data" / "exaone-4.5-33b.config.json"


@pytest.mark.parametrize("tokens", [1, 4096, 32768, 262144])
def test_the_released_model_takes_64_kib_a_token_and_768_mib(tokens):
    text = json.loads(CONFIG.read_text())["text_config"]
    windows = [
        4096 if kind == "sliding_attention" else None for kind in text["layer_types"][: text["num_hidden_layers"]]
    ]
    layers = KvLayers(windows, text["num_key_value_heads"], 128)
    assert layers.bytes(tokens, itemsize=2) == (64 << 10) * tokens + (768 << 20)


def test_shapes_of_a_batch():
    layers = KvLayers(buffer_limits([64, None], "window"), heads=2, head_dim=16)
    assert layers.shapes(300, batch=3) == [(3, 2, 64, 16), (3, 2, 300, 16)]
    full = KvLayers(buffer_limits([64, None], "full"), heads=2, head_dim=16)
    assert full.shapes(300) == [(1, 2, 300, 16)] * 2
    assert full.bytes(300, itemsize=1, batch=3) == 2 * 2 * 3 * 2 * 300 * 16
    assert (rope_shape(300, 16), logits_shape(5, 512, batch=3)) == ((300, 8), (3, 5, 512))


@pytest.mark.parametrize(
    ("rows", "bits", "group_size", "fits"),
    [(64, 4, 128, True), (96, 4, 128, False), (96, 8, 128, True), (64, 4, 16, False), (80, 8, 32, False)],
)
def test_weights_that_blocks_of_32_take(rows, bits, group_size, fits):
    assert fits_blocks(rows, bits, group_size) == fits


def test_sizes_pull_in_neither_numpy_nor_onnx_runtime():
    script = "import sys, runtime.sizes; print({'numpy', 'onnxruntime'} & sys.modules.keys() or 'none')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "none\n"
