"""Runs a comparison document by document, in one process or several, and goes on where one was stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import onnxruntime as ort

from calib_data.errors import InputError
from calib_data.progress import track
from runtime.bundle import FILE
from runtime.cache import cache_bytes
from runtime.compare.baseline import Baseline, FolderBaseline, ReferenceBaseline
from runtime.compare.measure import Measured, measure, require_same_tokens
from runtime.compare.result import Cost
from runtime.generate import Model
from runtime.sessions import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from calib_data.document import Document

PROGRESS = "documents.jsonl"
MIB = 1 << 20
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Models:
    """Paths of a baseline, an exported folder or a reference.npz, and of candidates, and the device they run on."""

    baseline: Path
    candidates: tuple[Path, ...]
    device: str

    @property
    def has_reference(self) -> bool:
        """Whether the baseline is predictions that quantize kept."""
        return self.baseline.suffix == ".npz"

    def load(self, options: Options | None = None) -> Loaded:
        """Open all of them. Raises InputError where one cannot be, or where their tokens are not the same."""
        costs = []
        baseline: Baseline
        if self.has_reference:
            if not self.baseline.is_file():
                raise InputError(f"{self.baseline}: no such file; python -m quantize writes it into its folder")
            baseline = ReferenceBaseline(self.baseline)
        else:
            model, cost = _open(self.baseline, self.device, options)
            baseline = FolderBaseline(model)
            costs.append(cost)
        candidates: list[Model] = []
        for path in self.candidates:
            model, cost = _open(path, self.device, options)
            first = baseline.model if isinstance(baseline, FolderBaseline) else (candidates or [model])[0]
            require_same_tokens(first, model)
            candidates.append(model)
            costs.append(cost)
        return Loaded(baseline, candidates, costs)

    def fingerprint(self) -> str:
        """A hash that changes when one of the models does."""
        files = [path / FILE for path in self.candidates]
        files.append(self.baseline if self.has_reference else self.baseline / FILE)
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """Models in memory. costs: of the baseline, where it is a folder, and of every candidate."""

    baseline: Baseline
    candidates: list[Model]
    costs: list[Cost]


def _open(path: Path, device: str, options: Options | None) -> tuple[Model, Cost]:
    before = _resident()
    model = Model(path, device, options)
    after = _resident()
    text, itemsize = model.bundle.text, _ITEMSIZE[model.target.kv_dtype]
    return model, Cost(
        weights=sum(file.bytes for file in model.bundle.weights.values()) / MIB,
        kv_cache_at_4096=cache_bytes(text, batch=1, room=4096, itemsize=itemsize) / MIB,
        resident=None if before is None or after is None else (after - before) / MIB,
        tokens_per_second=None,
    )


def _resident() -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class Progress:
    """Documents that are done, kept line by line in a folder so that a comparison can go on; without one, in memory.

    settings: what must be the same for a comparison to go on. Raises InputError for a folder that holds another.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._file = None
        self.done: dict[str, Measured] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRESS
        first = json.dumps(settings, sort_keys=True)
        # A line without an end was being written when the run was stopped.
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and whole[0].rstrip("\n") != first:
            raise InputError(f"{folder}: holds a comparison of other models or documents; give another --output")
        for line in whole[1:]:
            measured = Measured.from_json(json.loads(line))
            self.done[measured.name] = measured
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(whole or [first + "\n"])
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, measured: Measured) -> None:
        """Keep one more document."""
        self.done[measured.name] = measured
        if self._file is not None:
            self._file.write(json.dumps(measured.to_json(), ensure_ascii=False) + "\n")
            self._file.flush()


def settings_of(models: Models, about: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a comparison to go on."""
    return {**about, "fingerprint": models.fingerprint(), "onnxruntime": ort.__version__}


def run(models: Models, loaded: Loaded, documents: Sequence[Document], progress: Progress, jobs: int) -> list[Measured]:
    """Measure all documents that are not done, and return all, in their order."""
    left = [document for document in documents if document.name not in progress.done]
    if jobs == 1 or not left:
        measured: Iterator[Measured] = (measure(loaded.baseline, loaded.candidates, one) for one in left)
        _keep(measured, left, progress)
    else:
        options = Options(threads=max(1, (os.cpu_count() or 1) // jobs))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _load_here, (models, options)) as pool:
            _keep(pool.map(_measure_here, left), left, progress)
    return [progress.done[document.name] for document in documents]


def _keep(measured: Iterator[Measured], left: Sequence[Document], progress: Progress) -> None:
    for _ in track(left, "comparing"):
        progress.add(next(measured))


_here: Callable[[Document], Measured]


def _load_here(models: Models, options: Options) -> None:
    """Prepare a process of the pool."""
    global _here
    loaded = models.load(options)
    _here = lambda document: measure(loaded.baseline, loaded.candidates, document)  # noqa: E731


def _measure_here(document: Document) -> Measured:
    return _here(document)
