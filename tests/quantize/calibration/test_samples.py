"""Documents as the model sees them: the chat template, transformers' processor, the true answer."""

import json
import shutil
import unicodedata
from contextlib import suppress

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.sources import open_documents, split_of_picture
from console.errors import EmptySplitError, InputError
from quantize.calibration.samples import read_samples
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import model_config
from quantize.settings import Settings
from runtime.chat import Chat


def test_samples_are_prompt_image_tokens_and_answer():
    settings = Settings(READER, count=6, seed=2)
    config = model_config(open_checkpoint(READER).config)
    documents = open_documents(split="calibration", count=6, seed=2)
    tokenizer, images = AutoTokenizer.from_pretrained(READER), Qwen2VLImageProcessorPil.from_pretrained(READER)
    samples = list(read_samples(settings, config))
    assert len(samples) == len(documents)
    for document, sample in zip(documents, samples, strict=True):
        features = images(images=[document.image], return_tensors="pt")
        assert torch.equal(sample.patches, features["pixel_values"])
        assert torch.equal(sample.grid, features["image_grid_thw"])
        assert int((sample.ids == config.image_token_id).sum()) == len(sample.patches) // 4
        answer = tokenizer.decode(sample.ids[-sample.answer :])
        assert answer == document.answer + "<|endofturn|>"
        text = tokenizer.decode(sample.ids[: -sample.answer])
        assert text.startswith("<|user|>\n<vision><|image_pad|>")
        assert document.prompt in text
        assert text.endswith("<|assistant|>\n<think>\n\n</think>\n\n")


def test_a_document_without_an_answer_ends_where_thinking_starts(tmp_path):
    for i in range(20):  # some of them fall into the calibration split
        Image.new("RGB", (40 + i, 56), (i * 10, 0, 0)).save(tmp_path / f"{i}.png")
    settings = Settings(READER, documents=str(tmp_path), count=3)
    samples = list(read_samples(settings, model_config(open_checkpoint(READER).config)))
    tokenizer = AutoTokenizer.from_pretrained(READER)
    assert len(samples) == 3
    for sample in samples:
        assert sample.answer == 0
        assert tokenizer.decode(sample.ids).endswith("<|assistant|>\n<think>\n")


def test_texts_calibrate_in_the_form_that_the_runtime_reads(tmp_path):
    """Decomposed Hangul and line ends of Windows give the tokens of the composed text."""
    config, samples = model_config(open_checkpoint(READER).config), {}
    Image.new("RGB", (56, 56), (9, 9, 9)).save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "합계는\n얼마?", "answer": "십이만\n원"}
    for form in ("NFC", "NFD"):
        path = tmp_path / f"{form}.jsonl"
        texts = {key: unicodedata.normalize(form, text).replace("\n", "\r\n") for key, text in row.items()}
        path.write_text(json.dumps(row if form == "NFC" else texts))
        settings = Settings(READER, documents=str(path), count=1)
        samples[form] = [
            sample for split in ("calibration", "evaluation") for sample in _samples_if_any(settings, config, split)
        ]
    (composed,), (decomposed,) = samples.values()
    assert torch.equal(composed.ids, decomposed.ids)
    chat = Chat(READER)
    tokens = int((composed.ids == chat.image_token_id).sum())
    assert composed.ids[: -composed.answer].tolist() == chat.encode(texts["prompt"], [tokens]).tolist()
    assert composed.ids[-composed.answer : -1].tolist() == chat.encode_text(texts["answer"])


def _samples_if_any(settings, config, split):
    with suppress(EmptySplitError):
        yield from read_samples(settings, config, split)


def test_reasoning_is_written_before_the_answer_as_in_the_runtime():
    settings = Settings(READER, documents="rendered:reasoning", count=4)
    documents, chat = open_documents("rendered:reasoning", split="calibration", count=4), Chat(READER)
    samples = list(read_samples(settings, model_config(open_checkpoint(READER).config)))
    for document, sample in zip(documents, samples, strict=True):
        written = f"{document.reasoning}\n</think>\n\n{document.answer}<|endofturn|>"
        assert AutoTokenizer.from_pretrained(READER).decode(sample.ids[-sample.answer :]) == written
        image_tokens = int((sample.ids == chat.image_token_id).sum())
        prompt = chat.encode(document.prompt, [image_tokens], thinking=True).tolist()
        assert sample.ids.tolist() == [*prompt, *chat.encode_answer(document.answer, document.reasoning), 53]


def test_splits_do_not_meet():
    config = model_config(open_checkpoint(READER).config)
    settings = Settings(READER, count=20)
    seen = {
        split: {tuple(s.ids.tolist()) for s in read_samples(settings, config, split)}
        for split in ("calibration", "evaluation")
    }
    assert len(seen["calibration"]) == 20
    assert not seen["calibration"] & seen["evaluation"]


@pytest.mark.parametrize(
    ("size", "row", "message"),
    [
        ((3, 900), {"prompt": "Read."}, "0.png:1 is not a picture for this model: .*aspect ratio"),
        ((56, 56), {"prompt": "<|image_pad|>?"}, "0.png:1: its prompt or answer has <.image_pad.>"),
        ((56, 56), {"prompt": "Read.", "answer": "<|image_pad|>"}, "0.png:1: its prompt or answer has <.image_pad.>"),
    ],
)
def test_a_document_that_the_model_cannot_take_is_named(tmp_path, size, row, message):
    blank = (Image.new("RGB", size, (i, 0, 0)) for i in range(20))
    next(page for page in blank if split_of_picture(page) == "calibration").save(tmp_path / "0.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", **row}))
    settings = Settings(READER, documents=str(tmp_path / "rows.jsonl"), count=1)
    with pytest.raises(InputError, match=message):
        list(read_samples(settings, model_config(open_checkpoint(READER).config)))


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no such file, and no other file has a chat template; copy it"),
        ("{{ raise_exception('no images here') }}", "cannot be rendered .no images here.; restore the original"),
        ("{% if %}", "is not a valid Jinja template .Expected an expression"),
        ("{% continue %}", "is not a valid Jinja template .*'continue' not properly in loop"),
        ("{{ messages[0].content + 'x' }}", "cannot be rendered .*; restore the original"),
        ("{{ 1 // 0 }}", "cannot be rendered .*zero"),
        ("{{ messages[0].role }}: read", "has no place for a picture"),
    ],
)
def test_a_chat_template_that_does_not_do_is_named(tmp_path, template, says):
    model = tmp_path / "model"
    shutil.copytree(READER, model)
    (model / "chat_template.jinja").unlink() if template is None else (model / "chat_template.jinja").write_text(
        template
    )
    with pytest.raises(InputError, match=f"^{model / 'chat_template.jinja'}: {says}"):
        list(read_samples(Settings(model, count=1), model_config(open_checkpoint(model).config)))


def test_a_tokenizer_without_an_end_of_turn_is_named(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(READER, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(InputError, match=r"model: its tokenizer has no eos_token; restore tokenizer_config.json from"):
        list(read_samples(Settings(model, count=1), model_config(open_checkpoint(model).config)))


def test_the_template_of_the_processor_counts(tmp_path):
    """Where the tokenizer has another one; `generate` prompts with the same."""
    model = shutil.copytree(READER, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "Page:" + template}))
    (sample,) = read_samples(Settings(model, count=1), model_config(open_checkpoint(model).config))
    (document,) = open_documents(split="calibration", count=1, seed=0)
    chat = Chat(model)
    prompt = chat.encode(document.prompt, [int((sample.ids == chat.image_token_id).sum())])
    assert chat.decode(prompt).startswith("Page:")
    assert sample.ids[: -sample.answer].tolist() == prompt.tolist()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["vocab.json", "merges.txt"], "vocab.json, merges.txt cannot be read instead; write it"),
        (["tokenizer.model"], "tokenizer.model cannot be read instead; write it with transformers"),
        ([], "copy it from the model's original folder"),
    ],
)
def test_a_folder_without_the_tokenizer_that_the_runtime_reads_is_refused(tmp_path, files, says):
    model = shutil.copytree(READER, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    for name in files:
        (model / name).touch()
    with pytest.raises(InputError, match=f"^{model / 'tokenizer.json'}: no such file, .*{says}"):
        list(read_samples(Settings(model, count=1), model_config(open_checkpoint(model).config)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch_size": None}, r"preprocessor_config\.json: patch_size: Input should be a valid integer"),
        ({"rescale_factor": "x"}, r"preprocessor_config\.json: rescale_factor: Input should be a valid number"),
        ({"size": [1]}, r"preprocessor_config\.json: size: Input should be an object"),
        ({"do_resize": False}, "unusable image settings"),
        ({"patch_size": 16}, r"merge_size of \(16, 2, 2\), its config\.json \(14, 2, 2\); copy it"),
        ({"temporal_patch_size": 1}, r"merge_size of \(14, 1, 2\), its config\.json \(14, 2, 2\); copy it"),
    ],
)
def test_image_settings_that_the_runtime_refuses_are_refused(tmp_path, change, says):
    """Not after hours, and not as an error of transformers."""
    model = shutil.copytree(READER, tmp_path / "model")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=f"^{model}.*{says}"):
        next(read_samples(Settings(model, count=1), model_config(open_checkpoint(READER).config)))


def test_a_tokenizer_config_that_is_no_object_is_refused(tmp_path):
    model = shutil.copytree(READER, tmp_path / "model")
    (model / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: is not a JSON object"):
        next(read_samples(Settings(model, count=1), model_config(open_checkpoint(READER).config)))
