"""What fits on a GPU: weights, KV cache and workspace at every precision of a model, from its config alone."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from console.errors import InputError
from console.files import read_object
from quantize.plan.architecture import read_architecture
from quantize.plan.weights import repeated_scale_bytes, stored_bytes, unblocked_quantizers
from quantize.plan.workspace import Allocation, kv_workspace, workspace
from quantize.scheme import check_shapes, choose_quantizers
from quantize.settings import Settings
from quantize.solver.quantizers import NF4Quantizer

if TYPE_CHECKING:
    from quantize.plan.architecture import Architecture
    from quantize.plan.weights import Component
    from quantize.scheme import Quantizers
    from quantize.solver.quantizers import Quantizer
    from runtime.sizes import KvLayout

KV = Literal["fp16", "int8"]

KV_ITEMSIZE: dict[KV, int] = {"fp16": 2, "int8": 1}
DEFAULT_CONTEXT = 32768
UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Precision:
    """One way to store a model."""

    name: str
    """As tables call it."""
    about: str
    """What makes it."""
    settings: dict[str, Any] | None
    """Arguments of `Settings`; None where everything stays in 16 bits."""
    embeddings_on_gpu: bool = False
    """Embeddings are loaded with the rest, not read from the file on the host."""


PRECISIONS = (
    Precision("4-bit", "quantize --bits 4", {"bits": 4}),
    Precision("8-bit", "quantize --bits 8", {"bits": 8}),
    Precision("NF4", "quantize --quant-type nf4", {"quant_type": "nf4"}),
    Precision("16-bit", "the original checkpoint, exported as it is", None),
    Precision(
        "others",
        "what other tools load, counted as here: a 4-bit decoder, the rest in 16 bits, embeddings on the GPU",
        {"bits": 4, "vision_bits": 16, "head_bits": 16},
        embeddings_on_gpu=True,
    ),
)


@dataclass(frozen=True)
class Variant:
    """What an option of export changes."""

    added: dict[KV, int]
    """Bytes more at the plan's context."""
    longest: dict[KV, int]
    """Tokens of context that fit."""


@dataclass(frozen=True)
class Footprint:
    """One precision in bytes. `plan --json` has these fields by these names, and the name and text of `precision`."""

    precision: Precision
    """How the model is stored."""
    formats: dict[str, str]
    """Format of each quantizable tower."""
    stored: int
    """Weights in the folder."""
    weights: dict[Component, int]
    """Weights on the GPU."""
    host: int
    """Embeddings that stay on the host."""
    workspace: list[Allocation]
    """At the plan's context."""
    total: dict[KV, int]
    """Weights, KV cache and workspace at the plan's context, by KV type."""
    longest: dict[KV, int]
    """Tokens of context that fit, at most the model's limit; 0 where none do."""
    longest_without_mtp: dict[KV, int]
    """The same without drafts: neither the MTP layer nor its KV cache is on the GPU."""
    in_blocks: Variant | None
    """With `export --block-size 32`; None where no weight is packed."""
    full_buffers: Variant | None
    """With `export --kv-layout full`; None without sliding layers."""


@dataclass(frozen=True)
class Plan:
    """Every precision of a model on one GPU."""

    model: str
    """As the user named it."""
    vram: int
    """Bytes of GPU memory."""
    context: int
    """Tokens of prompt and answer."""
    limit: int
    """The model's longest context, in tokens."""
    has_mtp: bool
    """The model has an MTP layer."""
    kv: dict[int, dict[KV, int]]
    """Bytes of the KV cache, by context."""
    kv_full: dict[int, dict[KV, int]]
    """The same with full buffers."""
    kv_workspace: dict[KV, Allocation]
    """What attention allocates to read the KV cache, at the plan's context."""
    footprints: list[Footprint]
    """One for each of `PRECISIONS`."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON of `plan --json`; sizes in bytes."""
        return {
            "model": self.model,
            "vram": self.vram,
            "context": self.context,
            "context_limit": self.limit,
            "kv_cache": {str(context): sizes for context, sizes in self.kv.items()},
            "kv_cache_full_buffers": {str(context): sizes for context, sizes in self.kv_full.items()},
            "kv_workspace": {kind: asdict(allocation) for kind, allocation in self.kv_workspace.items()},
            "choices": [_footprint_dict(footprint) for footprint in self.footprints],
        }


def _footprint_dict(footprint: Footprint) -> dict[str, Any]:
    values = asdict(footprint)
    precision = values.pop("precision")
    return {"name": precision["name"], "about": precision["about"], **values}


def parse_bytes(text: str, option: str) -> int:
    """Bytes of "24GB" (10^9) or "22GiB" (2^30). Raises InputError, naming the option, for what is neither."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([A-Za-z]*)", text.strip())
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if not match or match[2].lower() not in units or float(match[1]) == 0:
        raise InputError(f"{option} {text!r} is no size; write a number and {', '.join(UNITS)}, such as 24GB")
    return round(float(match[1]) * units[match[2].lower()])


def read_config(model: Path) -> dict[str, Any]:
    """Read a config.json, given itself or by its folder. Raises InputError when there is none."""
    if not model.exists():
        raise InputError(f"{model} is not there; give a model folder or its config.json")
    return read_object(model / "config.json" if model.is_dir() else model)


def make_plan(model: Path, vram: int, context: int | None = None) -> Plan:
    """Plan a model for a GPU with `vram` bytes of memory. model: a folder with a config.json, or that file.

    context: tokens; None for 32768, or the model's limit where that is less. Raises InputError for a config that
    cannot be used and for a context beyond the model's limit.
    """
    architecture = read_architecture(read_config(model))
    limit = architecture.limit
    context = min(DEFAULT_CONTEXT, limit) if context is None else context
    if context > limit:
        raise InputError(f"--context {context} is beyond the model's limit of {limit}; choose a smaller one")
    contexts = sorted({2**power for power in range(12, limit.bit_length())} | {context, limit})

    def kv(layout: KvLayout) -> dict[int, dict[KV, int]]:
        layers = architecture.kv_layers(layout)
        return {
            tokens: {kind: layers.bytes(tokens, itemsize) for kind, itemsize in KV_ITEMSIZE.items()}
            for tokens in contexts
        }

    return Plan(
        model=str(model),
        vram=vram,
        context=context,
        limit=limit,
        has_mtp=architecture.mtp_layers > 0,
        kv=kv("window"),
        kv_full=kv("full"),
        kv_workspace={kind: kv_workspace(architecture, context, size) for kind, size in KV_ITEMSIZE.items()},
        footprints=[_footprint(precision, architecture, vram, context) for precision in PRECISIONS],
    )


def quantizers_for(precision: Precision, model: Architecture) -> Quantizers:
    """Choose the quantizer of every linear as quantize would."""
    quantizers = choose_quantizers(_settings(precision), model.family, model.config)
    if precision.embeddings_on_gpu:  # no other tool quantizes the MTP layer
        quantizers |= {path: None for path in quantizers if model.family.tower(path) == "mtp"}
    return dict.fromkeys(quantizers) if precision.settings is None else quantizers


def _settings(precision: Precision) -> Settings:
    return Settings(Path(), **(precision.settings or {}))


@dataclass(frozen=True)
class _Deployment:
    """A stored model with options of export and of the runtime. Its memory depends on context and KV type only."""

    model: Architecture
    quantizers: Quantizers
    """Weights that kernels unpack, and how; None for all others."""
    weights: int
    """Bytes of weights on the GPU."""
    with_mtp: bool
    layout: KvLayout = "window"

    def needed(self, context: int, itemsize: int) -> int:
        """Bytes of weights, KV cache and workspace."""
        kv = self.model.kv_layers(self.layout).bytes(context, itemsize)
        allocations = workspace(self.model, self.quantizers, context, with_mtp=self.with_mtp, layout=self.layout)
        allocations.append(kv_workspace(self.model, context, itemsize, layout=self.layout))
        return self.weights + kv + sum(allocation.bytes for allocation in allocations)

    def totals(self, context: int) -> dict[KV, int]:
        """Bytes needed, by KV type."""
        return {kind: self.needed(context, itemsize) for kind, itemsize in KV_ITEMSIZE.items()}

    def longest(self, vram: int) -> dict[KV, int]:
        """Tokens of context that fit into `vram` bytes, by KV type. Memory grows linearly with the context."""
        fixed, one = self.totals(0), self.totals(1)
        fitting = {kind: max(0, vram - fixed[kind]) // (one[kind] - fixed[kind]) for kind in KV_ITEMSIZE}
        return {kind: min(self.model.limit, tokens) for kind, tokens in fitting.items()}


def _footprint(precision: Precision, model: Architecture, vram: int, context: int) -> Footprint:
    quantizers = quantizers_for(precision, model)
    check_shapes(_settings(precision), model.shapes, quantizers)
    stored = stored_bytes(model, quantizers)
    weights = _weights_on_gpu(stored, precision)
    size, unblocked = sum(weights.values()), unblocked_quantizers(model, quantizers)
    usual = _Deployment(model, quantizers, size, with_mtp=model.mtp_layers > 0)
    totals = usual.totals(context)

    def variant(deployment: _Deployment) -> Variant:
        added = {kind: total - totals[kind] for kind, total in deployment.totals(context).items()}
        return Variant(added, deployment.longest(vram))

    in_blocks = replace(usual, quantizers=unblocked, weights=size + repeated_scale_bytes(model, quantizers))
    without_mtp = replace(usual, weights=size - weights["mtp"], with_mtp=False)
    return Footprint(
        precision=precision,
        formats=_formats(model, quantizers),
        stored=sum(stored.values()),
        weights=weights,
        host=0 if precision.embeddings_on_gpu else stored["embeddings"],
        workspace=workspace(model, quantizers, context, with_mtp=usual.with_mtp),
        total=totals,
        longest=usual.longest(vram),
        longest_without_mtp=without_mtp.longest(vram),
        in_blocks=variant(in_blocks) if unblocked != quantizers else None,
        full_buffers=variant(replace(usual, layout="full")) if model.text.sliding_window else None,
    )


def _weights_on_gpu(stored: dict[Component, int], precision: Precision) -> dict[Component, int]:
    """Leave out embeddings, which stay on the host; where the head is the embedding, count it once as head."""
    weights: dict[Component, int] = dict(stored)
    if not weights["head"]:
        weights["head"], weights["embeddings"] = weights["embeddings"], 0
    elif not precision.embeddings_on_gpu:
        weights["embeddings"] = 0
    return weights


def _formats(model: Architecture, quantizers: Quantizers) -> dict[str, str]:
    """Format of each tower, whose linears all have the same."""
    return {model.family.tower(path): _format(quantizer) for path, quantizer in quantizers.items()}


def _format(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return "16-bit"
    return f"{'nf' if isinstance(quantizer, NF4Quantizer) else 'int'}{quantizer.bits} g{quantizer.group_size}"
