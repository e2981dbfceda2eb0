"""Chooses how many rows the KV cache has, and how many tokens a row holds, before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from console.errors import InputError, NoMemoryError
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.drafts import give_up_drafts, may_draft, open_drafting_sessions, say_without_drafts
from runtime.ort.memory import free_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.decoding.drafts import DraftTokens
    from runtime.exported import ExportedModel

MAX_ROWS = {"cpu": 8, "cuda": 16}
"""Rows by default: on a GPU, products of up to 16 rows read packed weights without unpacking them."""
MAX_CONTEXT = 32768
"""Tokens of a row by default."""
_RESERVE, _SHARE = 4 << 30, 0.4  # bytes for images and prompt chunks; of little memory, a share of it


@dataclass(frozen=True)
class CachePlan:
    """Sizes of the KV cache."""

    rows: int
    """Answers that are generated at the same time."""
    context: int
    """Tokens of a prompt and its answer."""
    bytes: int
    """Keys and values of all rows, those of the MTP layer included where it drafts."""

    def __str__(self) -> str:
        return f"KV cache: {self.rows} rows of {self.context} tokens, {self.bytes / 2**30:.2f} GiB"


def plan_cache(
    model: ExportedModel,
    max_rows: int | None = None,
    max_context: int | None = None,
    draft_tokens: DraftTokens = 0,
) -> CachePlan:
    """Plan the KV cache for the memory that the model's device has left. Opens all sessions that answers need.

    max_rows: None for as many as fit, at most MAX_ROWS. max_context: None for MAX_CONTEXT, or what fits. draft_tokens:
    a policy drafts nothing where the MTP layer leaves no memory for one row. Raises InputError for a context that the
    model does not have, and NoMemoryError for sizes that do not fit, with those that would.
    """
    context = model.manifest.text.context
    check_context(max_context, context)
    if max_rows is not None and max_rows < 1:
        raise InputError(f"--max-rows {max_rows}: must be 1 or more")
    open_drafting_sessions(model, draft_tokens)
    if model.manifest.vision is not None:
        _ = model.vision
    rows = max_rows, MAX_ROWS[model.device.kind]
    problem = None
    try:
        return choose_sizes(_size(model, draft_tokens), _budget(model), rows, (max_context, context))
    except NoMemoryError as error:
        if not (isinstance(draft_tokens, DraftPolicy) and may_draft(draft_tokens)):
            raise
        problem = str(error)
    give_up_drafts(model, draft_tokens)
    plan = choose_sizes(_size(model, draft_tokens), _budget(model), rows, (max_context, context))
    say_without_drafts(problem)
    return plan


def check_context(max_context: int | None, context: int) -> None:
    """Raise InputError for a context that a model does not have."""
    if max_context is not None and not 2 <= max_context <= context:
        raise InputError(f"--max-context {max_context}: must be from 2 to the model's context of {context}")


def _size(model: ExportedModel, draft_tokens: DraftTokens) -> Callable[[int, int], int]:
    """Bytes for a number of tokens and rows; the MTP layer's cache is of one row."""
    drafting = may_draft(draft_tokens)
    return lambda tokens, rows: (
        model.decoder.cache_bytes(tokens, rows) + (model.drafter.session.cache_bytes(tokens) if drafting else 0)
    )


def _budget(model: ExportedModel) -> int | None:
    """Bytes that the KV cache may take; None where nobody knows."""
    free = free_memory(model.device)
    return None if free is None else free - min(_RESERVE, int(free * _SHARE))


def choose_sizes(
    size: Callable[[int, int], int],
    budget: int | None,
    rows: tuple[int | None, int],
    context: tuple[int | None, int],
) -> CachePlan:
    """Choose rows and tokens of a row. size: bytes for a number of tokens and rows. budget: bytes; None: any.

    rows, context: what the user wants, None for a default, and the most.
    """
    (wanted_rows, most_rows), (wanted_context, most_context) = rows, context

    def largest(most: int, bytes_of: Callable[[int], int]) -> int:
        return most if budget is None else bisect_right(range(1, most + 1), budget, key=bytes_of)

    def fitting_rows(tokens: int) -> int:
        return largest(most_rows, lambda rows: size(tokens, rows))

    def fitting_context(count: int) -> int:
        return largest(wanted_context or min(most_context, MAX_CONTEXT), lambda tokens: size(tokens, count))

    tokens = fitting_context(wanted_rows or 1)
    if tokens < (wanted_context or 2):
        least = f"{wanted_rows or 1} rows of {wanted_context or 'any'} tokens"
        assert budget is not None
        raise NoMemoryError(
            f"the KV cache of {least} does not fit: {budget / 2**30:.2f} GiB are left for it; "
            + _advice(tokens, fitting_rows(wanted_context or 2), wanted_context)
        )
    count = wanted_rows or max(1, fitting_rows(tokens))
    return CachePlan(count, tokens, size(tokens, count))


def _advice(tokens: int, count: int, wanted_context: int | None) -> str:
    options = []
    if tokens > 1:
        options.append(f"--max-context {tokens}")
    if count and wanted_context is not None:
        options.append(f"--max-rows {count}")
    return f"give {' or '.join(options)}" if options else "close other programs, or export with --kv-bits 8"
