"""The bundled reader: its folder in transformers, tokenizer, template, training forward, and that it reads."""

import json

import jinja2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.rendered import fonts, render, vocabulary
from calib_data.scores import character_error_rate, exact_match
from training import architecture
from training.batches import Batches, Stage, character_classes, to_patches
from training.chat import Turn, encode, prompt_text
from training.evaluation import answers
from training.forward import Reader, attend, decoder, log_attention, masks, mtp, norm, vision

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def reader():
    loaded = Reader()
    loaded.load_state_dict({name: tensor.float() for name, tensor in load_file(READER / "model.safetensors").items()})
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(READER)


@pytest.fixture(scope="module")
def processor():
    return Qwen2VLImageProcessorPil.from_pretrained(READER)


def page(index=0, kind="transcription", split="evaluation"):
    return render.render(split, 0, index, kind)


def test_the_folder_is_what_the_code_writes(tmp_path):
    architecture.write(tmp_path)
    for file in tmp_path.iterdir():
        assert json.loads(file.read_text()) == json.loads((READER / file.name).read_text()), file.name


def test_weights_are_small_fp16_and_named_as_released(reader):
    file = READER / "model.safetensors"
    weights = load_file(file)
    assert file.stat().st_size <= 16_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert set(weights) == set(reader.state_dict())
    assert {"mtp.fc.weight", "mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight"} <= set(weights)
    assert {"mtp.norm.weight", "mtp.layers.0.self_attn.q_norm.weight", "lm_head.weight"} <= set(weights)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_every_linear_width_is_a_multiple_of_128(model):
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 4 * 7 + 4 * 5 + 2 + 1
    assert all(size % 128 == 0 for linear in linears for size in linear.weight.shape)


def test_the_architecture_is_the_released_one(model):
    text, seen = model.config.text_config, model.config.vision_config
    assert type(model).__name__ == "Exaone4_5_ForConditionalGeneration"
    assert text.layer_types == ["sliding_attention", "full_attention"] * 2
    assert text.num_key_value_heads < text.num_attention_heads
    assert seen.num_key_value_heads < seen.num_heads
    assert model.model.language_model.embed_tokens.weight.data_ptr() != model.lm_head.weight.data_ptr()
    ids = {"<|image_pad|>": model.config.image_token_id, "<|endofturn|>": text.eos_token_id, "[BOS]": text.bos_token_id}
    ids |= {"<|video_pad|>": model.config.video_token_id, "[PAD]": text.pad_token_id, "<vision>": 73, "</vision>": 74}
    for token, number in ids.items():
        assert Tokenizer.from_file(str(READER / "tokenizer.json")).token_to_id(token) == number
    assert list(ids.values()) == [67, 53, 1, 68, 0, 73, 74]


def test_korean_syllables_are_one_token_and_all_printed_text_comes_back(tokenizer):
    assert len(tokenizer) == 512
    for char in vocabulary.ALPHABET:
        ids = tokenizer.encode(char, add_special_tokens=False)
        assert len(ids) == 1, char
        assert tokenizer.decode(ids) == char
    texts = [page(index).text for index in range(40)] + ["낯선 글자 漢 é 🙂\n\ttab"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "합계는 얼마입니까?"}]},
    {"role": "assistant", "content": "<think>\nI look.\n</think>\n\n12,500원"},
    {"role": "user", "content": "And the date?"},
]
HISTORY = (
    "<|system|>\nBe brief.<|endofturn|>\n"
    "<|user|>\n<vision><|image_pad|></vision><vision><|image_pad|></vision>합계는 얼마입니까?<|endofturn|>\n"
    "<|assistant|>\n<think>\n\n</think>\n\n12,500원<|endofturn|>\n"
    "<|user|>\nAnd the date?<|endofturn|>\n"
)


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"add_generation_prompt": True}, "<|assistant|>\n<think>\n"),
        ({"add_generation_prompt": True, "enable_thinking": True}, "<|assistant|>\n<think>\n"),
        ({"add_generation_prompt": True, "enable_thinking": False}, "<|assistant|>\n<think>\n\n</think>\n\n"),
        ({"add_generation_prompt": False}, ""),
    ],
)
def test_the_chat_template_is_exaones_in_transformers_and_in_plain_jinja(tokenizer, options, end):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    plain = environment.from_string((READER / "chat_template.jinja").read_text()).render(messages=CHAT, **options)
    assert plain == HISTORY + end
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, **options) == plain


def test_training_patches_are_the_processors(processor):
    for index in range(8):
        image = page(index).document.image
        features = processor(images=[image], return_tensors="np")
        assert tuple(features["image_grid_thw"][0]) == (1, image.height // 14, image.width // 14)
        frames = features["pixel_values"].reshape(-1, 3, 2, 196)
        for frame in (0, 1):
            np.testing.assert_allclose(to_patches(image), frames[:, :, frame].reshape(-1, 588), atol=1e-6)


@pytest.mark.parametrize("size", [(224, 56), (224, 112), (280, 140), (336, 252)])
def test_training_forward_equals_transformers(model, reader, processor, size):
    image = page().document.image.resize(size)
    features = processor(images=[image], return_tensors="pt")
    height, width = features["image_grid_thw"][0, 1:].tolist()
    tokens = encode([Turn("Read the text.", "합계 12,500원", None)], height * width // 4).tokens
    ids = torch.tensor([tokens])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), **features).logits
        seen = vision(reader, torch.from_numpy(to_patches(image))[None], height, width)
        inputs = reader.model.language_model.embed_tokens(ids).masked_scatter((ids == 67)[..., None], seen)
        logits = reader.lm_head(decoder(reader, inputs, masks(reader, len(tokens)))[0])
    assert (len(tokens) > 64) == (size != (224, 56))  # shorter and longer than the sliding window
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_pages_of_a_batch_do_not_see_each_other(reader):
    patches = torch.randn(2, 12 * 20, 588)
    with torch.no_grad():
        together = vision(reader, patches, 12, 20)
        alone = vision(reader, patches[1:], 12, 20)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_the_mtp_layer_is_the_released_equation(reader):
    """h = fc([norm_e(embedding), norm_h(hidden)]), one standard sliding layer, norm: against transformers' layer."""
    embeddings, hidden = torch.randn(2, 1, 90, 256)
    layer = reader.mtp
    positions = torch.arange(90)[None]
    distance = positions[0][:, None] - positions[0][None]
    visible = ((distance >= 0) & (distance < 64))[None, None]
    with torch.no_grad():
        joined = torch.cat((layer.pre_fc_norm_embedding(embeddings), layer.pre_fc_norm_hidden(hidden)), -1)
        tables = reader.model.language_model.rotary_emb(joined, positions)
        layer.layers[0].self_attn.config._attn_implementation = "sdpa"
        states = layer.layers[0](layer.fc(joined), attention_mask=visible, position_embeddings=tables)
        expected = layer.norm(states)
        torch.testing.assert_close(mtp(reader, embeddings, hidden, masks(reader, 90)), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, norm(layer.norm, layer.fc(joined)))


def test_batches_depend_on_the_step_and_the_seed_only():
    stages = (Stage(until=2, glyphs=1.0, lines=0.0, thinking=0.0), Stage(10**9, glyphs=0.0, lines=0.5, thinking=0.5))
    first, again, other = Batches(stages, 0)[5], Batches(stages, 0)[5], Batches(stages, 1)[5]
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.tokens, again.tokens)
    assert first.patches.shape != other.patches.shape or not torch.equal(first.patches, other.patches)
    assert Batches(stages, 0)[0].tokens.shape[1] == 0  # glyph pages ask nothing
    assert (first.tokens == 67).sum() == first.patches.shape[0] * first.patches.shape[1] // 4


def test_batches_train_on_answers_alone(tokenizer):
    batch = Batches((Stage(10**9, glyphs=0.0, lines=0.0, thinking=0.5),), 0)[1]
    thoughts = 0
    for tokens, wanted in zip(batch.tokens, batch.answer, strict=True):
        text = tokenizer.decode(tokens[wanted])
        assert text.endswith("<|endofturn|>")
        assert "<|user|>" not in text
        thoughts += "</think>" in text
        prompt = tokenizer.decode(tokens[: int(wanted.nonzero()[0])])
        assert prompt.endswith(("<think>\n", "<think>\n\n</think>\n\n"))
    assert 0 < thoughts < len(batch.tokens)


def test_attention_targets_are_the_cells_that_show_the_character():
    batch = Batches((Stage(10**9, glyphs=0.0, lines=0.0, thinking=0.3),), 0)[3]
    rows, positions = (batch.attention_target >= 0).nonzero(as_tuple=True)
    assert len(rows) > 100
    assert batch.answer[rows, positions].all()
    first = int((batch.tokens[0] == 67).nonzero()[0])
    crowded = 0
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        target = int(batch.attention_target[row, position])
        assert batch.tokens[row, target] == 67
        char = Tokenizer.from_file(str(READER / "tokenizer.json")).decode([int(batch.tokens[row, position])])
        shown = batch.characters[row, target - first]
        crowded += bool((shown > 0).all())
        assert vocabulary.ALPHABET.index(char) + 1 in shown or (shown > 0).all()
    assert crowded < len(rows) / 5


@pytest.mark.parametrize("number", [1, 3])
def test_log_attention_is_the_attention_of_transformers(model, reader, number):
    states = torch.randn(2, 30, 256)
    layer = model.model.language_model.layers[number].self_attn
    layer.config._attn_implementation = "eager"
    mask = torch.zeros(30, 30).masked_fill(torch.ones(30, 30).triu(1).bool(), float("-inf"))
    try:
        with torch.no_grad():
            tables = model.model.language_model.rotary_emb(states, torch.arange(30)[None])
            expected = layer(states, tables, mask[None, None])[1]  # [B, heads, T, T]
            mine = log_attention(reader.model.language_model.layers[number], states, mask, [0, 2])
    finally:
        layer.config._attn_implementation = "sdpa"
    torch.testing.assert_close(mine.exp(), expected[:, [0, 2]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_scaled_dot_product_attention(masked):
    query, key, value = torch.randn(2, 4, 9, 64), torch.randn(2, 2, 9, 64), torch.randn(2, 2, 9, 64)
    mask = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf")) if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, mask), expected, rtol=1e-4, atol=1e-5)


def test_several_turns_are_one_chat_of_the_template(tokenizer):
    turns = [Turn("What is the tax?", "$1.20", None), Turn("합계는 얼마입니까?", "12,500원", "합계 읽는다.")]
    chat = encode(turns, places=4)
    ids, written = chat.tokens, chat.written
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turns[0].prompt}]},
        {"role": "assistant", "content": "$1.20"},
        {"role": "user", "content": turns[1].prompt},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    text += "합계 읽는다.\n</think>\n\n12,500원<|endofturn|>"
    assert ids == tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * 4), add_special_tokens=False)
    answers = tokenizer.decode([token for token, mine in zip(ids, written, strict=True) if mine])
    assert answers == "$1.20<|endofturn|>합계 읽는다.\n</think>\n\n12,500원<|endofturn|>"


def test_cells_name_the_characters_whose_centres_they_hold():
    drawn = page(3)
    width, height = drawn.document.image.size
    cells = character_classes(drawn.boxes, width, height)
    assert cells.shape == (width * height // 28**2, 6)
    named = [vocabulary.ALPHABET[index - 1] for index in cells.flatten() if index]
    assert sorted(named) == sorted(box.char for box in drawn.boxes)
    first = drawn.boxes[0]
    cell = int(first.line / 28) * (width // 28) + int((first.left + first.right) / 56)
    assert first.char in {vocabulary.ALPHABET[index - 1] for index in cells[cell] if index}


def test_prompts_of_training_are_the_templates(tokenizer):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the text."}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert prompt_text("Read the text.", 3, thinking=False) == text.replace("<|image_pad|>", "<|image_pad|>" * 3)


def test_the_reader_answers_about_documents_that_it_has_not_seen(model):
    documents = render.documents("evaluation", 40, seed=7, kind="field")
    pairs = zip(answers(model, documents, tokens=48), documents, strict=True)
    assert sum(exact_match(answer, document.answer) for answer, document in pairs) / 40 >= 0.8


@pytest.mark.parametrize("font", [None, fonts.HELD_OUT_FONT])
def test_the_reader_transcribes_documents_that_it_has_not_seen(model, font):
    documents = render.documents("evaluation", 20, seed=7, kind="transcription", font=font)
    pairs = zip(answers(model, documents), documents, strict=True)
    assert sum(character_error_rate(answer, document.answer) for answer, document in pairs) / 20 <= 0.1
