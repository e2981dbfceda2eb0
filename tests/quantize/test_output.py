"""The folder that is written: one run at a time, gone on with by the same settings only, and nobody else's files."""

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from calib_data import READER
from calib_data.sources import open_documents, split_of_picture
from console.errors import CannotResumeError, InputError
from quantize.output import copy_companions, hash_companions, is_finished, output_folder
from quantize.pipeline import quantize
from quantize.report import StepReport
from quantize.settings import REVISION, Settings
from runtime.inputs.chat_template import load_chat_template

pytestmark = pytest.mark.slow


def test_an_output_folder_is_written_by_one_run_at_a_time(tmp_path):
    output = tmp_path / "out"
    with output_folder(output, {}) as (partial, _):
        assert partial.parent == tmp_path
        with pytest.raises(InputError, match="being written by another run"), output_folder(output, {}):
            pass
        (partial / "config.json").write_text("{}")
    assert [path.name for path in output.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_without_a_journal_is_cleared_and_what_others_left_is_not(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not from this command"), output_folder(tmp_path / "out", {}):
        pass
    assert (partial / "thesis.txt").exists()
    (partial / ".lock").touch()  # now it is ours
    with output_folder(tmp_path / "out", {}) as (folder, journal):
        assert not (folder / "thesis.txt").exists()
        assert journal.steps == []


def unfinished(output, settings, error):
    """A run that gets one step done and then ends like this."""
    with output_folder(output, settings) as (folder, journal):
        journal.steps.append(StepReport("first", 1.0, 2))
        journal.save(folder)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), RuntimeError("a bug")])
def test_an_interrupted_run_goes_on_and_only_with_the_same_settings(tmp_path, error):
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="disk is full.*to resume" if expected is InputError else None):
        unfinished(tmp_path / "out", {"bits": 4, "seed": 0}, error)
    other = r"out.partial holds an unfinished run with other settings \(seed\)"
    for _ in range(2):  # being refused destroys nothing
        with pytest.raises(InputError, match=other), output_folder(tmp_path / "out", {"bits": 4, "seed": 1}):
            pass
    (tmp_path / "out.partial" / ".lock").unlink()  # as filelock does on Windows
    with output_folder(tmp_path / "out", {"bits": 4, "seed": 0}) as (_, journal):
        assert journal.steps == [StepReport("first", 1.0, 2)]


def test_another_revision_of_the_solver_neither_goes_on_nor_takes_its_result_for_ours(tmp_path):
    record = Settings(READER).record("checkpoint", "companions")
    assert record["revision"] == REVISION
    output, without = tmp_path / "out", {key: value for key, value in record.items() if key != "revision"}
    for number, other in enumerate((record | {"revision": REVISION - 1}, without)):  # older folders have none
        with pytest.raises(KeyboardInterrupt):
            unfinished(tmp_path / f"{number}", other, KeyboardInterrupt())
        says = (
            rf"{number}.partial holds an unfinished run with another revision of this command, which .*; give another"
        )
        with pytest.raises(InputError, match=says), output_folder(tmp_path / f"{number}", record):
            pass
        output.mkdir(exist_ok=True)
        (output / "quantization_report.json").write_text(json.dumps({"settings": other}))
        with pytest.raises(
            InputError, match=r"out holds a result with another revision of this command, .*; give anoth"
        ):
            is_finished(output, record, dict)
    (output / "quantization_report.json").write_text(json.dumps({"settings": record, "documents": {}}))
    assert is_finished(output, record, dict)


def test_a_result_of_revision_1_is_another_revision_and_not_a_list_of_settings(tmp_path):
    """It had other splits, and neither documents nor companions in its report."""
    record = Settings(READER).record("checkpoint", "companions")
    found = {key: value for key, value in record.items() if key != "companions"} | {"revision": 1, "seed": 5}
    (tmp_path / "quantization_report.json").write_text(json.dumps({"settings": found}))
    with pytest.raises(InputError, match=r"another revision of this command, [^;]*; give another --output or rem"):
        is_finished(tmp_path, record, dict)


def test_a_result_is_finished_only_for_the_same_documents_and_companions(tmp_path):
    pages, model = tmp_path / "pages", tmp_path / "model"
    shutil.copytree(READER, model)
    pages.mkdir()
    for i in range(12):
        Image.new("RGB", (56, 56), (20 * i, 90, 90)).save(pages / f"{i}.png")
        (pages / f"{i}.txt").write_text("a")
    settings = Settings(model, tmp_path / "out", documents=str(pages), count=12, solver="rtn", reference=2)
    report = quantize(settings)
    assert report is not None
    assert report.as_dict()["documents"].keys() == {"calibration", "evaluation"}
    for split in ("calibration", "evaluation"):
        answer = (pages / open_documents(str(pages), split=split, count=1)[0].name).with_suffix(".txt")
        answer.write_text("b")
        with pytest.raises(
            InputError, match="out holds a result with other documents; give another --output or remove"
        ):
            quantize(settings)
        answer.write_text("a")
    blank = (Image.new("RGB", (56, 56), (5, 5, i)) for i in range(99))
    added = "added.png"
    next(page for page in blank if split_of_picture(page) == "calibration").save(pages / added)
    with pytest.raises(InputError, match="other documents"):
        quantize(settings)
    (pages / added).unlink()
    for name in ("chat_template.jinja", "preprocessor_config.json", "tokenizer.json"):
        original = (model / name).read_bytes()
        (model / name).write_bytes(original + b"\n")
        with pytest.raises(InputError, match=r"out holds a result with other settings \(companions\)"):
            quantize(settings)
        (model / name).write_bytes(original)
    assert quantize(settings) is None


def test_chat_templates_in_a_folder_of_their_own_are_companions(tmp_path):
    model, output = tmp_path / "model", tmp_path / "out"
    template = model / "additional_chat_templates" / "default.jinja"
    template.parent.mkdir(parents=True)
    output.mkdir()
    template.write_text("{{ messages }}")
    (model / "original").mkdir()  # what no command reads
    (model / "original" / "params.json").write_text("{}")
    before = hash_companions(model)
    copy_companions(model, output)
    assert load_chat_template(output).text == "{{ messages }}"
    assert [path.name for path in output.iterdir()] == [template.parent.name]
    assert hash_companions(output) == before
    template.write_text("{{ messages[0] }}")
    assert hash_companions(model) != before


def test_wrong_input_before_anything_is_finished_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"^no document$"), output_folder(tmp_path / "out", {}) as (folder, _):
        (folder / "model-00001.writing").write_bytes(bytes(10))
        raise InputError("no document")
    assert not list(tmp_path.iterdir())


def test_wrong_input_keeps_what_is_finished(tmp_path):
    """In a new run and in one that goes on: a folder of documents that is not mounted must not cost the days done."""
    for _ in range(2):
        with pytest.raises(InputError, match=r"^no document \(.*out.partial keeps what is finished: the same"):
            unfinished(tmp_path / "out", {}, InputError("no document"))
    with output_folder(tmp_path / "out", {}) as (_, journal):
        assert journal.steps == 2 * [StepReport("first", 1.0, 2)]


def test_what_cannot_be_gone_on_with_is_not_said_to_go_on(tmp_path):
    """The folder stays: whoever reads the line may still put back what is missing."""
    for _ in range(2):
        with pytest.raises(CannotResumeError, match=r"^it is cut; remove it$"):
            unfinished(tmp_path / "out", {}, CannotResumeError("it is cut; remove it"))
    assert (tmp_path / "out.partial" / ".journal.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a mount point there")
def test_an_output_that_no_folder_can_take_the_place_of_is_refused_before_any_work(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("link", "gone"):
        with pytest.raises(InputError, match=rf"{name} is a symbolic link or a mount point"):
            quantize(Settings(READER, tmp_path / name, count=1))
    with pytest.raises(InputError, match="/proc is a symbolic link or a mount point"), output_folder(Path("/proc"), {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "link", "real"]


@pytest.mark.parametrize("nbytes", [2**50, None])
def test_a_step_that_does_not_fit_in_memory_is_named_and_the_steps_before_it_are_kept(tmp_path, monkeypatch, nbytes):
    """More bytes than a process can have, whatever the machine: PyTorch's allocator, and Python's."""
    settings = Settings(READER, tmp_path / "out", count=1, solver="rtn", reference=0)

    def large(*_):
        return torch.empty(nbytes, dtype=torch.uint8) if nbytes else bytearray(2**62)

    says = (
        r"out of memory at step model.language_model.layers.0; close other programs \(.*out.partial keeps what is fin"
    )
    with monkeypatch.context() as middle, pytest.raises(InputError, match=says):
        middle.setattr("quantize.pipeline.Pipeline._decoder_layer", large)
        quantize(settings)
    assert quantize(settings) is not None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {}, "steps": [{"what": 1}]}'])
def test_a_journal_that_cannot_be_used_is_one_line(content, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / ".journal.json").write_text(content)
    says = r"\.journal\.json: .*remove .*out\.partial and begin again"
    with pytest.raises(InputError, match=says), output_folder(tmp_path / "out", {}):
        pass
    assert (partial / ".journal.json").read_text() == content
