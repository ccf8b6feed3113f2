"""The gallery in a real browser: photos are drawn, boxes lie where they should, nothing overflows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmeup.data.reader import PackedSplit
from promptmeup.gallery.page import write_gallery
from tests.support.browser import chromium
from tests.support.packed import write_packed_split


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    splits = [
        write_packed_split(
            folder / name, num_images=6, captions_per_image=2, boxes_per_image=3, seed=seed, labels="abc"
        )
        for seed, name in enumerate(("train", "val"))
    ]
    write_gallery(splits, folder / "gallery.html", samples=4)
    return folder / "gallery.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [1400, 420])
def test_everything_is_drawn_in_its_place(browser: Any, page: Path, width: int) -> None:
    browser.set_window_size(width, 1000)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == [], "no errors, no warnings"
    assert browser.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth == 96)"
    )
    assert browser.execute_script("return document.images.length") == 8
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, f"{overflow} pixels stick out on the right"

    split = PackedSplit(page.parent / "train")
    for row in range(len(split)):
        record = split.read_json(row)
        card = f"#key-{record['key']}"
        found = browser.execute_script(
            "const card = document.querySelector(arguments[0]); if (!card) return null;"
            "const image = card.querySelector('img').getBoundingClientRect();"
            "return [...card.querySelectorAll('.box')].map(box => { const r = box.getBoundingClientRect();"
            "return [r.left - image.left, r.top - image.top, r.right - image.left, r.bottom - image.top]"
            ".map(x => x / image.width) })",
            card,
        )
        if found is None:  # not among those chosen
            continue
        expected = [
            [box[name] / record["width"] for name in ("x0", "y0", "x1", "y1")] for box in record["boxes"]
        ]
        assert found == [pytest.approx(corners, abs=0.01) for corners in expected]


@pytest.mark.timeout(120)
def test_charts_show_their_bars(browser: Any, page: Path) -> None:
    browser.set_window_size(1400, 1000)
    browser.get(page.as_uri())
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => [...c.querySelectorAll('i')]"
        ".map(i => i.getBoundingClientRect().width / i.parentElement.getBoundingClientRect().width))"
    )
    assert len(widths) >= 10
    assert all(max(bars) == pytest.approx(1, abs=0.01) for bars in widths), "the longest bar fills its track"
