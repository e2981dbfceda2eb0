"""How long an answer may be: up to its own end, the context's, and that of memory."""

import re
import subprocess
import sys

import pytest

from .commands import ENVIRONMENT, generated, process
from .damage import edit_json, set_context


def test_an_answer_ends_with_the_context(command, copied):
    edit_json(copied / "generation_config.json", eos_token_id=0)  # padding, which no answer contains
    arguments = "--model", copied, "--prompt", "Hello", "--temperature", 0
    prompt_tokens = generated(command, *arguments, "--max-new-tokens", 1)["prompt_tokens"]
    set_context(copied, prompt_tokens + 7)
    assert len(generated(command, *arguments)["tokens"]) == 7
    full = f"stopped after 7 tokens; the model's context of {prompt_tokens + 7} is full\n"
    assert command("generate", *arguments)[2] == full
    assert command("generate", *arguments, "--max-new-tokens", 7)[2] == full
    more = "stopped after 6 tokens; --max-new-tokens allows more, up to the model's context\n"
    assert command("generate", *arguments, "--max-new-tokens", 6)[2] == more


def test_an_empty_answer(command, copied):
    arguments = "--model", copied, "--prompt", "Hello", "--temperature", 0
    cut = generated(command, *arguments, "--max-new-tokens", 1)
    first = cut["tokens"]
    assert cut["finish"] == "length"
    edit_json(copied / "generation_config.json", eos_token_id=[1, *first])
    answer = generated(command, *arguments)
    assert answer["finish"] == "end"
    assert (answer["text"], answer["tokens"]) == ("", [])
    assert answer["first_token_seconds"] is answer["tokens_per_second"] is None
    assert command("generate", *arguments) == (0, "\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_AS is not kept to")
def test_a_cache_that_does_not_fit_is_one_line(copied):
    """Four GiB for a process that maps one or two, and an answer whose cache takes more."""
    set_context(copied, 1 << 22)
    ended = process(
        "generate", "--model", copied, "--prompt", "Hello", "--max-new-tokens", 3_000_000, cwd=copied, memory=4 << 30
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(
        r"error: out of memory for the KV cache of 30000\d\d tokens, 5\d\d\d MiB; shorten the prompt, "
        r"lower --max-new-tokens, or export with --kv-bits 8 where it was not\n",
        ended.stderr,
    )


LOAD = """
import resource, sys
from pathlib import Path
from console.errors import InputError
from runtime.ort.device import Device
from runtime.ort.sessions import Options, open_session

mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (8 << 20),) * 2)
try:
    open_session(Path(sys.argv[1]), Device("cpu"), Options(threads=1))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_AS is not kept to")
def test_a_graph_that_does_not_fit_need_not_be_exported_again(exported):
    graph = exported("fp16") / "decoder.cpu.onnx"
    command = [sys.executable, "-c", LOAD, str(graph)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith(f"out of memory for the weights of {graph}")
    assert "export" not in ended.stdout.split(str(graph))[1]
    assert ended.stderr == ""
