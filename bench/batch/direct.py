"""`python -m bench.batch.direct`: the engine with one thread, without Ray, shards or a plan."""

from __future__ import annotations

import json
import time
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer

from calib_data.document import READ_TEXT
from calib_data.images import open_image, visible_paths
from console.errors import run_command
from runtime.answer import MAX_NEW_TOKENS
from runtime.decoding.sampling import Sampling
from runtime.engine.answer_all import answer_all
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import prompt_inputs

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="Exported folder.")],
    pages: Annotated[Path, typer.Option(help="Folder of images.")],
) -> None:
    """Answer the images of a folder, and print a JSON list of seconds since 1970."""
    opened = Model(model, "cpu", Options(threads=1))
    images = opened.image_settings
    longest = images.max_pixels // (images.patch_size * images.merge_size) ** 2 + 1024 + MAX_NEW_TOKENS
    plan = plan_cache(opened, None, min(longest, opened.manifest.text.context))
    requests = (
        Request(prompt_inputs(opened, READ_TEXT, [open_image(path)]), Sampling(), MAX_NEW_TOKENS)
        for path in visible_paths(pages)
    )
    print(json.dumps([_ended(answer.finished()) for answer in answer_all(Engine(opened, plan), requests)]))


def _ended(_: object) -> float:
    return time.time()


if __name__ == "__main__":
    run_command(app)
