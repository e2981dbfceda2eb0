"""Measuring documents: in several processes, of pages that change meanwhile, and the memory that one document takes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from PIL import Image

from calib_data.document import Document
from calib_data.sources import open_documents
from console.errors import InputError
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.measuring.measure import measure, measure_all
from runtime.compare.measuring.models import Models
from runtime.compare.measuring.predictions import ModelOutput
from runtime.compare.measuring.progress import PROGRESS, Progress
from runtime.decoding.forward import answer_parts

from ...commands import ENVIRONMENT


def test_processes_that_cannot_begin_say_why_and_the_first_models_are_given_back(exported, copied, capfd):
    models = Models(exported("fp16"), (copied,), "cpu")
    loaded = models.load()
    sessions = [weakref.ref(model.decoder) for model in (loaded.baseline.model, *loaded.candidates)]
    (copied / "tokenizer.json").unlink()
    documents = open_documents(split="evaluation", count=3, seed=0)
    with Progress(None, {}) as progress, pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        measure_all(models, loaded, documents, progress, jobs=2)
    assert [session() for session in sessions] == [None, None]
    assert "Traceback" not in capfd.readouterr().err


def workers(parent):
    """Processes that measure documents for a command."""
    children = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C in a terminal
        (os.killpg, signal.SIGTERM, 143),  # `timeout`
        (os.kill, signal.SIGHUP, -signal.SIGHUP),
        (os.kill, signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_stopped_command_waits_for_nothing_and_leaves_no_process(send, number, code, exported, tmp_path):
    """Its processes are still starting, with work left to hand out."""
    models = "--baseline", exported("fp16"), "--model", exported("w4")
    arguments = [sys.executable, "-m", "runtime", "compare", *models, "--count", "12", "--jobs", "2"]
    with subprocess.Popen(
        list(map(str, arguments)),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],  # nohup, &
    ) as running:
        try:
            started = wait_for(lambda: len(found := workers(running.pid)) == 2 and found)
            send(running.pid, number)
            _, err = running.communicate(timeout=40)
        finally:
            running.kill()
    assert running.returncode == code
    assert code < 0 or "Traceback" not in err  # a killed command hands its processes half of what they need
    wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in started))


@pytest.fixture
def pages(tmp_path):
    """Three documents of a folder of pictures, and the folder."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for number, document in enumerate(open_documents(split="evaluation", count=12, seed=2)):
        document.image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(document.answer)
    return folder, open_documents(str(folder), split="evaluation", count=3)


class SavedAnew(Progress):
    """One that finds, when it keeps the first document, that somebody saves a page anew."""

    page = other = None

    def add(self, *measured):
        super().add(*measured)
        if self.other is not None:
            shutil.copy(self.other, self.page)
            self.other = None


def test_a_page_that_changes_before_its_turn_is_named(exported, pages, tmp_path):
    """It is not measured, and what was measured is kept, so the same command goes on."""
    folder, documents = pages
    digests = [document.digest() for document in documents]
    models = Models(exported("fp16"), (exported("w4"),), "cpu")
    loaded = models.load()
    with SavedAnew(tmp_path / "out", {}) as progress:
        progress.page, progress.other = folder / documents[2].name, folder / documents[1].name
        with pytest.raises(InputError, match=rf"^{documents[2].name} has changed since it was read; run the command"):
            measure_all(models, loaded, documents, progress, jobs=1)
    lines = [json.loads(line) for line in (tmp_path / "out" / PROGRESS).read_text().splitlines()[1:]]
    assert [line["digest"] for line in lines] == digests[:2]
    with Progress(tmp_path / "out", {}) as progress:
        assert len(measure_all(models, loaded, documents, progress, jobs=1)) == 3


def test_a_page_that_changes_after_it_was_measured_is_still_of_the_comparison(exported, pages):
    """Its numbers are those of the page as it was, which a report could not show."""
    folder, documents = pages
    models = Models(exported("fp16"), (exported("w4"),), "cpu")
    with SavedAnew(None, {}) as progress:
        progress.page, progress.other = folder / documents[0].name, folder / documents[1].name
        measured = measure_all(models, models.load(), documents, progress, jobs=1)
        assert [one.name for one in measured] == [document.name for document in documents]
        progress.check_unchanged(documents[1:])
        with pytest.raises(InputError, match=f"^{documents[0].name} has changed since it was read"):
            progress.check_unchanged(documents)


@pytest.mark.parametrize("opened", range(1, 7))
def test_all_models_see_the_same_page(exported, pages, tmp_path, opened):
    """Whenever it changes: a model is nowhere apart from itself, and numbers are filed under the page they are of."""
    first, second = (document.image for document in pages[1][:2])
    pictures = [first] * opened
    document = Document(lambda: pictures.pop() if pictures else second, "What is the total?", "12", "page.png")
    models = Models(exported("fp16"), (exported("fp16"),), "cpu")
    loaded = models.load()
    with Progress(tmp_path / "out", {}) as progress:
        try:
            (measured,) = measure_all(models, loaded, [document], progress, jobs=1)
        except InputError as error:
            assert str(error) == "page.png has changed since it was read; run the command again"
            return
    assert set(measured.differences[0].kl) == {0.0}
    (line,) = (tmp_path / "out" / PROGRESS).read_text().splitlines()[1:]
    shown = {one.digest(): one for one in (Document(i, document.prompt, "12", "page.png") for i in (first, second))}
    with Progress(None, {}) as progress:
        (expected,) = measure_all(models, loaded, [shown[json.loads(line)["digest"]]], progress, jobs=1)
    assert measured.baseline.log_likelihood == expected.baseline.log_likelihood


class Watched(FolderBaseline):
    """A folder that sees, before it predicts the next part, that nobody holds the one before."""

    def predict(self, document, tokens):
        scored, predictions = super().predict(document, tokens)
        return ModelOutput(scored, self._watched(predictions))

    def _watched(self, predictions):
        last = lambda: None  # noqa: E731
        while (part := next(predictions, None)) is not None:
            assert last() is None
            last = weakref.ref(part.logits)
            yield part
            del part


def test_the_logits_of_a_part_are_given_back_before_those_of_the_next(reader):
    document = Document(Image.new("RGB", (56, 56), "white"), "Read.", "12 " * 300, "long.png")
    measured = measure(Watched(reader), [reader], document)
    (difference,) = measured.differences
    assert len(answer_parts(len(difference.kl))) > 2
    assert set(difference.kl) == {0.0}
