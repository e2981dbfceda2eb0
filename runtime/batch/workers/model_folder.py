"""The model's folder on this machine: where it is, or a copy of it, made once a machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from console.errors import InputError

if TYPE_CHECKING:
    from runtime.batch.storage import Storage

CACHE = "EXAONE_DOCVLM_CACHE"
"""Variable with the folder for copies; ~/.cache/exaone-docvlm without it."""
_MANIFEST = "runtime.json"


def local_model(storage: Storage) -> Path:
    """Path of an exported folder. One at a URL is copied; processes of a machine wait for the first to copy it.

    A folder whose runtime.json has changed is copied anew. Raises InputError where it cannot be copied.
    """
    if storage.folder is not None:
        return storage.folder
    if not storage.exists(_MANIFEST):
        raise InputError(f"{storage.url}: has no {_MANIFEST}; give a model folder that export has added graphs to")
    content = storage.read(_MANIFEST)
    digest = hashlib.sha256(json.dumps([storage.url, content.hex()]).encode()).hexdigest()[:24]
    folder = Path(os.environ.get(CACHE, "~/.cache/exaone-docvlm")).expanduser() / "models" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            storage.download_folder(partial)
            partial.rename(folder)
    return folder
