"""What is known to be wrong with a job before Ray starts, and before pages are listed. Workers check the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from console.errors import InputError, naming
from console.progress import say
from runtime.batch.output.columns import fields_as_json
from runtime.batch.source.folder import Folder
from runtime.batch.workers.answering import settle
from runtime.batch.workers.model_folder import require_manifest
from runtime.engine.cache_plan import check_context
from runtime.exported import ModelFolder
from runtime.ort.device import Device
from runtime.ort.manifest import load_manifest, read_manifest
from runtime.ort.sessions import session_options

if TYPE_CHECKING:
    from runtime.batch.job import Job
    from runtime.batch.storage import Storage
    from runtime.ort.manifest import Manifest

_SETTINGS = ".json", ".jinja", ".txt"  # files of a model that are small


def check(job: Job) -> None:
    """Raise InputError for options, a schema or a model that cannot be used; say what has no effect.

    This machine need not have the job's device, nor the weights of a model at a URL.
    """
    with naming("--schema"):
        _ = job.columns
    if job.schema is not None and job.source.prompt is None and isinstance(job.source, Folder):
        raise InputError("--schema: needs a --prompt that says what the fields are")
    if job.source.storage.holds(job.output):  # the files of the output would be taken for a source
        raise InputError(f"--output {job.output.url}: is inside --input; give a folder elsewhere")
    if job.output.is_file():
        raise InputError(f"--output {job.output.url}: is a file; give a folder")
    if Device.parse(job.device).index:
        raise InputError(f"--device {job.device}: each worker has a GPU of its own; give --device cuda")
    if job.model.folder is not None:
        _check_model(job, job.model.folder, load_manifest(job.model.folder))
        return
    require_manifest(job.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy_settings(job.model, folder)
        try:
            _check_model(job, folder, read_manifest(folder))
        except InputError as error:
            raise InputError(str(error).replace(name, job.model.url)) from error


def _copy_settings(model: Storage, folder: Path) -> None:
    for name in model.names():
        if PurePosixPath(name).suffix in _SETTINGS:
            model.download(name, folder / name)


def _check_model(job: Job, folder: Path, manifest: Manifest) -> None:
    options = session_options(job.device, memory_limit=job.memory_limit, threads=job.threads)
    model = ModelFolder(folder, job.device, options, manifest)
    check_context(job.max_context, manifest.text.context)
    settings, _ = settle(job, model)
    if unused := model.generation.without_effect(settings.used_fields(model.generation)):
        say(unused)
    for field in [] if job.schema is None else fields_as_json(job.schema):
        say(f"--schema: field {field!r} may have several types; its values are kept as JSON text")
