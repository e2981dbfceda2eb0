"""Draws the training curve of the reader: `python -m training.loss_curve curve.json curve.png`."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont

from console.errors import InputError, run_command

WIDTH, HEIGHT, MARGIN = 800, 420, 56
# What is drawn: key of a row in curve.json -> (name, colour). All are shares between 0 and 1.
LINES = {
    "character accuracy": ("characters named in image tokens", "#1f77b4"),
    "token accuracy": ("answer tokens, teacher-forced", "#d62728"),
    "draft accuracy": ("drafted tokens (MTP)", "#2ca02c"),
}


def draw(curve: list[dict[str, float]]) -> Image.Image:
    """Draw accuracy against minutes of training; averages over 50 steps, joined by straight lines."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    last = max(row["minutes"] for row in curve)

    def place(minutes: float, share: float) -> tuple[float, float]:
        return MARGIN + minutes / last * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    for tenth in range(0, 11, 2):
        _, y = place(0, tenth / 10)
        pen.line((MARGIN, y, WIDTH - MARGIN, y), fill="#dddddd")
        pen.text((MARGIN - 8, y), f"{tenth / 10:.1f}", fill="black", font=font, anchor="rm")
    for quarter in range(5):
        x, y = place(last * quarter / 4, 0)
        pen.text((x, y + 8), f"{last * quarter / 4:.0f}", fill="black", font=font, anchor="mt")
    pen.text((WIDTH / 2, HEIGHT - 18), "minutes on two CPU cores", fill="black", font=font, anchor="mm")
    for number, (key, (name, colour)) in enumerate(LINES.items()):
        points = [place(row["minutes"], row[key]) for row in curve if key in row]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2, joint="curve")
        pen.text((MARGIN + 12 + 260 * number, 18), name, fill=colour, font=font)
    return picture


app = typer.Typer(add_completion=False)


@app.command()
def main(
    curve: Annotated[Path, typer.Argument(help="curve.json, written by train_reader.")],
    picture: Annotated[Path, typer.Argument(help="The picture to write.")],
) -> None:
    """Draw the training curve of the reader."""
    try:
        rows = json.loads(curve.read_text(encoding="utf-8"))
        finished = draw(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{curve}: is no curve.json of train_reader ({error})") from error
    finished.save(picture)


if __name__ == "__main__":
    run_command(app)
