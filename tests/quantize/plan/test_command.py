"""`quantize plan` as a user runs it, and next to it `quantize` without a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calib_data import READER
from console.errors import InputError
from quantize.__main__ import app

pytestmark = pytest.mark.slow

RELEASED = Path(__file__).parents[2] / "data" / "exaone-4.5-33b.config.json"
PARTS = {"decoder", "head", "vision", "small", "mtp", "embeddings"}


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "quantize", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def plan(capsys, *arguments):
    app(["plan", *map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_a_process_prints_one_json_object():
    result = process("plan", "--model", RELEASED, "--vram", "24GB", "--context", 16384, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    planned = json.loads(result.stdout)
    kv = {"kv_cache", "kv_cache_full_buffers", "kv_workspace"}
    assert planned.keys() == {"model", "vram", "context", "context_limit", *kv, "choices"}
    assert (planned["vram"], planned["context"], planned["context_limit"]) == (24 * 10**9, 16384, 262144)
    assert planned["kv_cache"]["16384"] == {"fp16": 7 * 2**28, "int8": 7 * 2**27}
    assert planned["kv_cache_full_buffers"]["16384"] == {"fp16": 2**32, "int8": 2**31}
    assert {kind: line["bytes"] for kind, line in planned["kv_workspace"].items()} == {"fp16": 0, "int8": 2**26}
    assert [choice["name"] for choice in planned["choices"]] == ["4-bit", "8-bit", "NF4", "16-bit", "others"]
    for choice in planned["choices"]:
        assert choice["weights"].keys() == PARTS
        assert choice["formats"].keys() == {"vision", "decoder", "mtp", "head"}
        for key in ("total", "longest", "longest_without_mtp"):
            assert choice[key].keys() == {"fp16", "int8"}
        variants = filter(None, (choice["in_blocks"], choice["full_buffers"]))
        assert all(variant.keys() == {"added", "longest"} for variant in variants)
        assert all(line.keys() == {"name", "tensors", "bytes"} for line in choice["workspace"])
        sizes = [choice["stored"], choice["host"], *choice["weights"].values(), *choice["longest"].values()]
        assert all(type(size) is int and size >= 0 for size in sizes)
    assert planned["choices"][0]["formats"] == {
        "decoder": "int4 g128",
        "head": "int8 g128",
        "mtp": "int4 g128",
        "vision": "int8 g128",
    }
    assert planned["choices"][2]["formats"] == {
        "decoder": "nf4 g64",
        "head": "16-bit",
        "mtp": "nf4 g64",
        "vision": "16-bit",
    }


def test_a_process_ends_bad_input_with_code_2_and_one_line():
    result = process("plan", "--model", RELEASED, "--vram", "24GBit")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("error: --vram '24GBit' is no size; write a number and MB, GB, MiB, GiB, such as 24GB\n")


def test_the_tables_show_every_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = plan(capsys, "--model", RELEASED)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in map(cells_of, out.splitlines()) if cells
    }
    assert rows["decoder linears"] == ["14.865", "29.279", "16.216", "57.656", "14.865"]
    assert rows["embeddings"] == ["–", "–", "–", "–", "1.465"]
    assert rows["KV cache, int8"] == ["1.375"] * 5
    assert rows["int8 KV layer, unpacked"] == ["0.125"] * 5
    assert rows["262144"] == ["16.750", "8.375", "64.000", "32.000"]
    assert rows["fp16 KV"][1:] == ["–"] * 4
    assert rows["fp16 KV, blocks of 32"] == ["21609", "–", "–", "–", "–"]
    assert rows["fp16 KV, full buffers"] == ["11575", "–", "–", "–", "–"]
    assert "On the GPU at 32768 tokens" in out
    assert "24 GB = 22.35 GiB" in out
    assert "int8 KV layer, unpacked: 2 x [8, 32768, 128] in 16 bits" in out
    assert "RoPE tables: 2 x [32768, 64] in 16 bits" in out
    assert "Embeddings, 1.465 GiB, stay on the host" in out
    assert "unpack no weights: 4-bit +0.783 GiB, 8-bit +0.783 GiB, others +0.829 GiB." in out
    assert max(len(line) for line in out.splitlines() if "│" in line) <= 80


def cells_of(line):
    return line.split("│") if line.startswith("│") else None


def test_the_reader_is_the_default_and_its_limit_the_longest_default_context(capsys):
    limit = json.loads((READER / "config.json").read_text())["text_config"]["max_position_embeddings"]
    planned = json.loads(plan(capsys, "--json"))
    assert planned["model"] == str(READER)
    assert (planned["vram"], planned["context"]) == (24 * 10**9, min(32768, limit))


def config(folder, **values):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads(RELEASED.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "missing"), "missing is not there; give a model folder or its config.json"),
        (("--model", "empty"), "empty/config.json: no such file"),
        (("--model", "notes.txt"), r"notes.txt: is not valid JSON"),
        (("--model", "llama"), "model_type 'llama' is not supported; supported: exaone4_5, exaone4"),
        (("--model", "blind"), "vision_config: Input should be .*, found None"),
        (("--model", "odd"), "; give `quantize` another"),
        (("--model", "good", "--context", "262145"), "--context 262145 is beyond the model's limit of 262144"),
        (("--model", "good", "--vram", "24"), "--vram '24' is no size"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a config")
    config(tmp_path / "good")
    config(tmp_path / "llama", model_type="llama")
    config(tmp_path / "blind", vision_config=None)
    vision = {**json.loads(RELEASED.read_text())["vision_config"], "intermediate_size": 200}
    config(tmp_path / "odd", vision_config=vision)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        app(["plan", *arguments], standalone_mode=False)


def test_options_of_quantizing_in_front_of_plan_are_refused():
    with pytest.raises(InputError, match="--group-size in front of `plan` has no effect; options of `plan` follow it"):
        app(["--group-size", "64", "plan"], standalone_mode=False)


def test_help_names_both(capsys):
    app(["--help"], standalone_mode=False)
    top = capsys.readouterr().out
    app(["plan", "--help"], standalone_mode=False)
    below = capsys.readouterr().out
    assert "--bits" in top
    assert "plan" in top
    assert "Estimate the GPU memory" in top
    assert "--vram" in below
    assert "--bits" not in below
