"""Several processes: what they hold, and what they say where they cannot begin."""

import weakref

import pytest

from calib_data.errors import InputError
from calib_data.sources import open_documents
from runtime.compare.progress import Progress
from runtime.compare.run import Models, run


def test_processes_that_cannot_begin_say_why_and_the_first_models_are_given_back(exported, copied, capfd):
    models = Models(exported("fp16"), (copied,), "cpu")
    loaded = models.load()
    sessions = [weakref.ref(model.decoder) for model in (loaded.baseline.model, *loaded.candidates)]
    (copied / "tokenizer.json").unlink()
    documents = open_documents(split="evaluation", count=3, seed=0)
    with Progress(None, {}) as progress, pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        run(models, loaded, documents, progress, jobs=2)
    assert [session() for session in sessions] == [None, None]
    assert "Traceback" not in capfd.readouterr().err
