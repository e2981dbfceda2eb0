"""`export`: add the graphs of one device and runtime.json to a model folder, all of them or none."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from console.errors import InputError
from console.generation_config import read_generation_config
from console.locks import lock, unlock
from export.checkpoint import open_model
from export.describe import describe, describe_target, require_runnable
from export.graphs import write_graphs
from export.modules.weights import Source
from runtime.ort.manifest import FILE, Manifest, Target, hash_file, load_manifest
from runtime.sizes import KvLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DeviceKind = Literal["cpu", "cuda"]
KvBits = Literal[16, 8]
BlockSize = Literal[32]


def export(
    model: Path | str,
    device: DeviceKind = "cpu",
    *,
    exact: bool = False,
    kv_bits: KvBits = 16,
    kv_layout: KvLayout = "window",
    block_size: BlockSize | None = None,
) -> Manifest:
    """Add the ONNX graphs of one device and runtime.json to a model folder. The weights stay in its safetensors files.

    The graphs of the other device stay usable. An export that fails or is stopped leaves the graphs that were there.

    model: folder that `quantize` wrote, or any EXAONE 4.x checkpoint in safetensors.
    device: where the graphs will run.
    exact: CPU only: packed 4/8-bit weights multiply float32 activations (slower, for accuracy studies) instead of int8.
    kv_bits: 8 stores keys and values as int8, in the ranges that `quantize` measured; 16 stores them in the dtype of
        activations.
    kv_layout: "full" (experimental) makes the buffers of sliding layers as long as all others, so no step moves a
        window.
    block_size: 32 (experimental) repeats the scales of larger groups so that ONNX Runtime's CUTLASS kernels can take
        packed weights; None leaves groups as stored. CPU graphs in blocks of 32 compute the same values, for tests.

    Returns the content of runtime.json. Raises InputError for a folder that cannot be exported or that another run is
    writing.
    """
    _require_choice("device", device, get_args(DeviceKind))
    _require_choice("kv_bits", kv_bits, get_args(KvBits))
    _require_choice("kv_layout", kv_layout, get_args(KvLayout))
    _require_choice("block_size", block_size, (*get_args(BlockSize), None))
    if exact and device == "cuda":
        raise InputError("--exact: has no effect on CUDA graphs, which never round activations to int8; leave it out")
    folder = Path(model)
    checkpoint, family, config = open_model(folder)
    require_runnable(checkpoint, config)
    read_generation_config(folder, config.get_text_config().vocab_size)  # a wrong one is refused here
    source = Source(checkpoint, load=False, exact=exact or device == "cuda", block_size=block_size)
    target = describe_target(source, family, config, device, kv_bits=kv_bits, kv_layout=kv_layout)
    written: dict[str, Path] = {}
    with _all_or_none(folder) as new_path:

        def new_graph(name: str) -> Path:
            return written.setdefault(name, new_path(name))

        target = write_graphs(source, family, config, device, target, new_graph)
        target = replace(target, graphs={name: hash_file(path) for name, path in written.items()})
        targets = {**_other_targets(folder, device), device: target}
        manifest = describe(checkpoint, family, config, targets)
        manifest.save(new_path(FILE))
    return manifest


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise InputError for a value that types rule out: not every caller has a type checker."""
    if value not in choices:
        raise InputError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}")


@contextmanager
def _all_or_none(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Lock the folder and give a temporary path for each file name; the files get their names when the block ends.

    runtime.json is removed before and gets its name last. So a run that is killed in between leaves no runtime.json,
    and nothing takes graphs of two exports for one model. Raises InputError while another run writes the folder.
    """
    names: list[str] = []

    def new_path(name: str) -> Path:
        names.append(name)
        return folder / f"{name}.partial"

    taken = lock(folder)
    try:
        yield new_path
        (folder / FILE).unlink(missing_ok=True)
        for name in names:
            (folder / f"{name}.partial").replace(folder / name)
    finally:
        for name in names:
            (folder / f"{name}.partial").unlink(missing_ok=True)
        unlock(taken)


def _other_targets(folder: Path, device: str) -> dict[str, Target]:
    """Targets that were exported earlier for the same weights; none if runtime.json is unreadable or outdated."""
    try:
        earlier = load_manifest(folder).targets
    except InputError:
        return {}
    return {name: target for name, target in earlier.items() if name != device}
