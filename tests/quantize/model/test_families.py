"""Configs as they are released, and module paths against transformers' own modules."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from calib_data import READER
from console.errors import InputError
from quantize.model.families import FAMILIES, find_family, full_paths, model_config, repair_config

from ...mutations import mutants
from ..configs import TEXT

RELEASED = json.loads((Path(__file__).parents[2] / "data" / "exaone-4.5-33b.config.json").read_text())
PERIOD = ["sliding_attention"] * 3 + ["full_attention"]


def changed(raw, **values):
    raw = copy.deepcopy(raw)
    text = raw.get("text_config", raw)
    for key, value in values.items():
        if value is ...:
            del text[key]
        else:
            text[key] = value
    return raw


def test_transformers_rejects_the_released_config_and_takes_the_repaired_one():
    with pytest.raises(Exception, match="layer_types"):
        AutoConfig.for_model(**copy.deepcopy(RELEASED))
    config = model_config(RELEASED)
    assert config.text_config.layer_types == PERIOD * 16
    assert config.text_config.model_type == "exaone4"
    assert config.text_config.rope_parameters["factor"] == 16.0
    assert config.vision_config.fullatt_block_indexes == [6, 13, 20, 27]


def test_a_pattern_stands_in_for_layer_types():
    assert model_config(changed(RELEASED, layer_types=...)).text_config.layer_types == PERIOD * 16
    # the last layer is always global
    short = changed(RELEASED, layer_types=..., num_hidden_layers=6)
    assert model_config(short).text_config.layer_types == [*PERIOD, "sliding_attention", "full_attention"]


@pytest.mark.parametrize("pattern", [2, 4, 7])
def test_a_number_as_pattern_is_what_transformers_makes_of_it(pattern):
    raw = changed(TEXT, sliding_window=128, sliding_window_pattern=pattern, num_hidden_layers=9)
    assert repair_config(raw)["layer_types"] == AutoConfig.for_model(**raw).layer_types


def test_without_a_sliding_window_every_layer_is_global():
    config = model_config(TEXT)
    assert config.layer_types == ["full_attention"] * 6
    assert config.sliding_window is None


def test_the_original_is_left_alone():
    before = copy.deepcopy(RELEASED)
    repair_config(RELEASED)
    assert before == RELEASED


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"model_type": "llama"}, "'llama' is not supported; supported: exaone4_5, exaone4"),
        ({}, "None is not supported"),
        ({"model_type": "exaone4_5", "text_config": {"num_hidden_layers": 2}}, "vision_config is missing"),
        (changed(RELEASED, num_hidden_layers="many"), "num_hidden_layers: .* integer, found 'many'"),
        (changed(RELEASED, num_hidden_layers=10**18), "num_hidden_layers: .* less than or equal to 1000"),
        (changed(RELEASED, num_nextn_predict_layers=10**9), "num_nextn_predict_layers: .* less than or equal to 1000"),
        (changed(TEXT, layer_types=None, sliding_window=8, sliding_window_pattern=10**18), "sliding_window_pattern"),
        ({"model_type": []}, "is not supported"),
        (changed(RELEASED, num_hidden_layers=70), "65 entries for 70 layers"),
        (changed(RELEASED, layer_types=["chunked_attention"] * 64), "layer_types has 'chunked_attention'; supported:"),
        (changed(TEXT, sliding_window=8, sliding_window_pattern="LXG"), "neither a number nor letters"),
        (changed(TEXT, hidden_size="wide"), "hidden_size: .* integer, found 'wide'"),
    ],
)
def test_configs_that_cannot_be_used(raw, says):
    with pytest.raises(InputError, match=says):
        model_config(raw)


def test_a_model_that_transformers_cannot_build_is_one_line():
    raw = changed(TEXT, hidden_act="soft")
    with pytest.raises(InputError, match=r"^config\.json: transformers cannot build this model .*soft"):
        find_family(raw).skeleton(model_config(raw))


@pytest.mark.parametrize("raw", [json.loads((READER / "config.json").read_text()), TEXT], ids=["exaone4_5", "exaone4"])
def test_the_rows_name_every_linear_of_the_model_once(raw):
    family, config = find_family(raw), model_config(raw)
    model = family.skeleton(config)
    named = [family.head]
    for path in family.decoder_blocks(config):
        named += [f"{path}.{name}" for group in family.decoder_linears for name in group]
    for path in family.vision_blocks(config):
        named += [f"{path}.{name}" for group in family.vision_linears for name in group]
    if family.merger:
        named += [f"{family.merger}.{name}" for group in family.merger_linears for name in group]
    if family.mtp:
        named += [path for group in full_paths(family.mtp, family.mtp_linears(config)) for path in group]
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert sorted(named) == sorted(linears)
    for path in (family.norm, family.embeddings, family.patch_embed):
        assert path is None or model.get_submodule(path) is not None
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_released_model_is_laid_out_without_memory():
    config = model_config(RELEASED)
    model = FAMILIES["exaone4_5"].skeleton(config)
    decoder = sum(p.numel() for n, p in model.named_parameters() if "language_model.layers" in n and p.ndim == 2)
    vision = sum(p.numel() for p in model.model.visual.parameters())
    assert round(decoder / 1e9, 3) == 30.954
    assert round(vision / 1e9, 3) == 1.286


def test_a_value_of_another_kind_is_no_traceback():
    for what, changed in mutants(json.loads((READER / "config.json").read_text())):
        try:
            model_config(changed)
        except InputError as error:
            assert str(error).startswith("config.json"), what
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
