"""Reads held-out documents with a reader folder in PyTorch, greedily: `python -m training.evaluation`.

The toolkit's own measurements go through `runtime`; this one needs no export, measures the MTP layer too, and serves
training and its tests.
"""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.rendered import fonts, render
from calib_data.scores import character_error_rate, exact_match
from console.errors import InputError, run_command
from training.architecture import CONFIG
from training.examples import Turn, encode, patches_of, prompt_text
from training.forward import Reader, decoder, masks, mtp, vision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calib_data.document import Document


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


def draft_acceptance(folder: Path, documents: Sequence[Document], read: Sequence[str]) -> float:
    """Share of the greedy tokens in `read` (without the first) that the MTP layer drafts one step ahead."""
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
            seen = vision(reader, torch.from_numpy(patches_of(page.image))[None], height // 14, width // 14)
            inputs = reader.model.language_model.embed_tokens(tokens)
            inputs = inputs.masked_scatter((tokens == CONFIG["image_token_id"])[..., None], seen)
            hidden, _ = decoder(reader, inputs, masks(reader, len(ids)))
            ahead = mtp(reader, inputs[:, 1:], hidden[:, :-1], masks(reader, len(ids) - 1))
            guesses = reader.lm_head(ahead).argmax(-1)[0]  # position t guesses token t + 2
        first = written.index(True)
        accepted += int((guesses[first - 1 : -1] == tokens[0, first + 1 :]).sum())
        drafted += len(ids) - first - 1
    return accepted / max(drafted, 1)


def evaluate(folder: Path, count: int, seed: int = 1) -> dict[str, dict[str, float]]:
    """Exact match and character error rate on held-out lines, fields and transcriptions, and in a held-out font."""
    plans: dict[str, tuple[render.Kind, str | None, bool]] = {
        "line": ("line", None, False),
        "line, unseen font": ("line", fonts.HELD_OUT_FONT, False),
        "field": ("field", None, False),
        "field, thinking": ("field", None, True),
        "transcription": ("transcription", None, False),
        "transcription, unseen font": ("transcription", fonts.HELD_OUT_FONT, False),
    }
    report: dict[str, dict[str, float]] = {}
    for name, (kind, font, thinking) in plans.items():
        documents = render.documents("evaluation", count, seed, kind, font)
        read = answers(folder, documents, thinking=thinking)
        pairs = [(text, page.answer or "") for text, page in zip(read, documents, strict=True)]
        report[name] = {
            "exact_match": round(sum(exact_match(*pair) for pair in pairs) / count, 4),
            "cer": round(sum(character_error_rate(*pair) for pair in pairs) / count, 4),
        }
        if name == "transcription":
            report[name]["draft_acceptance"] = round(draft_acceptance(folder, documents, read), 4)
    return report


app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Folder of a reader.")] = READER,
    documents: Annotated[int, typer.Option(help="Held-out documents of each kind.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Which documents are drawn.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read held-out rendered documents in PyTorch and score the answers: the numbers of the model card."""
    if not (model / "model.safetensors").is_file():
        raise InputError(f"{model}: holds no model.safetensors, give the folder of a reader")
    report = evaluate(model, documents, seed)
    if as_json:
        typer.echo(json.dumps({"documents": documents, "seed": seed} | report, ensure_ascii=False))
        return
    for name, numbers in report.items():
        typer.echo(f"{name:28}" + "  ".join(f"{key} {number:.3f}" for key, number in numbers.items()))


if __name__ == "__main__":
    run_command(app)
