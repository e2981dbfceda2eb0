"""Folders that look as if quantize had written them, against those that it writes."""

import json

import pytest
import torch
from typer.testing import CliRunner

from bench.dequantized import dequantized
from bench.scale.__main__ import app
from bench.scale.quantized import make_quantized
from calib_data import READER
from console.errors import InputError
from export import export
from quantize.checkpoint.reader import open_checkpoint

pytestmark = pytest.mark.slow

CONFIG = json.loads((READER / "config.json").read_text())
SHARD = 1 << 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    path = tmp_path_factory.mktemp("widths") / "sparse"
    make_quantized(CONFIG, path, sparse=True)
    return path


def layout(folder):
    return [(t.name, t.file.name, t.dtype, t.shape, t.offset) for t in open_checkpoint(folder).tensors.values()]


def test_it_is_laid_out_as_quantize_does(sparse, quantized):
    """Names, types, shapes and offsets in file order, the MTP layer's too, the config, and what describes weights."""
    expected = quantized("w4")
    assert layout(sparse) == layout(expected)
    assert (sparse / "config.json").read_text() == (expected / "config.json").read_text()
    name = "mtp.layers.0.mlp.down_proj.weight_shape"
    assert torch.equal(open_checkpoint(sparse).load(name), open_checkpoint(expected).load(name))


def test_it_takes_no_room_and_exports(tmp_path):
    """In several files, the last of which may end in a hole."""
    make_quantized(CONFIG, tmp_path / "sparse", sparse=True, shard_bytes=SHARD)
    stats = [path.stat() for path in (tmp_path / "sparse").glob("*.safetensors")]
    assert len(stats) > 2
    assert sum(stat.st_size for stat in stats) > 4 * MIB
    assert sum(stat.st_blocks for stat in stats) * 512 < MIB
    assert export(tmp_path / "sparse", "cuda").targets["cuda"].dtype == "float16"


def test_weights_are_random(tmp_path):
    make_quantized(CONFIG, tmp_path / "random", sparse=False, shard_bytes=SHARD)
    for name, weight in dequantized(tmp_path / "random").items():
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05), name
        assert abs(float(weight.mean())) < 1e-3, name  # half a step below zero would be 2e-3


def test_a_folder_that_exists_is_left_alone(sparse):
    before = layout(sparse)
    result = CliRunner().invoke(app, ["make", "--bits", "4", "--output", str(sparse)])
    assert isinstance(result.exception, InputError)
    assert layout(sparse) == before


def test_the_release_in_sparse_files(tmp_path):
    """Its size is what is known of it: 14.87 GiB of decoder linears, and the other parts as `plan` counts them."""
    options = ["--output", str(tmp_path / "w4"), "--layers", "64", "--vision-blocks", "28", "--sparse"]
    result = CliRunner().invoke(app, ["make", "--bits", "4", *options])
    files = [path.stat() for path in (tmp_path / "w4").glob("*.safetensors")]
    gib = sum(file.st_size for file in files) / 2**30
    assert gib == pytest.approx(14.865 + 0.744 + 1.220 + 0.001 + 0.257 + 1.465, abs=5e-3)
    assert len(files) == 5
    assert sum(file.st_blocks * 512 for file in files) < 2 * MIB
    assert result.stdout == f"{tmp_path / 'w4'}: {gib:.2f} GiB in 5 files, 0.00 GiB of the disk\n"
    text = json.loads((tmp_path / "w4" / "config.json").read_text())["text_config"]
    assert (text["num_hidden_layers"], text["num_nextn_predict_layers"]) == (64, 1)
