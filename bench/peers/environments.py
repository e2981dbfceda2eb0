"""Peers, each in an environment of its own: they pin other versions than we do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from console.progress import say

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPT = Path(__file__).with_name("peer.py")


@dataclass(frozen=True)
class Peer:
    """Software of others that we compare with."""

    name: str
    """Name of its folder."""
    module: str
    """The file that calls it."""
    requirements: tuple[str, ...]
    """Pinned packages, its own first."""

    @property
    def version(self) -> str:
        """Version of the peer itself."""
        return self.requirements[0].partition("==")[2]

    @property
    def versions(self) -> str:
        """Versions of the peer and of its requirements, as text."""
        first, *others = (requirement.replace("==", " ") for requirement in self.requirements)
        return f"{first} with {' and '.join(others)}"


LLM_COMPRESSOR = Peer(
    "llm-compressor", "llm_compressor_peer", ("llmcompressor==0.14.0.1", "torch==2.13.0", "transformers==5.17.0")
)
# Later versions need a torch without a CPU build.
GPTQ_MODEL = Peer("GPTQModel", "gptq_model_peer", ("gptqmodel==7.6.0", "torch==2.13.0", "transformers==5.23.0"))
AUTO_ROUND = Peer("auto-round", "auto_round_peer", ("auto-round==0.16.1", "torch==2.13.0", "transformers==5.23.0"))


def environment(peer: Peer, cache: Path) -> Path:
    """The Python interpreter of a peer; makes its environment if that is missing or has other versions.

    Raises InputError if it cannot be installed.
    """
    folder = cache / peer.name / "venv"
    python, marker, wanted = folder / "bin" / "python", folder / "requirements.txt", "\n".join(peer.requirements)
    if marker.exists() and marker.read_text() == wanted:
        return python
    say(f"{peer.name}: installing {', '.join(peer.requirements)} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    log = cache / peer.name / "install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *peer.requirements],
    ):
        if said := _run(command, log):
            raise InputError(f"{peer.name} cannot be installed ({', '.join(peer.requirements)}): {said}; see {log}")
    marker.write_text(wanted)
    return python


def quantized_by(peer: Peer, settings: dict[str, Any], model: Path, documents: Path, cache: Path) -> Path:
    """Run peer.py unless its result exists; the path of the result.

    documents: a file as peer.py reads it. Raises InputError if the peer fails.
    """
    python, given = environment(peer, cache), json.dumps(settings, sort_keys=True)
    result = result_file(peer, given, model, documents, cache)
    if not result.exists():
        say(f"{peer.name}: quantizing on {documents.name} with {given}")
        partial, log = result.with_suffix(".partial"), result.with_suffix(".log")
        command = [str(python), "-E", str(SCRIPT), peer.module, str(model), str(documents), str(partial), given]
        if said := _run(command, log):
            raise InputError(f"{peer.name} failed on {documents}: {said}; see {log}")
        partial.rename(result)
    return result


def result_file(peer: Peer, settings: str, model: Path, documents: Path, cache: Path) -> Path:
    """Path of a result. It contains a digest of its inputs: versions, settings, scripts, documents and weights."""
    made_from = hashlib.sha256(repr((peer.requirements, settings)).encode())
    for file in (SCRIPT, SCRIPT.with_name(f"{peer.module}.py"), documents, *sorted(model.glob("*.safetensors"))):
        made_from.update(hashlib.sha256(file.read_bytes()).digest())
    return cache / peer.name / f"{documents.stem}-{made_from.hexdigest()[:16]}.safetensors"


def _run(command: Sequence[str], log: Path) -> str | None:
    """Run a command with its output in a file; the last line of it if it fails."""
    with log.open("w", encoding="utf-8") as said:
        # In a folder of its own, where some write logs. No downloads, and no check for a newer pip. GPTQModel does not
        # start with fewer workers.
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "GPTQMODEL_CPU_WORKERS": "2"}
        failed = subprocess.run(command, cwd=log.parent, stdout=said, stderr=said, env=quiet, check=False).returncode
    if not failed:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {failed}")
