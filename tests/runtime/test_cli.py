"""`python -m runtime generate` as a user meets it: what it prints, and one line for everything that can be wrong."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.prompt import build_prompt

from .commands import ENVIRONMENT, assert_one_line, generated, process
from .damage import WEIGHTS, change_tensor, edit_json, set_context


def text_file(path):
    path.write_text("This is not a picture.")


def truncated_jpeg(path):
    Image.effect_noise((400, 300), 80).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:9000])


def bomb(path):
    Image.new("1", (20000, 20000)).save(path, "PNG")


def strip(path):
    Image.new("L", (3000, 5)).save(path, "PNG")


IMAGES = {
    "missing": (lambda path: None, "no such file"),
    "text": (text_file, "is not an image"),
    "empty": (lambda path: path.touch(), "is not an image"),
    "truncated": (truncated_jpeg, "cannot be read as an image"),
    "folder": (lambda path: path.mkdir(), "is a directory"),
    "bomb": (bomb, "exceeds limit of 178956970 pixels"),
    "strip": (strip, "3000 x 5 pixels, one side is more than 200 times the other"),
}

NO_DRAFTS, TWO_DRAFTS = ("--draft-tokens", 0), ("--draft-tokens", 2)

ARGUMENTS = {
    ("--temperature", "-0.5"): "--temperature -0.5: must be 0",
    ("--temperature", "nan"): "--temperature nan",
    ("--temperature", "hot"): "--temperature",
    ("--top-p", "1.5"): "--top-p 1.5: must be above 0 and at most 1",
    ("--top-p", "0"): "--top-p 0.0",
    ("--top-k", "-1"): "--top-k -1",
    ("--presence-penalty", "3"): "--presence-penalty 3.0",
    ("--seed", "-1"): "--seed -1",
    ("--max-new-tokens", "0"): "--max-new-tokens",
    ("--device", "tpu"): '--device tpu: write "cpu"',
    ("--device", "cuda"): "not exported for cuda; run: python -m export --model",
    ("--memory-limit", "20"): "--memory-limit: is for a GPU; give --device cuda too",
    ("--cuda-graph",): "--cuda-graph: is for a GPU; give --device cuda too",
    (
        "--device",
        "cuda",
        "--cuda-graph",
        "--draft-tokens",
        "2",
    ): "--cuda-graph, --draft-tokens: only single steps",
    ("--draft-tokens", "9"): "--draft-tokens 9: write auto, or a number from 0 to 8",
    ("--draft-tokens", "two"): "--draft-tokens two: write auto",
    ("--prompt", ""): "--prompt: is empty; write a question",
    ("--prompt", " \n"): "--prompt: is empty; write a question",
    ("--prompt", "\u200b"): "--prompt: is empty; write a question",
    ("--prompt", "a\udcff"): r"'a\udcff' is not valid UTF-8",
    ("--prompt", "<|image_pad|>"): "remove <|image_pad|> from the text",
    ("--modle", "x"): "No such option: --modle",
}


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def flip_header_byte(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[content.index(b"F16")] = ord("B")
    (folder / WEIGHTS).write_bytes(content)


def no_end_token(folder):
    edit_json(folder / "generation_config.json", eos_token_id=None)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**config["text_config"], "eos_token_id": None})


def other_format(folder):
    edit_json(folder / "runtime.json", format=1, text={})


def unreadable(folder):
    """A file that root, too, cannot read: the first byte of a process's memory."""
    if sys.platform != "linux":
        pytest.skip("there is no such file")
    (folder / "runtime.json").unlink()
    (folder / "runtime.json").symlink_to("/proc/self/mem")


def a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


FOLDERS = {
    "gone": (shutil.rmtree, "no such folder"),
    "a file": (a_file, "is a file, not a folder"),
    "no model": (lambda folder: (folder / "config.json").unlink(), "has no config.json; give a model folder"),
    "not exported": (lambda folder: (folder / "runtime.json").unlink(), "not exported yet; run: python -m export"),
    "broken runtime.json": (write("runtime.json", b'{"format": 1, '), "runtime.json: is not valid JSON"),
    "runtime.json not readable": (unreadable, "runtime.json: cannot be read (Input/output error), run python -m"),
    "runtime.json of another kind": (write("runtime.json", b"[1]"), "runtime.json: is not a JSON object"),
    "runtime.json of another version": (
        other_format,
        "runtime.json: format 1, this version reads 6; run python -m export again",
    ),
    "weights changed": (flip_header_byte, f"{WEIGHTS}: changed since"),
    "weights truncated": (lambda folder: os.truncate(folder / WEIGHTS, 2_000_000), f"{WEIGHTS}: changed since"),
    "weights cut in the header": (lambda folder: os.truncate(folder / WEIGHTS, 100), f"{WEIGHTS}: truncated"),
    "weights empty": (write(WEIGHTS, b""), f"{WEIGHTS}: cannot be read"),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: no such file; copy it from where"),
    "graph gone": (lambda folder: (folder / "decoder.cpu.onnx").unlink(), "decoder.cpu.onnx is missing; run:"),
    "graph damaged": (write("decoder.cpu.onnx", b"\x08\x0abroken" * 99), "decoder.cpu.onnx: is damaged, or of another"),
    "tokenizer gone": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "generation settings broken": (
        write("generation_config.json", b"[]"),
        "generation_config.json: is not a JSON",
    ),
    "no end token": (no_end_token, "generation_config.json: has no eos_token_id"),
    "wrong end token": (
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id="</s>"),
        "eos_token_id is '</s>'",
    ),
    "impossible recommendation": (
        lambda folder: edit_json(folder / "generation_config.json", top_p=7),
        "generation_config.json: top_p is 7; write a number above 0",
    ),
    "NaN weight": (
        lambda folder: change_tensor(folder, "model.language_model.norm.weight", lambda weight: weight * np.nan),
        "NaN or infinite numbers, its weights are damaged or overflow in float16; quantize the checkpoint again with "
        "--dtype bfloat16",
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_cannot_be_used_is_named(case, command, exported, tmp_path):
    make, says = IMAGES[case]
    make(tmp_path / "page.png")
    result = command("generate", "--model", exported("fp16"), "--image", tmp_path / "page.png")
    assert_one_line(result, str(tmp_path / "page.png"), says)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=ascii)
def test_a_wrong_argument_is_named(arguments, command, exported):
    model = exported("fp16")
    before = sorted(model.iterdir())
    assert_one_line(command("generate", "--model", model, "--prompt", "Hello", *arguments), ARGUMENTS[arguments])
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize("case", FOLDERS)
def test_a_damaged_folder_is_named(case, command, copied):
    damage, says = FOLDERS[case]
    damage(copied)
    assert_one_line(command("generate", "--model", copied, "--prompt", "Hello", "--max-new-tokens", 1), says)


def test_a_prompt_longer_than_the_context(command, copied, picture):
    set_context(copied, 40)
    result = command("generate", "--model", copied, "--image", picture, "--prompt", "Read the text. " * 10)
    assert_one_line(result, "prompt: ", " tokens, but the model's context is 40; shorten it")


def test_cuda_where_there_is_none(command, copied):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    targets = json.loads((copied / "runtime.json").read_text())["targets"]
    edit_json(copied / "runtime.json", targets={**targets, "cuda": {**targets["cpu"], "dtype": "float16"}})
    assert_one_line(
        command("generate", "--model", copied, "--prompt", "Hello", "--device", "cuda"),
        "CUDA was asked for but",
        "install",
    )
    assert command("generate", "--model", copied, "--prompt", "Hello", "--max-new-tokens", 1)[0] == 0


def test_bad_input_ends_a_process_too(copied, picture):
    """The same through real processes; the default model, `reader-w4`, is not in this folder."""
    folder = picture.parent
    text_file(folder / "page.jpg")
    cases = {
        ("--prompt", "Hello"): "reader-w4: no such folder",
        ("--model", copied, "--image", "line.png", "--image", "page.jpg"): "page.jpg: is not an image",
    }
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda arguments: process("generate", *arguments, cwd=folder), cases))
    for result, says in zip(results, cases.values(), strict=True):
        assert_one_line((result.returncode, result.stdout, result.stderr), says)


def test_control_c_ends_in_one_line(copied, tmp_path):
    edit_json(copied / "generation_config.json", eos_token_id=0)  # padding, which no answer contains
    arguments = ["generate", "--model", copied, "--prompt", "Hello", "--temperature", "0", "--max-new-tokens", "30000"]
    with subprocess.Popen(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout.read(1)  # it has begun to write
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == b"interrupted\n"


def test_drafts_change_the_calls_and_not_the_text(command, exported, picture):
    arguments = ["--model", exported("w4"), "--image", picture, "--max-new-tokens", 30]
    plain, drafted, auto = (generated(command, *arguments, *drafts) for drafts in (NO_DRAFTS, TWO_DRAFTS, ()))
    assert auto["tokens"] == drafted["tokens"] == plain["tokens"]
    for answer in (auto, drafted):
        assert 0 <= answer["draft_acceptance"] <= 1
        assert 1 <= answer["decoder_calls"] <= len(plain["tokens"])
    assert 1.5 < drafted["draft_tokens"] <= 2  # at the end of an answer there is capacity for fewer
    assert 0 < auto["draft_tokens"] < 3  # plain steps, too
    seeded = generated(command, *arguments, "--seed", 1)  # auto depends on time, and this asks for the same again
    for answer in (plain, seeded):
        assert not {"decoder_calls", "draft_tokens", "draft_acceptance"} & answer.keys()


def test_a_model_without_a_layer_that_drafts_answers_as_before(command, copied, picture):
    (copied / "mtp.cpu.onnx").unlink()
    target = json.loads((copied / "runtime.json").read_text())["targets"]["cpu"]
    edit_json(copied / "runtime.json", targets={"cpu": {**target, "mtp": None}})
    arguments = ["--model", copied, "--image", picture, "--max-new-tokens", 30]
    assert generated(command, *arguments).keys() == generated(command, *arguments, *NO_DRAFTS).keys()


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_streamed_text_is_that_of_json(images, thinking, command, exported, reader, picture):
    """Also: one JSON object and nothing else on stdout."""
    asked = ["--image", picture] * images or ["--prompt", "Read the text."]
    arguments = ["--model", exported("w4"), *asked, "--seed", 3, "--max-new-tokens", 30]
    arguments.append("--thinking" if thinking else "--no-thinking")
    answer = generated(command, *arguments)
    code, out, err = command("generate", *arguments)
    cut = "stopped after 30 tokens; --max-new-tokens allows more, up to the model's context\n"
    assert (code, err) == (0, cut if answer["finish"] == "length" else "")
    reasoned = thinking and reader.chat.think_end_id in answer["tokens"]
    assert out == answer["reasoning"] + ("\n</think>\n\n" if reasoned else "") + answer["text"] + "\n"
    assert 0 < len(answer["tokens"]) <= 30
    assert answer["first_token_seconds"] > 0


def test_greedy_is_that_of_the_model(command, exported, reader, picture):
    with Image.open(picture) as image:
        prompt = build_prompt(reader, "Read the text.", [image])
    expected = list(generate(reader, prompt, greedy, 20))
    arguments = "--model", exported("fp16"), "--image", picture, "--max-new-tokens", 20, "--temperature", 0
    answer = generated(command, *arguments)
    assert answer["tokens"] == expected
    assert answer["prompt_tokens"] == len(prompt.ids)
    assert answer["text"] == reader.chat.decode(expected).strip()


def test_a_seed_gives_the_same_answer_again(command, exported):
    hot = "--temperature", 5, "--top-p", 1, "--top-k", 0, "--max-new-tokens", 20
    arguments = "--model", exported("fp16"), "--prompt", "Hello", *hot
    first, again, other = (generated(command, *arguments, "--seed", seed)["tokens"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_generation_settings_without_effect_are_named(command, copied):
    """One line for each folder: what nothing here follows, and what is decided by options, or is greedy always."""
    path = copied / "generation_config.json"
    edit_json(path, do_sample=True, temperature=0.6, bad_words_ids=[[100]], min_new_tokens=4, suppress_tokens=[])
    ignored = f"{path}: ignored, not supported: bad_words_ids, min_new_tokens 4"
    asked = "--model", copied, "--prompt", "Hello", "--max-new-tokens", 1
    assert command("generate", *asked, "--json")[2] == f"{ignored}\n"
    assert command("generate", *asked, "--json", "--temperature", 0)[2] == (
        f"{ignored}; not used: do_sample True, temperature 0.6\n"
    )
    edit_json(path, do_sample=False)
    assert command("generate", *asked, "--json")[2] == f"{ignored}; not used: temperature 0.6\n"
    edit_json(path, do_sample=True)
    greedy_always = f"{ignored}; not used: do_sample True\n"
    assert command("evaluate", "--model", copied, "--count", 1, "--kind", "line", "--json")[2] == greedy_always
    models = "--baseline", copied, "--model", copied
    assert command("compare", *models, "--count", 1, "--kind", "line", "--json")[2] == 2 * greedy_always


def test_a_spent_budget_is_said(command, exported):
    budget = "--thinking", "--thinking-budget", 2, "--temperature", 0, "--max-new-tokens", 40
    asked = "--model", exported("fp16"), "--prompt", "Hello", *budget
    code, out, err = command("generate", *asked)
    assert code == 0
    assert "</think>\n\n" in out
    # The line break that the template writes before </think> is the third.
    assert err.startswith("--thinking-budget: ended the reasoning after 3 tokens\n")


def test_nothing_to_answer(command, exported):
    assert_one_line(command("generate", "--model", exported("fp16")), "give --image or --video to read, or a --prompt")


def test_without_a_command_there_is_help(command):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert all(name in out for name in ("generate", "evaluate", "compare"))
