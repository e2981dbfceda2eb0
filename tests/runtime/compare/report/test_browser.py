"""report.html in Chromium, wide, on a phone and on paper."""

import pytest

from runtime.compare.report.page import write_report
from runtime.compare.result import Layer

from ...html_page import CONTRAST
from ..pages import LAYERS, comparison, measured, pictures

pypdfium2 = pytest.importorskip("pypdfium2")
WIDTHS = {"phone": (390, 844), "wide": (1280, 900)}
UNBROKEN = "x0" * 200
LONG = "a/folder/with/a/name/that/is/very/long/indeed-and-has-no-spaces-" + "y" * 60


def documents(*answers, baseline="합계 100원\n감사합니다", count=10):
    return [measured(f"d{n}", "합계 100원\n감사합니다", baseline, *answers, prompt="합계는?") for n in range(count)]


PAGES = {
    "several": (
        documents("합계 100원\n감사합니다", "합계 10원", UNBROKEN, "합계 100원", "합계"),
        ["w4", "nf4", LONG, "w8", "w2"],
        {},
    ),
    "one": (documents("합계 100원", count=1), ["w4"], {"layers": []}),
    "reference": (documents("합계 1", "합계 2", baseline=None), ["w4", "nf4"], {"baseline": "w4/reference.npz"}),
    "weak": (documents("합계 1", baseline="zzzzz"), ["w4"], {}),
    "damaged": (
        documents("합계 100원"),
        ["w4"],
        {"layers": [*LAYERS, Layer(f"model.layers.3.{UNBROKEN}", 4, 1.4, None, None, suspect=True)]},
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each of PAGES as a file."""
    folder = tmp_path_factory.mktemp("reports")
    files = {}
    for name, (texts, models, options) in PAGES.items():
        (folder / name).mkdir()
        files[name] = write_report(comparison(texts, *models, **options), texts, pictures(texts), folder / name)
    return files


@pytest.fixture
def show(browse, written):
    """Open one of PAGES."""
    return lambda name, width="wide", scheme="light": browse(written[name].as_uri(), WIDTHS[width], scheme)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_the_page_fits_and_asks_for_nothing(show, name, width):
    page = show(name, width)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= WIDTHS[width][0]
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert images
    assert all(images)
    heading = page.locator("h1").bounding_box()
    assert heading["y"] >= 0
    assert heading["y"] + heading["height"] < WIDTHS[width][1]
    out = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one =>
        !one.closest(".scroll, svg, .hidden") && one.getBoundingClientRect().right > innerWidth + 0.5
    ).map(one => one.outerHTML.slice(0, 80))""")
    assert out == []  # only the table scrolls


def test_plots_can_be_read_on_a_phone(show):
    """Text of at least 8 pixels, and plots that have a size."""
    page = show("several", "phone")
    sizes = page.evaluate("""() => [...document.querySelectorAll("svg text")].map(one =>
        parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a)""")
    assert len(page.locator("figure svg").all()) == 4
    assert min(sizes) >= 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(show, scheme):
    """WCAG AA: contrast of 4.5 of every piece of text against what is behind it. Marks do not depend on colour."""
    page = show("several", scheme=scheme)
    for selector in ("ins", "del", "h1", "small", ".fail", "figcaption", ".findings", ".loss"):
        ratios = [ratio for ratio, _ in page.locator(selector).evaluate_all(CONTRAST)]
        assert ratios, selector
        assert min(ratios) >= 4.5, selector
    lines = [
        page.locator(tag).first.evaluate("one => getComputedStyle(one).textDecorationLine") for tag in ("ins", "del")
    ]
    assert lines == ["underline", "line-through"]


@pytest.mark.parametrize("name", PAGES)
def test_paper_shows_all(show, written, tmp_path, name):
    """Nothing is clipped in print, and the PDF has the verdict on its first page and no text outside its pages."""
    page = show(name)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})  # A4 without margins
    clipped = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one =>
        !one.closest("svg, .hidden") && getComputedStyle(one).overflow !== "visible"
        && one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 80))""")
    assert clipped == []
    file = tmp_path / "report.pdf"
    page.pdf(path=file, format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "12mm"))
    with pypdfium2.PdfDocument(file) as pdf:
        texts = []
        for sheet in pdf:
            text, (width, height) = sheet.get_textpage(), sheet.get_size()
            boxes = [text.get_charbox(place) for place in range(text.count_chars())]
            assert all(left >= 0 and right <= width and low >= 0 and top <= height for left, low, right, top in boxes)
            texts.append(text.get_text_range())
            text.close()
            sheet.close()
    assert page.locator(".verdict").inner_text().split("\n")[0] in texts[0]
    words = "".join("".join(texts).split())  # PDF knows no spaces: those that are found are guessed
    assert words.count("Groundtruth") == len(page.locator(".document").all())
