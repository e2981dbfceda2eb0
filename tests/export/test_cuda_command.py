"""The commands with CUDA graphs on a stand-in device: answers, and one-line errors where CUDA cannot be used."""

import json
import shutil
import subprocess

import pytest
from PIL import Image

from console.errors import InputError
from runtime.model import Model

from ..cuda_stub.build import CudaStub

ANSWER = """
import json, sys
from pathlib import Path
from runtime.decoding.generate import generate
from runtime.prompt import build_prompt
from runtime.model import Model
model = Model(Path(sys.argv[1]), "cuda")
print(json.dumps([model.target.dtype, len(list(generate(model, build_prompt(model, "Hello"), lambda *_: 100, 3)))]))
"""


def test_bfloat16_with_an_int8_cache_answers(cuda_stub, on_cuda):
    """Its hidden states are looked at on the host, where numpy has no bfloat16."""
    assert cuda_stub.run(ANSWER, on_cuda("bf16-kv8")) == ["bfloat16", 3]


COMMAND = """
import json, subprocess, sys
done = subprocess.run([sys.executable, "-m", "runtime", *sys.argv[1:]], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""


@pytest.mark.parametrize(
    ("options", "drafts"), [(("--draft-tokens", "2"), True), ((), True), (("--cuda-graph",), False)]
)
def test_a_command_prints_its_answer_and_nothing_else(options, drafts, cuda_stub, on_cuda, tmp_path):
    """With every graph open: decoder, vision, and by default MTP layer and what takes drafts back."""
    Image.new("RGB", (56, 56)).save(tmp_path / "page.png")
    asked = "--image", tmp_path / "page.png", *options, "--max-new-tokens", "5"
    code, out, err = cuda_stub.run(COMMAND, "generate", "--model", on_cuda("w4"), "--device", "cuda", *asked, "--json")
    assert code == 0
    assert err.startswith("cuDNN 9 is not installed: prompts use ONNX Runtime's own kernels")  # the stand-in has none
    assert err.count("\n") == 1
    assert json.loads(out)["model"] == str(on_cuda("w4"))
    assert ("decoder_calls" in json.loads(out)) == drafts


@pytest.mark.parametrize(
    ("options", "drafts"), [(("--draft-tokens", "2"), True), ((), True), (("--cuda-graph",), False)]
)
def test_lines_of_a_file_are_answered_on_the_engine(options, drafts, cuda_stub, on_cuda, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "Who?"}\n')
    asked = "--input", tmp_path / "questions.jsonl", *options, "--max-new-tokens", "5"
    code, out, err = cuda_stub.run(COMMAND, "generate", "--model", on_cuda("w4"), "--device", "cuda", *asked)
    assert (code, err.count("\n")) == (0, 1)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["Hello", "Who?"]
    assert ["decoder_calls" in answer for answer in answers] == [drafts] * 2


LOAD = """
import json, sys
from pathlib import Path
from console.errors import InputError
from runtime.model import Model
try:
    Model(Path(sys.argv[1]), sys.argv[2])
except InputError as error:
    print(json.dumps(str(error)))
"""


WITHOUT_WHEELS = """
import onnxruntime
onnxruntime.preload_dlls = lambda: None  # NVIDIA's wheels may be there, and would be looked into
"""


def test_a_library_that_does_not_load_is_named(cuda_stub, on_cuda, tmp_path):
    """With a driver, and all of CUDA but one library. It is empty: one that is not there may be elsewhere."""
    folder = tmp_path / "libraries"
    shutil.copytree(cuda_stub.folder, folder)
    (folder / "libcurand.so.10").write_bytes(b"")
    said = CudaStub(folder).run(WITHOUT_WHEELS + LOAD, on_cuda("w4"), "cuda")
    assert "libcurand.so.10: file too short" in said
    assert "\n" not in said


@pytest.mark.parametrize("number", [1, 99999999999])
def test_a_gpu_that_is_not_there_is_one_line(number, cuda_stub, on_cuda):
    said = cuda_stub.run(LOAD, on_cuda("w4"), f"cuda:{number}")
    assert said == f"--device cuda:{number}: there is no such GPU; the last is cuda:0"


def test_a_driver_that_finds_no_gpu_is_one_line(cuda_stub, on_cuda, tmp_path):
    folder = tmp_path / "libraries"
    shutil.copytree(cuda_stub.folder, folder)
    (folder / "none.c").write_text("int cuInit(unsigned flags) { return 100; }\n")
    subprocess.run(["gcc", "-shared", "-o", folder / "libcuda.so.1", folder / "none.c"], check=True)
    said = CudaStub(folder).run(LOAD, on_cuda("w4"), "cuda")
    assert said.startswith("CUDA was asked for but the NVIDIA driver reports no GPU (error 100); ")
    assert "\n" not in said


UNSTARTED = """
import contextlib, io, json, sys
from pathlib import Path
from console.errors import InputError
from runtime.ort.device import Device
from runtime.ort.sessions import Options, open_session

with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        open_session(Path(sys.argv[1]) / "decoder.cuda.onnx", Device("cuda"), Options(memory_limit=-1))
    except InputError as error:
        said = str(error)
print(json.dumps([said, printed.getvalue()]))
"""


def test_a_provider_that_does_not_start_says_why_in_one_line(cuda_stub, on_cuda):
    """ONNX Runtime would print the reason and load the graph on the CPU. --memory-limit is checked before that."""
    said, printed = cuda_stub.run(UNSTARTED, on_cuda("w4"))
    assert said.startswith("cuda was asked for but ONNX Runtime could not start it (")
    assert 'Failed to parse provider option "gpu_mem_limit"' in said
    assert "\n" not in said
    assert printed == ""


def test_cuda_without_a_driver_is_one_line(on_cuda):
    folder = on_cuda("w4")
    with pytest.raises(InputError, match="use --device cpu"):
        Model(folder, "cuda")
    with pytest.raises(InputError, match="--device cpu"):
        Model(folder, "cpu")
