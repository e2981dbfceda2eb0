"""What fits on a card: weights, KV cache and workspace of every way to store a model, from its config alone."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from console.errors import InputError
from console.files import read_object
from quantize.plan.memory import Line, kv_bytes, kv_workspace, workspace
from quantize.plan.sizes import outside_blocks, read_architecture, repeated_scales, stored_bytes
from quantize.scheme import check_shapes, choose_quantizers
from quantize.settings import Settings
from quantize.solver.quantizers import NF4Quantizer

if TYPE_CHECKING:
    from quantize.plan.sizes import Architecture, Part
    from quantize.scheme import Quantizers
    from quantize.solver.quantizers import Quantizer

KV = Literal["fp16", "int8"]

KV_ITEMSIZE: dict[KV, int] = {"fp16": 2, "int8": 1}
DEFAULT_CONTEXT = 32768
UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Choice:
    """One way to store a model. options: of `Settings`; None where everything stays in 16 bits."""

    name: str
    about: str
    options: dict[str, Any] | None
    embeddings_on_card: bool = False


CHOICES = (
    Choice("4-bit", "quantize --bits 4", {"bits": 4}),
    Choice("8-bit", "quantize --bits 8", {"bits": 8}),
    Choice("NF4", "quantize --quant-type nf4", {"quant_type": "nf4"}),
    Choice("16-bit", "the original checkpoint, exported as it is", None),
    Choice(
        "others",
        "what other tools load, counted as here: a 4-bit decoder, the rest in 16 bits, embeddings on the card",
        {"bits": 4, "vision_bits": 16, "head_bits": 16},
        embeddings_on_card=True,
    ),
)


@dataclass(frozen=True)
class Variant:
    """What an option of export changes. added: bytes at the plan's context. longest: as of a `Footprint`."""

    added: dict[KV, int]
    longest: dict[KV, int]


@dataclass(frozen=True)
class Footprint:
    """One choice in bytes.

    formats: of the quantizable parts. stored: of the weights in the folder. weights: on the card, by part. host: of the
    embeddings where they stay there. total: weights, KV cache and workspace at the plan's context, by KV type. longest:
    tokens of context that fit, at most the model's limit; 0 where none do. longest_without_mtp: the same when nothing
    is drafted, so neither the MTP layer nor its ring is on the card. in_blocks: with `export --block-size 32`; None
    where no weight is packed. full_buffers: with `export --kv-layout full`; None without sliding layers.
    """

    choice: Choice
    formats: dict[str, str]
    stored: int
    weights: dict[Part, int]
    host: int
    workspace: list[Line]
    total: dict[KV, int]
    longest: dict[KV, int]
    longest_without_mtp: dict[KV, int]
    in_blocks: Variant | None
    full_buffers: Variant | None


@dataclass(frozen=True)
class Plan:
    """Every choice on one card. model: as the user named it. vram: bytes. context, limit: tokens.

    kv: bytes of the KV cache, by context; kv_full: with full buffers. kv_workspace: what it takes beside itself at the
    plan's context.
    """

    model: str
    vram: int
    context: int
    limit: int
    has_mtp: bool
    kv: dict[int, dict[KV, int]]
    kv_full: dict[int, dict[KV, int]]
    kv_workspace: dict[KV, Line]
    footprints: list[Footprint]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for machines; sizes in bytes."""
        return {
            "model": self.model,
            "vram": self.vram,
            "context": self.context,
            "context_limit": self.limit,
            "kv_cache": {str(context): sizes for context, sizes in self.kv.items()},
            "kv_cache_full_buffers": {str(context): sizes for context, sizes in self.kv_full.items()},
            "kv_workspace": {kind: asdict(line) for kind, line in self.kv_workspace.items()},
            "choices": [_choice_dict(footprint) for footprint in self.footprints],
        }


def _choice_dict(footprint: Footprint) -> dict[str, Any]:
    values = asdict(footprint)
    choice = values.pop("choice")
    return {"name": choice["name"], "about": choice["about"], **values}


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
    """Plan a model, a folder with a config.json or that file, for a card of `vram` bytes.

    context: tokens; None takes 32768, or the model's limit where that is less. Raises InputError for a config that
    cannot be used and for a context beyond the model's limit.
    """
    architecture = read_architecture(read_config(model))
    limit = architecture.limit
    context = min(DEFAULT_CONTEXT, limit) if context is None else context
    if context > limit:
        raise InputError(f"--context {context} is beyond the model's limit of {limit}; choose a smaller one")
    contexts = sorted({2**power for power in range(12, limit.bit_length())} | {context, limit})

    def kv(*, full_buffers: bool) -> dict[int, dict[KV, int]]:
        return {
            tokens: {
                kind: kv_bytes(architecture, tokens, size, full_buffers=full_buffers)
                for kind, size in KV_ITEMSIZE.items()
            }
            for tokens in contexts
        }

    return Plan(
        model=str(model),
        vram=vram,
        context=context,
        limit=limit,
        has_mtp=architecture.mtp_layers > 0,
        kv=kv(full_buffers=False),
        kv_full=kv(full_buffers=True),
        kv_workspace={kind: kv_workspace(architecture, context, size) for kind, size in KV_ITEMSIZE.items()},
        footprints=[_footprint(choice, architecture, vram, context) for choice in CHOICES],
    )


def quantizers_of(choice: Choice, model: Architecture) -> Quantizers:
    """Choose the quantizer of every linear as quantize would."""
    quantizers = choose_quantizers(_settings(choice), model.family, model.config)
    if choice.embeddings_on_card:  # no other tool quantizes the MTP layer
        quantizers |= {path: None for path in quantizers if model.family.tower(path) == "mtp"}
    return dict.fromkeys(quantizers) if choice.options is None else quantizers


def _settings(choice: Choice) -> Settings:
    return Settings(Path(), **(choice.options or {}))


def _footprint(choice: Choice, model: Architecture, vram: int, context: int) -> Footprint:
    quantizers = quantizers_of(choice, model)
    check_shapes(_settings(choice), model.shapes, quantizers)
    stored = stored_bytes(model, quantizers)
    weights, has_mtp = _on_card(stored, choice), model.mtp_layers > 0
    unpacked, scales = outside_blocks(model, quantizers), repeated_scales(model, quantizers)

    def needed(
        tokens: int, itemsize: int, *, with_mtp: bool = has_mtp, in_blocks: bool = False, full: bool = False
    ) -> int:
        lines = workspace(model, unpacked if in_blocks else quantizers, tokens, with_mtp=with_mtp, full_buffers=full)
        lines.append(kv_workspace(model, tokens, itemsize, full_buffers=full))
        resident = sum(size for part, size in weights.items() if with_mtp or part != "mtp") + in_blocks * scales
        return resident + kv_bytes(model, tokens, itemsize, full_buffers=full) + sum(line.bytes for line in lines)

    def longest(itemsize: int, **how: bool) -> int:
        fixed = needed(0, itemsize, **how)
        a_token = needed(1, itemsize, **how) - fixed  # all that grows does so linearly
        return min(model.limit, max(0, vram - fixed) // a_token)

    def variant(**how: bool) -> Variant:
        added = {kind: needed(context, size, **how) - needed(context, size) for kind, size in KV_ITEMSIZE.items()}
        return Variant(added, {kind: longest(size, **how) for kind, size in KV_ITEMSIZE.items()})

    return Footprint(
        choice=choice,
        formats=_formats(model, quantizers),
        stored=sum(stored.values()),
        weights=weights,
        host=0 if choice.embeddings_on_card else stored["embeddings"],
        workspace=workspace(model, quantizers, context, with_mtp=has_mtp),
        total={kind: needed(context, size) for kind, size in KV_ITEMSIZE.items()},
        longest={kind: longest(size) for kind, size in KV_ITEMSIZE.items()},
        longest_without_mtp={kind: longest(size, with_mtp=False) for kind, size in KV_ITEMSIZE.items()},
        in_blocks=variant(in_blocks=True) if unpacked != quantizers else None,
        full_buffers=variant(full=True) if model.text.sliding_window else None,
    )


def _on_card(stored: dict[Part, int], choice: Choice) -> dict[Part, int]:
    """Take off what stays on the host: the embeddings, unless a head that is the embedding reads them on the card."""
    weights: dict[Part, int] = dict(stored)
    if not weights["head"]:
        weights["head"], weights["embeddings"] = weights["embeddings"], 0
    elif not choice.embeddings_on_card:
        weights["embeddings"] = 0
    return weights


def _formats(model: Architecture, quantizers: Quantizers) -> dict[str, str]:
    """Name the format of each tower; the linears of one have the same."""
    return {model.family.tower(path): _format(quantizer) for path, quantizer in quantizers.items()}


def _format(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return "16-bit"
    return f"{'nf' if isinstance(quantizer, NF4Quantizer) else 'int'}{quantizer.bits} g{quantizer.group_size}"
