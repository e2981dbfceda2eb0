"""The answers of `generate`, which knows no other page."""

import pypdfium2

from .answers import GREEDY

PROMPT = "Read the text."


def write_pdf(path, pages):
    pages[0].save(path, "PDF", save_all=True, append_images=pages[1:], resolution=150)


def drawn(path):
    with pypdfium2.PdfDocument(path) as pdf:
        return [one.render(scale=150 / 72).to_pil().convert("RGB") for one in pdf]


def asked(reader, images, prompt=PROMPT, **options):
    """Columns of the answer of `generate`, which knows no other page."""
    answer = reader.ask(prompt, images, **GREEDY | options, draft_tokens=0)
    return {
        "prompt": prompt,
        "answer": answer.text,
        "reasoning": answer.reasoning or None,
        "finish": "length" if answer.finish_reason == "length" else "end",
        "prompt_tokens": answer.prompt_tokens,
        "tokens": len(answer.tokens),
        "error": None,
    }


def assert_answered(row, expected):
    assert {name: row[name] for name in expected} == expected
    assert row["milliseconds"] >= 0
