"""The runtime's command inside the test's process, folders to damage, and transformers as the reference."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calib_data.sources import open_documents
from runtime.__main__ import app
from runtime.model import Model

from ..in_process import Command, in_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m runtime ARGUMENTS`; gives its exit code, stdout and stderr."""
    return in_process("runtime", app, capsys, monkeypatch)


@pytest.fixture
def copied(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    """An exported fp16 reader that a test may change."""
    return Path(shutil.copytree(exported("fp16"), tmp_path / "reader"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """The file of a rendered line of text."""
    (document,) = open_documents(split="evaluation", count=1, seed=5, kind="line")
    document.image.save(tmp_path / "line.png")
    return tmp_path / "line.png"


@pytest.fixture(scope="session")
def reader(exported: Callable[[str], Path]) -> Model:
    """The fp16 reader on the CPU."""
    return Model(exported("fp16"), "cpu")


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Playwright's own Chromium, or one on PATH."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path).exists()
        path = None if own else next(filter(None, map(shutil.which, BROWSERS)), None)
        if not own and path is None:
            pytest.skip("no Chromium found; run `make browser` (playwright install chromium) to get one")
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: "Browser") -> Iterator[Callable[..., Any]]:
    """Open an address in a window; `said` and `asked` of the page are its console lines and the requests' addresses."""
    contexts = []

    def opened(address: str, size: tuple[int, int], scheme: str = "light", **options: Any) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        contexts.append(chromium.new_context(viewport=viewport, color_scheme=scheme, **options))
        page: Any = contexts[-1].new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
