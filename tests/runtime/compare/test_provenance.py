"""Which changes of a folder change its fingerprint, and which do not."""

import json
import shutil

import pytest

from runtime.compare.provenance import fingerprint

from ..damage import edit_json


@pytest.mark.parametrize(
    "name",
    [
        "additional_chat_templates/default.jinja",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "decoder.cpu.onnx",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "quantization_report.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vision.cpu.onnx",
    ],
)
def test_every_file_that_is_read_changes_it(copied, name):
    before = fingerprint(copied, "cpu")
    (copied / name).parent.mkdir(exist_ok=True)
    with (copied / name).open("ab") as file:
        file.write(b" ")
    assert fingerprint(copied, "cpu") != before


def test_its_manifest_changes_it(copied):
    path = copied / "runtime.json"
    before, described = fingerprint(copied, "cpu"), json.loads(path.read_text())
    edit_json(path, text=described["text"] | {"context": 64})
    other = fingerprint(copied, "cpu")
    edit_json(path, text=described["text"], targets={"cpu": described["targets"]["cpu"] | {"exact": False}})
    assert len({before, other, fingerprint(copied, "cpu")}) == 3


def test_graphs_for_another_device_do_not(copied):
    path = copied / "runtime.json"
    before, targets = fingerprint(copied, "cpu"), json.loads(path.read_text())["targets"]
    for part in ("decoder", "vision"):
        shutil.copy(copied / f"{part}.cpu.onnx", copied / f"{part}.cuda.onnx")
    cuda = targets["cpu"] | {"dtype": "float16", "decoder": "decoder.cuda.onnx", "vision": "vision.cuda.onnx"}
    edit_json(path, targets=targets | {"cuda": cuda})
    assert set(json.loads((copied / "runtime.json").read_text())["targets"]) == {"cpu", "cuda"}
    assert fingerprint(copied, "cpu") == before
    assert fingerprint(copied, "cuda") != before


def test_a_comparison_in_a_candidates_own_folder_resumes(command, exported, copied):
    arguments = "--baseline", exported("fp16"), "--model", copied, "--count", 1, "--max-drop-anls", 1
    assert command("compare", *arguments, "--output", copied)[0] == 0
    assert (copied / "compare.json").is_file()
    code, _, err = command("compare", *arguments, "--output", copied)
    assert (code, err) == (0, "resumed: 1 of 1 documents are done\n")
