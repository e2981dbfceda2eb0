"""reference.npz against transformers' own predictions in full precision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from calib_data import READER
from calib_data.sources import open_documents, split_of_picture
from console.errors import InputError
from quantize.calibration.reference import TOP
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings
from runtime.compare.measuring.baseline import ReferenceBaseline
from runtime.inputs.images import ImageSettings

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_it_keeps_what_the_unquantized_model_predicts(w4, nf4):
    """Whatever becomes of the weights: it is the same for integers and for NF4."""
    model = AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32).eval()
    kept = np.load(w4.folder / "reference.npz")
    source = json.loads(str(kept["source"]))
    images = source.pop("images")
    assert source == {"source": "rendered", "count": w4.settings.reference, "seed": w4.settings.seed}
    assert ImageSettings.from_config(images, w4.folder) == ImageSettings.from_folder(READER)
    settings = Settings(READER, count=source["count"])
    samples = list(read_samples(settings, model.config, split="evaluation"))
    assert kept["document"].tolist() == list(range(len(samples)))
    assert kept["length"].tolist() == [len(sample.ids) for sample in samples]
    assert kept["ids"].tolist() == torch.cat([sample.ids for sample in samples]).tolist()
    assert kept["answer"].tolist() == [sample.answer for sample in samples]
    rows = []
    for sample in samples:
        logits = model(input_ids=sample.ids[None], pixel_values=sample.patches, image_grid_thw=sample.grid).logits[0]
        rows.append(logits[-sample.answer - 1 : -1].double())
    logits = torch.cat(rows)
    assert kept["top_ids"].shape == kept["top_logits"].shape == (len(logits), TOP)
    found = logits.gather(1, torch.from_numpy(kept["top_ids"]).long())
    torch.testing.assert_close(torch.from_numpy(kept["top_logits"]).double(), found, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(kept["logsumexp"]).double(), logits.logsumexp(-1), rtol=1e-4, atol=1e-3)
    assert torch.equal(logits.argmax(-1), torch.from_numpy(kept["top_ids"][:, 0]).long())

    other = np.load(nf4.folder / "reference.npz")
    assert all(np.array_equal(other[name], kept[name]) for name in kept.files)


@pytest.mark.parametrize("answers", [[], [f"page-{i}.txt" for i in range(0, 24, 2)]])
def test_documents_without_an_answer_are_left_out(tmp_path, answers, capsys):
    """Of a folder of pictures, those of the evaluation split that have a text beside them."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(24):
        Image.new("RGB", (112, 112), (10 * i, 90, 90)).save(pages / f"page-{i}.png")
    for name in answers:
        (pages / name).write_text("Total 12")
    settings = Settings(READER, tmp_path / "out", documents=str(pages), count=2, solver="rtn", reference=24)
    quantize(settings)
    documents = open_documents(str(pages), split="evaluation", count=24)
    expected = [i for i, document in enumerate(documents) if document.answer]
    if not answers:
        assert "no reference.npz: no evaluation document" in capsys.readouterr().err
        assert not (tmp_path / "out" / "reference.npz").exists()
        return
    kept = np.load(tmp_path / "out" / "reference.npz")
    assert 0 < len(expected) < len(documents)
    assert kept["document"].tolist() == expected
    assert len(kept["logsumexp"]) == kept["answer"].sum()


def test_a_source_without_an_evaluation_split(tmp_path, capsys):
    """One picture is a calibration document or an evaluation document, not both."""
    pages = tmp_path / "pages"
    pages.mkdir()
    blank = (Image.new("RGB", (112, 112), (i, 90, 90)) for i in range(100))
    next(page for page in blank if split_of_picture(page) == "calibration").save(pages / "page.png")
    quantize(Settings(READER, tmp_path / "out", documents=str(pages), count=1, solver="rtn"))
    assert "no reference.npz" in capsys.readouterr().err
    assert not (tmp_path / "out" / "reference.npz").exists()


def test_every_document_is_kept_by_all_that_it_is(tmp_path):
    """Answers are often the same; with pages more, other documents come in the places of those that were kept."""
    pages = tmp_path / "pages"
    pages.mkdir()

    def add(numbers):
        for i in numbers:
            Image.new("RGB", (112, 112), (10 * i, 90, 90)).save(pages / f"{i}.png")
            (pages / f"{i}.txt").write_text("yes")

    add(range(12))
    quantize(
        Settings(READER, tmp_path / "out", documents=str(pages), count=2, solver="rtn", reference=24, vision_bits=16)
    )
    path = tmp_path / "out" / "reference.npz"
    before = [document.name for document in ReferenceBaseline(path).documents]
    add(range(12, 24))
    after = [document.name for document in open_documents(str(pages), split="evaluation", count=24)]
    assert after[: len(before)] != before
    with pytest.raises(InputError, match=f"{path}: .*png is not the document that was kept: pages have been added"):
        ReferenceBaseline(path)
