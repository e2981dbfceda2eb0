"""Does the GPU answer what it should: the bundled reader in every format, against the CPU's exact graphs.

Formats are made and measured beside each other, each in a process of its own: the CPU's part takes longest.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.gpu.figures import Figure
from bench.gpu.modes import modes
from calib_data import READER
from calib_data.sources import open_documents
from export import export, verify
from quantize.pipeline import quantize
from quantize.settings import Settings
from runtime.compare.baseline import FolderBaseline
from runtime.compare.gate import Gates
from runtime.compare.measure import measure as compare
from runtime.compare.summary import summarize_candidate
from runtime.model import Model
from runtime.ort.sessions import Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.gpu.bench import Bench

THREADS = 2  # of ONNX Runtime in each process


@dataclass(frozen=True)
class Kind:
    """A way to store the reader and to export it. quantized: of Settings; None leaves it in 16 bits."""

    name: str
    quantized: dict[str, Any] | None
    exported: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    """More of export, for the GPU alone."""

    @property
    def slug(self) -> str:
        """A name for folders."""
        return self.name.replace(" ", "-").replace(",", "")


KINDS = (
    Kind("4 bits", {"bits": 4}),
    Kind("4 bits, bf16", {"bits": 4, "dtype": "bfloat16"}),
    Kind("4 bits, block 32", {"bits": 4}, stated={"block_size": 32}),
    Kind("4 bits, int8 KV", {"bits": 4}, {"kv_bits": 8}),
    Kind("4 bits, full KV", {"bits": 4}, {"kv_layout": "full"}),
    Kind("8 bits", {"bits": 8}),
    Kind("NF4", {"quant_type": "nf4"}),
    Kind("unquantized", None),
)
TINY = ("4 bits",)


def measure(bench: Bench) -> Iterator[Figure]:
    """Verify, KL and answers of each format, as they are ready; and every way to decode the first of them."""
    kinds = [kind for kind in KINDS if not bench.tiny or kind.name in TINY]
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        running = {pool.submit(_kind, bench, kind): kind for kind in kinds}
        for done in as_completed(running):
            kind = running[done]
            if error := done.exception():
                yield Figure(kind.name, "failed", note=" ".join(str(error).split())[:300])
                continue
            yield from done.result()
            if kind == KINDS[0]:
                yield from modes(bench, _folder(bench, kind) / "candidate")


def _folder(bench: Bench, kind: Kind) -> Path:
    return bench.scratch / "right" / kind.slug


def _quantize(bench: Bench, kind: Kind, folder: Path) -> None:
    """Quantize the reader where the bench runs."""
    samples = 4 if bench.tiny else 16
    if kind.quantized is None:
        shutil.copytree(READER, folder)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        quantize(Settings(READER, folder, count=samples, reference=0, device=bench.device, **kind.quantized))


def _kind(bench: Bench, kind: Kind) -> list[Figure]:
    """Quantize the reader, export it for both devices and compare them."""
    reference, candidate = (_folder(bench, kind) / part for part in ("reference", "candidate"))
    _quantize(bench, kind, candidate)
    shutil.copytree(candidate, reference)
    export(reference, "cpu", exact=True, **kind.exported)
    if bench.on_gpu:
        export(candidate, "cuda", **kind.exported, **kind.stated)
    else:
        export(candidate, "cpu", **kind.exported)
    return [*_verified(bench, kind, candidate), *_compared(bench, kind, reference, candidate)]


def _verified(bench: Bench, kind: Kind, folder: Path) -> Iterator[Figure]:
    found = verify(folder, bench.device)
    for check in found.checks:
        verdict = "passes" if check.passed else "FAILS"
        yield Figure(f"{kind.name}: verify {check.name}", check.error, note=f"{verdict}; {check.tolerance:.1e} allowed")


def _compared(bench: Bench, kind: Kind, reference: Path, candidate: Path) -> Iterator[Figure]:
    """Mean KL along the true answers, and greedy answers that are other ones."""
    count = 3 if bench.tiny else 100
    options = Options(threads=THREADS)
    baseline = FolderBaseline(Model(reference, "cpu", options))
    model = Model(candidate, bench.device, options)
    documents = open_documents("rendered", split="evaluation", count=count, seed=0)
    measured = [compare(baseline, [model], document) for document in documents]
    side = summarize_candidate(kind.name, 0, measured, Gates())
    kl = side.mean_kl
    note = f"nats; 95 % interval {kl.low:.2g} to {kl.high:.2g}"
    yield Figure(f"{kind.name}: mean KL", kl.value, count=count, note=note)
    assert side.answers_changed is not None
    yield Figure(f"{kind.name}: greedy answers changed", side.answers_changed, f"of {count}")
