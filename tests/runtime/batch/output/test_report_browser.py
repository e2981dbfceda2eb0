"""The page of `--report` in Chromium, wide and on a phone."""

import pytest

from ...html_page import CONTRAST
from .reported import LONG, SCHEMA, answered, job, row, written

FIELDS = {LONG: {"type": "string"}, "total": {"type": "number"}}
TEXTS = {"all": ["h1", "small", ".note", ".open", ".count", ".tick", ".top", ".value"], "answered": [".empty"]}
WIDTHS = {"phone": (360, 740), "wide": (1280, 900)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Reports as files: with all sections and unbroken texts, without errors, and without answers."""
    folder, made = tmp_path_factory.mktemp("reports"), {}
    for name in ("all", "answered", "none"):
        (folder / name).mkdir()
        one = job(folder / name, None if name == "answered" else SCHEMA | {"properties": FIELDS})
        rows = {
            "all": [
                answered(
                    n, one, LONG, n + 1, 90_000 + n * 777, document=LONG, **{LONG: LONG, "total": -1234567.891 * n}
                )
                for n in range(90)
            ]
            + [row(90, one, document=LONG, error=f"{LONG}: {LONG}")],
            "answered": [answered(n, one, "합계\n100원" * (n != 1)) for n in range(3)],
            "none": [row(0, one, error="cannot be read")],
        }
        written(one, rows[name], folder / f"{name}.html")
        made[name] = folder / f"{name}.html"
    return made


@pytest.fixture
def show(browse, files):
    """Open a report."""
    return lambda name, width, scheme="light": browse(files[name].as_uri(), WIDTHS[width], scheme)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["all", "answered", "none"])
def test_the_page_fits_and_asks_for_nothing(show, name, width):
    page = show(name, width)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= WIDTHS[width][0]
    out = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one => {
        const box = one.getBoundingClientRect(), above = one.parentElement.closest(".card, .document, .about, figure");
        return !one.matches(".hidden") && (box.right > innerWidth + 0.5
            || above && box.right > above.getBoundingClientRect().right + 0.5);
    }).map(one => one.outerHTML.slice(0, 80))""")
    assert out == []
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_are_on_one_line(show, width):
    heights = show("all", width).locator(".numbers dd").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert len(heights) == 3
    assert max(heights) < 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_stands_out(show, scheme, name):
    """WCAG AA: contrast of 4.5 of every piece of text against what is behind it."""
    page = show(name, "wide", scheme)
    for selector in TEXTS[name]:
        ratios = [ratio for ratio, _ in page.locator(selector).evaluate_all(CONTRAST)]
        assert ratios, selector
        assert min(ratios) >= 4.5, selector
