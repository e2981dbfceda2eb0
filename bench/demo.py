"""`python -m bench.demo`: answers of a model and of its FP16 baseline to held-out documents of each kind.

Prints them next to the true answers, and draws them next to the documents (the picture in README). Leaves a page, and
a request about it, to try a server with.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from calib_data.rendered import fonts
from calib_data.rendered.render import MIX
from calib_data.sources import open_documents
from console.errors import run_command
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.model import Model
from runtime.prompt import build_prompt

if TYPE_CHECKING:
    from calib_data.document import Document

app = typer.Typer(add_completion=False)
MARGIN, LINE = 16, 19
PER_KIND = 2
COLUMNS = ("question", "truth", "FP16", "quantized")


@dataclass(frozen=True)
class Read:
    """A document and the answers of both models."""

    document: Document
    baseline: str
    answer: str

    def cells(self) -> tuple[str, str, str, str]:
        """One cell for each of COLUMNS."""
        return self.document.prompt, self.document.answer or "", self.baseline, self.answer

    def longest(self) -> str:
        """The cell with the most lines."""
        return max(self.cells(), key=lambda cell: cell.count("\n"))


def answer(model: Model, document: Document) -> str:
    """The model's greedy answer."""
    tokens = list(generate(model, build_prompt(model, document.prompt, [document.image]), greedy, 256))
    return model.chat.decode_answer(tokens, thinking=False).text


def draw(rows: list[Read]) -> Image.Image:
    """Documents in a column, each with its cells to the right; wrong answers are red."""
    bold, plain = fonts.load("sans-cjk-bold", 15), fonts.load("sans-cjk", 14)
    columns = list(zip(COLUMNS, *(read.cells() for read in rows), strict=True))
    widths = [max(int(bold.getlength(line)) for cell in column for line in cell.split("\n")) for column in columns]
    lefts = list(accumulate(widths, lambda x, width: x + width + 2 * MARGIN, initial=max_width(rows) + 3 * MARGIN))
    heights = [max(read.document.image.height, LINE * (1 + read.longest().count("\n"))) for read in rows]
    picture = Image.new("RGB", (lefts[-1], sum(heights) + MARGIN * (len(rows) + 1) + LINE), "white")
    pen, top = ImageDraw.Draw(picture), MARGIN + LINE
    for title, left in zip(COLUMNS, lefts, strict=False):
        pen.text((left, MARGIN // 2), title, "black", bold)
    for read, height in zip(rows, heights, strict=True):
        picture.paste(read.document.image, (MARGIN, top))
        for column, (cell, left) in enumerate(zip(read.cells(), lefts, strict=False)):
            wrong = column > 1 and cell != read.document.answer
            pen.multiline_text((left, top), cell, "firebrick" if wrong else "black", plain)
        top += height + MARGIN
    return picture


def max_width(rows: list[Read]) -> int:
    """Width of the widest document in pixels."""
    return max(read.document.image.width for read in rows)


def ask_about(page: Path, question: str) -> str:
    """The body of a request to `/v1/chat/completions` about an image."""
    url = f"data:image/png;base64,{base64.b64encode(page.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    options = {"max_tokens": 256, "chat_template_kwargs": {"enable_thinking": False}}
    return json.dumps({"messages": [{"role": "user", "content": parts}], **options})


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Exported folder.")] = Path("demo/reader-w4"),
    baseline: Annotated[Path, typer.Option(help="Exported folder of the unquantized model.")] = Path(
        "demo/reader-fp16"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the documents.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for result.png, page.png and request.json.")] = Path("demo"),
) -> None:
    """Read two held-out documents of each kind with a model and with its FP16 baseline."""
    models = Model(baseline, "cpu"), Model(model, "cpu")
    drawn = [open_documents("rendered", split="evaluation", count=PER_KIND, seed=seed, kind=kind) for kind in MIX]
    rows = [Read(document, *(answer(reader, document) for reader in models)) for kind in drawn for document in kind]
    table = Table(*COLUMNS, show_lines=True)
    for read in rows:
        table.add_row(*read.cells())
    console = Console()
    console.print(table)
    draw(rows).save(output / "result.png")
    largest = max((read.document for read in rows), key=lambda document: document.image.width * document.image.height)
    page = output / "page.png"
    largest.image.save(page)
    (output / "request.json").write_text(ask_about(page, largest.prompt), encoding="utf-8")
    console.print(f"wrote {output / 'result.png'}")


if __name__ == "__main__":
    run_command(app)
