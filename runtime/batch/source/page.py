"""A page that is to be answered, and the parts in which a source lists its pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from console.errors import InputError
    from runtime.batch.storage import Storage

PART_PAGES = 16
"""Most pages of a part, unless a row is a document with more."""


@dataclass(frozen=True)
class Part:
    """Pages that are listed together: some of a PDF, an image, lines or rows of a file."""

    file: str
    """Name in the source; "" where the source is a file."""
    first: int
    """Of a PDF, its first page, from 1, or 0 for the whole; else the first line or row."""
    count: int
    """Number of output rows."""
    offset: int = 0
    """Of lines: where they begin, in bytes."""
    error: str | None = None
    """Why the file could not be listed; its output is one row."""


@dataclass(frozen=True)
class Listed:
    """A part, and how much there is to read in it."""

    part: Part
    """The part."""
    pages: int
    """Its pages, which are more than its rows where a row is a whole document."""


@dataclass(frozen=True)
class Page:
    """One row of the output, before it is answered."""

    document: str
    """Name of the file, or what the source calls the document."""
    page: int | None
    """Number in a document with several pages, from 1; None for a whole document."""
    prompt: str
    """What is asked."""
    pictures: Callable[[], Iterator[tuple[str, Image.Image]]]
    """Opens its pictures: for each its name in errors and the RGB picture. Raises InputError."""


def fail(error: InputError) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of a page that is not valid: raises its error."""
    raise error


class Source(Protocol):
    """Where pages come from. It is sent to every worker, and opens nothing before it is asked."""

    kind: ClassVar[str]
    """Its name: a run that goes on must read the same kind."""

    @property
    def storage(self) -> Storage:
        """The folder or file."""

    @property
    def prompt(self) -> str | None:
        """What is asked about a page without its own prompt; None for READ_TEXT."""

    @property
    def per_document(self) -> bool:
        """Whether a PDF is one row."""

    def parts(self) -> Iterator[Listed]:
        """List all pages, in an order that does not change. Raises InputError for what cannot be listed at all."""

    def pages(self, part: Part) -> Iterator[Page]:
        """The pages of a part, `count` of them; fewer if its file has changed.

        Raises InputError where the storage cannot read the file. What cannot be decoded is a page with its error.
        """
