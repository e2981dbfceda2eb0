"""What export leaves in a folder: graphs over the weights that are there, and a description the runtime can trust."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open

from console.errors import InputError
from export import export
from quantize.checkpoint.reader import open_checkpoint
from runtime.ort.manifest import load_manifest

GRAPHS = ("decoder.cpu.onnx", "vision.cpu.onnx", "mtp.cpu.onnx")
REWINDS = ("rewind.cpu.onnx", "mtp_rewind.cpu.onnx")  # no weights
MIB = 1 << 20


def external(path: Path) -> Iterator[tuple[onnx.TensorProto, str, int, int]]:
    """Initializers that lie outside the graph: tensor, file, offset, length."""
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            yield tensor, entry["location"], int(entry["offset"]), int(entry["length"])


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
    return to


@pytest.mark.parametrize("name", ["fp16", "w4", "nf4"])
def test_no_weight_is_copied(name, exported: Callable[[str], Path]):
    """Graphs are small, and all their large initializers are spans of tensors of the checkpoint, byte by byte."""
    folder = exported(name)
    tensors = {(t.file.name, t.offset): t for t in open_checkpoint(folder).tensors.values()}
    ends = {(t.file.name, t.offset + t.nbytes) for t in tensors.values()}
    for graph in GRAPHS:
        assert (folder / graph).stat().st_size < 200_000
        bound = list(external(folder / graph))
        assert len(bound) > 10
        for _, file, offset, length in bound:
            assert (file, offset) in tensors
            assert (file, offset + length) in ends
        inside = [t for t in onnx.load(folder / graph, load_external_data=False).graph.initializer if t.raw_data]
        assert sum(len(t.raw_data) for t in inside) < 2000
    assert sorted(path.name for path in folder.glob("*.onnx*")) == sorted(GRAPHS + REWINDS)


def test_initializer_bytes_are_the_stored_tensor(exported):
    """One packed matrix of the graph, read at its offset, is what the stock safetensors reader returns."""
    folder = exported("w4")
    checkpoint = open_checkpoint(folder)
    down = checkpoint.tensors["model.language_model.layers.2.mlp.down_proj.weight_packed"]
    (found,) = [e for e in external(folder / "decoder.cpu.onnx") if (e[1], e[2]) == (down.file.name, down.offset)]
    tensor, file, offset, length = found
    assert list(tensor.dims) == [256, 768 // 128, 64]
    raw = (folder / file).read_bytes()[offset : offset + length]
    with safe_open(down.file, "np") as reader:
        assert raw == reader.get_tensor(down.name).tobytes()


def test_neighbours_are_one_product(exported):
    """q, k, v and gate, up of our own folders are fused; in a stock file, whose tensors are sorted, q, k, v are not."""
    for name, products in (("w4", 4 * 4 + 1), ("fp16", 4 * 6 + 1)):
        graph = onnx.load(exported(name) / "decoder.cpu.onnx", load_external_data=False).graph
        assert sum(node.op_type in ("MatMulNBits", "FusedMatMul") for node in graph.node) == products, name


def test_axes_are_named(exported):
    """Patches are said to be four times the image tokens: torch finds that out only by tracing in vain."""
    graph = onnx.load(exported("fp16") / "vision.cpu.onnx", load_external_data=False).graph
    first = {given.name: given.type.tensor_type.shape.dim[0].dim_param for given in graph.input[:4]}
    patches, tokens = "4*image_tokens", "image_tokens"
    assert first == {"patches": patches, "patch_cos": patches, "patch_sin": patches, "window_index": tokens}


def test_a_second_target_leaves_the_first(exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    first = load_manifest(folder)
    graphs = {name: (folder / name).read_bytes() for name in GRAPHS}
    both = export(folder, "cuda")
    assert both.targets["cpu"] == first.targets["cpu"]
    assert both.targets["cuda"].dtype == "float16"
    assert {name: (folder / name).read_bytes() for name in GRAPHS} == graphs
    assert load_manifest(folder) == both


def test_an_export_that_fails_leaves_the_graphs_of_the_one_before(exported, tmp_path):
    """The vision tower turns out to be short of a block when the decoder has been traced anew, with an int8 cache."""
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
def test_graphs_whose_description_cannot_be_written_are_not_kept(exported, tmp_path):
    """The disk is full when all graphs are there and only runtime.json is to come."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "runtime.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        export(folder, "cpu", kv_bits=8)
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)  # first: that device has no end to read
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_half_an_export_is_none(exported, tmp_path):
    """Stopped when the decoder has its name and the vision graph cannot get it."""
    folder = shutil.copytree(exported("w4"), tmp_path / "w4")
    (folder / "vision.cpu.onnx").unlink()
    (folder / "vision.cpu.onnx").mkdir()
    with pytest.raises(OSError, match=r"vision\.cpu\.onnx"):
        export(folder, "cpu", kv_bits=8)
    with pytest.raises(InputError, match=f"^{folder}: not exported yet"):
        load_manifest(folder)


def accuracy_levels(folder: Path) -> set[int]:
    graph = onnx.load(folder / "decoder.cpu.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    return {a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"}


def test_a_folder_is_exported_by_one_run_at_a_time(quantized, tmp_path):
    """The second comes when the first has graphs that do not have their names yet."""
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    before = {path.name for path in folder.iterdir()}
    with subprocess.Popen([sys.executable, "-m", "export", "--model", folder], stdout=subprocess.DEVNULL) as first:
        while first.poll() is None and not (folder / "decoder.cpu.onnx.partial").exists():
            time.sleep(0.01)
        for target in ("cpu", "cuda"):
            with pytest.raises(InputError, match=f"^{folder} is being written by another run; wait for it or give"):
                export(folder, target, exact=True)
    assert first.returncode == 0
    assert {path.name for path in folder.iterdir()} == before | {*GRAPHS, *REWINDS, "runtime.json"}
    assert set(load_manifest(folder).targets) == {"cpu"}
    assert not load_manifest(folder).targets["cpu"].exact
    assert accuracy_levels(folder) == {4}
    assert set(export(folder, "cuda").targets) == {"cpu", "cuda"}


def test_weights_of_another_quantization_drop_old_targets(quantized, exported, tmp_path):
    folder = shutil.copytree(exported("w4"), tmp_path / "model")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for path in quantized("w8").glob("*"):
        if ".safetensors" in path.name or path.name == "config.json":
            shutil.copy(path, folder)
    with pytest.raises(InputError, match="run python -m export again"):
        load_manifest(folder)
    assert set(export(folder, "cuda").targets) == {"cuda"}


def test_bundle_describes_the_model(exported):
    folder = exported("w4")
    manifest = load_manifest(folder)
    assert manifest.text.windows == [64, None, 64, None]
    assert (manifest.text.hidden_size, manifest.text.vocab_size, manifest.text.kv_heads, manifest.text.head_dim) == (
        256,
        512,
        2,
        64,
    )
    assert manifest.targets["cpu"].exact
    stored = open_checkpoint(folder).load("model.language_model.embed_tokens.weight")
    mapped = np.memmap(
        folder / manifest.embeddings.file, "float16", "r", manifest.embeddings.offset, tuple(manifest.embeddings.shape)
    )
    np.testing.assert_array_equal(mapped, stored.numpy())


def test_exact_chooses_the_accuracy_level(quantized, exported, tmp_path):
    default = copy_of(quantized("w4"), tmp_path / "w4")
    export(default, "cpu")
    assert accuracy_levels(default) == {4}
    assert accuracy_levels(exported("w4")) == {1}


def test_sliding_layers_have_rope_and_a_window_cache(exported):
    graph = onnx.load(exported("fp16") / "decoder.cpu.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    found = []
    for node in nodes:
        attributes = {a.name: a.i for a in node.attribute}
        found.append(
            (attributes["do_rotary"], attributes.get("local_window_size"), attributes.get("sliding_window_cache"))
        )
    assert found == [(1, 64, 1), (0, None, None)] * 2


def test_an_int8_cache_needs_the_ranges_of_this_model(quantized, tmp_path):
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    ranges = json.loads((folder / "kv_scales.json").read_text())
    first = next(iter(ranges))
    for wrong in ({}, {**ranges, first: {"key": [[1.0]], "value": [[1.0]]}}, [1]):
        (folder / "kv_scales.json").write_text(json.dumps(wrong))
        refused(folder, r"kv_scales\.json: not the ranges of this model", kv_bits=8)
    (folder / "kv_scales.json").unlink()
    refused(folder, r"kv_scales\.json is missing; .* python -m quantize", kv_bits=8)


def refused(folder: Path, match: str, target: str = "cpu", kv_bits: int = 16) -> None:
    """One line, and nothing new in the folder."""
    before = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    with pytest.raises(InputError, match=match) as caught:
        export(folder, target, kv_bits=kv_bits)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(path.name for path in folder.iterdir()) == before


def test_folders_that_cannot_be_exported(quantized, tmp_path):
    refused(tmp_path / "absent", "absent")
    broken = copy_of(quantized("w4"), tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": ')
    refused(broken, "config.json")
    other = copy_of(quantized("w4"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    refused(other, "llama")
    short = copy_of(quantized("w4"), tmp_path / "short")
    (weights,) = short.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size - MIB)
    refused(short, "truncated")


def test_positions_that_the_runtime_cannot_compute_are_refused(quantized, tmp_path):
    folder = copy_of(quantized("w4"), tmp_path / "w4")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, f"^{folder}: config.json: rope_type 'yarn' is not supported")


def test_float32_weights_have_no_cuda_graph(quantized, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(quantized("fp16"), tmp_path / "fp32")
    weights = {name: value.to(torch.float32) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    refused(folder, "float16 or bfloat16", "cuda")
