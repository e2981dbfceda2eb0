"""The measurements of an export, against the folder that it leaves."""

import pytest
from PIL import Image

from bench.scale.export import measure, table
from bench.scale.folders import shortened
from bench.scale.quantized import make_quantized
from calib_data import READER
from console.files import read_object
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import build_prompt

pytestmark = pytest.mark.slow


def test_an_export_is_measured_and_answers(tmp_path):
    """Of random weights in several files."""
    folder = tmp_path / "random"
    make_quantized(shortened(read_object(READER / "config.json"), 2, 1), folder, sparse=False, shard_bytes=1 << 19)
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    export = measure(folder, "cpu")
    new = {path.name: path.stat().st_size for path in folder.iterdir() if path.name not in before}
    graphs = ("decoder", "vision", "mtp", "rewind", "mtp_rewind")
    assert set(new) == {"runtime.json", *(f"{name}.cpu.onnx" for name in graphs)}
    assert export.added == sum(new.values())
    assert export.graphs == export.added - new["runtime.json"]
    assert export.process.processor > 0
    assert 100 < export.process.peak < 2000
    assert table([export])[-1].startswith("| cpu | ")
    model = Model(folder, "cpu")
    tokens = list(generate(model, build_prompt(model, "Read.", [Image.new("RGB", (112, 84), "red")]), greedy, 3))
    assert 1 <= len(tokens) <= 3
