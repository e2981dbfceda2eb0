"""Builds stand-in CUDA libraries, so that ONNX Runtime's CUDA provider loads on a machine without a GPU.

With them sessions open, ONNX Runtime's own code assigns every node to a provider, IO binding to 'cuda' works and whole
decode loops run, with kernels that compute nothing. That shows where nodes run and what is copied between host and
device. It shows neither values nor speed.

The provider library lists the symbols that it needs from each CUDA library. `cudart.c` and `cuda.c` define those whose
result matters. All others become functions that return 0, which means success in every CUDA library.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SUPPORTED = "libcudart.so.13"  # cudart.c has the cudaDeviceProp of this version
WRITTEN = {SUPPORTED: HERE / "cudart.c", "libcuda.so.1": HERE / "cuda.c"}


class CudaStub:
    """Runs Python with the stand-in libraries of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, script: str, *arguments: str | Path, timeout: float = 120) -> object:
        """Run Python source in a fresh process on the stand-in device; returns the JSON of its last printed line.

        The script finds `arguments` in sys.argv[1:] and may import `traffic`. Raises RuntimeError, with the script's
        stderr, where it fails.
        """
        search = {"LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": str(HERE)}
        inherited = {name: f"{path}:{os.environ[name]}" for name, path in search.items() if os.environ.get(name)}
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **search, **inherited},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def missing() -> str | None:
    """Why the libraries cannot be built here; None where they can."""
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    provider = _provider()
    if provider is None:
        return "onnxruntime-gpu is not installed"
    if SUPPORTED not in _needed(provider):
        return f"onnxruntime-gpu is not built for {SUPPORTED}"
    return None


def build(folder: Path) -> CudaStub:
    """Compile the stand-in libraries into `folder`, which must exist."""
    provider = _provider()
    assert provider is not None, missing()
    listing = _output("nm", "-D", "--undefined-only", provider)
    needed_symbols = re.findall(r"U (\w+)(?:@(\S+))?$", listing, re.MULTILINE)
    for library in _needed(provider):
        names = {name for name, version in needed_symbols if version == library}
        if library == "libcuda.so.1":  # the driver's symbols carry no version
            names = {name for name, version in needed_symbols if not version and re.match(r"cu[A-Z]", name)}
        _compile(library, names, folder)
    return CudaStub(folder)


def _provider() -> Path | None:
    """Find ONNX Runtime's CUDA provider library."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        return None
    library = Path(package.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return library if library.exists() else None


def _needed(provider: Path) -> list[str]:
    """List the CUDA libraries that the provider is linked to."""
    return re.findall(r"\[(libcu[\w.]+)\]", _output("readelf", "-d", provider))


def _compile(library: str, names: set[str], folder: Path) -> None:
    """Compile a shared library that defines `names`, with the symbol version that the provider needs."""
    written = WRITTEN.get(library)
    defined = set(re.findall(r"\b(\w+)\(", written.read_text())) if written else set()
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    functions = [f"int {name}(void) {{ return 0; }}\n" for name in sorted(names - defined)]
    source.write_text("".join(functions) or "int stub_nothing_needed_symbols;\n")
    versions.write_text(f"{library} {{ global: *; }};\n")
    # The provider needs the driver's symbols without a version.
    versioned = [] if library == "libcuda.so.1" else [f"-Wl,--version-script={versions}"]
    sources: list[str | Path] = [source, written] if written else [source]
    output: list[str | Path] = ["-o", folder / library, f"-Wl,-soname,{library}"]
    # -fno-builtin: the stand-ins of library functions have other types.
    _output("gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", *versioned, *output, *sources)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
