"""`python -m bench.batch.direct`: the engine with one thread, without Ray, shards or a plan."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import typer

from calib_data.document import READ_TEXT
from calib_data.images import open_image, visible_paths
from console.errors import run_command
from runtime.answer import MAX_NEW_TOKENS
from runtime.decoding.sampling import Sampling
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Failed, Finished, Request
from runtime.engine.thread import EngineThread
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import prompt_inputs

if TYPE_CHECKING:
    from runtime.engine.request import Event

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
    engine, places = EngineThread(Engine(opened, plan, picture_bytes=0)), threading.Semaphore(2 * plan.rows)
    seconds: list[float] = []

    def deliver(event: Event) -> None:
        if isinstance(event, Finished | Failed):
            seconds.append(time.time())
            places.release()

    for path in visible_paths(pages):  # opened here while the engine answers those before, as a worker does it
        places.acquire()
        engine.submit(
            Request(prompt_inputs(opened, READ_TEXT, [open_image(path)]), Sampling(), MAX_NEW_TOKENS), deliver
        )
    engine.close(float("inf"))
    print(json.dumps(seconds))


if __name__ == "__main__":
    run_command(app)
