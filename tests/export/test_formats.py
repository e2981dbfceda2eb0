"""Folders that others wrote: one made with compressed-tensors, as the official 4-bit EXAONE 4.5 is; what is refused."""

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from calib_data import READER
from calib_data.sources import open_documents
from console.errors import InputError
from export import export
from quantize.checkpoint.reader import open_checkpoint
from quantize.checkpoint.weight_files import INDEX
from runtime.decoding.forward import teacher_forced
from runtime.model import Model
from runtime.prompt import build_prompt

from .verification.test_verify import assert_passes

pytestmark = pytest.mark.slow

PACKED = 2e-5  # as in the parity ladder
LAYERS = "model.language_model.layers"
Q, K, V = (f"{LAYERS}.0.self_attn.{name}_proj" for name in "qkv")
UP, DOWN = (f"{LAYERS}.0.mlp.{name}_proj" for name in ("up", "down"))
WEIGHTS = "model.safetensors"


def scheme(**options):
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128} | options
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))


def compressed(weight, how):
    """The tensors of a linear as compressed-tensors itself rounds and packs it, with scales in bfloat16."""
    args = how.weights
    groups = weight.float().unflatten(-1, (-1, args.group_size or weight.shape[1]))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    state = {"weight": weight, "weight_scale": scale.to(torch.bfloat16)}
    if not args.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    return PackedQuantizationCompressor.compress(state, how)


def is_decoder_linear(name):
    return name.startswith(f"{LAYERS}.") and name.endswith("_proj.weight")


def make_folder(folder, how=None, own=None):
    """The reader in bfloat16 with its decoder's linears compressed, some of them in ways of their `own`.

    The rest is in 16 bits: vision encoder, head and MTP layer. None leaves a linear layer in 16 bits, too.
    """
    shutil.copytree(READER, folder, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
    how, own = how or scheme(), own or {}
    stored = {}
    for name, weight in load_file(READER / WEIGHTS).items():
        weight = weight.to(torch.bfloat16)
        path = name.removesuffix(".weight")
        way = own.get(path, how) if is_decoder_linear(name) else None
        parts = compressed(weight, way) if way else {"weight": weight} if name.endswith(".weight") else {"": weight}
        stored |= {f"{path}.{key}".removesuffix("."): part.contiguous() for key, part in parts.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((READER / "config.json").read_text())
    kept = [path for path, way in own.items() if way is None]
    groups = {f"group_{name}": way.model_copy(update={"targets": [name]}) for name, way in own.items() if way}
    ignore = ["lm_head", "re:model\\.visual\\..*", "re:mtp\\..*", *kept]
    quantization = QuantizationConfig(
        config_groups={**groups, "group_0": how},
        ignore=ignore,
        format="pack-quantized",
        quantization_status="compressed",
    )
    config |= {"dtype": "bfloat16", "quantization_config": quantization.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Symmetric 4-bit groups of 128, as the official AWQ folder."""
    folder = make_folder(tmp_path_factory.mktemp("foreign") / "w4a16")
    export(folder, "cpu", exact=True)
    return folder


def products(folder, of=""):
    """Operators that multiply by weights; those of packed ones by how their name begins."""
    graph = onnx.load(folder / "decoder.cpu.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type in ("MatMulNBits", "FusedMatMul")]
    return [node.op_type for node in nodes if node.input[1].startswith(of)]


def transformers_logits(folder, ids):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()


def largest_error(folder):
    """Of the graphs against transformers, both reading the folder, relative to the largest logit."""
    ids = np.random.default_rng(0).integers(80, 500, 150)
    expected = transformers_logits(folder, ids)
    model = Model(folder, "cpu")
    cache = model.decoder.new_cache(len(ids))
    found = model.decoder.run(cache, model.embed_tokens(ids)[None], np.arange(len(ids))[None]).logits[0]
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_as_the_official_folder_is(foreign):
    tensors = list(open_checkpoint(foreign).tensors.values())
    packed = [t.name for t in tensors if t.name.startswith(f"{LAYERS}.0.self_attn.") and t.name.endswith("_packed")]
    assert [name.split(".")[-2] for name in packed] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert {t.dtype for t in tensors if t.name.endswith("_scale")} == {"BF16"}
    assert all(t.dtype == "BF16" for t in tensors if "visual" in t.name or "lm_head" in t.name)
    # gate and up are contiguous in any sorted file: q, k, v, o, gate with up, and down
    assert Counter(products(foreign)) == {"MatMulNBits": 4 * 6, "FusedMatMul": 1}


def test_it_runs_as_in_transformers(foreign):
    assert largest_error(foreign) < PACKED
    assert_passes(foreign, "MatMulNBits")


def test_it_reads_documents(foreign):
    model = Model(foreign, "cpu")
    (document,) = open_documents("rendered", split="evaluation", count=1, seed=3)
    answer = [*model.chat.encode_text(document.answer), 53]
    logits = np.concatenate(list(teacher_forced(model, build_prompt(model, document.prompt, [document.image]), answer)))
    assert (logits.argmax(-1) == answer).mean() > 0.8


def test_formats_may_differ_among_linears_that_read_the_same(tmp_path):
    """One of q, k, v in 16 bits in the first layer, other bits and groups in the second.

    gate and up are contiguous in any file, too; with different groups they are two products.
    """
    others = {Q: scheme(num_bits=8), V: scheme(group_size=32), UP: scheme(group_size=64)}
    second = {name.replace(".0.", ".1."): way for name, way in others.items()}
    folder = make_folder(tmp_path / "mixed", own={K: None, **second})
    export(folder, "cpu", exact=True)
    assert [len(products(folder, f"layers.{layer}.")) for layer in range(4)] == [6 - 1, 6 + 1, 6, 6]
    assert Counter(products(folder)) == {"MatMulNBits": 4 * 6, "FusedMatMul": 2}
    assert largest_error(folder) < PACKED


def changed(folder, change, to):
    """A copy of a folder, without graphs, with other tensors."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
    stored = load_file(folder / WEIGHTS)
    change(stored)
    save_file(stored, to / WEIGHTS)
    return to


def refused(folder):
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        export(folder, "cpu")
    assert sorted(folder.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape).to(dtype)


CHANGES = {
    "asymmetric": ({f"{K}.weight_zero_point": ones(16, 2, dtype=torch.int32)}, f"{K}.weight_zero_point: asymmetric"),
    "act-ordered": ({f"{V}.weight_g_idx": ones(256, dtype=torch.int32)}, f"{V}.weight_g_idx: act-ordered"),
    "activations": ({f"{Q}.input_scale": ones(1)}, f"{Q}.input_scale: quantized activations"),
    "NVFP4": ({f"{V}.weight_global_scale": ones(1)}, f"{V}.weight_global_scale: 4-bit floats"),
    "scales a row": ({f"{DOWN}.weight_scale": ones(256, 1)}, f"{DOWN}.weight_scale: one scale for 768 weights"),
    "blocks": ({f"{K}.weight_scale": ones(1, 2)}, rf"{K}.weight_scale: [1, 2] for [128, 256] weights"),
    "8-bit scales": ({f"{K}.weight_scale": ones(128, 2, dtype=torch.float8_e4m3fn)}, f"{K}.weight_scale: stored as F8"),
    "packed bytes": ({f"{K}.weight_packed": ones(128, 128, dtype=torch.uint8)}, f"{K}.weight_packed: U8 [128, 128]"),
    "no groups": ({f"{K}.weight_scale": ones(128, 0)}, f"{K}.weight_scale: [128, 0] for [128, 256] weights"),
    "a width alone": ({f"{K}.weight_shape": ones(1, dtype=torch.int64) * 256}, f"{K}.weight_shape: I64 [1]"),
    "2 bits": (
        {f"{V}.weight_packed": ones(128, 16, dtype=torch.int32)},
        f"{V}.weight_packed: 512 bits for 256 weights",
    ),
    "no shape": ({f"{K}.weight_shape": ones(2, dtype=torch.int64) * 0}, f"{K}.weight_packed: 1024 bits for 0 weights"),
    "8-bit embeddings": (
        {"model.language_model.embed_tokens.weight": ones(512, 256, dtype=torch.float8_e4m3fn)},
        "model.language_model.embed_tokens.weight: stored as F8",
    ),
    "a lost tensor": ({f"{V}.weight_scale": None}, f"no tensor {V}.weight_scale"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_graphs_cannot_read_is_refused_by_name(untraced, name, foreign, tmp_path):
    """Also where it is the second or third of q, k, v."""
    new, message = CHANGES[name]

    def change(stored):
        stored |= {key: value for key, value in new.items() if value is not None}
        for key in (key for key, value in new.items() if value is None):
            del stored[key]

    said = refused(changed(foreign, change, tmp_path / "changed"))
    assert message in said
    assert said.endswith("is it complete?" if name == "a lost tensor" else "python -m quantize --model ORIGINAL")


def shortened(folder, to, path, rows):
    """A copy whose tensors below a path have only their first rows."""

    def change(stored):
        for name in (name for name in stored if name.startswith(path) and not name.endswith("weight_shape")):
            stored[name] = stored[name][:rows].clone()

    return changed(folder, change, to)


def test_a_checkpoint_that_is_not_the_model_of_its_config_is_refused(untraced, foreign, tmp_path):
    """The runtime would end in an index or a number of heads that is not there."""
    layers = shortened(foreign, tmp_path / "layers", K, 64)
    assert refused(layers) == (
        f"{LAYERS}.0.self_attn: q, k and v have [256, 64, 128] outputs, config.json says [256, 128, 128]; download the "
        "folder again"
    )
    embeddings = "model.language_model.embed_tokens.weight"
    words = shortened(foreign, tmp_path / "words", embeddings, 40)
    assert refused(words) == f"{words}: {embeddings} is [40, 256] in the weights, [512, 256] by config.json"
    bias = "model.visual.merger.mlp.0.bias"
    short = shortened(foreign, tmp_path / "short", bias, 3)
    assert refused(short) == f"{short}: {bias} is [3] in the weights, [512] by config.json"


def test_asymmetric_groups_of_compressed_tensors_are_refused(tmp_path):
    said = refused(make_folder(tmp_path / "asymmetric", how=scheme(symmetric=False)))
    assert said.startswith(f"{Q}.weight_zero_point: asymmetric groups are not supported")


@pytest.mark.parametrize(
    ("dtype", "extra"),
    [
        (torch.float8_e4m3fn, {"weight_scale": ones(128, 1), "input_scale": ones(1)}),
        (torch.int8, {"weight_scale": ones(128, 1)}),
    ],
    ids=["FP8", "W8A8"],
)
def test_8_bit_weights_that_are_not_packed_are_refused(dtype, extra, foreign, tmp_path):
    def change(stored):
        for key in ("weight_packed", "weight_scale", "weight_shape"):
            del stored[f"{K}.{key}"]
        stored |= {f"{K}.weight": ones(128, 256, dtype=dtype), **{f"{K}.{key}": value for key, value in extra.items()}}

    said = refused(changed(foreign, change, tmp_path / "changed"))
    assert said.startswith(f"{K}.")
    assert "python -m quantize --model ORIGINAL" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_groups": {"group_0": {"input_activations": {"num_bits": 8}}}}, "group_0 quantizes input_activations"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config rotates activations"),
        ({"config_groups": [{"input_activations": None}]}, "config_groups is not a JSON object"),
        ({"transform_config": ["R1"]}, "transform_config is not a JSON object"),
    ],
    ids=["activations", "rotations", "a list of groups", "a list of rotations"],
)
def test_what_only_the_config_says_is_refused(change, message, foreign, tmp_path):
    folder = changed(foreign, lambda stored: None, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    assert f"{folder / 'config.json'}: {message}" in refused(folder)


def test_a_quantization_config_that_is_a_list_is_refused(foreign, tmp_path):
    folder = changed(foreign, lambda stored: None, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": [{"bits": 4}]}))
    assert f"{folder / 'config.json'}: quantization_config is not a JSON object" in refused(folder)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (".weight.nested_absmax", "NF4 with double quantization are not supported"),
        (".weight.absmax", "one scale for 4096 weights"),
    ],
)
def test_nf4_of_other_kinds_is_refused(add, message, quantized, tmp_path):
    """In the last of q, k, v."""
    source = quantized("nf4")
    (weights,) = source.glob("*.safetensors")
    stored = load_file(weights)
    folder = shutil.copytree(source, tmp_path / "nf4")
    stored[V + add] = ones(128 * 256 // 4096)
    save_file(stored, folder / WEIGHTS)
    for path in (folder / weights.name, folder / INDEX):
        path.unlink()
    assert f"{V}{add}: {message}" in refused(folder)
