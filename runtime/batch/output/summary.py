"""What the output holds: counted from its files, so that it is the same however often a run was stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.batch.output.shards import ShardFiles

_COUNTED = ("document", "page", "finish", "prompt_tokens", "tokens", "milliseconds", "attempts", "error")
_ERRORS, _EXAMPLES = 1000, 20  # kinds that are kept while counting, and that are shown


@dataclass(frozen=True)
class ErrorKind:
    """Pages with the same error."""

    message: str
    """What is wrong, without the page."""
    pages: int
    """Number of them."""
    example: str
    """The first of them."""


@dataclass
class Summary:
    """Counts over all pages that are written."""

    pages: int = 0
    """Rows."""
    documents: int = 0
    """Documents; those that the source has one after another are told apart."""
    answered: int = 0
    """Rows without an error."""
    cut: int = 0
    """Answers that ended at the longest length."""
    retried: int = 0
    """Rows of shards that were begun more than once."""
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    tokens: int = 0
    """Tokens of all answers."""
    milliseconds: int = 0
    """Time of all answers, which overlap."""
    errors: list[ErrorKind] = field(default_factory=list)
    """The most frequent ones."""
    filled: dict[str, int] = field(default_factory=dict)
    """For each field of the schema, rows with a value."""


def summarize(files: ShardFiles, numbers: Iterable[int], fields: Sequence[str]) -> Summary:
    """Count what shards hold; one is in memory at a time. fields: columns of the schema."""
    summary = Summary(filled=dict.fromkeys(fields, 0))
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    last: str | None = None
    for number in numbers:
        for row in files.read(number, (*_COUNTED, *fields)):
            _add(summary, row)
            summary.documents += row["document"] != last
            last = row["document"]
            if row["error"] is not None:
                message = _kind(row)
                if message in kinds or len(kinds) < _ERRORS:
                    kinds[message] += 1
                    examples.setdefault(
                        message, f"{row['document']}" + (f", page {row['page']}" if row["page"] else "")
                    )
    summary.errors = [ErrorKind(text, count, examples[text]) for text, count in kinds.most_common(_EXAMPLES)]
    return summary


def _add(summary: Summary, row: dict[str, Any]) -> None:
    summary.pages += 1
    summary.answered += row["error"] is None
    summary.cut += row["finish"] == "length"
    summary.retried += row["attempts"] > 1
    for name in ("prompt_tokens", "tokens", "milliseconds"):
        setattr(summary, name, getattr(summary, name) + (row[name] or 0))
    for name in summary.filled:
        summary.filled[name] += row[name] not in (None, "", [])


def _kind(row: dict[str, Any]) -> str:
    """An error without the place that it begins with."""
    message: str = row["error"]
    _, found, rest = message.partition(f"{row['document']}: ")
    rest = rest if found else message
    return rest.removeprefix(f"page {row['page']}: ").removeprefix(f"page {row['page']} ")
