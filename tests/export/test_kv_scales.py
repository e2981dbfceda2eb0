"""Step sizes of an int8 KV cache: they cover what calibration measured, and keys under any rotation."""

import json
import math

import pytest
import torch

from calib_data import READER
from console.errors import InputError
from export.kv_scales import read_kv_scales
from export.modules.cached_attention import rotate
from quantize.calibration.kv_ranges import KV_SCALES
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config

CHECKPOINT = open_checkpoint(READER)
FAMILY, CONFIG = find_family(CHECKPOINT.config), model_config(CHECKPOINT.config)
TEXT = CONFIG.get_text_config()
HEADS, WIDTH = TEXT.num_key_value_heads, 64


@pytest.fixture
def ranges(tmp_path):
    """Largest magnitudes of random keys and values, by layer."""
    torch.manual_seed(0)
    written = {
        name: {part: (torch.rand(HEADS, WIDTH) + 0.1).tolist() for part in ("key", "value")}
        for name in FAMILY.decoder_blocks(CONFIG)
    }
    (tmp_path / KV_SCALES).write_text(json.dumps(written))
    return tmp_path, [torch.tensor([layer["key"], layer["value"]]) for layer in written.values()]


def test_values_and_keys_without_positions_span_what_was_seen(ranges):
    folder, written = ranges
    for layer, (key, value) in enumerate(read_kv_scales(folder, FAMILY, CONFIG)):
        torch.testing.assert_close(value[0, :, 0] * 127, written[layer][1])
        if TEXT.layer_types[layer] == "full_attention":
            torch.testing.assert_close(key[0, :, 0] * 127, written[layer][0])


def test_keys_with_positions_fit_at_every_position(ranges):
    """The largest keys that were seen, turned by RoPE to any position."""
    folder, written = ranges
    positions = torch.arange(5000)
    angles = torch.outer(positions.double(), 100.0 ** -torch.arange(0, 1, 2 / WIDTH, dtype=torch.double)).float()
    for layer in (0, 2):
        assert TEXT.layer_types[layer] == "sliding_attention"
        key, _ = read_kv_scales(folder, FAMILY, CONFIG)[layer]
        seen = written[layer][0][None, :, None].expand(1, HEADS, len(positions), WIDTH)
        turned = rotate(seen, positions[None], angles.cos(), angles.sin())
        assert (turned.abs() <= key * 127 * (1 + 1e-5)).all()
        assert (turned.abs().amax(2) > 1.3 * written[layer][0]).any()  # which is more than was seen
        assert (key * 127).max() <= math.sqrt(2) * 1.1 + 1e-5


def test_a_channel_that_was_always_zero_has_the_smallest_step(ranges):
    folder, _ = ranges
    written = json.loads((folder / KV_SCALES).read_text())
    name = FAMILY.decoder_blocks(CONFIG)[1]
    written[name]["value"][0][5] = 0.0
    (folder / KV_SCALES).write_text(json.dumps(written))
    _, value = read_kv_scales(folder, FAMILY, CONFIG)[1]
    assert value[0, 0, 0, 5] == value.min() > 0


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda rows: [[-1.0, *rows[0][1:]], *rows[1:]], r"{part}\.0\.0: .* greater than or equal to 0"),
        (lambda rows: [[math.nan, *rows[0][1:]], *rows[1:]], r"{part}\.0\.0: Input should be .*"),
        (lambda rows: [["x", *rows[0][1:]], *rows[1:]], r"{part}\.0\.0: .* a valid number, found 'x'"),
        (lambda rows: [[1e300, *rows[0][1:]], *rows[1:]], r"\({part}: magnitudes that float32 cannot hold\)"),
        (lambda rows: [row[1:] for row in rows], r"\({part}: \[4, 2, 63\] magnitudes, not \[4, 2, 64\]\)"),
        (lambda rows: rows[0], r"{part}\.0: Input should be a valid array"),
        (lambda rows: None, r"{part}: Input should be a valid array, found None"),
    ],
)
def test_what_is_wrong_of_which_part_is_said(wrong, says, part, ranges):
    folder, _ = ranges
    written = json.loads((folder / KV_SCALES).read_text())
    for layer in written.values():
        layer[part] = wrong(layer[part])
    (folder / KV_SCALES).write_text(json.dumps(written))
    with pytest.raises(InputError, match=f"{KV_SCALES}: .*{says.format(part=part)}"):
        read_kv_scales(folder, FAMILY, CONFIG)
