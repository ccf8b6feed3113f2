"""The report of a study in a real browser: pictures are drawn, nothing overflows, on a phone and on a desk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmeup.study.report import write_report
from tests.support.browser import chromium
from tests.support.study_folder import write_study


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    claim = {"claim": "It helps", "first": "all losses", "second": "without matching", "measure": "relations"}
    folder = write_study(
        tmp_path_factory.mktemp("study"), claims=[claim], command="python " + "a-long-word" * 30
    )
    (folder / "cells/without-matching/seed-1/cell.json").unlink()
    write_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_drawn_and_nothing_sticks_out(browser: Any, page: Path, width: int) -> None:
    # a window has a smallest width, what is emulated has none
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == [], "no errors, no warnings"
    assert browser.execute_script("return window.innerWidth") == width
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, f"{overflow} pixels stick out on the right"
    widths = browser.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 300 ? i.clientWidth : 0)"
    )
    assert len(widths) == 10
    assert all(shown >= 600 for shown in widths), "letters stay legible: a narrow screen scrolls the picture"


@pytest.mark.timeout(120)
def test_dark_pages_have_dark_pictures(browser: Any, page: Path) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    style = "return getComputedStyle(document.querySelector('figure img')).filter"
    assert "invert" in browser.execute_script(style)
