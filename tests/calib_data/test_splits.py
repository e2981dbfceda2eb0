"""Copies of one page are in one split, whatever their names and files."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents
from calib_data.splits import split_of_picture, split_of_prompt

from .sources.pages import open_all, picture

PAGES = 24


def homes(parts, page_of):
    """The pages of each split."""
    return [{page_of(document) for document in part} for part in parts.values()]


def test_copies_in_a_folder_stay_together(tmp_path):
    """Renamed, losslessly encoded again, and with an alpha channel that hides nothing."""
    for number in range(PAGES):
        page = picture(number)
        page.save(tmp_path / f"{number}.png")
        page.save(tmp_path / f"{number}-scan.png", compress_level=1)
        page.save(tmp_path / f"{number}-scan.tiff", compression="tiff_lzw")
        page.save(tmp_path / f"{number}-scan.bmp")
        page.convert("RGBA").save(tmp_path / f"{number}-scan.webp", lossless=True)
        page.save(tmp_path / f"{number}-lossy.jpg")
        (tmp_path / f"{number}-photo.jpg").write_bytes((tmp_path / f"{number}-lossy.jpg").read_bytes())
    parts = open_all(tmp_path)
    assert sum(map(len, parts.values())) == 7 * PAGES
    kinds = {"jpg": "lossy"}
    calibration, evaluation = homes(parts, lambda d: (d.name.split("-")[0].split(".")[0], kinds.get(d.name[-3:])))
    assert calibration
    assert evaluation
    assert calibration.isdisjoint(evaluation)


def test_the_same_page_of_two_pdfs_is_in_one_split(tmp_path):
    for name, order in (("a.pdf", range(PAGES)), ("b.pdf", range(PAGES)[::-1])):
        first, *others = (Image.new("L", (112, 56), 10 * number) for number in order)
        first.save(tmp_path / name, save_all=True, append_images=others, resolution=150)
    grey = [
        homes(open_all(tmp_path / name), lambda document: np.asarray(document.image).mean().round())
        for name in ("a.pdf", "b.pdf")
    ]
    assert grey[0] == grey[1]
    assert all(grey[0])


def test_one_image_under_two_paths_of_a_list_is_in_one_split(tmp_path):
    (tmp_path / "copies").mkdir()
    for number in range(PAGES):
        picture(number).save(tmp_path / f"{number}.png")
        os.link(tmp_path / f"{number}.png", tmp_path / "copies" / f"x{number}.png")
    lines = [{"image": name} for i in range(PAGES) for name in (f"{i}.png", f"copies/x{i}.png")]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    calibration, evaluation = homes(open_all(tmp_path / "all.jsonl"), lambda d: d.digest and d.image.tobytes())
    assert len(calibration) + len(evaluation) == PAGES
    assert calibration.isdisjoint(evaluation)


def test_splits_are_those_of_yesterday():
    """Values that must not change: what calibrated would be held out."""
    drawn = [split_of_picture(Image.new("RGB", (8, 4), (n, 0, 0)))[0] for n in range(24)]
    asked = [split_of_prompt(f"합계 {n}?")[0] for n in range(24)]
    assert ("".join(drawn), "".join(asked)) == ("ccccccecccceeeeccececeec", "ccccccecccceceecccececee")


def test_60_percent_calibrate():
    pictures = (Image.new("RGB", (1, 1), (n % 256, n // 256, 0)) for n in range(5000))
    share = sum(split_of_picture(one) == "calibration" for one in pictures) / 5000
    assert share == pytest.approx(0.6, abs=0.03)


def test_a_few_documents_of_a_large_source_open_few_pictures(tmp_path, monkeypatch):
    for number in range(400):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(tmp_path / f"{number}.png")
    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or plain(*a, **k))
    assert len(open_documents(str(tmp_path), split="evaluation", count=10)) == 10
    assert len(opened) < 60
