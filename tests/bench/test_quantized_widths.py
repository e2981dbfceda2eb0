"""Folders that look as if quantize had written them, against those that it writes; and what exporting one takes."""

import json
import shutil

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.dequantized import dequantized
from bench.export_scale import measure, table
from bench.process import run
from bench.quantized_widths import app, make_quantized
from bench.run_scale import answer, picture
from bench.run_scale import table as table_of_answer
from calib_data import READER
from console.errors import InputError
from export import export
from quantize.checkpoint.reader import open_checkpoint
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import build_prompt

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


def test_random_weights_answer(tmp_path):
    make_quantized(CONFIG, tmp_path / "random", sparse=False, shard_bytes=SHARD)
    for name, weight in dequantized(tmp_path / "random").items():
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05), name
        assert abs(float(weight.mean())) < 1e-3, name  # half a step below zero would be 2e-3
    export(tmp_path / "random", "cpu")
    model = Model(tmp_path / "random", "cpu")
    tokens = list(generate(model, build_prompt(model, "Read.", [Image.new("RGB", (112, 84), "red")]), greedy, 3))
    assert 1 <= len(tokens) <= 3


def test_a_folder_that_exists_is_left_alone(sparse):
    before = layout(sparse)
    result = CliRunner().invoke(app, ["--output", str(sparse), "--layers", "1", "--vision-blocks", "1"])
    assert isinstance(result.exception, InputError)
    assert layout(sparse) == before


def test_the_release_in_sparse_files(tmp_path):
    """Its size is what is known of it: 14.87 GiB of decoder linears, and the other parts as `plan` counts them."""
    result = CliRunner().invoke(app, ["--output", str(tmp_path / "w4"), "--sparse"])
    said = json.loads(result.stdout)
    assert said["bytes"] / 2**30 == pytest.approx(14.865 + 0.744 + 1.220 + 0.001 + 0.257 + 1.465, abs=5e-3)
    assert said["files"] == 5
    assert said["bytes_on_disk"] < 2 * MIB
    text = json.loads((tmp_path / "w4" / "config.json").read_text())["text_config"]
    assert (text["num_hidden_layers"], text["num_nextn_predict_layers"]) == (64, 1)


def test_an_export_is_measured(sparse, tmp_path):
    folder = shutil.copytree(sparse, tmp_path / "copy")
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    found = measure(folder, "cpu")
    new = {path.name: path.stat().st_size for path in folder.iterdir() if path.name not in before}
    graphs = ("decoder", "vision", "mtp", "rewind", "mtp_rewind")
    assert set(new) == {"runtime.json", *(f"{name}.cpu.onnx" for name in graphs)}
    assert found.added == sum(new.values())
    assert found.graphs == found.added - new["runtime.json"]
    assert found.process.processor > 0
    assert 100 < found.process.peak < 2000
    assert table([found])[-1].startswith("| cpu | ")
    with pytest.raises(InputError, match="is not a folder"):
        run("export", "--model", str(tmp_path / "nothing"))


def test_an_answer_is_measured(exported, tmp_path):
    """Of a picture of 3 x 2 image tokens, each in the prompt; the tokens after the first have a rate."""
    picture(3, 2, tmp_path / "picture.png")
    said, process = answer(exported("w4"), tmp_path / "picture.png", 4)
    without = len(Model(exported("w4"), "cpu").chat.encode("Read the text.", [0], thinking=False))
    assert said["prompt_tokens"] == without + 6
    said |= {"tokens": [1, 2, 3, 4], "tokens_per_second": 2.0}  # whatever it answered
    rows = table_of_answer(process, said, process)
    assert rows[-2] == "| 3 more tokens, 2.00 a second | 1.5 | |"
    assert rows[-1] == f"| all of `generate` | {process.seconds:.1f} | {process.peak:.0f} |"
