"""What rules a question out is said before weights are read; what surely needs them says early that they are broken."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from .commands import ENVIRONMENT, assert_one_line
from .damage import edit_json, set_context


@pytest.fixture
def broken(copied):
    """A folder whose every graph is damaged: whoever opens one hears of it."""
    for graph in copied.glob("*.onnx"):
        graph.write_bytes(b"\x08\x0abroken" * 99)
    return copied


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (112, 56), "white").save(tmp_path / "page.png")
    return tmp_path / "page.png"


def text_only(folder):
    path = folder / "runtime.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vision": None}))


def without_mtp(folder):
    path = folder / "runtime.json"
    (name, target), *_ = json.loads(path.read_text())["targets"].items()
    edit_json(path, targets={name: {**target, "mtp": None}})


RULED_OUT = {
    "a picture for a model of text": (text_only, "this model reads no images", "--image", "page.png"),
    "drafts without a layer for them": (without_mtp, "no MTP layer to draft with", "--draft-tokens", 2),
    "a prompt beyond the context": (lambda folder: set_context(folder, 10), "the model's context is 10; shorten it"),
    "an impossible recommendation": (
        lambda folder: edit_json(folder / "generation_config.json", top_p=7),
        "generation_config.json: top_p is 7; write a number above 0",
    ),
    "a place without a picture": (
        lambda folder: None,
        "remove <|image_pad|> from the text",
        "--prompt",
        "<|image_pad|>",
    ),
    "a budget without reasoning": (lambda folder: None, "without --thinking; add it", "--thinking-budget", 5),
    "a budget as long as the answer": (
        lambda folder: None,
        "--thinking-budget 20: leaves no tokens for the answer",
        *("--thinking", "--thinking-budget", 20, "--max-new-tokens", 20),
    ),
    "a budget for a template without reasoning": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "does not show how reasoning ends",
        *("--thinking", "--thinking-budget", 5),
    ),
    "an end token beyond the vocabulary": (
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=512),
        "generation_config.json: eos_token_id is 512; write a token id",
    ),
    "an option without effect": (
        lambda folder: edit_json(folder / "generation_config.json", do_sample=False),
        "have no effect as this model is greedy",
        "--top-k",
        5,
    ),
}


@pytest.mark.parametrize("case", RULED_OUT)
def test_what_is_ruled_out_needs_no_weights(case, command, broken, picture, monkeypatch):
    change, says, *arguments = RULED_OUT[case]
    change(broken)
    monkeypatch.chdir(picture.parent)
    assert_one_line(command("generate", "--model", broken, "--prompt", "Read the text.", *arguments), says)


def test_evaluate_needs_no_weights_to_refuse_a_model_of_text(command, broken):
    text_only(broken)
    result = command("evaluate", "--model", broken, "--count", 1, "--kind", "line")
    assert_one_line(result, "this model reads text only")


@pytest.mark.parametrize("drafts", [0, 2])
def test_the_decoder_is_loaded_before_a_picture_is_read(drafts, command, broken, picture):
    """Also the layer that drafts."""
    result = command("generate", "--model", broken, "--image", picture, "--draft-tokens", drafts)
    assert_one_line(
        result,
        "mtp.cpu.onnx" if drafts else "decoder.cpu.onnx",
        "is damaged, or of another export; run python -m export again",
    )


@pytest.mark.parametrize("arguments", [("evaluate", "--model"), ("compare", "--baseline")])
def test_documents_are_not_read_before_the_decoder_is_loaded(arguments, command, broken):
    models = [*arguments, broken, *(["--model", broken] if arguments[0] == "compare" else [])]
    result = command(*models, "--count", 1, "--kind", "line")
    assert_one_line(result, "decoder.cpu.onnx", "is damaged, or of another export; run python -m export again")


COSTS = """
import json, sys
from pathlib import Path
from runtime.compare.measuring.models import Models
folder = Path(sys.argv[1])
print(json.dumps([(cost.resident, cost.weights) for cost in Models(folder, (folder, folder), "cpu").load().costs]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere resident memory is not told")
def test_the_memory_that_compare_tells_has_the_weights_in_it(exported):
    """The CPU's graphs hold weights of 16 bits as 32; of all weights more than half are the decoder's."""
    done = subprocess.run(
        [sys.executable, "-c", COSTS, str(exported("fp16"))],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    )
    costs = json.loads(done.stdout)
    assert len(costs) == 3
    assert all(resident > weights for resident, weights in costs)


@pytest.mark.parametrize("graph", ["decoder", "vision", "mtp", "rewind"])
def test_a_graph_of_another_export_is_refused(graph, command, exported, copied, picture):
    """It may load, and read these weights as others: as int8, or at other offsets."""
    path = copied / f"{graph}.cpu.onnx"
    path.write_bytes((exported("nf4") / path.name).read_bytes() + b"\x40\x01")
    result = command("generate", "--model", copied, "--image", picture, "--draft-tokens", 2)
    assert_one_line(result, f"{path}: is damaged, or of another export; run python -m export again")
