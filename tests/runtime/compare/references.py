"""What transformers predicts along the true answers of documents."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.document import Document

END = 53  # <|endofturn|>


def answer_tokens(document: Document) -> list[int]:
    """Tokens of reasoning, true answer and end, as the reader was trained."""
    before = "" if document.reasoning is None else f"{document.reasoning}\n</think>\n\n"
    return [*AutoTokenizer.from_pretrained(READER).encode(before + document.answer, add_special_tokens=False), END]


@torch.no_grad()
def answer_logits(folder: Path, documents: list[Document]) -> list[torch.Tensor]:
    """Logits by transformers, float32, for each of `answer_tokens`."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    logits = []
    for document in documents:
        pixels = processor(document.image, return_tensors="pt")
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": document.prompt}]}
        text = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=document.reasoning is not None
        )
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4))
        prompt = tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([[*prompt, *answer_tokens(document)]])
        logits.append(
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0, len(prompt) - 1 : -1]
        )
    return logits
