"""What tells an exported folder from what it was before, without reading all of its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from runtime.compare.layers import REPORT
from runtime.ort.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

_PAGES, _PAGE = 64, 4096
# All that `Model` and `list_layers` read beside runtime.json; others, such as a comparison's own, may come and go.
_SETTINGS = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    REPORT,
    "tokenizer.json",
    "tokenizer_config.json",
)


def fingerprint(folder: Path, kind: str) -> str:
    """SHA-256 of all that a folder's numbers on a kind of device come from.

    Settings, tokenizer and graphs as they are; of runtime.json what is for any device and for this one; of each weights
    file when it was changed, and 64 pages spread over it: its size and header are in runtime.json, and `load_manifest`
    has compared them.
    """
    manifest = load_manifest(folder)
    target = manifest.target(folder, kind)
    described = {**asdict(manifest), "targets": asdict(target)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    settings = [name for name in _SETTINGS if (folder / name).exists()]
    for name in [*settings, target.decoder, *([target.vision] if target.vision else [])]:
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    for name in sorted(manifest.weights):
        digest.update(name.encode(errors="surrogateescape") + b" " + _spread(folder / name))
    return digest.hexdigest()


def _spread(path: Path) -> bytes:
    """When a file was changed, and pages of it at equal distances."""
    about = path.stat()
    with path.open("rb") as file:
        pages = [str(about.st_mtime_ns).encode()]
        for place in range(_PAGES):
            file.seek(about.st_size * place // _PAGES)
            pages.append(file.read(_PAGE))
    return b"".join(pages)
