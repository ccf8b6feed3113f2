"""Label files: shared out, resumed, the same bytes whoever writes them, and a manifest at the end."""

from pathlib import Path

import numpy as np
import pytest

from promptmeup.errors import ShardError
from promptmeup.prompts.label_files import finish_labels, write_labels
from promptmeup.prompts.labels import LabelConfig
from promptmeup.prompts.vocabulary import Vocabulary
from promptmeup.shard_format import ShardEntry, label_file, read_label_manifest, shard_name
from tests.support.colours import BANKS, BLUE, ENTITIES, GREEN, RED, RELATIONS, ColourTeacher, photo

CONFIG = LabelConfig(splits=("train",), temperature=0.05, num_kept=2, batch=3)
VOCABULARY = Vocabulary(ENTITIES, RELATIONS, ("{}",), ("{}",))

CONTENT = {
    shard_name(n): [
        photo(
            (n * 20, 99, 50), *[((RED, GREEN, BLUE)[k % 3], (4 * k, 2, 4 * k + 9, 40)) for k in range(n % 3)]
        ),
        photo(BLUE, (GREEN, (n, n, n + 20, n + 20))),
    ]
    for n in range(5)
}
SHARDS = tuple(
    ShardEntry(
        name,
        samples=2,
        pairs=2,
        matched_pairs=2,
        boxes=sum(len(boxes) for _, boxes in content),
        bytes=1,
        sha256="",
    )
    for name, content in CONTENT.items()
)


def write(folder: Path, **options: object) -> tuple[int, list[str]]:
    """Label into `folder`; return how many shards were labelled and which were read."""
    read: list[str] = []

    def samples(entry: ShardEntry):
        read.append(entry.name)
        yield from CONTENT[entry.name]

    return write_labels(folder, SHARDS, samples, ColourTeacher(), BANKS, CONFIG, **options), read


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_have_one_row_a_box_and_one_a_sample(tmp_path):
    count, _ = write(tmp_path)
    assert count == 5
    for entry in SHARDS:
        assert len(np.load(label_file(tmp_path, entry.name, "objects"))) == entry.boxes
        assert len(np.load(label_file(tmp_path, entry.name, "images"))) == entry.samples
    assert len(list(tmp_path.iterdir())) == 10  # nothing temporary is left


@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_number_of_processes_covers_every_shard_once_with_the_same_bytes(tmp_path, size):
    write(tmp_path / "one")
    parts = [write(tmp_path / "many", rank=rank, size=size)[1] for rank in range(size)]
    assert sorted(name for part in parts for name in part) == [entry.name for entry in SHARDS]
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_a_resumed_run_keeps_finished_shards_and_gives_the_same_bytes(tmp_path):
    write(tmp_path)
    whole = content(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    label_file(tmp_path, SHARDS[1].name, "images").unlink()  # killed between the two files
    cut = label_file(tmp_path, SHARDS[3].name, "objects")
    cut.write_bytes(cut.read_bytes()[:-3])
    seen: list[str] = []
    count, read = write(tmp_path, done=lambda entry: seen.append(entry.name))
    assert (count, read) == (2, [SHARDS[1].name, SHARDS[3].name])
    assert seen == [entry.name for entry in SHARDS]
    assert content(tmp_path) == whole
    kept = label_file(tmp_path, SHARDS[0].name, "objects")
    assert kept.stat().st_mtime_ns == times[kept.name]
    assert write(tmp_path) == (0, [])


def test_a_file_with_another_number_of_rows_or_entries_is_made_again(tmp_path):
    write(tmp_path)
    whole = content(tmp_path)
    path = label_file(tmp_path, SHARDS[2].name, "objects")
    np.save(path, np.load(path)[:-1])
    path = label_file(tmp_path, SHARDS[4].name, "images")
    np.save(path, np.zeros(2, dtype=[("ids", "<u2", (9,)), ("probs", "<f2", (9,))]))
    assert write(tmp_path)[1] == [SHARDS[2].name, SHARDS[4].name]
    assert content(tmp_path) == whole


def test_a_shard_that_does_not_fit_its_manifest_is_refused(tmp_path):
    wrong = ShardEntry("shard-000000.tar", samples=3, pairs=3, matched_pairs=3, boxes=1, bytes=1, sha256="")
    with pytest.raises(ShardError, match="holds 2 images and 1 boxes, its manifest says 3 and 1"):
        write_labels(tmp_path, [wrong], lambda e: CONTENT[e.name], ColourTeacher(), BANKS, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_names_its_shard(tmp_path):
    with pytest.raises(ShardError, match=r"shard-000000\.tar: an image cannot be decoded"):
        write_labels(
            tmp_path, SHARDS[:1], lambda _: [(b"?", np.zeros((0, 4)))], ColourTeacher(), BANKS, CONFIG
        )


def test_a_damaged_manifest_says_what_to_do(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 2, "ba')
    with pytest.raises(ShardError, match=r"cannot read .*manifest\.json .*copy it again, or delete"):
        read_label_manifest(tmp_path)


def test_the_manifest_describes_the_folder(tmp_path):
    folder = tmp_path / "0123456789abcdef"
    write(folder)
    written = finish_labels(folder, SHARDS, VOCABULARY, CONFIG, corpus="c0ffee", made_with={"note": 1})
    manifest = read_label_manifest(folder)
    assert manifest == written
    assert (manifest.bank, manifest.corpus, manifest.num_kept) == (folder.name, "c0ffee", 2)
    assert (manifest.entities, manifest.relations) == (ENTITIES, RELATIONS)
    boxes = sum(entry.boxes for entry in SHARDS)
    assert manifest.statistics["objects_rows"] == boxes
    assert manifest.statistics["images_rows"] == 10
    votes = np.concatenate([np.load(label_file(folder, e.name, "objects"))["ids"][:, 0] for e in SHARDS])
    assert manifest.statistics["objects_top_share"] == pytest.approx(np.bincount(votes).max() / boxes)


def test_an_unfinished_folder_gets_no_manifest(tmp_path):
    write(tmp_path, rank=0, size=2)
    with pytest.raises(ShardError, match="2 of 5 shards have no labels yet"):
        finish_labels(tmp_path, SHARDS, VOCABULARY, CONFIG, corpus="c", made_with={})
    assert not (tmp_path / "manifest.json").exists()
