"""A corpus of nothing but traps: each ends in rejects.jsonl with its reason, or as a sound sample; none in between."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptmeup.config import load
from promptmeup.data.reader import PackedSplit
from promptmeup.errors import CorpusError
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.packing.verify import verify
from tests.support.photos import two_colours, write_photo


def truncated(path: Path) -> None:
    write_photo(path, (400, 300), format="JPEG")
    path.write_bytes(path.read_bytes()[:-900])


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    two_colours().transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif, quality=95)


def sixteen_bit(path: Path) -> None:
    shades = np.zeros((64, 96), dtype=np.uint16)
    shades[:, :48] = 65535
    Image.fromarray(shades).save(path, "PNG")


def link_out(path: Path) -> None:
    secret = write_photo(path.parent.parent / "secret.jpg")
    path.symlink_to(secret)


RED_BLUE = ((255, 0, 0), (0, 0, 255))
GOOD: dict[str, tuple[Callable[[Path], object], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "png.jpg": (lambda path: write_photo(path, format="PNG"), RED_BLUE),
    "gif.jpg": (lambda path: write_photo(path, mode="P", format="GIF"), RED_BLUE),
    "webp.jpg": (lambda path: write_photo(path, format="WEBP", quality=95), RED_BLUE),
    "cmyk.jpg": (lambda path: write_photo(path, mode="CMYK", format="JPEG", quality=95), RED_BLUE),
    "rotated.jpg": (rotated, RED_BLUE),
    "sixteen.png": (sixteen_bit, ((255,) * 3, (0,) * 3)),
}
"""name -> how to write it, and the colours that must be left and right of what is stored"""
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (truncated, "unreadable_image"),
    "dot.jpg": (lambda path: write_photo(path, (1, 1)), "bad_image_size"),
    "bomb.jpg": (lambda path: Image.new("1", (30_000, 30_000)).save(path, "PNG"), "unreadable_image"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "unreadable_image"),
    "folder.jpg": (lambda path: path.mkdir(), "missing_image"),
    "link.jpg": (link_out, "path_escapes_root"),
    "nowhere.jpg": (lambda path: None, "missing_image"),
}
CAPTIONS = {
    "right to left": "צילום: אנגלה מרקל נואמת \u202eבברלין\u202c — برلين",
    "long": "A minister speaks. " * 3334,
    "control": "A\x00B \x1b[31m \u2028 \u2029 line\r\nbreaks\tand tabs",
    "emoji": "🏃🏽‍♀️" * 40,
    "markup": "<script>alert(1)</script> & \"quotes\" 'too' {} %s ${HOME}",
    "combining": "e\u0301" * 200,
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    rows = []
    for name, (make, _) in (GOOD | BAD).items():  # type: ignore[operator]
        make(root / name)
        rows.append({"image": name, "caption": f"A photo of {name}."})
    rows += [{"image": "png.jpg", "caption": caption} for caption in CAPTIONS.values()]
    rows += [
        rows[0],
        {"image": "../secret.jpg", "caption": "Out."},
        {"image": "/etc/passwd", "caption": "Out."},
    ]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [b'{"image": "png.jpg", "caption": "caf\xe9"}', b'{"image": "png.jpg", "cap', b"\xff\xfe\x00"]
    (root / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (root / "boxes.jsonl").write_bytes(b"")
    return root


def config(corpus: Path, *more: str) -> PackConfig:
    return load(
        PackConfig,
        None,
        [
            *("corpus.kind=tabular", f"corpus.root={corpus}", "corpus.files.train=train.jsonl"),
            *("corpus.boxes=boxes.jsonl", f"out={corpus.parent}/out", "splits=[train]", "processes=1"),
            *("shorter_side=64", "jpeg_quality=95", "max_reject_rate=0.9", *more),
        ],
    )


def test_every_trap_ends_where_it_should(corpus: Path) -> None:
    pack(config(corpus))
    split = PackedSplit(corpus.parent / "out/train")
    records = {split.read_json(i)["image_path"]: i for i in range(len(split))}
    assert sorted(records) == sorted(GOOD)
    for name, (_, colours) in GOOD.items():
        image = Image.open(io.BytesIO(split.read_image(records[name])))
        assert image.size == (96, 64), name
        for place, colour in zip((0.25, 0.75), colours, strict=True):
            pixel = image.getpixel((int(place * 96), 40))
            assert np.abs(np.subtract(pixel, colour)).max() < 45, (name, pixel)
    stored = [caption["text"] for caption in split.read_json(records["png.jpg"])["captions"]]
    assert stored == ["A photo of png.jpg.", *CAPTIONS.values()], "word for word"

    lines = [json.loads(line) for line in (split.folder / "rejects.jsonl").read_text().split("\n") if line]
    reasons = {line["item"]: line["reason"] for line in lines if not line["kept"]}
    assert {name: reasons.pop(name) for name in BAD} == {name: reason for name, (_, reason) in BAD.items()}
    assert reasons == {
        "../secret.jpg": "path_escapes_root",
        "/etc/passwd": "path_escapes_root",
        "train.jsonl line 20": "duplicate_pair",
        "train.jsonl line 23": "malformed_record",
        "train.jsonl line 24": "malformed_record",
        "train.jsonl line 25": "malformed_record",
    }
    assert all(line["detail"] for line in lines)
    assert verify([split.folder], full=True).findings == []
    assert "secret" not in str(stored)


def test_a_detector_is_not_shown_what_cannot_be_read(corpus: Path) -> None:
    """The stages after the photos see sound photos alone, whatever the corpus."""
    pack(config(corpus, "stage=photos"))
    pack(config(corpus, "stage=boxes"))
    pack(config(corpus, "stage=entities"))
    one = (corpus.parent / "out/train/manifest.json").read_bytes()
    pack(config(corpus, f"out={corpus.parent}/whole"))
    assert one == (corpus.parent / "whole/train/manifest.json").read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_records_cut_in_half_are_one_clear_error(tmp_path: Path, share: float) -> None:
    origin = tmp_path / "visual_news/origin"
    folder = tmp_path / "news_clippings/data/merged_balanced"
    origin.mkdir(parents=True)
    folder.mkdir(parents=True)
    records = json.dumps([{"id": i, "caption": "A river.", "image_path": f"./{i}.jpg"} for i in range(50)])
    (origin / "data.json").write_text(records[: int(share * len(records))])
    (folder / "train.json").write_text(
        json.dumps({"annotations": [{"id": 0, "image_id": 0, "falsified": False}]})
    )
    settings = ["corpus.kind=newsclippings", f"corpus.root={tmp_path}", "splits=[train]", "stage=photos"]
    with pytest.raises(
        CorpusError, match=r"data\.json is not valid JSON at line 1, column .*copied or unpacked"
    ):
        pack(load(PackConfig, None, [*settings, f"out={tmp_path}/out"]))
    assert not list((tmp_path / "out").rglob("*.tar"))
