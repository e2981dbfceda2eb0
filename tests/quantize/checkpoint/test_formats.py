"""The GPTQ checkpoint format (version 1), read back bit by bit from its description and by what loads it."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, GPTQConfig

from calib_data import READER
from console.errors import InputError
from quantize.checkpoint.formats import pack_weight, quantization_config, weight_metadata
from quantize.checkpoint.reader import PAGE, open_checkpoint
from quantize.checkpoint.weight_files import INDEX
from quantize.model.families import FAMILIES, find_family, model_config
from quantize.pipeline import quantize
from quantize.scheme import Scheme, check, choose_quantizers
from quantize.settings import Settings
from quantize.solver.quantizers import UniformQuantizer, dequantize, rtn

pytestmark = pytest.mark.slow

OPTIONS = {
    "w4": {"bits": 4},
    "w8": {"bits": 8, "group_size": 32, "dtype": "bfloat16", "solver": "rtn"},
}
LINEARS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


@pytest.fixture(scope="module", params=OPTIONS)
def pair(request, tmp_path_factory):
    """Settings of the reader in GPTQ's format, and of the same solution in compressed-tensors'."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("formats")
    options = {**OPTIONS[request.param], "count": 2, "vision_bits": 16, "head_bits": 16}
    settings = [
        Settings(READER, folder / name, format=name, reference=0, **options) for name in ("gptq", "compressed-tensors")
    ]
    for each in settings:
        quantize(each)
    return settings


def codes_and_zeros(qweight, qzeros, bits):
    """Unpack as the format is described: codes [K, N] and zero points [groups, N], one field of a word at a time."""
    qweight, qzeros = qweight.numpy().view(np.uint32), qzeros.numpy().view(np.uint32)
    per_word, mask = 32 // bits, np.uint32(2**bits - 1)
    codes = np.empty((qweight.shape[0] * per_word, qweight.shape[1]), dtype=np.int64)
    zeros = np.empty((qzeros.shape[0], qzeros.shape[1] * per_word), dtype=np.int64)
    for field in range(per_word):
        shift = np.uint32(field * bits)
        codes[field::per_word] = (qweight >> shift) & mask  # fields of a word are consecutive inputs
        zeros[:, field::per_word] = ((qzeros >> shift) & mask) + 1  # and consecutive outputs; stored minus one
    return codes, zeros


def unpacked(tensors, bits, dtype=torch.float32):
    """The weight [N, K] of a linear's tensors: (code - zero point of the group) times its scale, in `dtype`."""
    codes, zeros = codes_and_zeros(tensors["qweight"], tensors["qzeros"], bits)
    g_idx = tensors["g_idx"].numpy()
    steps = torch.tensor(codes - zeros[g_idx]).to(dtype)
    return (steps * tensors["scales"].to(dtype)[torch.tensor(g_idx).long()]).T


def tensors_of(checkpoint, path):
    return {key: checkpoint.load(f"{path}.{key}") for key in ("qweight", "qzeros", "scales", "g_idx")}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 64])
def test_the_bytes_are_those_of_the_published_layout(bits, group_size, dtype):
    settings = Settings(READER, bits=bits, group_size=group_size, dtype=dtype, format="gptq")
    quantizer = settings.quantizer_of("decoder")
    N, K = 24, 192
    W = torch.randn(N, K, generator=torch.Generator().manual_seed(bits))
    codes, scales = rtn(W, quantizer)
    codes[0, :2], codes[-1, -2:] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1  # the ends of the range, sign bit included
    tensors = pack_weight(codes, scales, quantizer, settings.format) | weight_metadata(
        codes, scales, quantizer, settings
    )

    assert {key: (list(tensor.shape), tensor.dtype) for key, tensor in tensors.items()} == {
        "qweight": ([K * bits // 32, N], torch.int32),
        "scales": ([K // group_size, N], settings.torch_dtype),
        "qzeros": ([K // group_size, N * bits // 32], torch.int32),
        "g_idx": ([K], torch.int32),
    }
    middle = 2 ** (bits - 1)
    fields, zeros = codes_and_zeros(tensors["qweight"], tensors["qzeros"], bits)
    assert (zeros == middle).all()
    assert np.array_equal(fields.T - middle, codes.numpy())
    assert tensors["g_idx"].tolist() == [k // group_size for k in range(K)]
    assert torch.equal(unpacked(tensors, bits), dequantize(codes, scales, quantizer))


def test_a_word_and_a_zero_point_by_hand():
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(8, 1)
    settings, quantizer, scales = (
        Settings(READER, format="gptq", group_size=16),
        UniformQuantizer(4, 16),
        torch.ones(8, 1).half(),
    )
    assert pack_weight(codes, scales, quantizer, settings.format)["qweight"][:, 0].tolist() == [
        0x76543210,
        0xFEDCBA98 - 2**32,
    ]
    assert weight_metadata(codes, scales, quantizer, settings)["qzeros"].tolist() == [[0x77777777]]
    eight = Settings(READER, format="gptq", bits=8, group_size=16)
    assert pack_weight(codes, scales, UniformQuantizer(8, 16), eight.format)["qweight"][0, 0].item() == 0x7B7A7978
    assert weight_metadata(codes, scales, UniformQuantizer(8, 16), eight)["qzeros"].tolist() == [[0x7F7F7F7F] * 2]


def test_the_reader_holds_the_weights_of_its_compressed_tensors_twin(pair):
    settings, twin_settings = pair
    result, twin = open_checkpoint(settings.folder), open_checkpoint(twin_settings.folder)
    dtype, quantized = settings.torch_dtype, set()
    model = AutoModelForImageTextToText.from_pretrained(twin_settings.folder, dtype="auto").eval()
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None])  # some loaders unpack at the first call
    for layer in range(model.config.text_config.num_hidden_layers):
        for linear in LINEARS:
            path = f"model.language_model.layers.{layer}.{linear}"
            tensors = tensors_of(result, path)
            assert tensors["scales"].dtype == dtype
            assert torch.equal(unpacked(tensors, settings.bits, dtype), model.get_submodule(path).weight), path
            quantized.update(f"{path}.{key}" for key in tensors)
    rest = result.tensors.keys() - quantized
    drafting = {name for name in rest if name.startswith("mtp.")}
    assert {name: result.tensors[name].shape for name in drafting} == {
        name: tensor.shape for name, tensor in open_checkpoint(READER).tensors.items() if name.startswith("mtp.")
    }
    rest -= drafting
    packed = ("_packed", "_scale", "_shape")
    assert rest == {name for name in twin.tensors if not name.endswith(packed) and not name.startswith("mtp.")}
    assert {"lm_head.weight", "model.visual.merger.mlp.0.weight", "model.visual.blocks.3.attn.qkv.weight"} <= rest
    for name in rest:
        assert torch.equal(result.load(name), twin.load(name)), name
        assert not result.load(name).is_floating_point() or result.load(name).dtype == dtype


def test_order_and_index(pair):
    folder = pair[0].folder
    tensors = open_checkpoint(folder).tensors
    order = list(tensors)
    for names in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]):
        for key in ("qweight", "scales"):
            full = [f"model.language_model.layers.1.{name}.{key}" for name in names]
            first = order.index(full[0])
            assert order[first : first + len(full)] == full
    spans = sorted((tensor.offset, tensor.nbytes) for tensor in tensors.values())
    assert spans[0][0] % PAGE == 0
    assert all(a + nbytes == b for (a, nbytes), (b, _) in pairwise(spans))
    assert all(tensor.offset % 16 == 0 for name, tensor in tensors.items() if name.endswith((".qweight", ".scales")))
    index = json.loads((folder / INDEX).read_text())
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_the_config_says_what_is_quantized(pair):
    settings = pair[0]
    assert json.loads((settings.folder / "config.json").read_text())["quantization_config"] == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "block_name_to_quantize": "model.language_model.layers",
        "dynamic": {"-:.*visual.*": {}, "-:.*mtp.*": {}},
    }


def test_a_text_model_has_its_blocks_elsewhere_and_nothing_to_exclude():
    config = quantization_config(Settings(READER, format="gptq"), {}, FAMILIES["exaone4"])
    assert (config["block_name_to_quantize"], config["dynamic"]) == ("model.layers", {})


def test_outputs_that_do_not_fill_a_word():
    """Zero points of a linear's outputs share words, so 4 bits need a multiple of 8 outputs."""
    settings = Settings(READER, format="gptq")
    checkpoint = open_checkpoint(READER)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    config.text_config.intermediate_size = 1028
    model, path = family.skeleton(config), "model.language_model.layers.0.mlp.gate_proj"
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wide = {name: replace(checkpoint.tensors[name], shape=shape) for name, shape in shapes.items()}
    with pytest.raises(InputError, match=f"packs outputs by 8, which does not divide the 1028 of {path}; use --format"):
        quantizers = choose_quantizers(settings, family, config)
        check(Scheme(settings, replace(checkpoint, tensors=wide), family, model, quantizers, tied=False))


@pytest.mark.filterwarnings("default")  # those of the libraries when they are imported are not ours
def test_transformers_computes_with_these_weights(pair):
    reason = "needs pip install '.[gptq]'"
    pytest.importorskip("optimum.gptq", reason=reason)
    pytest.importorskip("gptqmodel", reason=reason)
    settings, twin = pair
    config = GPTQConfig(bits=settings.bits, backend="torch")  # the backend that needs no compiler
    model, info = AutoModelForImageTextToText.from_pretrained(
        settings.folder, dtype="auto", quantization_config=config, output_loading_info=True
    )
    assert not any(info.values()), info
    quantized = {name for name, module in model.named_modules() if hasattr(module, "qweight")}
    assert quantized == {f"model.language_model.layers.{i}.{name}" for i in range(4) for name in LINEARS}
    expected = AutoModelForImageTextToText.from_pretrained(twin.folder, dtype="auto").eval()
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        logits, truth = model.eval()(input_ids=ids).logits.float(), expected(input_ids=ids).logits.float()
    epsilon = torch.finfo(settings.torch_dtype).eps
    assert (logits - truth).norm() < 2 * epsilon * truth.norm()  # rounding of 16-bit products in another order
