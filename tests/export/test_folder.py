"""What happens to a folder: all graphs or none, one run at a time, other targets, and folders that are refused."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from console.errors import InputError
from export import export
from runtime.ort.manifest import load_manifest

from .test_graphs import GRAPHS, REWINDS, accuracy_levels, copy_of

MIB = 1 << 20


def test_a_second_target_leaves_the_first(untraced, exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    first = load_manifest(folder)
    graphs = {name: (folder / name).read_bytes() for name in GRAPHS}
    both = export(folder, "cuda")
    assert both.targets["cpu"] == first.targets["cpu"]
    assert both.targets["cuda"].dtype == "float16"
    assert {name: (folder / name).read_bytes() for name in GRAPHS} == graphs
    assert load_manifest(folder) == both


def test_an_export_that_fails_leaves_the_graphs_of_the_one_before(untraced, exported, tmp_path):
    """The vision encoder turns out to lack a block after the new decoder, with an int8 cache, was written."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(before["config.json"])
    config["vision_config"]["depth"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        export(folder, "cpu", kv_bits=8)
    (folder / "config.json").write_bytes(before["config.json"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_graphs_whose_description_cannot_be_written_are_not_kept(untraced, exported, tmp_path):
    """The disk is full when all graphs are written and only runtime.json is missing."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "runtime.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        export(folder, "cpu", kv_bits=8)
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)  # first: that device has no end to read
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_half_an_export_is_none(untraced, exported, tmp_path):
    """It stops after the decoder got its name, because the vision graph cannot get its own."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    (folder / "vision.cpu.onnx").unlink()
    (folder / "vision.cpu.onnx").mkdir()
    with pytest.raises(OSError, match=r"vision\.cpu\.onnx"):
        export(folder, "cpu", kv_bits=8)
    with pytest.raises(InputError, match=f"^{folder}: not exported yet"):
        load_manifest(folder)


WAIT = """
import sys, time
from pathlib import Path
import onnx_ir as ir
from export import export, graphs

folder, traced, go_on = map(Path, sys.argv[1:])

def wait(*_):
    while not go_on.exists():
        time.sleep(0.01)
    return ir.load(traced / "vision.cpu.onnx")

graphs.trace_vision = wait
graphs.trace_decoder = lambda module, *_: ir.load(traced / f"{type(module).__name__.lower()}.cpu.onnx")
export(folder)
"""


def test_a_folder_is_exported_by_one_run_at_a_time(untraced, quantized, exported, tmp_path):
    """The second starts while the graphs of the first do not have their names yet."""
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    before = {path.name for path in folder.iterdir()}
    traced, go_on = exported("w4", exact=False), tmp_path / "go on"
    with subprocess.Popen([sys.executable, "-c", WAIT, folder, traced, go_on]) as first:
        while first.poll() is None and not (folder / "decoder.cpu.onnx.partial").exists():
            time.sleep(0.01)
        try:
            for device in ("cpu", "cuda"):
                with pytest.raises(InputError, match=f"^{folder} is being written by another run; wait for it or give"):
                    export(folder, device, exact=device == "cpu")
        finally:
            go_on.touch()  # or the first would be waited for without end
    assert first.returncode == 0
    assert {path.name for path in folder.iterdir()} == before | {*GRAPHS, *REWINDS, "runtime.json"}
    assert set(load_manifest(folder).targets) == {"cpu"}
    assert not load_manifest(folder).targets["cpu"].exact
    assert accuracy_levels(folder) == {4}
    assert set(export(folder, "cuda").targets) == {"cpu", "cuda"}


def test_weights_of_another_quantization_drop_old_targets(untraced, quantized, exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "model")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for path in quantized("w8").glob("*"):
        if ".safetensors" in path.name or path.name == "config.json":
            shutil.copy(path, folder)
    with pytest.raises(InputError, match="run python -m export again"):
        load_manifest(folder)
    assert set(export(folder, "cuda").targets) == {"cuda"}


def refused(folder: Path, match: str, device: str = "cpu", kv_bits: int = 16) -> None:
    """One line, and nothing new in the folder."""
    before = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    with pytest.raises(InputError, match=match) as caught:
        export(folder, device, kv_bits=kv_bits)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(path.name for path in folder.iterdir()) == before


def test_an_int8_cache_needs_the_ranges_of_this_model(quantized, tmp_path):
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    ranges = json.loads((folder / "kv_scales.json").read_text())
    first = next(iter(ranges))
    for wrong, message in (
        ({}, "not the ranges of this model"),
        ({**ranges, first: {"key": [[1.0]], "value": [[1.0]]}}, "not the ranges of this model"),
        ([1], "is not a JSON object"),
    ):
        (folder / "kv_scales.json").write_text(json.dumps(wrong))
        refused(folder, rf"kv_scales\.json: {message}", kv_bits=8)
    (folder / "kv_scales.json").unlink()
    refused(folder, r"kv_scales\.json is missing; .* python -m quantize", kv_bits=8)


def test_folders_that_cannot_be_exported(quantized, tmp_path):
    refused(tmp_path / "absent", "absent")
    broken = copy_of(quantized("w4"), tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": ')
    refused(broken, "config.json")
    other = copy_of(quantized("w4"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    refused(other, "llama")
    endless = copy_of(quantized("w4"), tmp_path / "endless")
    (endless / "generation_config.json").write_text('{"eos_token_id": 512}')
    refused(endless, "generation_config.json: eos_token_id is 512; write a token id")
    short = copy_of(quantized("w4"), tmp_path / "short")
    (weights,) = short.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size - MIB)
    refused(short, "truncated")


def test_positions_that_the_runtime_cannot_compute_are_refused(quantized, tmp_path):
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, f"^{folder}/config.json: rope_type 'yarn' is not supported")


def test_float32_weights_have_no_cuda_graph(quantized, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(quantized("fp16"), tmp_path / "fp32")
    weights = {name: value.to(torch.float32) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    refused(folder, "float16 or bfloat16", "cuda")
