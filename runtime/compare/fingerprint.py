"""What tells an exported folder from what it was before, without reading all of its weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from runtime.bundle import load_bundle

if TYPE_CHECKING:
    from pathlib import Path

_PAGES, _PAGE = 64, 4096


def fingerprint(folder: Path, kind: str) -> str:
    """SHA-256 of all that a folder's numbers on a kind of device come from.

    Settings, tokenizer and graphs as they are; of each weights file when it was changed, and 64 pages spread over it:
    its size and header are in runtime.json, and `load_bundle` has compared them.
    """
    bundle, digest = load_bundle(folder), hashlib.sha256()
    target = bundle.target(folder, kind)
    graphs = [folder / name for name in (target.decoder, target.vision) if name]
    for path in [*sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja")), *graphs]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    for name in sorted(bundle.weights):
        digest.update(f"{name} ".encode() + _spread(folder / name))
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
