"""A folder of images as a source."""

import json
import os
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from calib_data.sources import open_documents
from calib_data.sources.folder import folder_documents
from calib_data.splits import split_of_picture
from console.errors import InputError

from .pages import OWN_SPLITS, open_all, picture


def test_a_folder_is_split_once_and_completely(folder):
    parts = open_all(folder)
    names = [document.name for part in parts.values() for document in part]
    assert sorted(names) == sorted(file.name for file in folder.glob("*.png"))
    assert all(part for part in parts.values())
    assert all(split_of_picture(document.image) == split for split, part in parts.items() for document in part)


def test_a_folder_gives_pixels_and_answers(folder):
    for document in open_documents(str(folder), split="calibration", count=1000):
        truth = folder / document.name.replace(".png", ".txt")
        assert document.answer == (truth.read_text(encoding="utf-8").strip() if truth.exists() else None)
        np.testing.assert_array_equal(np.asarray(document.image), np.asarray(Image.open(folder / document.name)))


def test_what_systems_leave_in_a_folder_is_passed_over(tmp_path):
    for name in ("a.png", "b.PNG", "below/c.png", "@eaDir/a.png/SYNO.png", "__MACOSX/._a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name, "PNG")
    for name in ("._a.png", ".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert [opened().name for opened in folder_documents(tmp_path)] == ["a.png", "b.PNG"]


def test_a_folder_of_hidden_files_holds_no_documents(tmp_path):
    for name in ("._a.png", "._rows.parquet", ".cache/rows.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    with pytest.raises(InputError, match="holds no documents"):
        open_documents(str(tmp_path), split="calibration", count=1)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist there only")
def test_names_of_files_need_not_be_utf_8(tmp_path):
    for index in range(6):
        picture(index).save(os.fsdecode(os.fsencode(tmp_path) + b"/\xc7\xd1%d.png" % index))
    parts = open_all(tmp_path)
    assert sum(map(len, parts.values())) == 6
    assert all(len(document.digest()) == 64 for part in parts.values() for document in part)


def test_items_stay_in_their_split_when_others_are_added(folder, tmp_path):
    for file in sorted(folder.glob("*.png"))[:20]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    small, large = open_all(tmp_path), open_all(folder)
    for split in OWN_SPLITS:
        assert {page.name for page in small[split]} <= {page.name for page in large[split]}


def test_texts_of_windows_begin_with_a_mark_that_is_no_text(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    for number, name in enumerate(names):
        picture(number).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("합계 12", encoding="utf-8-sig")
    row = json.dumps({"image": names[0], "prompt": "Read.", "answer": "a"})
    (tmp_path / "rows.jsonl").write_text(row, encoding="utf-8-sig")
    assert {document.answer for part in open_all(tmp_path).values() for document in part} == {"합계 12"}
    (document,) = open_documents(str(tmp_path / "rows.jsonl"), split=split_of_picture(picture(0)), count=1)
    assert document.answer == "a"


def test_a_folder_of_images_stays_one_when_it_has_data_below_it(folder, tmp_path):
    for file in sorted(folder.glob("*.png"))[:12]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "table.parquet").write_bytes(b"of something else")
    (tmp_path / "export" / "dataset_info.json").write_text("{}")
    assert sum(map(len, open_all(tmp_path).values())) == 12


def test_a_picture_that_is_gone_when_it_is_asked_for_is_named(tmp_path):
    picture().save(tmp_path / "scan.png")
    (document,) = open_documents(str(tmp_path), split=split_of_picture(picture()), count=1)
    (tmp_path / "scan.png").unlink()
    with pytest.raises(InputError, match=r"scan\.png: no such file"):
        document.image  # noqa: B018


def answers(source):
    return {document.name: document.answer for part in open_all(source).values() for document in part}


@pytest.mark.parametrize(("image", "text"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_text_belongs_to_the_image_of_the_same_name_however_it_is_spelled(image, text, tmp_path, capsys):
    names = {"영수증 1.PNG": "영수증 1.txt", "scan.JPG": "SCAN.TXT", "Café.Tiff": "café.Txt", "a.png": "a.txt"}
    for number, (picture_name, text_name) in enumerate(names.items()):
        picture(number).save(tmp_path / unicodedata.normalize(image, picture_name))
        (tmp_path / unicodedata.normalize(text, text_name)).write_text(text_name)
    assert answers(tmp_path) == {unicodedata.normalize(image, name): truth for name, truth in names.items()}
    assert capsys.readouterr().err == ""


def test_a_text_that_is_another_images_is_not_taken(tmp_path, capsys):
    for number, name in enumerate(["A.png", "a.png"]):
        picture(number).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("of a")
    assert answers(tmp_path) == {"A.png": None, "a.png": "of a"}
    assert capsys.readouterr().err == f"{tmp_path}: 1 of 2 images have no .txt, the first is A.png\n"


def test_two_texts_that_could_be_an_images_are_named(tmp_path):
    picture().save(tmp_path / "scan.png")
    (tmp_path / "SCAN.txt").write_text("a")
    (tmp_path / "Scan.txt").write_text("b")
    says = r"scan\.png: its true text may be SCAN\.txt and Scan\.txt; keep one, named scan\.txt$"
    with pytest.raises(InputError, match=says):
        open_documents(str(tmp_path), split="calibration", count=1)
    (tmp_path / "scan.txt").write_text("c")
    assert answers(tmp_path) == {"scan.png": "c"}


def test_images_and_texts_without_each_other_are_said_once(tmp_path, capsys):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "._0.png").write_bytes(b"of macOS")
    (tmp_path / "._0.txt").write_bytes(b"of macOS")
    assert set(answers(tmp_path).values()) == {None}
    assert capsys.readouterr().err == ""
    for name in ("1.txt", "3.txt", "4.png.txt", "notes.txt"):
        (tmp_path / name).write_text("a")
    for _ in range(2):
        assert sum(answer == "a" for answer in answers(tmp_path).values()) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: 4 of 6 images have no .txt, the first is 0.png",
        f"{tmp_path}: 2 of 4 .txt files have no image, the first is 4.png.txt",
    ]


def test_other_files_and_folders_are_said_once(tmp_path, capsys):
    for name in ("scan.png", "photo.jp2", "old.ppm"):
        picture().save(tmp_path / name)
    (tmp_path / "a.heic").write_bytes(b"not read")
    (tmp_path / "more").mkdir()
    for _ in range(2):
        assert answers(tmp_path) == {"old.ppm": None, "photo.jp2": None, "scan.png": None}
    line = f"{tmp_path}: 2 files and folders are no images and are not read, the first is a.heic\n"
    assert capsys.readouterr().err == line


def test_a_text_in_another_encoding_is_named(tmp_path):
    picture().save(tmp_path / "scan.png")
    (tmp_path / "scan.txt").write_bytes("합계 12".encode("cp949"))
    with pytest.raises(InputError, match=rf"^{tmp_path}/scan\.txt: cannot be read \(.*\), save it as UTF-8 text$"):
        open_documents(str(tmp_path), split="calibration", count=1)


def test_the_same_folder_in_either_unicode_form_is_the_same_draw(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / form).mkdir()
        for number in range(8):
            name = unicodedata.normalize(form, f"{'가나다라마바사아'[number]}é{number}.png")
            picture(number).save(tmp_path / form / name)
    composed, decomposed = open_all(tmp_path / "NFC"), open_all(tmp_path / "NFD")
    for split in OWN_SPLITS:
        names = [unicodedata.normalize("NFC", document.name) for document in decomposed[split]]
        assert [document.name for document in composed[split]] == names
