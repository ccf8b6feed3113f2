"""Every kind of photo that a corpus may hold: what is stored of it, or why it is refused."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from promptmeup.packing.images import BadImageError, StoredImage, prepare_image, read_photo
from promptmeup.records import Sample
from tests.support.photos import two_colours, write_photo


def prepare(path: Path, *, shorter_side: int = 48, quality: int = 90) -> StoredImage:
    return prepare_image(path, shorter_side=shorter_side, quality=quality)


def near(image: StoredImage, place: tuple[float, float], colour: tuple[int, int, int]) -> bool:
    """Whether the pixel at the fractions `place` of width and height has about this colour."""
    pixel = image.open().getpixel((int(place[0] * image.width), int(place[1] * image.height)))
    return bool(np.abs(np.subtract(pixel, colour)).max() < 40)


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        ((96, 64), (72, 48)),
        ((64, 96), (48, 72)),
        ((101, 67), (72, 48)),
        ((40, 50), (40, 50)),  # smaller: never enlarged
        ((1000, 600), (80, 48)),  # far larger: decoded at a fraction
    ],
)
def test_the_shorter_side_is_reduced_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], stored: tuple[int, int]
) -> None:
    image = prepare(write_photo(tmp_path / "a.jpg", size))
    assert (image.width, image.height) == stored
    assert image.open().size == stored
    assert image.scale_x == pytest.approx(stored[0] / size[0])
    assert image.scale_y == pytest.approx(stored[1] / size[1])
    assert near(image, (0.3, 0.7), (255, 0, 0))
    assert near(image, (0.7, 0.7), (0, 0, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_forgotten(tmp_path: Path, orientation: int) -> None:
    upright = two_colours((96, 64))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a camera's sensor would give
    raw = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = prepare(tmp_path / "a.jpg")
    assert (image.width, image.height) == (72, 48)
    assert image.scale_x == pytest.approx(0.75)
    assert image.scale_y == pytest.approx(0.75)
    assert near(image, (0.04, 0.06), (0, 255, 0))
    assert near(image, (0.3, 0.8), (255, 0, 0))
    assert near(image, (0.8, 0.8), (0, 0, 255))
    assert 0x0112 not in image.open().getexif()


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_other_formats_are_turned_too(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    two_colours((96, 64)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"a.{kind}", exif=exif)
    image = prepare(tmp_path / f"a.{kind}")
    assert (image.width, image.height, image.original_width, image.original_height) == (72, 48, 96, 64)
    assert near(image, (0.04, 0.06), (0, 255, 0)) and near(image, (0.8, 0.8), (0, 0, 255))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "CMYK"),
        ("a.jpg", "L"),
        ("a.png", "P"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "1"),
        ("a.gif", "P"),
        ("a.webp", "RGB"),
        ("a.mpo", "RGB"),
        ("a.bmp", "RGB"),
        ("a.tif", "CMYK"),
    ],
)
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, name: str, mode: str) -> None:
    image = prepare(write_photo(tmp_path / name, mode=mode)).open()
    assert (image.mode, image.size) == ("RGB", (72, 48))
    pixels = np.asarray(image)[12:].astype(float)
    left, right = pixels[:, :34].mean((0, 1)), pixels[:, 38:].mean((0, 1))
    assert np.abs(left - right).max() > 20, "the two halves must stay distinct"


def test_a_png_named_jpg_is_read_for_what_it_is(tmp_path: Path) -> None:
    image = prepare(write_photo(tmp_path / "a.jpg", format="PNG"))
    assert image.open().format == "JPEG"
    assert near(image, (0.7, 0.7), (0, 0, 255))


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 32, 64))
    picture.save(tmp_path / "a.png")
    picture.quantize().save(tmp_path / "palette.png")
    for name in ("a.png", "palette.png"):
        image = prepare(tmp_path / name)
        assert near(image, (0.2, 0.5), (255, 0, 0))
        assert near(image, (0.8, 0.5), (255, 255, 255))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    shades = np.full((64, 64), 65535 // 4, dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "a.png")
    assert near(prepare(tmp_path / "a.png"), (0.5, 0.5), (64, 64, 64))


def test_equal_files_give_equal_bytes_without_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera that nobody needs to know"
    path = write_photo(
        tmp_path / "a.jpg", exif=exif, comment=b"a secret", icc_profile=b"profile", xmp=b"<x:xmpmeta/>"
    )
    image = prepare(path)
    assert image.jpeg == prepare(path).jpeg
    stored = JpegImagePlugin.JpegImageFile(io.BytesIO(image.jpeg))
    assert {name for name, _ in stored.applist} == {"APP0"}, "JFIF's own header alone"
    small = prepare(path, shorter_side=4096)  # not resized, still nothing is taken over
    assert b"secret" not in small.jpeg
    assert b"camera" not in small.jpeg


def test_quality_is_what_was_asked_for(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.jpg", quality=100)
    assert len(prepare(path, quality=30).jpeg) < len(prepare(path, quality=95).jpeg)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(path, format="PNG")


def postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (lambda path: None, "missing_image", "no such file"),
        (lambda path: path.write_bytes(b""), "unreadable_image", "cannot identify"),
        (lambda path: path.write_text("<html>404</html>"), "unreadable_image", "cannot identify"),
        (truncated, "unreadable_image", "truncated"),
        (bomb, "unreadable_image", "decompression bomb"),
        (postscript, "unreadable_image", "cannot identify"),
        (lambda path: path.mkdir(), "unreadable_image", "not a file"),
        (os.mkfifo, "unreadable_image", "not a file"),
        (lambda path: path.symlink_to(path), "missing_image", "no such file"),
        (lambda path: write_photo(path, (1, 1)), "bad_image_size", "1x1"),
        (lambda path: write_photo(path, (31, 64)), "bad_image_size", "below 32"),
        (lambda path: write_photo(path, (400, 50)), "bad_image_size", "longer than 5 to 1"),
        (lambda path: write_photo(path, mode="F", format="TIFF"), "unreadable_image", "floating-point"),
    ],
)
def test_bad_images_are_refused_with_a_reason(tmp_path: Path, make: object, reason: str, said: str) -> None:
    path = tmp_path / "a.jpg"
    assert callable(make)
    make(path)
    with pytest.raises(BadImageError) as caught:
        prepare(path)
    assert caught.value.reason == reason
    assert said in caught.value.detail
    assert str(tmp_path) not in caught.value.detail, "rejects.jsonl is the same on every machine"


def test_a_bit_flip_is_refused_or_read_but_never_crashes(tmp_path: Path) -> None:
    original = write_photo(tmp_path / "a.jpg").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(original)
        for position in generator.integers(0, len(original), 4):
            damaged[position] ^= 1 << generator.integers(0, 8)
        (tmp_path / "b.jpg").write_bytes(damaged)
        with contextlib.suppress(BadImageError):  # anything else would stop the whole job
            assert min(prepare(tmp_path / "b.jpg").open().size) >= 32


def photo_at(root: Path, path: str, *, member: tuple[int, int] | None = None) -> StoredImage:
    return read_photo(Sample("0" * 16, path, (), member=member), root, shorter_side=48, quality=90)


def refused(root: Path, path: str) -> tuple[str, str]:
    with pytest.raises(BadImageError) as caught:
        photo_at(root, path)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("path", ["../secret.jpg", "..", "../../x/secret.jpg"])
def test_a_path_that_leads_out_of_the_corpus_is_refused(tmp_path: Path, path: str) -> None:
    write_photo(tmp_path / "secret.jpg")
    (tmp_path / "corpus").mkdir()
    assert refused(tmp_path / "corpus", path)[0] == "path_escapes_root"


def test_an_absolute_path_is_refused_even_into_the_corpus(tmp_path: Path) -> None:
    assert refused(tmp_path, str(write_photo(tmp_path / "a.jpg")))[0] == "path_escapes_root"


@pytest.mark.parametrize("of_folder", [False, True])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, of_folder: bool) -> None:
    write_photo(tmp_path / "outside/secret.jpg")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "link").symlink_to(tmp_path / "outside" / ("" if of_folder else "secret.jpg"))
    reason, detail = refused(corpus, "link/secret.jpg" if of_folder else "link")
    assert reason == "path_escapes_root"
    assert str(tmp_path / "outside") in detail


def test_links_inside_and_a_linked_corpus_are_fine(tmp_path: Path) -> None:
    write_photo(tmp_path / "disk/photos/a.jpg")
    (tmp_path / "disk/link.jpg").symlink_to("photos/a.jpg")
    (tmp_path / "corpus").symlink_to(tmp_path / "disk")
    assert (
        photo_at(tmp_path / "corpus", "link.jpg").width,
        photo_at(tmp_path / "corpus", "photos/a.jpg").width,
    ) == (
        72,
        72,
    )


@pytest.mark.parametrize("path", ["photos/404.jpg", "photos", "loop", "x" * 300, "."])
def test_a_missing_photo_is_missing(tmp_path: Path, path: str) -> None:
    (tmp_path / "photos").mkdir()
    os.symlink("loop", tmp_path / "loop")
    assert refused(tmp_path, path)[0] == "missing_image"


def test_a_photo_in_an_archive_is_read_from_its_place(tmp_path: Path) -> None:
    content = write_photo(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "many.tar").write_bytes(b"x" * 1000 + content + b"y" * 1000)
    image = photo_at(tmp_path, "many.tar", member=(1000, len(content)))
    assert image == photo_at(tmp_path, "a.jpg")
    with pytest.raises(BadImageError) as caught:
        photo_at(tmp_path, "many.tar", member=(0, 900))
    assert caught.value.reason == "unreadable_image"
    assert "0x" not in caught.value.detail, "rejects.jsonl is the same every time"
