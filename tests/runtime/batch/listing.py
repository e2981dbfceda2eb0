"""What a source lists, and what its pages show."""

import numpy as np

from runtime.batch.source.page import Page, Source


def listed_pages(source: Source) -> list[Page]:
    """All pages, as workers open them: part by part."""
    found = []
    for listed in source.parts():
        pages = list(source.pages(listed.part))
        assert len(pages) == listed.part.count
        found += pages
    return found


def pixels(page: Page) -> list[np.ndarray]:
    return [np.asarray(picture) for _, picture in page.pictures()]


def same(pictures, expected) -> bool:
    """Whether pictures have the same pixels, one by one."""
    return len(pictures) == len(expected) and all(map(np.array_equal, pictures, expected))
