"""Prints a plan as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantize.plan.plan import KV_ITEMSIZE
from quantize.plan.weights import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from quantize.plan.plan import Plan

GIB = 2**30


def print_plan(plan: Plan, console: Console) -> None:
    """Print what each precision needs, the longest context, the KV cache by context, and how sizes are counted."""
    console.print(_needs(plan))
    console.print(_longest(plan))
    console.print(_kv_cache(plan))
    for line in _notes(plan):
        console.print(line, soft_wrap=True, highlight=False)


def _table(title: str, columns: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _needs(plan: Plan) -> Table:
    """GiB, a column for each precision: every column adds up to its totals."""
    footprints = plan.footprints
    columns = ["", *(footprint.precision.name for footprint in footprints)]
    table = _table(f"On the GPU at {plan.context} tokens of context, GiB", columns)

    def add(label: str, sizes: Iterable[int], *, total: bool = False, end_section: bool = False) -> None:
        table.add_row(label, *map(_gib, sizes), style="bold" if total else None, end_section=end_section)

    for name, label in COMPONENTS.items():
        if any(footprint.weights[name] for footprint in footprints):
            add(label, (footprint.weights[name] for footprint in footprints))
    add("weights", (sum(footprint.weights.values()) for footprint in footprints), total=True, end_section=True)
    for same in zip(*(footprint.workspace for footprint in footprints), strict=True):
        add(same[0].name, (allocation.bytes for allocation in same))
    workspaces = (sum(allocation.bytes for allocation in footprint.workspace) for footprint in footprints)
    add("workspace", workspaces, total=True, end_section=True)
    for kind in KV_ITEMSIZE:
        add(f"KV cache, {kind}", [plan.kv[plan.context][kind]] * len(footprints))
    unpacked = plan.kv_workspace["int8"]
    add(unpacked.name, [unpacked.bytes] * len(footprints))
    for kind in KV_ITEMSIZE:
        add(f"total with {kind} KV", (footprint.total[kind] for footprint in footprints), total=True)
    return table


def _longest(plan: Plan) -> Table:
    footprints = plan.footprints
    columns = ["", *(footprint.precision.name for footprint in footprints)]
    table = _table(f"Longest context on {plan.vram / 10**9:.4g} GB = {plan.vram / GIB:.2f} GiB, tokens", columns)
    rows = {"": [footprint.longest for footprint in footprints]}
    if plan.has_mtp:
        rows[", no drafts"] = [footprint.longest_without_mtp for footprint in footprints]
    variants = {
        ", blocks of 32": [footprint.in_blocks for footprint in footprints],
        ", full buffers": [footprint.full_buffers for footprint in footprints],
    }
    for suffix, columns_ in variants.items():
        if any(columns_):
            rows[suffix] = [variant.longest if variant else {"fp16": 0, "int8": 0} for variant in columns_]
    for suffix, tokens in rows.items():
        for kind in KV_ITEMSIZE:
            table.add_row(f"{kind} KV{suffix}", *(_tokens(longest[kind]) for longest in tokens))
    return table


def _kv_cache(plan: Plan) -> Table:
    full = [f"{kind}, full buffers" for kind in KV_ITEMSIZE] if plan.kv != plan.kv_full else []
    table = _table("KV cache by context, GiB", ["tokens", *KV_ITEMSIZE, *full])
    for context, sizes in plan.kv.items():
        all_sizes = [*sizes.values(), *(plan.kv_full[context].values() if full else ())]
        table.add_row(str(context), *map(_gib, all_sizes))
    return table


def _notes(plan: Plan) -> list[str]:
    lines = ["Precisions:"]
    for footprint in plan.footprints:
        formats = ", ".join(f"{tower} {format_}" for tower, format_ in footprint.formats.items())
        lines.append(f"  {footprint.precision.name}: {footprint.precision.about} ({formats})")
    lines.append(
        "Workspace (a sum for one request: the vision tower frees its memory before the KV cache is filled; a later "
        "image of the same run is encoded next to that cache, and takes about three times its line):"
    )
    allocations = (*plan.footprints[0].workspace, plan.kv_workspace["int8"])
    lines += [f"  {allocation.name}: {allocation.tensors}" for allocation in allocations]
    lines.append(
        f"Embeddings, {_gib(plan.footprints[0].host)} GiB, stay on the host: rows are read from the memory-mapped "
        "file. Not counted: CUDA's own context, and what the screen takes. The MTP layer is not loaded with "
        "--draft-tokens 0, nor where it does not fit. An int8 KV cache needs export --kv-bits 8."
    )
    added = [f"{p.precision.name} {p.in_blocks.added['fp16'] / GIB:+.3f} GiB" for p in plan.footprints if p.in_blocks]
    if added:
        lines.append(
            "Blocks of 32 (export --block-size 32, experimental) repeat scales and unpack no weights: "
            f"{', '.join(added)}."
        )
    if any(footprint.full_buffers for footprint in plan.footprints):
        lines.append("Full buffers of sliding layers need export --kv-layout full, experimental.")
    return lines


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}" if size else "–"


def _tokens(count: int) -> str:
    return str(count) if count else "–"
