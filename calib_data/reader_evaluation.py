"""Reads held-out documents with a reader folder in PyTorch, greedily, and scores the answers.

The toolkit's own measurements go through `runtime`; this one needs no export and serves training and its tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from . import fonts, render
from .reader_examples import prompt_text
from .scores import character_error_rate, exact_match

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .document import Document


def answers(folder: Path, documents: Sequence[Document], *, thinking: bool = False, tokens: int = 192) -> list[str]:
    """Greedy answers of the model in a folder, computed in float32, without the reasoning."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
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


def evaluate(folder: Path, count: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Exact match and character error rate on held-out lines, fields and transcriptions, and in a held-out font."""
    plans: dict[str, tuple[render.Kind, str | None, bool]] = {
        "line": ("line", None, False),
        "field": ("field", None, False),
        "field, thinking": ("field", None, True),
        "transcription": ("transcription", None, False),
        "line, unseen font": ("line", fonts.HELD_OUT_FONT, False),
        "transcription, unseen font": ("transcription", fonts.HELD_OUT_FONT, False),
    }
    report = {}
    for name, (kind, font, thinking) in plans.items():
        documents = render.documents("evaluation", count, seed, kind, font)
        pairs = [
            (read, page.answer or "")
            for read, page in zip(answers(folder, documents, thinking=thinking), documents, strict=True)
        ]
        report[name] = {
            "documents": count,
            "exact_match": round(sum(exact_match(*pair) for pair in pairs) / count, 4),
            "cer": round(sum(character_error_rate(*pair) for pair in pairs) / count, 4),
        }
    return report
