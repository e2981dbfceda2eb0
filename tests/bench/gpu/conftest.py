"""Graphs of the miniature, made once for all tests."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from bench.gpu.folders import TINY, VARIANTS, archive_name, pack, unpack


@pytest.fixture(scope="session")
def archive(shared: Path) -> Path:
    """The miniature for the CPU without block-32, as `bench.gpu.prepare` packs the release for CUDA."""
    path = shared / archive_name(TINY)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_suffix(".partial")
            pack(replace(TINY, variants=("stored", "int8-kv", "full-kv")), "cpu", partial)
            partial.rename(path)
    return path


@pytest.fixture
def miniature(archive: Path, tmp_path: Path) -> Path:
    """A folder of all variants, where stages look for it. block-32 is for CUDA alone: here it is a copy of stored."""
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    folder.mkdir()
    unpack(archive, folder)
    shutil.copytree(folder / "stored", folder / "block-32")
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= set(VARIANTS)
    return folder
