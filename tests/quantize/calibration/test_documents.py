"""Documents of a run: opened once, and what they were when they were read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib_data import READER
from calib_data.sources import open_documents
from console.errors import InputError
from quantize.embeddings import embed_patches
from quantize.pipeline import quantize
from quantize.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path):
    """Pages with an answer each, all of one size: tokens do not tell pictures apart."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(12):
        Image.new("RGB", (56, 56), (20 * i, 90, 90)).save(pages / f"{i}.png")
        (pages / f"{i}.txt").write_text(f"{i}")
    return Settings(READER, tmp_path / "out", documents=str(pages), count=12, solver="rtn", reference=2)


def first_page(settings):
    (document,) = open_documents(settings.documents, split="calibration", count=1)
    return Path(settings.documents, document.name)


def test_sources_are_opened_once_a_split(settings, monkeypatch):
    opened = []

    def count(*arguments, split, **options):
        opened.append(split)
        return open_documents(*arguments, split=split, **options)

    for module in ("documents", "samples"):
        monkeypatch.setattr(f"quantize.calibration.{module}.open_documents", count)
    assert quantize(settings) is not None
    assert opened == ["calibration", "evaluation"]


def test_a_page_that_changes_between_two_readings_is_named(settings, monkeypatch):
    page = first_page(settings)

    def changed(*arguments):
        Image.new("RGB", (56, 56), (1, 2, 3)).save(page)
        embed_patches(*arguments)

    monkeypatch.setattr("quantize.pipeline.embed_patches", changed)
    with pytest.raises(InputError, match=rf"{page.name} has changed since it was read; give the command again"):
        quantize(settings)
    assert not (settings.folder.with_name("out.partial")).exists()


def test_prompts_and_answers_calibrate_a_model_that_sees_no_pictures_and_no_other(text_only, tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} plus 1?", "answer": f"{i + 1}"}) for i in range(40)))
    settings = Settings(text_only, tmp_path / "out", documents=str(path), count=6, reference=3)
    report = quantize(settings)
    assert report.documents == 6
    assert all(linear.error < linear.error_rtn for linear in report.linears)
    kept = np.load(settings.folder / "reference.npz")
    asked = open_documents(str(path), split="evaluation", count=3, pictures=False)
    assert kept["digest"].tolist() == [document.digest() for document in asked]
    with pytest.raises(InputError, match=rf"^{path}: line/\d+ has no 'image', and a model that sees is to read it"):
        quantize(replace(settings, model=READER, output=tmp_path / "seen"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["asked.jsonl", "out"]


def test_pictures_alone_do_not_calibrate_a_model_that_sees_none(text_only, settings):
    pages = Path(settings.documents)
    for truth in pages.glob("*.txt"):
        truth.unlink()
    blind = replace(settings, model=text_only, reference=0)
    with pytest.raises(
        InputError, match=r"pages: .*text sees no pictures, .* all \d documents are the same; give a .js"
    ):
        quantize(blind)
    assert not settings.folder.exists()
    (pages / first_page(settings).with_suffix(".txt")).write_text("an answer")
    assert quantize(blind) is not None
