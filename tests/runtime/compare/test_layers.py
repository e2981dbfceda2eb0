"""Errors of single layers, and detection of damaged ones."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from console.errors import InputError
from runtime.compare.layers import check_layers, list_layers
from runtime.ort.manifest import load_manifest
from runtime.weights import Weights

from ..damage import edit_json

DOWN = "model.language_model.layers.1.mlp.down_proj"


def listed(folder, baseline):
    return {layer.name: layer for layer in list_layers(folder, load_manifest(folder), baseline)}


@pytest.fixture
def baseline(exported):
    return Weights(exported("fp16"), load_manifest(exported("fp16")).weights)


def rolled(folder, to, name):
    """A copy in which the rows of one stored tensor are out of order; offsets stay as they are."""
    shutil.copytree(folder, to)
    (path,) = to.glob("*.safetensors")
    content, tensors = bytearray(path.read_bytes()), load_file(path)
    stored = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
    at = content.index(stored)
    content[at : at + len(stored)] = tensors[name].roll(1, 0).contiguous().view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    return to


@pytest.mark.parametrize(("folder", "suffix"), [("w4", ".weight_packed"), ("fp16", ".weight")])
def test_a_damaged_layer_is_the_only_suspect(folder, suffix, baseline, exported, tmp_path):
    assert not any(layer.suspect for layer in listed(exported(folder), baseline).values())
    found = listed(rolled(exported(folder), tmp_path / folder, DOWN + suffix), baseline)
    assert [name for name, layer in found.items() if layer.suspect] == [DOWN]
    assert found[DOWN].error > 1


def test_numbers_are_those_of_weights_and_report(baseline, exported):
    found = listed(exported("w4"), baseline)
    report = {
        one["name"]: one for one in json.loads((exported("w4") / "quantization_report.json").read_text())["linears"]
    }
    assert set(report) <= set(found)
    layer, weights = found[DOWN], Weights(exported("w4"), load_manifest(exported("w4")).weights)
    expected = baseline.load(DOWN)
    assert layer.error == pytest.approx(np.linalg.norm(weights.load(DOWN) - expected) / np.linalg.norm(expected))
    assert 0.03 < layer.error < 0.3
    assert (layer.bits, layer.reported, layer.reported_rtn) == (4, report[DOWN]["error"], report[DOWN]["error_rtn"])


def test_a_damaged_head_has_no_others_to_be_measured_by(baseline, exported, tmp_path):
    """It is the only decoder linear of 8 bits, but no rounding takes half of all weights."""
    found = listed(rolled(exported("w4"), tmp_path / "w4", "lm_head.weight_packed"), baseline)
    assert [name for name, layer in found.items() if layer.suspect] == ["lm_head"]


def test_a_reference_has_no_weights_to_compare_with(exported):
    found = listed(exported("w4"), None)
    assert {layer.error for layer in found.values()} == {None}
    assert not any(layer.suspect for layer in found.values())
    assert found[DOWN].reported > 0


def test_folders_of_two_models_and_broken_reports(baseline, exported, copied):
    tensors = load_file(copied / "model.safetensors")
    save_file({**tensors, f"{DOWN}.weight": torch.zeros(3, 5)}, copied / "model.safetensors")
    manifest = load_manifest(exported("fp16"))
    with pytest.raises(InputError, match=r"down_proj: \[3, 5\] weights, the baseline has \[256, 768\]"):
        check_layers(copied, manifest, baseline)
    (copied / "quantization_report.json").write_text("{}")
    with pytest.raises(InputError, match=r"quantization_report\.json: linears is missing"):
        check_layers(copied, manifest, None)
    edit_json(copied / "quantization_report.json", linears=[])
    assert list_layers(copied, manifest, None)


LIST = """
import sys
from pathlib import Path
from runtime.ort.manifest import load_manifest
from runtime.compare.layers import list_layers

folder = Path(sys.argv[1])
print([layer.reported for layer in list_layers(folder, load_manifest(folder), None) if layer.name == sys.argv[2]])
"""


def test_a_report_is_utf8_whatever_the_locale(copied):
    linear = {"name": DOWN, "bits": 4, "error": 0.25, "error_rtn": 0.5}
    report = {"settings": {"calibration": "영수증"}, "linears": [linear]}
    path = copied / "quantization_report.json"
    path.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    arguments = [sys.executable, "-c", LIST, copied, DOWN]
    done = subprocess.run(arguments, env=os.environ | locale, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.25]\n", "")
