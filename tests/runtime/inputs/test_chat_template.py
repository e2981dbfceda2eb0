"""Which chat template counts, where several files have one: as in transformers, or refused."""

import itertools
import json

import pytest
from transformers import AutoTokenizer, Exaone4_5_Processor

from console.errors import InputError
from runtime.chat import Chat
from runtime.inputs.chat_template import load_chat_template

from ..test_chat import write_folder

TEMPLATE, LEGACY, DEFAULT = "chat_template.jinja", "chat_template.json", "additional_chat_templates/default.jinja"
TOOLS = "additional_chat_templates/tool_use.jinja"
PLACES = {
    "jinja": (TEMPLATE, "of chat_template.jinja"),
    "json": (LEGACY, {"chat_template": "of chat_template.json"}),
    "empty json": (LEGACY, {}),
    "additional default": (DEFAULT, "additional"),
    "additional": (TOOLS, "for tools"),
    "processor": ("processor_config.json", {"chat_template": "of the processor"}),
    "processor, two": ("processor_config.json", {"chat_template": {"default": "of the processor", "tool_use": "x"}}),
    "processor, none": ("processor_config.json", {}),
    "tokenizer": ("tokenizer_config.json", {"chat_template": "of the tokenizer"}),
    "tokenizer, one": ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "listed"}]}),
    "tokenizer, two": (
        "tokenizer_config.json",
        {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "listed second"}]},
    ),
    "tokenizer, no default": ("tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "x"}]}),
    "tokenizer, by name": ("tokenizer_config.json", {"chat_template": {"default": "by name"}}),
}
COMBINATIONS = [
    names
    for count in range(4)
    for names in itertools.combinations(PLACES, count)
    if len({PLACES[name][0] for name in names}) == count
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A tokenizer without a template."""
    folder = write_folder(tmp_path_factory.mktemp("bare"))
    (folder / TEMPLATE).unlink()
    return folder


def folder_with(bare, folder, names, config):
    folder.mkdir()
    for path in bare.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    for file, content in (PLACES[name] for name in names):
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            before = json.loads(path.read_text()) if path.exists() else {}
            content = json.dumps(before | content)
        path.write_text(content)
    return folder


def of_transformers(folder, *, images):
    """The template that transformers prompts with: its processor's for a model with images, or its tokenizer's."""
    if images:
        processor = Exaone4_5_Processor.__new__(
            Exaone4_5_Processor
        )  # without a video processor, which needs torchvision
        processor.chat_template = Exaone4_5_Processor.get_processor_dict(folder)[0].get("chat_template")
        if processor.chat_template is not None:
            return processor._resolve_chat_template(None)
    return AutoTokenizer.from_pretrained(folder).get_chat_template()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # transformers leaves files open
@pytest.mark.parametrize("images", [True, False], ids=["vision-language", "text"])
def test_the_template_is_the_one_of_transformers(bare, tmp_path, images):
    """All combinations of up to three places."""
    config = {"model_type": "exaone4_5", "vision_config": {}} if images else {"model_type": "exaone4"}
    refusals = 0
    for number, names in enumerate(COMBINATIONS):
        folder = folder_with(bare, tmp_path / f"{number}", names, config)
        try:
            expected = of_transformers(folder, images=images)
        except (ValueError, KeyError):
            refusals += 1
            with pytest.raises(InputError, match=str(folder)) as caught:
                load_chat_template(folder)
            assert "\n" not in str(caught.value)
            continue
        found = load_chat_template(folder)
        assert found.text == expected, names
        assert found.text in found.path.read_text(), names
    assert 10 < refusals < len(COMBINATIONS) / 2


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], f"{TEMPLATE}: no such file, and no other file has a chat template; copy it from"),
        (["additional"], r"additional_chat_templates: has chat templates \(tool_use\), but none named default"),
        (["tokenizer, no default"], r"tokenizer_config.json: has chat templates \(rag\), but none named default"),
        (["empty json"], "chat_template.json: has no chat_template; copy it"),
        (
            ["json", "additional"],
            "chat_template.json: transformers refuses it together with additional_chat_templates/",
        ),
    ],
)
def test_a_folder_without_a_template_is_refused_by_the_file(bare, tmp_path, names, says):
    folder = folder_with(bare, tmp_path / "model", names, {"vision_config": {}})
    with pytest.raises(InputError, match=says):
        load_chat_template(folder)


@pytest.mark.parametrize("template", ["", 5, ["x"], [{"name": "default"}], {"default": None}, {"default": 5}])
def test_a_template_that_is_no_text_is_refused(bare, tmp_path, template):
    folder = folder_with(bare, tmp_path / "model", [], {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: "):
        load_chat_template(folder)


def test_the_file_of_a_broken_template_is_named(bare, tmp_path):
    folder = folder_with(bare, tmp_path / "model", ["json"], {"vision_config": {}})
    (folder / LEGACY).write_text(json.dumps({"chat_template": "{% for %}"}))
    with pytest.raises(InputError, match=r"chat_template\.json: is not a valid Jinja template"):
        Chat(folder)
    (folder / LEGACY).write_text(json.dumps({"chat_template": "{{ raise_exception('no') }}"}))
    with pytest.raises(InputError, match=r"chat_template\.json: cannot be rendered"):
        Chat(folder).encode("Hello")


TRAINING = """\
{% for message in messages %}
{% generation %}
{% set turn = message.content %}
    {{- turn }}|
{% endgeneration %}
{{ turn is defined }}
{% endfor %}
"""


@pytest.mark.parametrize(
    "template", [TRAINING, "{{ bos_token }}{{ eos_token }}", "{% for x in [1, 2] %}{% break %}{% endfor %}end"]
)
@pytest.mark.parametrize("listed", [True, False])
def test_templates_render_as_in_transformers(bare, tmp_path, template, listed):
    """With tags for training, and special tokens of a file of their own."""
    folder = folder_with(bare, tmp_path / "model", [], {})
    (folder / TEMPLATE).write_text(template)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<vision>"}, "eos_token": "x"})
    )
    if listed:  # then the other file does not count
        path = folder / "tokenizer_config.json"
        added = {"1": {"content": "<|endofturn|>", "special": True}}
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": added, "bos_token": "[PAD]"})
        )
    messages = [{"role": "user", "content": "합계"}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert Chat(folder).render("합계") == expected
