"""What a run is: what every worker is told, and what a later run must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from console.errors import InputError
from runtime.answer import AnswerOptions
from runtime.batch.output.columns import BASE, field_columns
from runtime.batch.output.shards import PARQUET, ShardFiles

if TYPE_CHECKING:
    import pyarrow as pa

    from runtime.batch.source.page import Source
    from runtime.batch.storage import Storage


@dataclass(frozen=True)
class Job:
    """A model, pages, a question, and where the answers go. It is sent to every worker."""

    model: Storage
    """Exported folder."""
    source: Source
    """Its pages."""
    output: Storage
    """Where the plan, the answers and the journal are."""
    schema: dict[str, Any] | None = None
    """JSON schema of every answer; None for free text."""
    options: AnswerOptions = field(default_factory=AnswerOptions)
    """Sampling, length and thinking."""
    form: str = PARQUET
    """Of the output files."""
    device: str = "cpu"
    """Device of a worker."""
    threads: int = 1
    """CPU threads of a worker."""
    memory_limit: float | None = None
    """GiB of a GPU for the weights and activations of a graph; None for all."""
    max_rows: int | None = None
    """Answers that a worker generates at the same time; None for what fits."""
    max_context: int | None = None
    """Tokens of a prompt and its answer; None for what the largest image needs."""
    retry_errors: bool = False
    """Whether pages with an error are answered again."""

    @property
    def columns(self) -> list[pa.Field]:
        """Columns of the schema's properties. Raises InputError for a schema without any."""
        return [] if self.schema is None else field_columns(self.schema)

    @property
    def files(self) -> ShardFiles:
        """Its output files."""
        schema = BASE
        for column in self.columns:
            schema = schema.append(column)
        return ShardFiles(self.output, schema, self.form)

    def settings(self) -> dict[str, Any]:
        """What makes answers comparable: a run that goes on must have the same."""
        return {
            "model": self.model.url,
            "input": self.source.storage.url,
            "prompt": self.source.prompt,
            "schema": self.schema,
            "per": "document" if self.source.per_document else "page",
            "format": self.form,
            **self.options,
        }

    def check_same(self, planned: dict[str, Any]) -> None:
        """Raise InputError where the output was begun with other settings."""
        now = self.settings()
        other = [name for name in {**now, **planned} if now.get(name) != planned.get(name)]
        if other:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
            was = ", ".join(f"{name} {planned.get(name)!r}" for name in other)
            raise InputError(
                f"{self.output.url}: was begun with another {options} ({was}); run the same command again, or give "
                "another --output"
            )
