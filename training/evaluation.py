"""Read held-out documents with a reader folder in PyTorch, greedily.

The toolkit's own measurements go through `runtime`. This needs no export, measures the MTP layer too, and serves tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from calib_data.rendered import fonts, render
from calib_data.scores import character_error_rate, exact_match
from training.architecture import CONFIG
from training.batches import to_patches
from training.chat import Turn, encode, prompt_text
from training.forward import Reader, decoder, masks, mtp, vision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from calib_data.document import Document


def load_model(folder: Path) -> PreTrainedModel:
    """Load the model of a folder in float32."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def answers(
    model: PreTrainedModel, documents: Sequence[Document], *, thinking: bool = False, tokens: int = 192
) -> list[str]:
    """Answer greedily, with at most so many tokens, the reasoning not included. model: of `load_model`."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, padding_side="left")
    processor = Qwen2VLImageProcessorPil.from_pretrained(model.name_or_path)
    order = sorted(range(len(documents)), key=lambda index: documents[index].image.size)
    result = [""] * len(documents)
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        pages = processor(images=[documents[index].image for index in chosen], return_tensors="pt")
        places = pages["image_grid_thw"].prod(-1) // processor.merge_size**2
        texts = [prompt_text(documents[i].prompt, int(n), thinking) for i, n in zip(chosen, places, strict=True)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(**inputs, **pages, max_new_tokens=tokens, do_sample=False)
        replies = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        for index, reply in zip(chosen, replies, strict=True):
            result[index] = reply.split("<|endofturn|>")[0].rpartition("</think>")[2].strip()
    return result


def draft_acceptance(folder: Path, documents: Sequence[Document], read: Sequence[str]) -> float:
    """Share of the answers' tokens, without the first, that the MTP layer drafts one step ahead.

    read: the greedy answers.
    """
    reader = Reader()
    weights = load_file(folder / "model.safetensors")
    reader.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    accepted = drafted = 0
    for page, text in zip(documents, read, strict=True):
        width, height = page.image.size
        chat = encode([Turn(page.prompt, text, None)], width * height // 28**2)
        ids, written = chat.tokens, chat.written
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            embeddings = vision(reader, torch.from_numpy(to_patches(page.image))[None], height // 14, width // 14)
            inputs = reader.model.language_model.embed_tokens(tokens)
            inputs = inputs.masked_scatter((tokens == CONFIG["image_token_id"])[..., None], embeddings)
            hidden, _ = decoder(reader, inputs, masks(reader, len(ids)))
            ahead = mtp(reader, inputs[:, 1:], hidden[:, :-1], masks(reader, len(ids) - 1))
            guesses = reader.lm_head(ahead).argmax(-1)[0]  # position t guesses token t + 2
        first = written.index(True)
        accepted += int((guesses[first - 1 : -1] == tokens[0, first + 1 :]).sum())
        drafted += len(ids) - first - 1
    return accepted / max(drafted, 1)


def evaluate(folder: Path, count: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Exact match and character error rate on held-out lines, fields and transcriptions, also in a held-out font."""
    plans: dict[str, tuple[render.Kind, str | None, bool]] = {
        "line": ("line", None, False),
        "line, unseen font": ("line", fonts.HELD_OUT_FONT, False),
        "field": ("field", None, False),
        "field, thinking": ("field", None, True),
        "transcription": ("transcription", None, False),
        "transcription, unseen font": ("transcription", fonts.HELD_OUT_FONT, False),
    }
    model = load_model(folder)
    report: dict[str, dict[str, float]] = {}
    for name, (kind, font, thinking) in plans.items():
        documents = render.documents("evaluation", count, seed, kind, font)
        read = answers(model, documents, thinking=thinking)
        pairs = [(text, page.answer or "") for text, page in zip(read, documents, strict=True)]
        report[name] = {
            "exact_match": round(sum(exact_match(*pair) for pair in pairs) / count, 4),
            "cer": round(sum(character_error_rate(*pair) for pair in pairs) / count, 4),
        }
        if name == "transcription":
            report[name]["draft_acceptance"] = round(draft_acceptance(folder, documents, read), 4)
    return report
