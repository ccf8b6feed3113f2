"""Pictures of scores: they are drawn, hold what they should, and survive names of any kind."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from promptmeup.extraction import plots
from promptmeup.extraction.metrics import entity_scores, relation_scores


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def share(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> float:
    """Return the share of the picture that has just this colour."""
    return float((picture == color).all(axis=-1).mean())


pytestmark = pytest.mark.filterwarnings("error")  # what does not fit, glyphs that are missing
BLUE = (0x48, 0x78, 0xA8)
DARKEST = (8, 48, 107)
"""of the colour map: the whole of a row"""


def test_bars_grow_with_scores(tmp_path: Path) -> None:
    gold = [["B-PER", "O", "B-LOC", "O"]]
    areas = []
    for number, found in enumerate(("O O O O", "B-PER O O O", "B-PER O B-LOC O")):
        path = tmp_path / f"{number}.png"
        plots.draw_scores(entity_scores(gold, [found.split()]), path, title="Twitter-2015, test")
        areas.append(share(pixels(path), BLUE))
    assert areas[0] == 0
    assert areas[2] == pytest.approx(2 * areas[1], rel=0.05)
    assert areas[2] > 0.2


def test_names_of_any_kind(tmp_path: Path) -> None:
    gold = ["$a_{b$", "/per/org/" + "long_" * 30, "None", "ünï"]
    scores = relation_scores(gold, gold, none="None")
    plots.draw_scores(scores, tmp_path / "scores.png", title="$" * 200)
    plots.draw_confusion(scores, tmp_path / "confusion.png", title="a $ b")
    for name in ("scores.png", "confusion.png"):
        picture = pixels(tmp_path / name)
        assert min(picture.shape[:2]) > 200
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_no_relation_at_all(tmp_path: Path) -> None:
    scores = relation_scores(["None"], ["None"], none="None")
    plots.draw_scores(scores, tmp_path / "scores.png", title="nothing")
    assert share(pixels(tmp_path / "scores.png"), BLUE) == 0
    plots.draw_confusion(scores, tmp_path / "confusion.png", title="nothing")
    assert share(pixels(tmp_path / "confusion.png"), DARKEST) > 0.05


def test_colours_are_shares_of_gold(tmp_path: Path) -> None:
    # "a" is always found, "b" always taken for "a", which the model also says most often: two dark cells
    scores = relation_scores(["a"] * 90 + ["b"] * 3, ["a"] * 93, none=None)
    plots.draw_confusion(scores, tmp_path / "sure.png", title="x")
    # now each row is spread evenly
    scores = relation_scores(["a"] * 90 + ["b"] * 4, ["a", "b"] * 47, none=None)
    plots.draw_confusion(scores, tmp_path / "even.png", title="x")
    sure, even = pixels(tmp_path / "sure.png"), pixels(tmp_path / "even.png")
    assert share(sure, DARKEST) > 0.1
    assert share(even, DARKEST) < 0.01


def test_numbers_only_where_they_fit(tmp_path: Path) -> None:
    """A matrix of 31 labels has no numbers in its cells: all of a cell has one colour."""
    whole = []
    for labels in (30, 31):
        names = [f"r{number:02}" for number in range(labels)]
        path = tmp_path / f"{labels}.png"
        plots.draw_confusion(relation_scores(names, names, none=None), path, title="x")
        whole.append(share(pixels(path), DARKEST) * pixels(path).shape[0] * pixels(path).shape[1] / labels)
    # pixels of the diagonal's cells
    assert whole[1] > whole[0] + 20
