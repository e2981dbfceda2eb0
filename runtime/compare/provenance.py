"""How a comparison was made: date, versions and graphs for its reader, and fingerprints for a run that resumes."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from runtime.compare.layers import REPORT
from runtime.compare.measuring.baseline import FolderBaseline
from runtime.compare.result import FORMAT
from runtime.compare.stopping.control_tokens import control_ids
from runtime.inputs.chat_template import additional_templates
from runtime.ort.device import Device
from runtime.ort.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.compare.measuring.models import LoadedModels, Models
    from runtime.model import Model

_PAGES, _PAGE = 64, 4096
# All files that `Model` and `list_layers` read, apart from runtime.json. Others may come and go.
_SETTINGS = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    REPORT,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def provenance(loaded: LoadedModels) -> dict[str, Any]:
    """Date, machine, versions, ids of control tokens, and the graphs of the baseline and of every candidate.

    The graphs of a reference are None.
    """
    baseline = loaded.baseline
    baseline_graphs = _describe_graphs(baseline.model) if isinstance(baseline, FolderBaseline) else None
    return {
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        "machine": platform.machine(),
        "versions": {
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "control_tokens": control_ids(loaded.candidates[0]),
        "graphs": [baseline_graphs, *(_describe_graphs(model) for model in loaded.candidates)],
    }


def _describe_graphs(model: Model) -> str:
    """The data types that a model's graphs compute with."""
    target = model.target
    fast = model.device.kind == "cpu" and not target.exact
    inputs = "int8 activations where weights are packed" if fast else f"{target.dtype} activations"
    return f"{inputs}, {target.kv_dtype} KV cache"


def resume_settings(models: Models, chosen: dict[str, Any]) -> dict[str, Any]:
    """Settings that must match for a comparison to resume. chosen: how the documents were chosen, and the device."""
    kind = Device.parse(models.device).kind
    folders = models.candidates if models.has_reference else (models.baseline, *models.candidates)
    parts = [fingerprint(folder, kind).encode() for folder in folders]
    parts += [models.baseline.read_bytes()] if models.has_reference else []
    combined = hashlib.sha256(b"".join(parts)).hexdigest()
    return {**chosen, "format": FORMAT, "fingerprint": combined, "onnxruntime": ort.__version__}


def fingerprint(folder: Path, kind: str) -> str:
    """SHA-256 of all that the outputs of an exported folder on a kind of device depend on.

    It covers settings, tokenizer and graphs whole; of runtime.json the parts for any device and for this one; of each
    weights file its time of change and 64 pages spread over it. Sizes and headers of weights are in runtime.json, and
    `load_manifest` has compared them.
    """
    manifest = load_manifest(folder)
    target = manifest.target(folder, kind)
    described = {**asdict(manifest), "targets": asdict(target)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    settings = [name for name in _SETTINGS if (folder / name).exists()]
    settings += [path.relative_to(folder).as_posix() for path in additional_templates(folder)]
    for name in [*settings, target.decoder, *([target.vision] if target.vision else [])]:
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    for name in sorted(manifest.weights):
        digest.update(name.encode(errors="surrogateescape") + b" " + _sample(folder / name))
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    """The time of change of a file, and pages at equal distances."""
    status = path.stat()
    with path.open("rb") as file:
        pages = [str(status.st_mtime_ns).encode()]
        for number in range(_PAGES):
            file.seek(status.st_size * number // _PAGES)
            pages.append(file.read(_PAGE))
    return b"".join(pages)
