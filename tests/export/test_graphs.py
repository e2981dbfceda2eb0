"""Graphs refer to the weights that are there, and runtime.json describes the model."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from quantize.checkpoint.reader import open_checkpoint
from runtime.ort.manifest import load_manifest

GRAPHS = ("decoder.cpu.onnx", "vision.cpu.onnx", "mtp.cpu.onnx")
REWINDS = ("rewind.cpu.onnx", "mtp_rewind.cpu.onnx")  # no weights


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
    """Graphs are small, and all their large initializers are byte ranges of the checkpoint."""
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


def test_contiguous_weights_are_one_product(exported):
    """q, k, v and gate, up of our own folders are fused. A stock file is sorted by name, so its q, k, v are not."""
    for name, products in (("w4", 4 * 4 + 1), ("fp16", 4 * 6 + 1)):
        graph = onnx.load(exported(name) / "decoder.cpu.onnx", load_external_data=False).graph
        assert sum(node.op_type in ("MatMulNBits", "FusedMatMul") for node in graph.node) == products, name


def test_axes_are_named(exported):
    """Patches are four times the image tokens; without that, torch has to trace twice."""
    graph = onnx.load(exported("fp16") / "vision.cpu.onnx", load_external_data=False).graph
    first = {given.name: given.type.tensor_type.shape.dim[0].dim_param for given in graph.input[:4]}
    patches, tokens = "4*image_tokens", "image_tokens"
    assert first == {"patches": patches, "patch_cos": patches, "patch_sin": patches, "window_index": tokens}


def accuracy_levels(folder: Path) -> set[int]:
    graph = onnx.load(folder / "decoder.cpu.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    return {a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"}


def test_runtime_json_describes_the_model(exported):
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


def test_exact_chooses_the_accuracy_level(exported):
    assert accuracy_levels(exported("w4", exact=False)) == {4}
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
