"""Whatever a JSON file of an exported folder holds, the folder loads or one line says what is wrong."""

import json

import pytest

from console.errors import InputError
from runtime.answer import answer_settings
from runtime.compare.layers import check_layers
from runtime.inputs.images import ImageSettings
from runtime.inputs.video import VideoSettings
from runtime.model import Model
from runtime.ort.manifest import load_manifest

from ..mutations import NO_OBJECTS, mutants


def load(folder):
    """Everything that commands read before they open a session."""
    model = Model(folder)
    _ = model.image_settings, model.video_settings
    answer_settings(model, model.draft_policy, {})
    model.chat.encode("a question", [4])


READERS = {
    "runtime.json": load_manifest,
    "config.json": load,
    "generation_config.json": load,
    "preprocessor_config.json": lambda folder: (ImageSettings.from_folder(folder), VideoSettings.from_folder(folder)),
    "tokenizer_config.json": load,
    "quantization_report.json": lambda folder: check_layers(folder, None, None),
}
REPORT = {"linears": [{"name": "lm_head", "bits": 4, "error": 0.1, "error_rtn": 0.2, "seconds": 1.0}], "bytes": 5}


def works_or_says(read, folder, what):
    """Whether it is read; an InputError must be one line, and any other error is reported with the change."""
    try:
        read(folder)
    except InputError as error:
        assert "\n" not in str(error), what
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return True


@pytest.mark.parametrize("name", READERS)
def test_a_value_of_another_kind_is_no_traceback(name, copied):
    path = copied / name
    if name == "quantization_report.json":
        path.write_text(json.dumps(REPORT))
    content = json.loads(path.read_text())
    if name == "config.json":
        content = {"text_config": {"eos_token_id": [1, 53]}, "eos_token_id": 53}  # what the runtime reads
    assert works_or_says(READERS[name], copied, "unchanged")
    for what, changed in mutants(content):
        path.write_text(json.dumps(changed))
        works_or_says(READERS[name], copied, what)


@pytest.mark.parametrize("kind", NO_OBJECTS)
@pytest.mark.parametrize("name", [*READERS, "tokenizer.json"])
def test_a_file_that_is_no_object_is_one_line(name, kind, copied):
    (copied / name).write_bytes(NO_OBJECTS[kind])
    with pytest.raises(InputError, match=name) as raised:
        READERS.get(name, load)(copied)
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: it["text"].update(kv_heads=True), r"text\.kv_heads: Input should be a valid integer, found True"),
        (lambda it: it["text"].update(context=10**18), r"text\.context: Input should be less than or equal to"),
        (lambda it: it["text"]["windows"].append(1.5), r"text\.windows\.4: .* integer, found 1\.5"),
        (lambda it: it["text"].update(windows=[]), r"text\.windows: .* at least 1 item"),
        (lambda it: it["text"].pop("rope"), r"text\.rope is missing"),
        (lambda it: it["text"]["rope"].update(rope_parameters="x"), r"text\.rope: .* an object of parameters"),
        (lambda it: it["targets"]["cpu"].update(decoder="../other/decoder.onnx"), r"targets\.cpu\.decoder: .* pattern"),
        (lambda it: it["targets"]["cpu"].update(extra=1), r"targets\.cpu\.extra: Unexpected"),
        (lambda it: it["embeddings"].update(offset=1 << 40), r"model\.safetensors has no \d+ bytes at"),
        (lambda it: it["embeddings"].update(shape=[1, 1]), r"embeddings\.shape is \[1, 1\], not text\.vocab_size"),
    ],
)
def test_runtime_json_names_the_field(change, says, copied):
    path = copied / "runtime.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"^{path}: {says}.*; run python -m export again$"):
        load_manifest(copied)


@pytest.mark.parametrize(
    ("part", "field", "value", "says"),
    [
        ("text", "kv_heads", 3, r"decoder\.cpu\.onnx: its input past_key_0 is float32"),
        ("text", "windows", [64], r"decoder\.cpu\.onnx: it has more layers than the 1 of runtime\.json"),
        ("text", "windows", [64, None] * 3, r"decoder\.cpu\.onnx: its input past_key_4 is None"),
        ("vision", "head_dim", 64, r"vision\.cpu\.onnx: its input patch_cos is float32"),
        ("vision", "window_size", 1 << 20, r"vision\.cpu\.onnx: its input window_gather is int64"),
    ],
)
def test_a_graph_of_another_shape_is_refused_before_memory_is_taken(part, field, value, says, copied):
    path = copied / "runtime.json"
    content = json.loads(path.read_text())
    content[part][field] = value
    path.write_text(json.dumps(content))
    model = Model(copied)
    with pytest.raises(InputError, match=says):
        _ = model.decoder if part == "text" else model.vision


def test_a_window_that_a_graph_cannot_run_is_one_line(copied):
    path = copied / "runtime.json"
    content = json.loads(path.read_text())
    content["text"]["windows"][0] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^ONNX Runtime cannot run a call of .*; run python -m export again$"):
        Model(copied).ask("a question", max_new_tokens=1)


@pytest.mark.parametrize(("name", "value"), [("patch_size", 16), ("merge_size", 1)])
def test_a_processor_that_cuts_other_patches_is_refused(name, value, copied):
    path = copied / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError, match="its image processor has a patch_size and merge_size of"):
        _ = Model(copied).image_settings
