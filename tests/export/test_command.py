"""`python -m export`: what it prints, what it refuses, and its messages."""

import shutil
import subprocess
import sys

import pytest
from transformers import Exaone4Config, Exaone4ForCausalLM

from calib_data import READER
from quantize.pipeline import quantize
from quantize.settings import Settings


def assert_one_line(result: tuple[int, str, str], says: str) -> None:
    """Wrong input ends in one line on stderr, exit code 2 and nothing else."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_it_exports_and_says_what_comes_next(command, untraced, quantized, tmp_path):
    folder = tmp_path / "w4[1]"  # as a browser names a second copy; no markup
    shutil.copytree(quantized("w4"), folder, ignore=shutil.ignore_patterns("*.onnx", "runtime.json"))
    code, out, err = command("--model", folder)
    assert code == 0, err
    title = " ".join(out.partition("┏")[0].split())
    assert title.endswith("cpu, float32 activations, int8 where weights are packed, float32 KV cache")
    for name in ("decoder", "vision", "mtp", "rewind", "mtp_rewind"):
        assert f" {name}.cpu.onnx" in out
    assert out.splitlines()[-1] == f"python -m runtime generate --model {folder} --image FILE"


def test_a_model_of_text_is_asked_without_a_picture(command, untraced, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Exaone4Config(
        vocab_size=96, num_hidden_layers=1, sliding_window=None, layer_types=["full_attention"], **sizes
    )
    Exaone4ForCausalLM(config).save_pretrained(tmp_path)
    code, out, _ = command("--model", tmp_path)
    assert code == 0
    assert out.splitlines()[-1:] == [f"python -m runtime generate --model {tmp_path} --prompt QUESTION"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--device", "tpu"], "'tpu'"),
        (["--block-size", "32"], "--block-size 32: is for CUDA kernels; leave it out, or give --device cuda"),
        (["--device", "cuda", "--block-size", "64"], "'64'"),
        (["--device", "cuda", "--exact"], "--exact: has no effect on CUDA graphs"),
        (["--bits", "4"], "--bits"),
    ],
)
def test_wrong_input_is_one_line(arguments, says, command):
    assert_one_line(command(*arguments), says)


def test_a_format_for_other_tools_is_refused_with_the_command_to_run(command, tmp_path):
    folder = tmp_path / "gptq"
    quantize(Settings(READER, folder, format="gptq", solver="rtn", count=1, reference=0))
    before = sorted(folder.iterdir())
    code, out, err = command("--model", folder)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {folder}: stored as qweight (GPTQ or AWQ), a format for other tools; for a folder to export, run on "
        "the original checkpoint: python -m quantize --model ORIGINAL --bits 4\n"
    )
    assert sorted(folder.iterdir()) == before


def test_without_torch_it_says_what_to_install(tmp_path):
    script = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_module('export', run_name='__main__')"
    arguments = [sys.executable, "-c", script, "--model", tmp_path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the package torch is not installed; run: pip install '.[quantize]'\n"
