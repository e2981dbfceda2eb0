"""`python -m bench.report_picture`: draw the picture of a report in README, with headless Chromium.

The report compares the bundled reader in 4 bits, in NF4 and with one corrupted layer with FP16.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import sync_playwright

from bench.formats import Format, build
from bench.reader import corrupted
from calib_data.rendered import fonts
from calib_data.sources import open_documents
from console.errors import InputError, run_command
from runtime.compare.gate import Gates
from runtime.compare.measuring.measure import measure_all
from runtime.compare.measuring.models import Models
from runtime.compare.measuring.progress import Progress
from runtime.compare.provenance import provenance
from runtime.compare.report.page import write_report
from runtime.compare.summary import summarize

app = typer.Typer(add_completion=False)
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
SIZES = {"wide": (1160, 900), "phone": (390, 844)}
FOLDERS = ("reader-fp16", "reader-w4", "reader-nf4", "reader-corrupted")
HEIGHT, GAP, SCALE = 1600, 24, 0.62  # of the picture, in pixels before it is scaled


def compare(count: int) -> Path:
    """Make FOLDERS in the working directory, compare them, and return the page."""
    baseline, *candidates = (Path(name) for name in FOLDERS)
    build(Format("FP16", None), baseline, 0, 1)
    build(Format("4-bit", {"bits": 4}), candidates[0], 0, 128)
    build(Format("NF4", {"quant_type": "nf4"}), candidates[1], 0, 128)
    corrupted(candidates[2])
    models = Models(baseline, tuple(candidates), "cpu")
    loaded = models.load()
    drawn = open_documents("rendered", split="evaluation", count=count)
    with Progress(None, {}) as progress:
        measured = measure_all(models, loaded, drawn, progress, 1)
    about = {"source": "rendered", "kind": None, "seed": 0, "count": count, "device": "cpu", **provenance(loaded)}
    return write_report(summarize(models, loaded, measured, Gates(), about), measured, drawn, Path())


def photograph(page: Path) -> tuple[dict[str, Path], int]:
    """Take screenshots of the whole page at each of SIZES; also return the y coordinate of its plots when it is wide.

    Raises InputError if there is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise InputError("chromium: not found; install it to draw the page")
    # Hangul comes from the font that documents are drawn with, whatever the machine has.
    configuration = page.with_name("fonts.conf")
    own = Path(str(fonts.load("sans-cjk", 10).path)).parent
    configuration.write_text(
        f"<fontconfig><include>/etc/fonts/fonts.conf</include><dir>{own}</dir></fontconfig>", encoding="utf-8"
    )
    screenshots, plots = {}, 0
    with sync_playwright() as driver:
        environment: dict[str, str | float | bool] = {**os.environ, "FONTCONFIG_FILE": str(configuration)}
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS, env=environment)
        for name, (width, height) in SIZES.items():
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(page.as_uri())
            screenshots[name] = page.with_name(f"{name}.png")
            tab.screenshot(path=screenshots[name], full_page=True)
            box = tab.locator("section", has=tab.locator(".plots")).bounding_box()
            assert box is not None
            plots = plots or int(box["y"])
        browser.close()
    return screenshots, plots


def montage(screenshots: dict[str, Path], plots: int) -> Image.Image:
    """Three columns: the top of the wide page, its plots and what follows, the top of the phone's page."""
    wide, phone = (Image.open(screenshots[name]).convert("RGB") for name in SIZES)
    picture = Image.new("RGB", (2 * (wide.width + GAP) + phone.width, HEIGHT), "white")
    picture.paste(wide, (0, 0))
    picture.paste(wide.crop((0, plots, wide.width, plots + HEIGHT)), (wide.width + GAP, 0))
    picture.paste(phone, (2 * (wide.width + GAP), 0))
    small = picture.resize([int(side * SCALE) for side in picture.size], Image.Resampling.LANCZOS)
    # The default palette would lose the colours of the plots.
    return small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)


@app.command()
def main(
    count: Annotated[int, typer.Option(min=1, help="Held-out documents.")] = 60,
    picture: Annotated[Path, typer.Option(help="PNG to write.")] = Path("docs/report.png"),
) -> None:
    """Draw a report as a screen and a phone show it."""
    target = picture.absolute()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        screenshots, plots = photograph(compare(count).absolute())
        montage(screenshots, plots).save(target, optimize=True)
    print(f"wrote {picture}")


if __name__ == "__main__":
    run_command(app)
