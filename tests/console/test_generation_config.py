"""Fields without effect are named, by transformers' own list of fields; wrong values are refused in one line."""

import json

import pytest
from transformers import GenerationConfig

from console.errors import InputError
from console.generation_config import read_generation_config

VOCABULARY = 512
USED = {"do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id"}
# Values that change what transformers generates for one prompt, where one makes sense.
EFFECTIVE = {
    "max_length": 99,
    "min_length": 900,
    "min_new_tokens": 4,
    "max_time": 2.0,
    "stop_strings": ["\n"],
    "num_beams": 4,
    "min_p": 0.1,
    "top_h": 0.4,
    "typical_p": 0.9,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "repetition_penalty": 1.1,
    "encoder_repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[100], [101, 102]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 53,
    "exponential_decay_length_penalty": [5, 1.1],
    "suppress_tokens": [100],
    "begin_suppress_tokens": [100],
    "sequence_bias": [[[100], -10.0]],
    "token_healing": True,
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.5},
    "num_return_sequences": 2,
    "assistant_ensemble_weight": 0.5,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "constraints": [1],
    "force_words_ids": [[5]],
    "cache_implementation": "quantized",
}
# Fields that change nothing for one answer of a decoder, with values that are not their defaults.
HARMLESS = {"use_cache": False, "output_scores": True, "early_stopping": True, "length_penalty": 2.0, "use_mtp": True}


def write(folder, generation, **config):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 53, **generation}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("field", EFFECTIVE)
def test_a_field_that_transformers_would_follow_is_named(field, tmp_path):
    found = read_generation_config(write(tmp_path, {field: EFFECTIVE[field]}), VOCABULARY)
    assert [line.split()[0] for line in found.unsupported] == [field]


def test_every_field_of_transformers_is_used_harmless_or_named(tmp_path):
    """A field that a later transformers adds is named until someone decides what it is."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - USED
    changed = dict.fromkeys(fields, "changed") | {name: 7 for name in ("repetition_penalty",) if name in fields}
    named = {line.split()[0] for line in read_generation_config(write(tmp_path, changed), VOCABULARY).unsupported}
    assert named == set(EFFECTIVE)


def test_defaults_of_transformers_are_not_named(tmp_path):
    defaults = {
        **GenerationConfig._get_default_generation_params(),
        **HARMLESS,
        "bad_words_ids": [],
        "max_length": None,
    }
    assert read_generation_config(write(tmp_path, defaults), VOCABULARY).unsupported == []


def test_an_unknown_field_is_named(tmp_path):
    found = read_generation_config(write(tmp_path, {"frequency_penalty": 0.5, "chat_format": None}), VOCABULARY)
    assert found.unsupported == ["frequency_penalty 0.5"]


def test_one_line_names_file_and_fields(tmp_path):
    found = read_generation_config(write(tmp_path, {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1}), VOCABULARY)
    line = found.without_effect({"temperature": 0.3, "top_p": 0.9, "top_k": 5})
    path = tmp_path / "generation_config.json"
    assert line == f"{path}: ignored, not supported: min_p 0.1; not used: temperature 0.6"
    assert read_generation_config(write(tmp_path, {"temperature": 0.6}), VOCABULARY).without_effect({}) is None


WRONG = [
    *({"eos_token_id": value} for value in (512, -1, "</s>", 5.0, True, [], [53, 512], [[53]], {"id": 53})),
    *({"pad_token_id": value} for value in (512, -1, "[PAD]", [], [0])),
    *({"bos_token_id": value} for value in (512, -1, "[BOS]", [], [0])),
    *({"do_sample": value} for value in ("true", 1, [])),
    *({"temperature": value} for value in ("hot", -0.1, float("nan"), float("inf"), True, [0.6])),
    *({"top_k": value} for value in ("20", -3, 2.5, True)),
    *({"top_p": value} for value in ("0.9", 0, 1.5, float("nan"))),
    *({"presence_penalty": value} for value in ([1], 3, float("nan"))),
    *({"repetition_penalty": value} for value in ("1.1", 0, -1, float("nan"))),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_value_is_refused(wrong, tmp_path):
    (field,) = wrong
    with pytest.raises(InputError, match=rf"generation_config\.json: {field} is .*; write "):
        read_generation_config(write(tmp_path, wrong), VOCABULARY)


@pytest.mark.parametrize("config", [{"eos_token_id": 512}, {"text_config": {"eos_token_id": []}}])
def test_the_end_token_of_config_json_is_checked_too(config, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: eos_token_id is "):
        read_generation_config(write(tmp_path, {"eos_token_id": None}, **config), VOCABULARY)


@pytest.mark.parametrize("config", [{}, {"text_config": None}, {"text_config": {"eos_token_id": None}}])
def test_a_folder_without_end_token_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"generation_config\.json: has no eos_token_id, nor has config\.json"):
        read_generation_config(write(tmp_path, {"eos_token_id": None}, **config), VOCABULARY)
