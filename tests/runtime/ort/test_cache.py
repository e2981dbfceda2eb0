"""How much memory a KV cache takes, and how long its buffers are."""

import json
from pathlib import Path

import pytest

from runtime.ort.cache import cache_bytes
from runtime.ort.manifest import Text

CONFIG = Path(__file__).parents[2] / "data" / "exaone-4.5-33b.config.json"


@pytest.mark.parametrize("tokens", [1, 4096, 32768, 262144])
def test_the_released_model_takes_64_kib_a_token_and_768_mib(tokens):
    shape = json.loads(CONFIG.read_text())["text_config"]
    windows = [
        4096 if kind == "sliding_attention" else None for kind in shape["layer_types"][: shape["num_hidden_layers"]]
    ]
    text = Text(5120, 153600, shape["num_key_value_heads"], 128, 262144, windows, [4096], {})
    assert cache_bytes(text, batch=1, capacity=tokens, itemsize=2) == (64 << 10) * tokens + (768 << 20)


def test_buffers_are_what_the_formula_says(reader):
    cache = reader.decoder.new_cache(capacity=300, batch=2)
    held = sum(buffer.read().nbytes for buffer in cache.buffers)
    assert held == cache_bytes(reader.manifest.text, batch=2, capacity=300, itemsize=4)
