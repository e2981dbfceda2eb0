"""Names in config.json by vLLM's rules, written out here: every linear of 33 B gets the scheme that its tensors have.

Read in vLLM 0.33: how it renames a checkpoint's modules, which it fuses, and how its compressed-tensors, bitsandbytes
and GPTQ configs choose the scheme of a layer. vLLM itself is not run.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from calib_data import READER
from quantize.checkpoint.formats import pack_weight, quantization_config
from quantize.checkpoint.reader import Checkpoint
from quantize.plan.architecture import read_architecture
from quantize.scheme import choose_quantizers, output_config
from quantize.settings import Settings
from quantize.solver.quantizers import NF4Quantizer

RELEASED = Path(__file__).parents[2] / "data" / "exaone-4.5-33b.config.json"

# The first prefix that fits is replaced, then the next is tried on the result. "lm_head" alone has no dot.
PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
LAYER_CLASSES = (
    "QKVParallelLinear",
    "MergedColumnParallelLinear",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "ParallelLMHead",
    "VocabParallelEmbedding",
)
HEAD = "language_model.lm_head"

COMPRESSED = [
    {"bits": bits, "vision_bits": vision, "head_bits": head}
    for bits in (4, 8)
    for vision in (8, 16)
    for head in (4, 8, 16)
]
NF4 = [{"quant_type": "nf4", "vision_bits": vision} for vision in (4, 16)]
GPTQ = [{"format": "gptq", "bits": bits} for bits in (4, 8)]


@cache
def released():
    return read_architecture(json.loads(RELEASED.read_text()))


def case(options):
    """Settings, the quantizer of every linear of 33 B, and the `quantization_config` that `quantize` writes."""
    settings, model = Settings(READER, **options), released()
    quantizers = choose_quantizers(settings, model.family, model.config)
    return settings, quantizers, quantization_config(settings, quantizers, model.family)


def renamed(name):
    for old, new in PREFIXES.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def layers(paths):
    """The checkpoint's linears of every layer of vLLM, by the layer's name."""
    found = {}
    for path in paths:
        name = renamed(f"{path}.weight").removesuffix(".weight")
        parent, _, last = name.rpartition(".")
        fused = next((fused for fused, parts in FUSED.items() if last in parts), last)
        found.setdefault(f"{parent}.{fused}", []).append(path)
    return found


def parts_of(layer):
    parent, _, last = layer.rpartition(".")
    return [f"{parent}.{part}" for part in FUSED.get(last, (last,))]


def stored_scheme(inputs, quantizer, to):
    """Bits of a weight and weights of a scale, by the shapes of the tensors that are stored; None for 16 bits."""
    if quantizer is None:
        return None
    codes = torch.zeros(8, inputs, dtype=torch.int8)
    tensors = pack_weight(codes, torch.ones(8, inputs // quantizer.group_size), quantizer, to)
    if isinstance(quantizer, NF4Quantizer):
        return tensors["weight"].numel() * 8 // codes.numel(), codes.numel() // tensors["weight.absmax"].numel()
    if to == "gptq":
        return tensors["qweight"].shape[0] * 32 // inputs, inputs // tensors["scales"].shape[0]
    return tensors["weight_packed"].shape[1] * 32 // inputs, inputs // tensors["weight_scale"].shape[1]


def matches(name, target):
    return bool(re.match(target[3:], name)) if target.startswith("re:") else name == target


def compressed_scheme(config, layer):
    """The scheme of compressed-tensors' groups: of the layer itself, else of its parts, which must agree."""

    def own(target):
        return renamed(target) if "." in target and not target.startswith("re:") else target

    groups = [([own(target) for target in group["targets"]], group) for group in config["config_groups"].values()]
    ignored = {any(matches(part, own(target)) for target in config["ignore"]) for part in parts_of(layer)}
    assert len(ignored) == 1, f"{layer}: some parts are ignored"
    if ignored == {True}:
        return None
    found = {
        next((i for i, (targets, _) in enumerate(groups) if any(matches(part, t) for t in targets)), None)
        for part in parts_of(layer)
    }
    assert len(found) == 1, f"{layer}: parts have different schemes"
    if found == {None}:
        return None
    weights = groups[found.pop()][1]["weights"]
    assert (weights["type"], weights["strategy"], weights["symmetric"]) == ("int", "group", True)
    return weights["num_bits"], weights["group_size"]


def nf4_scheme(config, layer):
    """bitsandbytes' list of skipped modules: a part of the name, or its beginning. It does not know heads."""
    names = layer.split(".")
    beginnings = {".".join(names[: i + 1]) for i in range(len(names))}
    skipped = {*names, *beginnings}.intersection(config["llm_int8_skip_modules"])
    return None if skipped or layer == HEAD else (4, 64)


def gptq_scheme(config, layer, quantized):
    """GPTQ's dynamic rules, then the modules that have integer tensors in the files. Heads only with `lm_head`."""
    assert "modules_in_block_to_quantize" not in config
    rules = [rule.removeprefix("-:") for rule in config["dynamic"]]
    if any(re.match(rule, layer) for rule in rules) or (layer == HEAD and not config["lm_head"]):
        return None
    found = {any(renamed(path) in part for path in quantized) for part in parts_of(layer)}
    assert len(found) == 1, f"{layer}: some parts are quantized"
    return (config["bits"], config["group_size"]) if found.pop() else None


@pytest.mark.parametrize("options", [*COMPRESSED, *NF4, *GPTQ], ids=lambda o: "-".join(map(str, o.values())))
def test_vllm_gives_every_linear_of_33b_the_scheme_of_its_tensors(options):
    settings, quantizers, config = case(options)
    quantized = [path for path, quantizer in quantizers.items() if quantizer]
    shapes = released().shapes
    found = layers(quantizers)
    assert len(found) == 28 * 4 + 2 + 64 * 4 + (4 + 1) + 1
    assert {HEAD, "mtp.fc", "visual.merger.mlp.2", "language_model.model.layers.63.mlp.gate_up_proj"} <= found.keys()
    for layer, paths in found.items():
        stored = {stored_scheme(shapes[f"{path}.weight"][1], quantizers[path], settings.format) for path in paths}
        if settings.format == "compressed-tensors":
            scheme = compressed_scheme(config, layer)
        elif settings.format == "bitsandbytes":
            scheme = nf4_scheme(config, layer)
        else:
            scheme = gptq_scheme(config, layer, quantized)
        assert stored == {scheme}, layer


@pytest.mark.parametrize("options", COMPRESSED, ids=lambda o: "-".join(map(str, o.values())))
def test_no_target_is_taken_for_a_class_or_for_the_embedding(options):
    """vLLM also looks for targets inside the names of its classes, and gives a scheme to embeddings that match."""
    config = case(options)[2]
    targets = [target for group in config["config_groups"].values() for target in group["targets"]]
    assert not any(target.lower() in kind.lower() for target in targets for kind in LAYER_CLASSES)
    assert not any(matches(kind, target) for target in targets for kind in LAYER_CLASSES)
    assert compressed_scheme(config, "language_model.model.embed_tokens") is None


def test_the_head_of_a_text_model_has_its_own_name_in_vllm():
    targets = {target for group in case({})[2]["config_groups"].values() for target in group["targets"]}
    assert [target for target in targets if matches("lm_head", target)] == ["re:.*lm_head$"]


def test_the_vocabulary_is_where_vllm_reads_it():
    model = released()
    for raw in ({**json.loads(RELEASED.read_text())}, {**json.loads(RELEASED.read_text()), "vocab_size": 7}):
        config = output_config(Settings(READER), Checkpoint(READER, raw, {}), model.family, case({})[1], tied=False)
        assert config["vocab_size"] == config["text_config"]["vocab_size"] == 153600
