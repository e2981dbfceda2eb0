"""Whole folders: transformers loads what was solved, and what was solved is what the documents ask for."""

import dataclasses
import json
import shutil
from itertools import pairwise

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from calib_data import READER
from console.errors import InputError
from quantize.calibration.samples import read_samples
from quantize.checkpoint.reader import PAGE, open_checkpoint
from quantize.checkpoint.writer import CheckpointWriter
from quantize.journal import Journal
from quantize.model.families import find_family
from quantize.pipeline import quantize, start
from quantize.scheme import choose_quantizers, make_scheme
from quantize.settings import Settings
from quantize.solver.quantizers import dequantize, rtn
from quantize.solver.solve import RECIPE
from quantize.solver.token_weights import last_layer_weights, token_factors, token_weights

pytestmark = pytest.mark.slow

MTP = 8  # linears of the MTP layer
FOLDERS = ["w4", "w8", "nf4", "nf4_all"]


@pytest.fixture(params=FOLDERS)
def quantized(request):
    return request.getfixturevalue(request.param)


def load(folder, dtype="auto", auto=AutoModelForImageTextToText):
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def weight_of(module):
    """A linear's weight as transformers computes with it."""
    if hasattr(module.weight, "quant_state"):
        return dequantize_4bit(module.weight.data, module.weight.quant_state)
    return module.weight.data


def unpacked(checkpoint, path, grid, dtype):
    """A stored weight by the published layouts, computed in `dtype` as transformers does."""
    if f"{path}.weight_packed" in checkpoint.tensors:
        scale = checkpoint.load(f"{path}.weight_scale")
        codes = unpack_from_int32(
            checkpoint.load(f"{path}.weight_packed"), grid.bits, checkpoint.load(f"{path}.weight_shape").tolist()
        )
        return codes.to(dtype) * scale.to(dtype).repeat_interleave(grid.group_size, 1)
    part = {k: checkpoint.load(k) for k in checkpoint.tensors if k.startswith(f"{path}.weight.")}
    state = QuantState.from_dict(part, device="cpu")
    return dequantize_4bit(checkpoint.load(f"{path}.weight"), state)


def test_transformers_loads_exactly_the_codes_and_scales(quantized):
    checkpoint = open_checkpoint(quantized.folder)
    model = load(quantized.folder)
    dtype = quantized.settings.torch_dtype
    assert model.dtype == dtype
    grids = choose_quantizers(quantized.settings, find_family(checkpoint.config), model.config)
    if quantized.settings.quant_type == "int":
        with torch.no_grad():  # compressed-tensors unpacks at the first call; bitsandbytes then repacks on some CPUs
            model(input_ids=torch.arange(1, 9)[None])
    source = open_checkpoint(READER)
    for name, parameter in source.tensors.items():
        path = name.removesuffix(".weight")
        if name.startswith("mtp."):
            continue
        loaded = weight_of(model.get_submodule(path)) if name.endswith(".weight") else model.get_parameter(name)
        if grids.get(path):
            assert torch.equal(loaded, unpacked(checkpoint, path, grids[path], dtype).view_as(loaded)), name
        else:
            assert torch.equal(loaded.float(), source.load(name).to(dtype).float().view_as(loaded)), name
        assert loaded.shape == parameter.shape
    assert sum(grid is not None for grid in grids.values()) == len(quantized.report.linears)


def test_every_linear_is_better_than_rounded(w4, nf4, w8):
    for run in (w4, nf4, w8):
        worse = [linear for linear in run.report.linears if not linear.error < linear.error_rtn]
        assert not worse
        assert all(linear.damping == 0.01 for linear in run.report.linears)
    assert len(w4.report.linears) == 4 * 7 + 4 * 5 + 2 + 1 + MTP
    assert len(nf4.report.linears) == 4 * 7 + MTP


def test_rounded_nf4_is_what_bitsandbytes_makes_of_the_checkpoint(nf4_all):
    source, result = open_checkpoint(READER), open_checkpoint(nf4_all.folder)
    assert len(nf4_all.report.linears) == 4 * 7 + 4 * 5 + 2 + 1 + MTP
    for linear in nf4_all.report.linears:
        packed, state = quantize_4bit(source.load(f"{linear.name}.weight"), blocksize=64, quant_type="nf4")
        assert torch.equal(result.load(f"{linear.name}.weight"), packed)
        assert torch.equal(result.load(f"{linear.name}.weight.absmax"), state.absmax)
        assert linear.error == linear.error_rtn > 0


def counts(sample, model, layer=0):
    """How much each token of a document counts [T] in a layer of the reader."""
    if layer == 3:
        return last_layer_weights(len(sample.ids), sample.answer)
    return token_weights(sample.ids, sample.answer, model.config.image_token_id)


def read_in_transformers(model, samples):
    """For each layer, how much of each token its attention read, by transformers' own attention weights."""
    layers = [[] for _ in model.config.text_config.layer_types]
    model.set_attn_implementation({"text_config": "eager"})
    for sample in samples:
        inputs = {"input_ids": sample.ids[None], "pixel_values": sample.patches, "image_grid_thw": sample.grid}
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        for i, weights in enumerate(attentions):
            layers[i].append((counts(sample, model, i)[:, None] * weights[0].mean(0)).sum(0))
    return [torch.cat(layer) for layer in layers]


def inputs_in_transformers(model, samples, paths):
    """What the linears read when transformers runs each document through its own forward pass."""
    seen = {path: [] for path in paths}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs, path=path: seen[path].append(inputs[0].flatten(0, -2))
        )
        for path in paths
    ]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample.ids[None], pixel_values=sample.patches, image_grid_thw=sample.grid)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(rows) for path, rows in seen.items()}


def with_vision_of(model):
    """The unquantized model behind the vision tower of a quantized one that has run: its linears are unpacked then."""
    unquantized = load(READER, dtype=torch.float32)
    for name, parameter in unquantized.model.visual.named_parameters():
        parameter.data.copy_(model.model.visual.get_parameter(name))
    return unquantized


def making_up_for(W, X, without_errors):
    """The weight that makes up for the default share of the errors of its inputs X [T, K], by least squares."""
    X, change = X.double(), (without_errors - X).double()
    share = 0.5 / (1 + 8 * X.shape[1] / len(X))
    gram = X.T @ X
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    return W + share * torch.linalg.solve(gram, X.T @ (change @ W.double().T)).T.float()


def test_errors_are_those_of_the_documents_in_transformers(w4):
    """Sequential: a block's inputs come out of the quantized blocks before it, vision tower included.

    The first linears of a block read what the finished folder's model gives them, so their reported error can be
    computed anew there. In the decoder it is the error of weights that make up for a part of the errors in front.
    """
    model, source = load(w4.folder, dtype=torch.float32), open_checkpoint(READER)
    samples = list(read_samples(w4.settings, model.config))
    errors = {linear.name: linear.error for linear in w4.report.linears}
    paths = [
        "model.visual.blocks.0.attn.qkv",
        "model.visual.blocks.3.attn.qkv",
        "model.visual.merger.mlp.0",
        "model.language_model.layers.0.self_attn.v_proj",
        "model.language_model.layers.2.self_attn.q_proj",
        "model.language_model.layers.3.self_attn.k_proj",
        "lm_head",
    ]
    seen = inputs_in_transformers(model, samples, paths)
    read = read_in_transformers(model, samples)
    without_errors = inputs_in_transformers(with_vision_of(model), samples, paths)
    for path, X in seen.items():
        W = source.load(f"{path}.weight", torch.float32)
        if "language_model" in path:
            layer = int(path.split(".")[3])
            weights = torch.cat([counts(sample, model, layer) for sample in samples]) + read[layer]
            factors = token_factors(X, weights)
            X = X * factors
            W = making_up_for(W, X, without_errors[path] * factors)
        difference = W - model.get_submodule(path).weight
        expected = float((X @ difference.T).square().sum() / (X @ W.T).square().sum())
        assert errors[path] == pytest.approx(expected, rel=0.01), path


def test_small_text_tokens_are_not_sacrificed_to_large_image_tokens(w4, nf4):
    """The decoder's first inputs are not normalised, and an image token's embedding is far larger than a word's."""
    source, path = open_checkpoint(READER), "model.language_model.layers.0.self_attn.q_proj"
    model = load(READER, dtype=torch.float32)
    samples = list(read_samples(dataclasses.replace(w4.settings, seed=5), model.config))
    X = inputs_in_transformers(model, samples, [path])[path]
    X = X[torch.cat([sample.ids for sample in samples]) != model.config.image_token_id]
    W = source.load(f"{path}.weight", torch.float32)
    for run in (w4, nf4):
        grid = choose_quantizers(run.settings, find_family(source.config), model.config)[path]
        solved = unpacked(open_checkpoint(run.folder), path, grid, torch.float32).float().view_as(W)
        rounded = dequantize(*rtn(W, grid), grid)
        assert (X @ (W - solved).T).square().sum() < 0.5 * (X @ (W - rounded).T).square().sum()


def test_hessians_are_those_of_a_padded_batch_without_its_padding(tmp_path):
    """The first decoder layer, image and text tokens, against transformers' batch of documents of unequal length."""
    settings = Settings(READER, tmp_path / "out", vision_bits=16, count=5, seed=3)
    checkpoint = open_checkpoint(READER)
    scheme = make_scheme(settings, checkpoint)
    with torch.no_grad(), CheckpointWriter(tmp_path) as writer:
        pipeline = start(scheme, RECIPE, tmp_path, Journal({}), writer)
        steps = pipeline.steps()[: 1 + 4 + 1 + 1 + 1]
        assert steps[-1][0] == "model.language_model.embed_tokens"  # behind pixels, blocks, merger and image tokens
        pipeline.runner.run(steps)
        path = "model.language_model.layers.0"
        groups = [tuple(f"{path}.{name}" for name in group) for group in scheme.family.decoder_linears]
        pipeline.blocks.load(path)
        hessians = pipeline.blocks.hessians(path, groups, lambda inputs, i: inputs.decoder.kwargs(0, i)).sums

    model = load(READER, dtype=torch.float32)
    samples = list(read_samples(settings, scheme.config))
    longest = max(len(sample.ids) for sample in samples)
    assert len({len(sample.ids) for sample in samples}) > 1
    ids = torch.stack([torch.nn.functional.pad(s.ids, (0, longest - len(s.ids))) for s in samples])
    mask = torch.stack([torch.arange(longest) < len(s.ids) for s in samples])
    own, read = torch.cat([counts(sample, model) for sample in samples]), read_in_transformers(model, samples)[0]
    seen = {}
    for group in groups:
        model.get_submodule(group[0]).register_forward_pre_hook(lambda _, x, g=group: seen.update({g: x[0]}))
    with torch.no_grad():
        model(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=torch.cat([s.patches for s in samples]),
            image_grid_thw=torch.cat([s.grid for s in samples]),
        )
    for group in groups:
        attended = group[0].endswith("q_proj")
        X = seen[group][mask]
        X = X * token_factors(X, own + read if attended else own)
        assert len(X) == sum(len(s.ids) for s in samples)
        assert float(X.square().mean(-1).sum()) == pytest.approx(float(own.sum()) * (2 if attended else 1), rel=1e-5)
        near = 5e-4 * float(X.square().sum(0).max())  # hidden states pass from step to step in 16 bits
        torch.testing.assert_close(hessians[group], 2 * X.T @ X, rtol=1e-3, atol=near)


def test_neighbours_lie_side_by_side_and_data_starts_on_a_page(quantized):
    tensors = open_checkpoint(quantized.folder).tensors
    order = list(tensors)
    first_linear = "model.language_model.layers.0.self_attn.q_proj."
    suffixes = {key.removeprefix(first_linear) for key in order if key.startswith(first_linear)}

    def follow(names):
        first = order.index(names[0])
        assert order[first : first + len(names)] == names
        assert all(tensors[a].offset + tensors[a].nbytes == tensors[b].offset for a, b in pairwise(names))

    for layer in range(4):
        path = f"model.language_model.layers.{layer}"
        for suffix in suffixes & {"weight", "weight_packed", "weight_scale", "weight.absmax"}:
            follow([f"{path}.self_attn.{x}_proj.{suffix}" for x in "qkv"])
            follow([f"{path}.mlp.{x}_proj.{suffix}" for x in ("gate", "up")])
        follow([f"model.visual.blocks.{layer}.mlp.{x}_proj.bias" for x in ("gate", "up")])
    for suffix in suffixes & {"weight", "weight_packed", "weight_scale", "weight.absmax"}:
        follow([f"mtp.layers.0.self_attn.{x}_proj.{suffix}" for x in "qkv"])
    assert min(tensor.offset for tensor in tensors.values()) % PAGE == 0
    assert all(t.offset % 16 == 0 for t in tensors.values() if t.name.endswith(("weight_packed", "weight_scale")))


def test_the_rest_of_the_folder(w4, nf4):
    for run in (w4, nf4):
        for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
            assert (run.folder / name).read_bytes() == (READER / name).read_bytes()
        names = {path.name for path in run.folder.iterdir()}
        assert not {name for name in names if name.endswith((".md", ".lock", ".writing", ".onnx"))}
        assert (run.folder / "model.safetensors.index.json").is_file()
        source, result = open_checkpoint(READER), open_checkpoint(run.folder)
        norms = [name for name in source.tensors if name.startswith("mtp.") and source.tensors[name].shape[1:] == ()]
        assert len(norms) == 7
        assert all(torch.equal(source.load(name).half(), result.load(name)) for name in norms)
        config = json.loads((run.folder / "config.json").read_text())
        assert config["dtype"] == "float16"
    assert config["quantization_config"]["llm_int8_skip_modules"] == ["model.visual", "visual", "lm_head"]


def test_targets_are_full_paths_or_the_head_and_cover_every_linear_once(w4):
    config = json.loads((w4.folder / "config.json").read_text())["quantization_config"]
    targets = [target for group in config["config_groups"].values() for target in group["targets"]]
    head = "re:.*lm_head$"  # the one name that is another in vLLM: tests/quantize/checkpoint/test_vllm_names.py
    assert sorted(targets) == sorted(head if linear.name == "lm_head" else linear.name for linear in w4.report.linears)
    bits = {
        target: group["weights"]["num_bits"]
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    assert bits["model.language_model.layers.0.mlp.gate_proj"] == 4
    assert bits["model.visual.blocks.0.mlp.gate_proj"] == bits[head] == 8


def test_the_report_on_disk(w4):
    report = json.loads((w4.folder / "quantization_report.json").read_text())
    assert report["settings"]["count"] == report["totals"]["documents"] == w4.settings.count
    assert report["totals"]["linears"] == len(report["linears"]) == 51 + MTP
    assert report["totals"]["bytes"] == sum(t.nbytes for t in open_checkpoint(w4.folder).tensors.values())
    assert str(w4.settings.model) not in json.dumps(report)
    shape = {name: t.shape for name, t in open_checkpoint(READER).tensors.items()}
    assert all(tuple(linear["shape"]) == shape[f"{linear['name']}.weight"] for linear in report["linears"])


def test_the_same_settings_give_the_same_bytes_and_are_not_run_twice(w8, tmp_path):
    assert quantize(w8.settings) is None
    again = dataclasses.replace(w8.settings, output=tmp_path / "again")
    quantize(again)
    for path in w8.folder.iterdir():
        if path.name != "quantization_times.json":
            assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name
    with pytest.raises(InputError, match="other settings"):
        quantize(dataclasses.replace(again, seed=1))


@pytest.mark.parametrize("head_bits", [8, 16])
def test_a_text_model_with_tied_embeddings(text_only, tmp_path, head_bits):
    assert len(open_checkpoint(text_only).files) > 1
    settings = Settings(text_only, tmp_path / "out", count=4, head_bits=head_bits)
    report = quantize(settings)
    assert all(linear.error < linear.error_rtn for linear in report.linears)
    result = open_checkpoint(tmp_path / "out")
    assert ("lm_head.weight_packed" in result.tensors) == (head_bits == 8)
    assert "lm_head.weight" not in result.tensors
    model = load(tmp_path / "out", auto=AutoModelForCausalLM)
    assert model.config.tie_word_embeddings == (head_bits == 16)
    embedding = open_checkpoint(text_only).load("model.embed_tokens.weight").half()
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None])
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    difference = (model.lm_head.weight - embedding).float().norm() / embedding.float().norm()
    assert (difference == 0) if head_bits == 16 else (0 < difference < 0.01)
    assert torch.equal(model.lm_head.weight, embedding) == (head_bits == 16)


def with_large_head_inputs(text_only, folder, scale):
    """The text model with a last norm that makes its outputs so many times larger."""
    shutil.copytree(text_only, folder)
    path = next(path for path in folder.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    tensors = load_file(path)
    tensors["model.norm.weight"] *= scale
    save_file(tensors, path, {"format": "pt"})
    return folder


def test_a_head_that_can_only_be_rounded_is_named(text_only, tmp_path, capsys):
    model = with_large_head_inputs(text_only, tmp_path / "model", 3e17)
    quantize(Settings(model, tmp_path / "out", count=4, reference=0, dtype="bfloat16"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "by RTN" in line]
    assert lines == ["lm_head is quantized by RTN: its inputs are so large that its Hessian has no factor in float32"]
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    *others, head = report["linears"]
    assert (head["name"], head["solver"], head["damping"]) == ("lm_head", "rtn", None)
    assert 0 < head["error"] == head["error_rtn"] < 1e-3  # without a factor, but the sums are those of real inputs
    assert {linear["solver"] for linear in others} == {"gptq"}


def test_a_head_without_a_finite_hessian_is_refused(text_only, tmp_path):
    model = with_large_head_inputs(text_only, tmp_path / "model", 1e20)
    with pytest.raises(InputError, match="the Hessian of lm_head is not finite"):
        quantize(Settings(model, tmp_path / "out", count=4, reference=0, dtype="bfloat16"))


def test_a_copy_of_the_reader_with_the_released_irregularities(tmp_path):
    source = tmp_path / "released"
    shutil.copytree(READER, source)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["model_type"] = "exaone4_5_text"
    config["text_config"]["layer_types"].append("sliding_attention")
    config["text_config"]["dtype"] = "bfloat16"
    config["quantization_config"] = None
    (source / "config.json").write_text(json.dumps(config))
    settings = Settings(source, tmp_path / "out", count=2, solver="rtn", reference=0)
    quantize(settings)
    model = load(tmp_path / "out")
    assert len(model.config.text_config.layer_types) == 4
    assert model.config.text_config.dtype == torch.float16
