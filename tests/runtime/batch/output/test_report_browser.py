"""The page of `--report` in Chromium, wide and on a phone."""

import pytest

from ...html_page import CONTRAST
from .reported import LONG, SCHEMA, answered, job, row, written

WIDTHS = {"phone": (390, 844), "wide": (1280, 900)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Reports as files: with all sections and unbroken texts, without errors, and without answers."""
    folder, made = tmp_path_factory.mktemp("reports"), {}
    for name in ("all", "answered", "none"):
        (folder / name).mkdir()
        one = job(folder / name, None if name == "answered" else SCHEMA | {"properties": {LONG: {"type": "string"}}})
        rows = {
            "all": [answered(n, one, LONG, n + 1, 90_000 + n * 777, document=LONG, **{LONG: LONG}) for n in range(90)]
            + [row(90, one, document=LONG, error=f"{LONG}: {LONG}")],
            "answered": [answered(n, one, "합계\n100원" * (n != 1)) for n in range(3)],
            "none": [row(0, one, error="cannot be read")],
        }
        written(one, rows[name], folder / f"{name}.html")
        made[name] = folder / f"{name}.html"
    return made


@pytest.fixture
def show(chromium, files):
    """Open a report; `asked` of the page are its requests."""
    contexts = []

    def opened(name, width, scheme="light"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        contexts.append(chromium.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("request", lambda request: page.asked.append(request.url.partition(":")[0]))
        page.goto(files[name].as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


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
    assert [one for one in page.asked if one != "data"] == ["file"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("selector", ["h1", "small", ".note", ".open", ".count", ".tick", ".top", ".value", ".empty"])
def test_text_stands_out(show, scheme, selector):
    """WCAG AA: contrast of 4.5 of every piece of text against what is behind it."""
    name = "answered" if selector == ".empty" else "all"
    ratios = [ratio for ratio, _ in show(name, "wide", scheme).locator(selector).evaluate_all(CONTRAST)]
    assert ratios
    assert min(ratios) >= 4.5
