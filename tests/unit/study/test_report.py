"""The report holds every arm and number, says what is missing, and is the same wherever its folder lies."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from scipy import stats

from promptmeup.study import report
from promptmeup.study.findings import find, numbers
from promptmeup.study.losses import read_losses
from promptmeup.study.plots import draw_curves
from promptmeup.study.report import write_report
from promptmeup.study.results import read_scores, read_study
from tests.support.study_folder import SMALL, FakeArm, write_study

CLAIMS = [
    {
        "claim": "It helps",
        "first": "all losses",
        "second": "without $alignment$ & <b>",
        "measure": "relations",
    },
    {
        "claim": "It is | as good",
        "first": "without matching",
        "second": "all losses",
        "measure": "entities",
        "expect": "same",
        "margin": 0.5,
    },
]
FILES = ("report.html", "report.md", "scores.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("study"), claims=CLAIMS)
    write_report(folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """What is handed on of a study: what was asked, and the cells."""
    shutil.copytree(made / "cells", tmp_path / "elsewhere/cells")
    shutil.copy(made / "study.json", tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


class Page(HTMLParser):
    """Collects tags and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_arm_claim_and_ceiling(made: Path) -> None:
    page = Page(made / "report.html")
    for arm in SMALL:
        assert page.text.count(arm.name) >= 3, "in each measure's table"
    for part in ("words alone", "with the image", "51.00", "99.00", "It is | as good", "same, within ±0.5"):
        assert part in page.text
    assert "15 of 15 cells are finished" in page.text
    assert "UNFINISHED" not in page.text
    assert "b" not in {tag for tag, _ in page.tags}, "names are text"
    links = {found["href"] for tag, found in page.tags if tag == "a"}
    assert links == {f"#{found['id']}" for tag, found in page.tags if tag == "section"}


def test_the_page_needs_nothing_beside_it(made: Path) -> None:
    page = Page(made / "report.html")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    images = [found for tag, found in page.tags if tag == "img"]
    assert len(images) == len(list((made / "plots").glob("*.svg"))) == 3 * 3 + 1
    assert all(
        (found["src"] or "").startswith("data:image/svg+xml;base64,") and found["alt"] for found in images
    )


def test_pictures_are_svg_without_a_date(made: Path) -> None:
    for path in (made / "plots").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert "<dc:date>" not in path.read_text()


def test_markdown_has_the_same_tables_and_links_its_pictures(made: Path) -> None:
    text = (made / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\(<(plots/.+?)>\)", text)
    assert len(linked) == 10
    assert all((made / path).exists() for path in linked)
    page = Page(made / "report.html")
    cells = [tag for tag, _ in page.tags].count("td")
    bars = sum(
        len(re.findall(r"(?<!\\)\|", line)) - 1
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
    )
    assert bars == cells + [tag for tag, _ in page.tags].count("th")
    assert r"without \$alignment\$ \& \<b\>" in text


def test_numbers_are_those_of_a_t_test(made: Path) -> None:
    value = json.loads((made / "scores.json").read_text())
    sides = [
        [value["cells"][name][str(seed)]["relations"]["score"] for seed in (1, 2, 3)]
        for name in (CLAIMS[0]["first"], CLAIMS[0]["second"])
    ]
    theirs = stats.ttest_rel(*sides)
    ends = theirs.confidence_interval(0.95)
    claim = value["claims"][0]
    assert claim["p"] == pytest.approx(theirs.pvalue, abs=1e-5)
    assert claim["effect"]["low"] == pytest.approx(ends.low, abs=1e-4)
    assert value["effects"][CLAIMS[0]["second"]]["relations"]["high"] == pytest.approx(-ends.low, abs=1e-4)
    assert claim["holm"] == pytest.approx(min(1, 2 * claim["p"]), abs=1e-5)


def test_code_of_two_versions_is_told(made: Path, copied: Path) -> None:
    assert (
        "The 15 stages of the finished cells took 0:22 of one process. Code: 0123456789ab."
        in Page(made / "report.html").text
    )
    cells = sorted(copied.glob("cells/*/seed-*/cell.json"))
    for path, code in zip(cells[:2], ({"pretrain": "later"}, {}), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code": code}))
    write_report(copied)
    told = "NOT ALL WERE MADE WITH THE SAME CODE: 0123456789ab (13), later (1), an unrecorded version (1)."
    assert told in (copied / "report.md").read_text(encoding="utf-8")


def test_what_the_seeds_share_and_other_photos_are_told(copied: Path) -> None:
    def told() -> list[str]:
        write_report(copied)
        return [(copied / "report.md").read_text(encoding="utf-8"), Page(copied / "report.html").text]

    parts = (
        "The same for all seeds: packed, teacher; the intervals do not cover chance in these.",
        "Tested on photos of another folder of posts than the baseline's of the same seed: without matching.",
        "Between arms that were tested on other examples or other photos, so that the effect holds the difference "
        "between the test sets too: It is | as good.",
    )
    for text in told():
        assert not any(part in text.replace("\\", "") for part in parts), "an older study does not tell"
    stages = {}
    for path in copied.glob("cells/*/*/cell.json"):
        value = json.loads(path.read_text())
        slug, name = path.parts[-3:-1]
        posts = "synthesize-1" if slug == "without-matching" else "synthesize-0"
        value["stages"] = {"posts": f"{posts}-{name}", "packed": "pack-0", "teacher": "pretrain-0"}
        stages[f"{slug}/{name}"] = value["stages"]
        path.write_text(json.dumps(value))
    study = json.loads((copied / "study.json").read_text()) | {"stages": stages}
    study["measures"]["entities"]["tests"] = "posts"
    (copied / "study.json").write_text(json.dumps(study))
    for text in told():
        for part in parts:
            assert part in text.replace("\\", "")


def test_a_copy_elsewhere_gives_the_same_bytes(made: Path, copied: Path) -> None:
    write_report(copied)
    for name in (*FILES, *(f"plots/{path.name}" for path in (made / "plots").iterdir())):
        assert (copied / name).read_bytes() == (made / name).read_bytes(), name
    assert str(made) not in "".join((made / name).read_text() for name in FILES)


def test_an_unfinished_study_says_so(copied: Path) -> None:
    (copied / "cells/without-matching/seed-2/cell.json").unlink()
    (copied / "cells/boxes-swapped-1/seed-3/retrieval.jsonl").unlink()
    value = numbers(write_report(copied))
    assert [(one["arm"], one["seed"]) for one in value["missing"]] == [
        ("without matching", 2),
        ("boxes swapped 1", 3),
    ]
    for name in FILES[:2]:
        text = (copied / name).read_text(encoding="utf-8")
        assert "UNFINISHED. Cells missing: 1; files missing in finished cells: 1." in text
        assert "retrieval.jsonl is not there" in text
    assert 'class="status part"' in (copied / "report.html").read_text()


@pytest.mark.parametrize("left", [0, 1])
def test_a_study_that_has_only_begun(copied: Path, left: int) -> None:
    for cell in sorted(copied.glob("cells/*/*"))[left:]:
        shutil.rmtree(cell)
    write_report(copied)
    text = (copied / "report.html").read_text(encoding="utf-8")
    assert f"Cells missing: {15 - left};" in text
    assert "undecided" in text
    assert len(list((copied / "plots").iterdir())) == (4 if left else 0)


def test_pictures_of_an_earlier_report_go(copied: Path) -> None:
    write_report(copied)
    shutil.rmtree(copied / "cells/boxes-swapped-0-5")
    shutil.rmtree(copied / "cells/boxes-swapped-1")
    write_report(copied)
    assert not (copied / "plots/entities-curves.svg").exists()
    assert (copied / "plots/entities-effects.svg").exists()


@pytest.mark.parametrize(
    ("least", "origin", "scale"),
    [(0.01, None, ["log"]), (0.01, 0.0, []), (0.1, None, []), (0.1, 0.001, ["log"])],
)
def test_axis_of_a_curve_over_decades(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, origin: float | None, scale: list[str]
) -> None:
    curve = [FakeArm(f"rate {x}", 0.8, curve="rate", x=x) for x in (least, 1.0)]
    folder = write_study(
        tmp_path, arms=[FakeArm("none", 0.9), *curve], seeds=(1, 2), sentences=2, losses=False, origin=origin
    )
    study = read_study(folder)
    asked: list[str] = []
    monkeypatch.setattr(Axes, "set_xscale", lambda _, value: asked.append(value))
    assert draw_curves(find(study, read_scores(folder, study)), "entities") is not None
    assert asked == scale


def test_losses_are_means_over_seeds_of_twelve_arms(tmp_path: Path) -> None:
    arms = [FakeArm(f"arm {number}", 0.8, curve="c" if number == 1 else None, x=1.0) for number in range(14)]
    folder = write_study(tmp_path, arms=arms, seeds=(1, 2), sentences=2, losses=False)
    for arm in arms:
        for seed in (1, 2):
            lines = [{"step": step, "loss/total": step * seed, "lr": 1} for step in (1, 2, 3)]
            text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4, "loss/total": "NaN"}])
            (folder / "cells" / arm.slug / f"seed-{seed}/pretrain.jsonl").write_text(text)
    study = read_study(folder)
    losses = read_losses(folder, study, read_scores(folder, study))
    assert list(losses) == [f"arm {number}" for number in (0, *range(2, 13))]
    (*points, last) = losses["arm 5"]["loss/total"]
    assert points == [(1, 1.5), (2, 3.0), (3, 4.5)]
    assert last[0] == 4 and math.isnan(last[1])


def test_the_command(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(copied)]) == 0
    assert capsys.readouterr().out == f"{copied / 'report.html'}\n"
    assert report.main([str(copied / "cells")]) == 1
    assert "holds no study" in capsys.readouterr().err
