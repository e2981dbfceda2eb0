"""Checkpoints as the release has them, few layers deep: against transformers' own model and the release's numbers."""

import json
import math

import pytest
import torch
import transformers
from safetensors import safe_open
from typer.testing import CliRunner

from bench.scale.__main__ import app
from bench.scale.folders import RELEASED, make_checkpoint, shortened
from console.errors import InputError
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import model_config
from quantize.pipeline import quantize
from quantize.plan.architecture import read_architecture
from quantize.settings import Settings

pytestmark = pytest.mark.slow

TEXT = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "num_key_value_heads": 2}
VISION |= {"out_hidden_size": 256}
SHARD = 1 << 20


def released():
    return json.loads(RELEASED.read_text())


@pytest.fixture(scope="module")
def narrow():
    """Two layers, two vision blocks, and widths of which a test can have many."""
    config = shortened(released(), 2, 2)
    config["text_config"] |= TEXT
    config["vision_config"] |= VISION
    return config


@pytest.fixture(scope="module")
def folder(narrow, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "narrow"
    make_checkpoint(narrow, path, shard_bytes=SHARD)
    return path


def test_all_layers_are_the_release():
    assert shortened(released(), 64, 28) == released()


def test_two_layers_have_both_kinds_of_attention_in_both_towers():
    config = shortened(released(), 2, 2)
    assert config["text_config"]["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert model_config(config).text_config.layer_types == ["sliding_attention", "full_attention"]
    assert config["vision_config"]["fullatt_block_indexes"] == [1]
    assert shortened(released(), 5, 8)["text_config"]["layer_types"][2:] == [
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention",
    ]
    assert shortened(released(), 5, 8)["vision_config"]["fullatt_block_indexes"] == [6, 7]


def test_widths_are_the_release():
    """Parameters that are known of EXAONE 4.5 33B: 30.954 B in 64 layers, 0.536 B in the MTP layer, 0.786 B twice."""
    shapes = read_architecture(shortened(released(), 2, 2)).shapes
    assert shapes["model.language_model.layers.1.mlp.down_proj.weight"] == (5120, 27392)
    assert shapes["model.visual.blocks.1.attn.qkv.weight"] == (3072, 2048)
    assert shapes["mtp.fc.weight"] == (5120, 10240)

    def billions(prefix):
        return sum(math.prod(s) for name, s in shapes.items() if name.startswith(prefix) and len(s) == 2) / 1e9

    assert billions("model.language_model.layers.") == pytest.approx(30.954 / 32, abs=1e-3)
    assert billions("mtp.") == pytest.approx(0.536, abs=1e-3)
    assert billions("lm_head") == billions("model.language_model.embed_tokens") == pytest.approx(0.786, abs=1e-3)


def test_tensors_are_those_of_transformers_and_the_mtp_layer(folder, narrow):
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(model_config(narrow))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = "model.language_model.layers.0."
    expected |= {
        "mtp.layers.0." + name.removeprefix(layer): shape for name, shape in expected.items() if name.startswith(layer)
    }
    expected |= {f"mtp.{norm}.weight": (256,) for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    expected["mtp.fc.weight"] = (256, 512)
    assert {name: tensor.shape for name, tensor in open_checkpoint(folder).tensors.items()} == expected


def test_weights_are_sharded_bfloat16_of_the_right_size(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index.values())) == files
    for file in files:
        with safe_open(folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no dict)
                tensor = opened.get_tensor(name)
                assert index[name] == file
                assert tensor.dtype == torch.bfloat16
                if tensor.dim() > 1:
                    assert float(tensor.float().std()) == pytest.approx(0.02, rel=0.05)
                    assert abs(float(tensor.float().mean())) < 1e-3
                else:
                    assert set(tensor.tolist()) == {0.0 if name.endswith("bias") else 1.0}


def test_the_seed_decides(folder, narrow, tmp_path):
    for seed in (0, 1):
        make_checkpoint(narrow, tmp_path / str(seed), seed, SHARD)
    name = sorted(path.name for path in folder.glob("*.safetensors"))[0]
    first, again, other = ((path / name).read_bytes() for path in (folder, tmp_path / "0", tmp_path / "1"))
    assert first == again
    assert first != other


def test_transformers_loads_it(folder, narrow):
    model, about = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, config=model_config(narrow), output_loading_info=True, dtype=torch.float32
    )
    assert not about["missing_keys"]
    logits = model(input_ids=torch.arange(100, 140)[None]).logits.detach()
    assert logits.shape == (1, 40, 512)
    assert 0.1 < float(logits.std()) < 1  # a head of deviation 0.02 behind a norm: 0.02 √256


def test_it_can_be_quantized(folder, tmp_path):
    """One document through both towers, the MTP layer and the head."""
    report = quantize(Settings(folder, tmp_path / "w4", count=1, reference=2))
    towers = {linear.tower: [] for linear in report.linears}
    for linear in report.linears:
        towers[linear.tower].append(linear)
    assert {tower: len(linears) for tower, linears in towers.items()} == {
        "vision": 2 * 5 + 2,
        "decoder": 2 * 7,
        "mtp": 8,
        "head": 1,
    }
    assert all(0 < linear.error < linear.error_rtn for linear in towers["decoder"])
    assert [step.name for step in report.steps].count("model.language_model.layers.1") == 1


def test_a_folder_that_exists_is_left_alone(folder, narrow, tmp_path):
    with pytest.raises(InputError, match="exists; give another --output"):
        make_checkpoint(narrow, folder)
    (tmp_path / "mine").mkdir()
    result = CliRunner().invoke(app, ["make", "--output", str(tmp_path / "mine")])
    assert isinstance(result.exception, InputError)
    assert not list((tmp_path / "mine").iterdir())


def test_a_config_that_cannot_be_used_leaves_nothing(narrow, tmp_path):
    with pytest.raises(InputError, match="num_nextn_predict_layers"):
        make_checkpoint(
            {**narrow, "text_config": narrow["text_config"] | {"num_nextn_predict_layers": "one"}}, tmp_path / "x"
        )
    assert not list(tmp_path.iterdir())
