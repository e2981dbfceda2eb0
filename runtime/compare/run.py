"""Runs a comparison document by document, in one process or several, and goes on where one was stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from console.errors import InputError, naming
from console.progress import say, track
from runtime.compare.baseline import Baseline, FolderBaseline, ReferenceBaseline
from runtime.compare.checks import changed, require_measurable, require_same_images, require_same_inputs
from runtime.compare.fingerprint import fingerprint
from runtime.compare.layers import require_listable
from runtime.compare.measure import Measured, measure
from runtime.compare.result import Cost
from runtime.generate import Model
from runtime.ort.cache import cache_bytes
from runtime.ort.sessions import Device, Options, itemsize
from runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from calib_data.document import Document
    from runtime.compare.progress import Progress

MIB = 1 << 20


@dataclass(frozen=True)
class Models:
    """Paths of a baseline, an exported folder or a reference.npz, and of candidates, and the device they run on.

    source: where the documents of a reference lie now; None for where quantize found them.
    """

    baseline: Path
    candidates: tuple[Path, ...]
    device: str
    source: str | None = None

    @property
    def has_reference(self) -> bool:
        """Whether the baseline is predictions that quantize kept."""
        return self.baseline.suffix == ".npz"

    def load(self, options: Options | None = None) -> Loaded:
        """Open all of them. Raises InputError where one cannot be, or where their tokens are not the same."""
        costs = []
        baseline: Baseline
        own, weights = None, None
        if self.has_reference:
            if not self.baseline.is_file():
                raise InputError(f"{self.baseline}: no such file; python -m quantize writes it into its folder")
            baseline = ReferenceBaseline(self.baseline, self.source)
        else:
            own, cost = _open(self.baseline, self.device, options)
            baseline, weights = FolderBaseline(own), Weights(self.baseline, own.manifest.weights)
            costs.append(cost)
        candidates: list[Model] = []
        for path in self.candidates:
            model, cost = _open(path, self.device, options)
            require_same_inputs(own or (candidates or [model])[0], model)
            if isinstance(baseline, ReferenceBaseline):
                require_same_images(baseline, model)
            require_listable(path, model.manifest, weights)
            candidates.append(model)
            costs.append(cost)
        return Loaded(baseline, candidates, costs)

    def fingerprint(self) -> str:
        """A hash that changes when one of the models does: its graphs, weights, tokenizer or settings."""
        kind = Device.parse(self.device).kind
        folders = self.candidates if self.has_reference else (self.baseline, *self.candidates)
        parts = [fingerprint(folder, kind).encode() for folder in folders]
        parts += [self.baseline.read_bytes()] if self.has_reference else []
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """Models in memory. costs: of the baseline, where it is a folder, and of every candidate."""

    baseline: Baseline
    candidates: list[Model]
    costs: list[Cost]

    def release(self) -> None:
        """Give back the memory of all graphs; what was read of the folders stays."""
        own = [self.baseline.model] if isinstance(self.baseline, FolderBaseline) else []
        for model in (*own, *self.candidates):
            for part in ("decoder", "vision", "_head"):
                vars(model).pop(part, None)


def _open(path: Path, device: str, options: Options | None) -> tuple[Model, Cost]:
    before = _resident()
    model = Model(path, device, options)
    model.load()  # its memory is part of what is measured
    after = _resident()
    cache = cache_bytes(model.manifest.text, batch=1, capacity=4096, itemsize=itemsize(model.target.kv_dtype))
    return model, Cost(
        weights=sum(file.bytes for file in model.manifest.weights.values()) / MIB,
        kv_cache_at_4096=cache / MIB,
        resident=None if before is None or after is None else (after - before) / MIB,
        tokens_per_second=None,
    )


def _resident() -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def settings_of(models: Models, about: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a comparison to go on."""
    return {**about, "fingerprint": models.fingerprint(), "onnxruntime": ort.__version__}


def run(models: Models, loaded: Loaded, documents: Sequence[Document], progress: Progress, jobs: int) -> list[Measured]:
    """Measure all documents that are not done, and return all, in their order.

    With several jobs, each has models of its own, and those in `loaded` are given back. Raises InputError before
    anything is measured where a document cannot be, and later for one that is another when its turn comes.
    """
    keys = [document.digest() for document in documents]
    left = {key: document for key, document in zip(keys, documents, strict=True) if key not in progress}
    if len(left) < len(documents):
        say(f"{len(documents) - len(left)} of {len(documents)} documents are done, going on")
    require_measurable(loaded.baseline, loaded.candidates, list(left.values()))
    if jobs == 1 or not left:
        _keep((_measure(loaded, *one) for one in left.items()), left, progress)
    else:
        loaded.release()
        options = Options(threads=max(1, (os.cpu_count() or 1) // jobs))
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(jobs, context, _prepare, (models, options)) as pool:
                _keep(pool.map(_measure_here, left.items()), left, progress)
        except BrokenProcessPool as error:
            raise InputError(f"--jobs {jobs}: a process ended by itself, for want of memory? Give fewer") from error
    return [progress[key] for key in keys]


def _keep(measured: Iterator[Measured], keys: Iterable[str], progress: Progress) -> None:
    for key in track(list(keys), "comparing"):
        progress.add(key, next(measured))


def _measure(loaded: Loaded, key: str, document: Document) -> Measured:
    """Measure a document whose digest was `key`: its picture is opened once, so that every model sees the same."""
    with naming(document.name):
        opened = replace(document, picture=document.image)
    if opened.digest() != key:
        raise changed(document)
    return measure(loaded.baseline, loaded.candidates, opened)


_here: Callable[[], Loaded]


def _prepare(models: Models, options: Options) -> None:
    """Let a process of the pool load the models with its first document: an error here would only break the pool."""
    global _here
    _here = cache(lambda: models.load(options))


def _measure_here(one: tuple[str, Document]) -> Measured:
    return _measure(_here(), *one)
