"""The parity ladder: each test compares one implementation with the next, from transformers down to the commands.

Each step has one tolerance, relative to the largest value of the reference.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Exaone4Config,
    Exaone4ForCausalLM,
    GenerationConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.document import Document
from calib_data.sources import open_documents
from export import export
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.vision import VisionEncoder
from export.modules.weights import Source
from export.onnx_graph import save
from export.trace import trace_vision
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from runtime.generate import Model
from runtime.inputs.images import preprocess
from runtime.inputs.video import Video, VideoSettings, video_patches
from runtime.inputs.vision_inputs import vision_feeds
from runtime.ort import graph_io
from runtime.ort.decoder import DecoderSession
from runtime.ort.rope import rope_tables
from runtime.ort.sessions import Buffer, Device, VisionSession, open_session
from runtime.sampling import greedy
from training.forward import Reader, masks, mtp

EAGER = 1e-5  # the same float32 arithmetic in another order
ONNX = 1e-5  # as above, with ONNX Runtime's kernels
VISION = 1e-4  # the trained tower magnifies rounding: on noise transformers itself is 3e-5 from its float64 result
CACHED = 1e-5  # sums over keys in other chunks
PACKED = 2e-5  # weights dequantized inside the kernel, in other block sizes
INT8_ACTIVATIONS = 0.08  # MatMulNBits at accuracy_level 4 rounds its input to int8: about 6e-3 a linear, 25 in a row
GRIDS = [(1, 12, 10), (1, 2, 2), (1, 2, 34), (1, 40, 2), (2, 16, 24), (8, 10, 12)]  # one token, row, column, 16 frames
RANDOM_GRIDS = 40
TOGETHER = [(1, 2, 2), (1, 32, 26), (16, 4, 6)]  # one token beside 208, and 16 frames of six


def relative_error(value: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return open_documents("rendered", split="evaluation", count=20, seed=3)


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32, attn_implementation="eager").eval()


def transformers_inputs(document: Document) -> dict[str, torch.Tensor]:
    """The document as transformers' own tokenizer, template and image processor see it."""
    tokenizer = AutoTokenizer.from_pretrained(READER)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(READER)(document.image, return_tensors="pt")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": document.prompt}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    tokens = int(pixels["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    return {**tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False), **pixels}


def transformers_logits(model: torch.nn.Module, document: Document, answer: list[int]) -> np.ndarray:
    inputs = transformers_inputs(document)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat((inputs["input_ids"], torch.tensor([answer])), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        return model(**inputs).logits[0, prompt - 1 : -1].float().numpy()


def eager(folder: Path) -> tuple[Decoder, VisionEncoder]:
    checkpoint = open_checkpoint(folder)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    source = Source(checkpoint, load=True)
    return (
        Decoder(source, family, config),
        VisionEncoder(source, family, config, on_cuda=False, dtype=torch.float32),
    )


@pytest.fixture(scope="module")
def cuda_vision(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> VisionSession:
    """The reader's vision graph for CUDA, but in float32 and on the CPU."""
    folder = tmp_path_factory.mktemp("vision")
    for file in exported("fp16").glob("*.safetensors"):
        shutil.copy(file, folder)
    checkpoint = open_checkpoint(exported("fp16"))
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    vision = VisionEncoder(
        Source(checkpoint, load=False, exact=True), family, config, on_cuda=True, dtype=torch.float32
    )
    save(trace_vision(vision, config), vision, folder / "vision.onnx")
    return VisionSession(open_session(folder / "vision.onnx", Device("cpu")))


@pytest.fixture(scope="module")
def answered(documents: list[Document], exported: Callable[[str], Path]) -> list[tuple[Document, list[int]]]:
    chat = Model(exported("fp16"), "cpu").chat
    return [(document, [*chat.encode_text(document.answer), 53]) for document in documents[:4]]


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_vision_transformers_eager_onnx(grid, reference, exported):
    frames, rows, columns = grid
    patches = torch.randn(frames * rows * columns, 1176, generator=torch.Generator().manual_seed(0))
    expected = reference.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
    model = Model(exported("fp16"), "cpu")
    feeds = vision_feeds(patches.numpy(), [grid], model.manifest.vision)
    _, module = eager(exported("fp16"))
    in_eager = module(*(torch.from_numpy(feeds[name]) for name in graph_io.VISION_INPUTS))
    assert relative_error(in_eager, expected) < VISION
    assert relative_error(model.vision.run(feeds), in_eager) < VISION


@pytest.fixture(scope="module")
def pages(documents: list[Document], exported: Callable[[str], Path]) -> np.ndarray:
    """Patches of pages: on noise transformers' own float32 is up to 4e-4 from its float64."""
    settings = Model(exported("fp16"), "cpu").image_settings
    return np.concatenate([preprocess(document.image, settings, "")[0] for document in documents])


@pytest.fixture(scope="module")
def exact_vision() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float64).model.visual.eval()


@torch.no_grad()
def test_one_vision_graph_serves_any_grids(pages, exact_vision, exported):
    """Images of up to 24 x 24 patches, and of up to three frames; one to three of different size in a call."""
    model, choose = Model(exported("fp16"), "cpu"), random.Random(0)
    drawn = [
        (choose.choice((1, 1, 2, 3)), 2 * choose.randint(1, 12), 2 * choose.randint(1, 12)) for _ in range(RANDOM_GRIDS)
    ]
    calls = [*([grid] for grid in drawn[:22]), *(drawn[i : i + 3] for i in range(22, RANDOM_GRIDS, 3)), TOGETHER]
    for seed, grids in enumerate(calls):
        patches = pages[(np.arange(sum(map(math.prod, grids))) + 97 * seed) % len(pages)]
        expected = exact_vision(torch.from_numpy(patches).double(), grid_thw=torch.tensor(grids)).pooler_output
        found = model.vision.run(vision_feeds(patches, grids, model.manifest.vision))
        assert relative_error(found, expected) < VISION, grids


@torch.no_grad()
@pytest.mark.parametrize("grids", [*([grid] for grid in GRIDS), TOGETHER], ids=str)
def test_cudas_vision_graph_does_not_rely_on_lengths(grids, pages, exact_vision, exported, cuda_vision):
    """CUDA's kernel takes rows without a past as full, so the CPU's is told that they are."""
    patches = pages[: sum(map(math.prod, grids))]
    expected = exact_vision(torch.from_numpy(patches).double(), grid_thw=torch.tensor(grids)).pooler_output
    feeds = vision_feeds(patches, grids, Model(exported("fp16"), "cpu").manifest.vision)
    for rows in ("window", "frame"):
        feeds[f"{rows}_lengths"][:] = feeds[f"{rows}_gather"].shape[1]
    assert relative_error(cuda_vision.run(feeds), expected) < VISION


def run_eager(decoder: Decoder, model: Model, embeds: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of all positions of embeds [T, H], in one call over empty buffers."""
    tokens, text = len(embeds), model.manifest.text
    cos, sin = (torch.from_numpy(table) for table in rope_tables(text.rope, tokens))
    past = [torch.zeros(1, text.kv_heads, window or tokens, text.head_dim) for window in text.windows for _ in range(2)]
    last, total = torch.tensor([tokens - 1], dtype=torch.int32), torch.tensor(tokens, dtype=torch.int32)
    return decoder(embeds[None], last, total, torch.arange(tokens)[None], cos, sin, past)[0][0]


@torch.no_grad()
def test_decoder_transformers_eager_onnx(reference, exported):
    ids = torch.randint(80, 500, (150,), generator=torch.Generator().manual_seed(1))  # more than two windows
    expected = reference(input_ids=ids[None]).logits[0]
    model = Model(exported("fp16"), "cpu")
    embeds = model.embed_tokens(ids.numpy())
    in_eager = run_eager(eager(exported("fp16"))[0], model, torch.from_numpy(embeds))
    assert relative_error(in_eager, expected) < EAGER
    logits = model.decode(model.decoder.new_cache(len(ids)), embeds, np.arange(len(ids))).logits[0]
    assert relative_error(logits, in_eager) < ONNX


@pytest.mark.parametrize("steps", [(150,), (64, 86), (65, 1, 1, 1, 40, 1, 41), (1,) * 150])
def test_cached_is_uncached(steps, reference, exported):
    """Prompt, chunks and single tokens in any mixture give the logits of one full forward, past the window too."""
    model = Model(exported("fp16"), "cpu")
    ids = np.random.default_rng(2).integers(80, 500, sum(steps))
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(ids)[None]).logits[0]
    embeds, cache, start, logits = model.embed_tokens(ids), model.decoder.new_cache(len(ids)), 0, []
    for step in steps:
        logits.append(model.decode(cache, embeds[start : start + step], np.arange(step)).logits[0])
        start += step
    assert relative_error(np.concatenate(logits), expected) < CACHED


def test_ragged_batch_is_three_models(reference, exported):
    """Prompts shorter and longer than the window, whole and in chunks, each into its row; then steps of all three."""
    model, steps = Model(exported("fp16"), "cpu"), 80
    random, prompts = np.random.default_rng(4), [(20,), (193,), (64, 1, 64, 100)]
    ids = [random.integers(80, 500, sum(chunks) + steps) for chunks in prompts]
    cache = model.decoder.new_cache(max(map(len, ids)), batch=3)
    found: list[list[np.ndarray]] = [[] for _ in ids]
    for row, chunks in enumerate(prompts):
        start = 0
        for tokens in chunks:
            embeds = model.embed_tokens(ids[row][start : start + tokens])
            found[row].append(model.decode(cache.row(row), embeds, np.arange(tokens)).logits[0])
            start += tokens
    for step in range(steps):
        embeds = model.embed_tokens(np.array([row[len(row) - steps + step] for row in ids]))
        logits = model.decoder.run(cache, embeds[:, None], np.zeros((3, 1), np.int64)).logits
        for row in range(3):
            found[row].append(logits[row])
    assert cache.lengths.tolist() == [100, 273, 309]
    for row, logits in zip(ids, found, strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.from_numpy(row)[None]).logits[0]
        assert relative_error(np.concatenate(logits), expected) < CACHED


@torch.no_grad()
def test_mtp_training_eager_onnx(exported):
    """Drafts at every position, over three windows: the layer as it was trained, as it is exported, as it runs."""
    reader = Reader()
    reader.load_state_dict({name: tensor.float() for name, tensor in load_file(READER / "model.safetensors").items()})
    model, tokens = Model(exported("fp16"), "cpu"), 200
    embeds = torch.randn(2, tokens, 256, generator=torch.Generator().manual_seed(3))  # of tokens, and hidden states
    expected = reader.lm_head(mtp(reader, embeds[:1], embeds[1:], masks(reader, tokens)))[0]
    checkpoint = open_checkpoint(exported("fp16"))
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    layer, text = Mtp(Source(checkpoint, load=True), family, config), model.manifest.text
    cos, sin = (torch.from_numpy(table) for table in rope_tables(text.rope, tokens))
    past = [torch.zeros(1, text.kv_heads, 64, text.head_dim) for _ in range(2)]
    last, total = torch.tensor([tokens - 1], dtype=torch.int32), torch.tensor(tokens, dtype=torch.int32)
    in_eager, hidden, *_ = layer(embeds[:1], embeds[1:], last, total, torch.arange(tokens)[None], cos, sin, past)
    assert relative_error(in_eager[0], expected) < EAGER
    session = model.drafter.session
    cache, start, logits = session.new_cache(tokens), 0, []
    for step in (70, 1, 100, 29):
        part = embeds[:, start : start + step].numpy()
        previous = Buffer.of(part[1:], "float32", Device("cpu"))
        decoded = session.run(cache, part[:1], np.arange(step)[None], previous)
        logits.append(decoded.logits[0])
        start += step
    assert relative_error(np.concatenate(logits), in_eager[0]) < CACHED
    assert relative_error(decoded.hidden.read(), hidden[:, -29:]) < CACHED


@torch.no_grad()
def test_rope_is_on_every_layer_of_a_model_without_a_window(tmp_path):
    config = Exaone4Config(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None, layer_types=["full_attention"] * 3, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = Exaone4ForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    ids = torch.randint(96, (40,))
    expected = reference(input_ids=ids[None]).logits[0]
    text = export(tmp_path, "cpu").text
    assert (text.windows, text.mtp_windows) == ([None] * 3, [])
    session = open_session(tmp_path / "decoder.cpu.onnx", Device("cpu"))
    decoder = DecoderSession(session, text, "float32", "float32", Device("cpu"), {})
    embeds = reference.get_input_embeddings()(ids)[None].numpy()
    found = decoder.run(decoder.new_cache(40), embeds, np.arange(40)[None])
    assert relative_error(found.logits[0], expected) < ONNX
    assert found.hidden is None
    checkpoint = open_checkpoint(tmp_path)
    eager_decoder = Decoder(Source(checkpoint, load=True), find_family(checkpoint.config), config)
    for layer in eager_decoder.layers:
        layer.attention.has_rope = False
    past = [torch.zeros(1, 2, 40, 16) for _ in range(6)]
    last, total, rope = torch.tensor([39]), torch.tensor(40), map(torch.from_numpy, rope_tables(text.rope, 40))
    wrong = eager_decoder(torch.from_numpy(embeds), last, total, torch.arange(40)[None], *rope, past)[0][0]
    assert relative_error(wrong, expected) > 100 * ONNX


@torch.no_grad()
def test_rope_is_on_sliding_layers_only(reference, exported):
    """The test above is sensitive to it: with RoPE on every layer the logits are far away."""
    decoder, _ = eager(exported("fp16"))
    assert [layer.attention.has_rope for layer in decoder.layers] == [True, False, True, False]
    for layer in decoder.layers:
        layer.attention.has_rope = True
    ids = torch.randint(80, 500, (100,), generator=torch.Generator().manual_seed(1))
    model = Model(exported("fp16"), "cpu")
    wrong = run_eager(decoder, model, torch.from_numpy(model.embed_tokens(ids.numpy())))
    assert relative_error(wrong, reference(input_ids=ids[None]).logits[0]) > 100 * EAGER


def test_whole_model_on_documents(reference, answered, exported):
    model = Model(exported("fp16"), "cpu")
    for document, answer in answered:
        logits = np.concatenate(list(model.teacher_forced(model.prompt(document.prompt, [document.image]), answer)))
        assert relative_error(logits, transformers_logits(reference, document, answer)) < ONNX


def test_whole_model_on_a_video(reference, documents, answered, exported, monkeypatch):
    """Three frames of unlike pages after a picture, in transformers' two inputs; two calls of the vision graph."""
    model = Model(exported("fp16"), "cpu")
    pages = [document.image.resize((140, 168)) for document in documents[:3]]
    video = Video("film", 3, 168, 140, None, None, lambda numbers: (pages[number] for number in numbers))
    document, answer = answered[0]
    prompt = model.prompt(document.prompt, [document.image], [video])
    settings = VideoSettings.from_folder(model.folder)
    ((patches, grid),) = video_patches(video, settings)
    assert grid == (2, 12, 10)
    image = transformers_inputs(document)
    inputs = {
        "input_ids": torch.tensor([[*prompt.ids.tolist(), *answer]]),
        "pixel_values": image["pixel_values"],
        "image_grid_thw": image["image_grid_thw"],
        "pixel_values_videos": torch.from_numpy(patches),
        "video_grid_thw": torch.tensor([grid]),
    }
    with torch.no_grad():
        expected = reference(**inputs).logits[0, len(prompt.ids) - 1 : -1].numpy()
    monkeypatch.setattr("runtime.inputs.video.CALL_PATCHES", 120)
    assert len(list(video_patches(video, settings))) == 2
    prompt = model.prompt(document.prompt, [document.image], [video])
    assert relative_error(np.concatenate(list(model.teacher_forced(prompt, answer))), expected) < ONNX


@pytest.mark.parametrize("name", ["w4", "w8"])
def test_packed_onnx_is_the_folder_in_transformers(name, answered, exported):
    loaded = AutoModelForImageTextToText.from_pretrained(
        exported(name), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model = Model(exported(name), "cpu")
    for document, answer in answered:
        logits = np.concatenate(list(model.teacher_forced(model.prompt(document.prompt, [document.image]), answer)))
        assert relative_error(logits, transformers_logits(loaded, document, answer)) < PACKED


def test_nf4_onnx_is_bitsandbytes(answered, exported):
    """Against a float32 model whose weights bitsandbytes itself dequantized."""
    model = Model(exported("nf4"), "cpu")
    filled = nf4_dequantized(exported("nf4"))
    for document, answer in answered:
        logits = np.concatenate(list(model.teacher_forced(model.prompt(document.prompt, [document.image]), answer)))
        assert relative_error(logits, transformers_logits(filled, document, answer)) < PACKED


def nf4_dequantized(folder: Path) -> torch.nn.Module:
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    weights = {}
    for name, value in stored.items():
        state = {key: part for key, part in stored.items() if key.startswith(f"{name}.")}
        if state:
            shape = json.loads(bytes(state[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))["shape"]
            state = QuantState.from_dict(state, device="cpu")
            state.dtype = torch.float32  # else the result would be rounded to float16
            value = dequantize_4bit(value, state).reshape(shape)
        if not any(part in name for part in (".absmax", ".quant_map", ".quant_state")):
            weights[name] = value.float()
    config = AutoConfig.from_pretrained(READER)
    config._attn_implementation = "eager"
    filled = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    missing = filled.load_state_dict(weights, strict=False).missing_keys
    assert missing == []
    return filled


def test_int8_activations_stay_near(answered, exported):
    """The default CPU export, whose kernels round activations, against the exact one of the same folder."""
    exact, fast = Model(exported("w4"), "cpu"), Model(exported("w4", exact=False), "cpu")
    assert not fast.target.exact
    for document, answer in answered:
        logits = [
            np.concatenate(list(model.teacher_forced(model.prompt(document.prompt, [document.image]), answer)))
            for model in (exact, fast)
        ]
        assert 0 < relative_error(logits[1], logits[0]) < INT8_ACTIVATIONS


def test_greedy_tokens_are_those_of_transformers(documents, reference, exported):
    """On 20 documents, and on a picture of 12 x 10 patches, whose windows are of four sizes."""
    model = Model(exported("fp16"), "cpu")
    config = GenerationConfig(do_sample=False, max_new_tokens=40, eos_token_id=53, pad_token_id=0, bos_token_id=1)
    odd = Document(documents[0].image.resize((140, 168)), documents[0].prompt, None, "12 x 10 patches")
    for document in (*documents, odd):
        inputs = transformers_inputs(document)
        with torch.no_grad():
            expected = reference.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :]
        prompt = model.prompt(document.prompt, [document.image])
        assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        tokens = list(model.generate(prompt, greedy, 40))
        assert tokens == [token for token in expected.tolist() if token != 53], document.name
    assert inputs["image_grid_thw"].tolist() == [[1, 12, 10]]
