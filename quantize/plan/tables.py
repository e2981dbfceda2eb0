"""A plan on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantize.plan.plan import KV_ITEMSIZE
from quantize.plan.sizes import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from quantize.plan.plan import Plan

GIB = 2**30


def print_plan(plan: Plan, console: Console) -> None:
    """Print what each choice needs, the longest context, the KV cache by context, and how it is counted."""
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
    """GiB, one column a choice: every column adds up to its totals."""
    prints = plan.footprints
    table = _table(f"On the card at {plan.context} tokens of context, GiB", ["", *(p.choice.name for p in prints)])
    for part, label in PARTS.items():
        if any(p.weights[part] for p in prints):
            table.add_row(label, *(_gib(p.weights[part]) for p in prints))
    table.add_row("weights", *(_gib(sum(p.weights.values())) for p in prints), style="bold", end_section=True)
    for number, line in enumerate(prints[0].workspace):
        table.add_row(line.name, *(_gib(p.workspace[number].bytes) for p in prints))
    table.add_row(
        "workspace", *(_gib(sum(line.bytes for line in p.workspace)) for p in prints), style="bold", end_section=True
    )
    for kind in KV_ITEMSIZE:
        table.add_row(f"KV cache, {kind}", *(_gib(plan.kv[plan.context][kind]) for _ in prints))
    unpacked = plan.kv_workspace["int8"]
    table.add_row(unpacked.name, *(_gib(unpacked.bytes) for _ in prints))
    for kind in KV_ITEMSIZE:
        table.add_row(f"total with {kind} KV", *(_gib(p.total[kind]) for p in prints), style="bold")
    return table


def _longest(plan: Plan) -> Table:
    card = f"{plan.vram / 10**9:.4g} GB = {plan.vram / GIB:.2f} GiB"
    table = _table(f"Longest context on {card}, tokens", ["", *(p.choice.name for p in plan.footprints)])
    for kind in KV_ITEMSIZE:
        table.add_row(f"{kind} KV", *(_tokens(p.longest[kind]) for p in plan.footprints))
    if plan.has_mtp:
        for kind in KV_ITEMSIZE:
            table.add_row(f"{kind} KV, no drafts", *(_tokens(p.longest_without_mtp[kind]) for p in plan.footprints))
    variants = {"blocks of 32": [p.in_blocks for p in plan.footprints]}
    variants["full buffers"] = [p.full_buffers for p in plan.footprints]
    for name, found in variants.items():
        if any(found):
            for kind in KV_ITEMSIZE:
                table.add_row(f"{kind} KV, {name}", *(_tokens(v.longest[kind] if v else 0) for v in found))
    return table


def _kv_cache(plan: Plan) -> Table:
    full = [f"{kind}, full buffers" for kind in KV_ITEMSIZE] if plan.kv != plan.kv_full else []
    table = _table("KV cache by context, GiB", ["tokens", *KV_ITEMSIZE, *full])
    for context, sizes in plan.kv.items():
        all_sizes = [*sizes.values(), *(plan.kv_full[context].values() if full else ())]
        table.add_row(str(context), *map(_gib, all_sizes))
    return table


def _notes(plan: Plan) -> list[str]:
    lines = ["Choices:"]
    for footprint in plan.footprints:
        formats = ", ".join(f"{part} {kind}" for part, kind in footprint.formats.items())
        lines.append(f"  {footprint.choice.name}: {footprint.choice.about} ({formats})")
    lines.append(
        "Workspace (added up, though the vision tower's is given back before the KV cache is filled; a later picture "
        "of the same run is encoded beside that cache, and takes about three times the line of its image):"
    )
    lines += [f"  {line.name}: {line.tensors}" for line in (*plan.footprints[0].workspace, plan.kv_workspace["int8"])]
    host = plan.footprints[0].host
    lines.append(
        f"Embeddings, {_gib(host)} GiB, stay on the host: a token's row is read from the memory-mapped file. Not "
        "counted: CUDA's own context and what the screen takes. The MTP layer is not loaded with --draft-tokens 0, "
        "nor where it does not fit; an int8 KV cache is what export --kv-bits 8 makes."
    )
    added = [f"{p.choice.name} {p.in_blocks.added['fp16'] / GIB:+.3f} GiB" for p in plan.footprints if p.in_blocks]
    if added:
        lines.append(
            "Blocks of 32 (export --block-size 32, experimental) repeat scales and unpack no weights: "
            f"{', '.join(added)}."
        )
    if any(p.full_buffers for p in plan.footprints):
        lines.append("Full buffers of sliding layers are what export --kv-layout full makes, experimental.")
    return lines


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}" if size else "–"


def _tokens(count: int) -> str:
    return str(count) if count else "–"
