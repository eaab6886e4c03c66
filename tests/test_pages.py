"""The pages in a real browser: headless Chromium opens them narrow and wide, light and dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_reports import write_fake_report
from fake_runs import write_rows
from PIL import Image

from nlvideo.experiments.page import Study, write_page
from nlvideo.experiments.run_folders import read_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCORES = [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0]]  # targets 0, 1, 2, 0, 1
ACTIONS = [[0.9, 0.2, 0.1], [0.3, 0.8, 0.6], [0.2, 0.3, 0.1], [0.7, 0.2, 0.4], [0.1, 0.9, 0.2]]
LABELS = ["0", "1,2", "2", "0,2", "1"]
SCREENS = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]
PAGES = ("classes", "actions", "perfect", "study")
READINGS = """# A study

With **text**, <b>no HTML</b> and ![no picture](https://example.com/a.png).

## far/2c

The paper says so. Here it came out so. They agree.
"""

# Of every picture: drawn, and with a size on the page.
UNDRAWN = """() => [...document.images].filter(image => {
  const box = image.getBoundingClientRect();
  return !(image.complete && image.naturalWidth > 0 && box.width > 0 && box.height > 0);
}).map(image => image.alt || image.src.slice(0, 60))"""
# What sticks out of the page at the right, besides what scrolls within its own box.
OUTSIDE = """() => document.documentElement.scrollWidth > innerWidth
  ? [...document.querySelectorAll("body *")].filter(
      e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))
  : []"""
# What can be reached by the keyboard, and what has to be: links, buttons, and boxes that scroll.
REACHABLE = """() => [...document.querySelectorAll("a[href], button, .scroll")].map(e => {
  e.dataset.number ??= document.querySelectorAll("[data-number]").length;
  return e.dataset.number;
})"""
FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return [e.dataset.number ?? null, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (nlvideo[browser])")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed (nlvideo[browser])")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM)
        yield running
        running.close()


def write_page_of(name: str, videos: Path, folder: Path) -> Path:
    """Writes one of PAGES: a report of classes, of actions, or of a perfect score; or a study."""
    if name == "classes":
        return write_fake_report(videos, folder / "out", SCORES)
    if name == "perfect":
        return write_fake_report(videos, folder / "out", np.eye(3)[[0, 1, 2, 0, 1]])
    if name == "study":
        return write_study(folder)
    (folder / "list.csv").write_text("".join(f"val/a video {i}.mp4 {labels}\n" for i, labels in enumerate(LABELS)))
    return write_fake_report(videos, folder / "out", ACTIONS, source=folder / "list.csv", multi_label=True)


def write_study(folder: Path) -> Path:
    """Writes a page of two folders of runs, with rows that were not run, texts and an attention picture."""
    far, near = folder / "runs/far", folder / "runs/near"
    write_rows(far, {"c2d_r50": 0.5, "c2d_r50_nl5": 0.95}, (1, 2))
    write_rows(near, {"c2d_r50": 0.5, "i3d_r50": 1.0}, (1,))
    (folder / "readings.md").write_text(READINGS)
    Image.fromarray(np.zeros((700, 1584, 3), np.uint8)).save(far / "attention_a.png")
    studies = [Study(path.name, path, read_runs(path)) for path in (far, near)]
    write_page(folder / "study.html", studies, folder / "readings.md", [])
    return folder / "study.html"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_a_browser(browser, video_folder, tmp_path, name):
    address = write_page_of(name, video_folder, tmp_path).as_uri()
    for width, scheme in SCREENS:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        said, asked = listen(page)
        page.goto(address, wait_until="load", timeout=120_000)  # a busy machine needs more than the usual 30 s
        assert_drawn_whole(page)
        assert_accessible(page)
        if scheme == "light":
            assert_reached_by_keyboard(page)
        assert said == [] and [url for url in asked if url != address and not url.startswith("data:")] == []
        context.close()


def listen(page: Any) -> tuple[list[str], list[str]]:
    """Returns lists that fill with what the page says in the console, errors included, and with what it requests."""
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    return said, asked


def assert_drawn_whole(page: Any) -> None:
    assert page.evaluate("document.images.length") >= 5 and page.evaluate(UNDRAWN) == []
    assert page.evaluate(OUTSIDE) == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def assert_accessible(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert [(rule["id"], [node["html"][:120] for node in rule["nodes"]]) for rule in found["violations"]] == []
    assert len(found["passes"]) > 20  # it has looked


def assert_reached_by_keyboard(page: Any) -> None:
    wanted, reached = page.evaluate(REACHABLE), {}
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        number, visible = page.evaluate(FOCUSED)
        if number in reached:
            break
        if number is not None:
            reached[number] = visible
    assert set(wanted) == set(reached) and all(reached.values())
