"""The tensors that graphs take are those of transformers' model: none more, and none is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from calib_data import READER
from console.errors import InputError
from export.checkpoint import open_model
from quantize.model.families import model_config
from quantize.scheme import is_tied

HEAD = "lm_head.weight"
QUERY = "model.language_model.layers.0.self_attn.q_proj"
IGNORED = shutil.ignore_patterns("*.onnx", "runtime.json", "model.safetensors")


def reader(to, *, without=(), **added):
    """A copy of the reader with other tensors."""
    shutil.copytree(READER, to, ignore=IGNORED)
    tensors = load_file(READER / "model.safetensors") | added
    save_file({name: t for name, t in tensors.items() if name not in without}, to / "model.safetensors")
    return to


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.blocks.0.attn.qkv.bias",
        "model.visual.merger.mlp.0.bias",
        "model.language_model.layers.1.self_attn.q_norm.weight",
        "mtp.norm.weight",
        HEAD,
    ],
)
def test_a_parameter_that_is_not_stored_is_named(tmp_path, name):
    """A bias would otherwise be taken for a layer without one, and the head for tied embeddings."""
    folder = reader(tmp_path / "model", without=[name])
    with pytest.raises(InputError, match=f"^{folder}: the checkpoint has no tensor {name}; "):
        open_model(folder)


@pytest.mark.parametrize(
    ("part", "key", "says"),
    [
        ("vision_config", "num_heads", r"model\.visual\.blocks\.0\.attn\.qkv\.weight is \[256, 128\] in the weights"),
        ("vision_config", "hidden_size", r"model\.visual\.patch_embed\.proj\.weight is \[128, 3, 2, 14, 14\]"),
        ("text_config", "intermediate_size", r"layers\.0\.mlp\.gate_proj\.weight is \[768, 256\] in the weights"),
    ],
)
def test_shapes_are_those_of_config(tmp_path, part, key, says):
    """A config without a key has transformers' default: with other heads, the graphs would answer nonsense."""
    folder = reader(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config[part][key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"^{folder}: .*{says}.* by config.json$"):
        open_model(folder)


def test_a_checkpoint_without_mtp_layer_lacks_nothing(tmp_path):
    mtp = [name for name in load_file(READER / "model.safetensors") if name.startswith("mtp.")]
    checkpoint, *_ = open_model(reader(tmp_path / "model", without=mtp))
    assert HEAD in checkpoint.tensors


def test_a_bias_that_the_model_does_not_have_is_ignored_as_in_transformers(tmp_path):
    folder = reader(tmp_path / "model", **{f"{QUERY}.bias": torch.ones(256)})
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert f"{QUERY}.bias" in info["unexpected_keys"]
    checkpoint, *_ = open_model(folder)
    assert checkpoint.tensors.keys() == load_file(READER / "model.safetensors").keys()


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_only_the_key_of_the_whole_model_ties_the_head(tmp_path, top, text):
    folder = reader(tmp_path / "model", without=[HEAD])
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = top, text
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config(config))
    tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
    if tied:
        assert is_tied(*open_model(folder))
    else:
        with pytest.raises(InputError, match=f"no tensor {HEAD}"):
            open_model(folder)


def test_weights_outside_the_folder_are_refused(tmp_path):
    """ONNX Runtime opens no external data there; `quantize` reads such a folder."""
    folder = shutil.copytree(READER, tmp_path / "model", ignore=IGNORED)
    (folder / "model.safetensors").symlink_to(READER / "model.safetensors")
    with pytest.raises(
        InputError, match=f"^{folder / 'model.safetensors'} is a symbolic link out of its folder .*--local-dir"
    ):
        open_model(folder)
