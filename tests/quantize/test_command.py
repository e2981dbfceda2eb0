"""The command as a user runs it: a process, its exit code, its one line on stderr, and no folder left behind."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from calib_data import READER
from calib_data.sources import open_documents
from console.errors import InputError
from quantize.__main__ import app
from quantize.checkpoint.reader import open_checkpoint
from quantize.output import TIMES
from quantize.pipeline import quantize
from quantize.settings import Settings

from ..half_reader import half_of_the_reader
from ..in_process import in_process

pytestmark = pytest.mark.slow


def command(*arguments, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "quantize", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def reader_with(folder, change_tensors=None, change_config=None):
    """A copy of the reader, damaged."""
    shutil.copytree(READER, folder)
    if change_tensors:
        tensors = load_file(folder / "model.safetensors")
        change_tensors(tensors)
        save_file(tensors, folder / "model.safetensors")
    if change_config:
        config = json.loads((folder / "config.json").read_text())
        change_config(config)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


NAN = "model.language_model.layers.2.mlp.up_proj.weight"


def put(name, value):
    def change(tensors):
        tensors[name] = tensors[name].float().contiguous()
        tensors[name].view(-1)[5] = value

    return change


def assert_one_line(code, out, err, says):
    *progress, line = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert all(row.startswith(("Quantizing: ", "2 documents")) for row in progress), err
    assert line.startswith("error: ")
    assert says in line


def test_bad_input_ends_a_process_with_code_2_and_one_line(tmp_path):
    """Half-way through writing: what is finished is kept."""
    reader_with(tmp_path / "nan", put(NAN, float("nan")))
    before = sorted(tmp_path.rglob("*"))
    ended = command("--model", "nan", "--count", "2", "--solver", "rtn", cwd=tmp_path)
    says = f"{NAN} has NaN or infinite values; the checkpoint is damaged"
    assert_one_line(ended.returncode, ended.stdout, ended.stderr, says)
    assert "(nan-w4.partial keeps what is finished: the same command resumes" in ended.stderr
    left = tmp_path / "nan-w4.partial"
    done = len(json.loads((left / ".journal.json").read_text())["steps"])
    assert done == 1 + 4 + 1 + 1 + 1 + 2  # pixels, blocks, merger, image tokens, embeddings, two layers
    shutil.rmtree(left)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--solver", "magic"), "magic"),
        (("--model", "missing"), "missing is not a folder"),
        (("--output", "taken"), "taken exists and holds something else"),
        (("--format", "gptq", "--head-bits", "8"), "--head-bits 8 is not possible with --format gptq; choose 16"),
    ],
)
def test_bad_input_leaves_nothing_behind(arguments, says, tmp_path, monkeypatch, capsys):
    """Parsing, settings and reading."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = in_process("quantize", app, capsys, monkeypatch)(*arguments)
    assert_one_line(code, out, err, says)
    assert "keeps what is finished" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_defaults_run_without_arguments(tmp_path, monkeypatch, capsys):
    """All but the solver's, which every test of a solution runs."""
    run = in_process("quantize", app, capsys, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run("--count", "2", "--solver", "rtn")
    assert code == 0, err
    assert "self_attn.q_proj" in out
    assert "calibrated on 2 documents" in out
    assert [path.name for path in tmp_path.iterdir()] == ["reader-w4"]
    assert run("--count", "2", "--solver", "rtn")[:2] == (0, "reader-w4 is already finished with these settings\n")


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys, bits):
    monkeypatch.chdir(tmp_path)
    app(
        ["--bits", str(bits), "--format", "gptq", "--count", "1", "--reference", "0", "--solver", "rtn"],
        standalone_mode=False,
    )
    assert f"reader-w{bits}-gptq: " in capsys.readouterr().out
    config = json.loads((tmp_path / f"reader-w{bits}-gptq" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"]) == ("gptq", bits)
    assert [path.name for path in tmp_path.iterdir()] == [f"reader-w{bits}-gptq"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 5}, "--bits 5 is not possible; choose 4 or 8"),
        ({"quant_type": "fp4"}, "--quant-type fp4"),
        ({"solver": "magic"}, "--solver magic"),
        ({"group_size": 48}, "choose 16 or 32 or 64 or 128 or 256"),
        ({"group_size": 256}, "--group-size 256 does not divide the 128 inputs of model.visual.blocks.0.attn.qkv"),
        ({"vision_bits": 4}, "--vision-bits 4 is not possible; choose 8 or 16"),
        ({"head_bits": 5}, "--head-bits 5"),
        ({"count": 0}, "--count is 0"),
        ({"output": Path()}, r"--output \. is not a new folder; give the name of one"),
        ({"output": Path("..")}, r"--output \.\. is not a new folder"),
        ({"dtype": "float32"}, "--dtype float32"),
        ({"quant_type": "nf4", "bits": 8}, "--bits 8 is not possible with --quant-type nf4; choose 4"),
        ({"quant_type": "nf4", "group_size": 128}, "--group-size 128 is not possible with --quant-type nf4; choose 64"),
        (
            {"quant_type": "nf4", "vision_bits": 8},
            "--vision-bits 8 is not possible with --quant-type nf4; choose 4 or 16",
        ),
        ({"quant_type": "nf4", "head_bits": 8}, "--head-bits 8 is not possible with --quant-type nf4; choose 4 or 16"),
        (
            {"format": "gptq", "quant_type": "nf4"},
            "--format gptq is not possible with --quant-type nf4; choose bitsandbytes",
        ),
        (
            {"format": "bitsandbytes"},
            "--format bitsandbytes is not possible with --quant-type int; choose compressed-tensors or",
        ),
        ({"format": "gptq", "bits": 3}, "--bits 3 is not possible; choose 4 or 8"),
        ({"format": "gptq", "vision_bits": 8}, "--vision-bits 8 is not possible with --format gptq; choose 16"),
        ({"format": "gptq", "head_bits": 4}, "--head-bits 4 is not possible with --format gptq; choose 16"),
        ({"documents": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"documents": str(Path(__file__).parents[1] / "data")}, "tests/data"),  # no document in it
    ],
)
def test_settings_that_do_not_exist(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        quantize(Settings(READER, **{"output": tmp_path / "out"} | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (
            put("model.visual.patch_embed.proj.weight", float("inf")),
            None,
            r"patch_embed.proj.weight has NaN or infinite values; the checkpoint is damaged, download it again$",
        ),
        (lambda t: t.pop("lm_head.weight"), None, "has no tensor lm_head.weight"),
        (None, lambda c: c["text_config"].update(intermediate_size=512), "by config.json"),
        (None, lambda c: c.update(model_type="qwen3_vl"), "'qwen3_vl' is not supported"),
        (None, lambda c: c.update(quantization_config={}), "is quantized already"),
    ],
)
def test_checkpoints_that_cannot_be_quantized(tmp_path, tensors, config, says):
    model = reader_with(tmp_path / "model", tensors, config)
    with pytest.raises(InputError, match=says):
        quantize(Settings(model, tmp_path / "out", count=1, reference=0, vision_bits=16))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("mtp.norm.weight", float("inf"), "mtp.norm.weight has NaN or infinite values"),
        ("lm_head.weight", 1e5, "reaches 1e.05, which float16 cannot hold; use --dtype bfloat16"),
    ],
)
def test_a_checkpoint_found_damaged_near_its_end_keeps_what_is_finished(tmp_path, name, value, says):
    """The last tensors of a large model come hours after the first; once they are repaired, the run goes on."""
    model = reader_with(tmp_path / "model", put(name, value))
    weights = model / "model.safetensors"
    settings = Settings(model, tmp_path / "out", count=1, reference=0, vision_bits=16, solver="rtn")
    for _ in range(2):  # a new run, and one that goes on
        with pytest.raises(InputError, match=rf"{says}.*\(.*out.partial keeps what is finished: the same command"):
            quantize(settings)
        assert (tmp_path / "out.partial" / "model-00001.writing").stat().st_size > weights.stat().st_size / 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none():
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no CUDA device here; use --device cpu"):
        Settings(READER, device="cuda")


def test_bfloat16_holds_what_float16_cannot(tmp_path):
    """In a norm, which stays in 16 bits, whatever the settings."""
    name = "mtp.norm.weight"
    model = reader_with(tmp_path / "model", put(name, 1e5))
    quantize(Settings(model, tmp_path / "out", count=1, reference=0, vision_bits=16, dtype="bfloat16", solver="rtn"))
    stored = open_checkpoint(tmp_path / "out").load(name)
    assert stored.dtype == torch.bfloat16
    assert stored[5] == 99840  # 195 * 2**9: the nearest to 1e5 that has 8 bits


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", r"tokenizer\.json"),
        ("preprocessor_config.json", r"preprocessor_config\.json: no such file"),
    ],
)
def test_a_folder_without_tokenizer_or_processor(tmp_path, missing, message):
    model = reader_with(tmp_path / "model")
    (model / missing).unlink()
    with pytest.raises(InputError, match=message):
        quantize(Settings(model, tmp_path / "out", count=1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_wrong_end_token_is_refused_before_anything_is_quantized(tmp_path):
    model = reader_with(tmp_path / "model")
    (model / "generation_config.json").write_text('{"eos_token_id": 512}')
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id is 512; write a token id"):
        quantize(Settings(model, tmp_path / "out", count=1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_before_the_first_file_and_one_after_the_last(tmp_path, monkeypatch):
    settings = Settings(READER, tmp_path / "out", count=1, solver="rtn", reference=0)
    (tmp_path / "out.partial").mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as late, pytest.raises(KeyboardInterrupt):
        late.setattr("quantize.output._tidy", killed)
        quantize(settings)
    assert {".lock", ".journal.json", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert quantize(settings) is None
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith((".", "activations"))]


def test_documents_that_changed_while_a_run_was_stopped(tmp_path, monkeypatch, capsys):
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(12):
        Image.new("RGB", (112, 112), (20 * i, 90, 90)).save(pages / f"{i}.png")
    settings = Settings(READER, tmp_path / "out", documents=str(pages), count=12, solver="rtn", reference=0)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as middle, pytest.raises(KeyboardInterrupt):
        middle.setattr("quantize.pipeline.Pipeline._decoder_layer", stopped)
        quantize(settings)
    assert re.search(r"^\d documents instead of 12 \(.*pages has no more for calibration, ", capsys.readouterr().err)
    calibrated = next(document.name for document in open_documents(str(pages), split="calibration", count=12))
    original = (pages / calibrated).read_bytes()
    Image.new("RGB", (112, 112), (1, 2, 3)).save(pages / calibrated)  # of the same size: nothing else would notice
    partial = tmp_path / "out.partial"
    instead = f"restore them, or give another --output or remove {partial}"
    with pytest.raises(InputError, match=f"^the documents of {pages} have changed since this run began; {instead}$"):
        quantize(settings)
    (pages / calibrated).write_bytes(original)
    assert quantize(settings) is not None


def test_a_stopped_run_whose_files_are_gone_says_to_begin_again(tmp_path, monkeypatch):
    """And not that the same command goes on; nothing is removed by itself."""
    settings = Settings(READER, tmp_path / "out", count=1, solver="rtn", reference=0)
    partial = tmp_path / "out.partial"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as middle, pytest.raises(KeyboardInterrupt):
        middle.setattr("quantize.pipeline.Pipeline._decoder_layer", stopped)
        quantize(settings)
    states = json.loads((partial / ".journal.json").read_text())["states"]["calibration"]["file"]
    for name in (states, "model-00001.writing"):
        whole = (partial / name).read_bytes()
        (partial / name).write_bytes(whole[:-1])
        says = f"^{partial / name} is missing or truncated; remove {partial} and begin again$"
        with pytest.raises(InputError, match=says):
            quantize(settings)
        (partial / name).write_bytes(whole)
    assert quantize(settings) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist there only")
def test_a_calibration_folder_whose_name_is_not_utf_8(tmp_path):
    pages = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xc7\xd1"))
    pages.mkdir()
    for i in range(4):
        Image.new("RGB", (56, 56), (i, 90, 90)).save(pages / f"{i}.png")
    settings = Settings(READER, tmp_path / "out", documents=str(pages), count=1, solver="rtn", reference=0)
    assert quantize(settings) is not None
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["settings"]["documents"] == str(pages)


def contents(folder):
    """All bytes of a folder, but for the times, which no two runs share."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "quantization_times.json"}


def test_a_run_killed_again_and_again_makes_the_same_folder(tmp_path, monkeypatch, capsys):
    """SIGKILL to the real command when it has done a few more steps, and some part of the next: solving, writing."""
    model, chance = half_of_the_reader(tmp_path / "model"), random.Random(0)
    options = ["--count", "2", "--reference", "2", "--vision-bits", "16", "--model", model]
    run = in_process("quantize", app, capsys, monkeypatch)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # as in the processes: sums depend on it
    code, _, err = run(*options, "--output", "whole")
    assert code == 0, err
    seconds = [step["seconds"] for step in json.loads((tmp_path / "whole" / TIMES).read_text())["steps"]]
    partial, done, kills = tmp_path / "out.partial", 0, 0
    arguments = [sys.executable, "-m", "quantize", *map(str, options), "--output", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for wanted in (1, 8):  # of 12 steps: the last kill must come before the folder has its name
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and done < wanted:
            time.sleep(0.005)
            with contextlib.suppress(FileNotFoundError):
                done = len(json.loads((partial / ".journal.json").read_text())["steps"])
        time.sleep(chance.random() * seconds[wanted])
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    code, _, err = run(*options, "--output", "out")
    assert code == 0, err
    assert "steps are done, resuming" in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "whole"]


def test_a_full_disk_while_hidden_states_are_laid_out(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = Settings(READER, tmp_path / "out", count=1, reference=0, vision_bits=16, solver="rtn")
    with monkeypatch.context() as disk, pytest.raises(InputError, match="disk is full"):
        disk.setattr(os, "posix_fallocate", full)
        quantize(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert quantize(settings) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
