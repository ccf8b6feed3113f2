"""The same batches for any number of ranks and workers, before and after a resume."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import multiprocessing

from promptmeup import config as configuration
from promptmeup import shard_format as sf
from promptmeup.data.loader import train_batches
from promptmeup.data.reader import DamagedSampleError, LabelReader, PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import Sources, single, training_order
from promptmeup.data.transforms import ImageConfig
from promptmeup.errors import ConfigError, ShardError, TrainingError
from promptmeup.records import Batch, SoftLabels
from tests.support.packed import write_packed_split

# three workers on a machine with two cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make_config(split, *, workers=0, **values):
    image = ImageConfig(size=32, **values.pop("image", {}))
    return DataConfig(
        train=str(split.folder), image=image, workers=workers, window=2, max_tokens=24, **values
    )


def batches(split, tokenizer, *, start=0, global_batch=8, rank=0, size=1, labels=True, seed=1, **values):
    config = make_config(split, **values)
    reader = LabelReader(sf.labels_folder(split.folder, "bank"), split) if labels else None
    return train_batches(
        single(split, seed=seed, window=config.window, pairs=config.pairs, labels=reader),
        config=config,
        tokenizer=tokenizer,
        start_pairs=start,
        global_batch=global_batch,
        rank=rank,
        size=size,
    )


def tensors(batch, max_tokens=24):
    """Every tensor of a batch by name, with tokens padded to one length."""
    found = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, SoftLabels):
            found |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in fields(value)}
        elif isinstance(value, torch.Tensor):
            found[field.name] = value
    for name in ("tokens_BL", "token_mask_BL"):
        found[name] = torch.nn.functional.pad(found[name], (0, max_tokens - found[name].shape[1]))
    return found


def assert_same(parts, whole):
    """The ranks' `parts`, one after the other, are the batch `whole`."""
    assert tuple(key for part in parts for key in part.keys) == whole.keys
    expected = tensors(whole)
    assert len(expected) == 13
    for name, value in expected.items():
        joined = torch.cat([tensors(part)[name] for part in parts])
        assert torch.equal(joined, value), name


@pytest.fixture
def reference(split, tokenizer):
    """Seven global batches of 8 from one rank without workers: more than one epoch of 40 pairs."""
    return list(islice(batches(split, tokenizer), 7))


@pytest.mark.parametrize(("size", "workers"), [(1, 1), (1, 3), (2, 0), (2, 1), (4, 0), (4, 3), (8, 0)])
def test_global_batches_do_not_depend_on_ranks_and_workers(split, tokenizer, reference, size, workers):
    ranks = [batches(split, tokenizer, rank=r, size=size, workers=workers) for r in range(size)]
    count = 3 if size * workers > 4 else 7
    for whole in reference[:count]:
        assert_same([next(rank) for rank in ranks], whole)


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (2, 1)])
def test_matched_pairs_get_captions_of_other_photos(split, tokenizer, reference, size, workers):
    """Of the same shard, the same ones on any number of ranks; photos, boxes and labels are what they were."""
    ranks = [
        batches(split, tokenizer, rank=r, size=size, workers=workers, mismatched=0.5) for r in range(size)
    ]
    shard_of = dict(zip(split.index["image_id"].tolist(), split.index["shard"].tolist(), strict=True))
    firsts = split.first_pairs
    of_shard = [set(split.pairs["caption_id"][a:b].tolist()) for a, b in itertools.pairwise(firsts)]
    texts = {}
    for sample in range(len(split)):
        for caption in split.read_json(sample)["captions"]:
            (ids,) = tokenizer([caption["text"]], max_length=24)[0].tolist()
            texts.setdefault(sf.key_id(caption["image_key"]), []).append([i for i in ids if i])
    swapped = kept = 0
    for whole in reference:
        parts = [next(rank) for rank in ranks]
        found = {name: torch.cat([tensors(part)[name] for part in parts]) for name in tensors(whole)}
        # rows are sorted by the length of captions, which differ
        by_row = {
            (key, pixels.double().sum().item()): int(own)
            for part in parts
            for key, pixels, own in zip(part.keys, part.images_BCSS, part.caption_ids_B, strict=True)
        }
        for key, pixels, own in zip(whole.keys, whole.images_BCSS, whole.caption_ids_B.tolist(), strict=True):
            now = by_row[key, pixels.double().sum().item()]
            if own != sf.key_id(key):
                assert now == own, "what does not match stays"
            elif now != own:
                swapped += 1
                assert now in of_shard[shard_of[own]]
            else:
                kept += 1
        assert (found["image_ids_B"].sort().values == tensors(whole)["image_ids_B"].sort().values).all()
        for part in parts:
            for ids, own in zip(part.tokens_BL.tolist(), part.caption_ids_B.tolist(), strict=True):
                assert [i for i in ids if i] in texts[own], "the words are those of the photo that is named"
    assert 8 < swapped < kept < 32


@pytest.mark.parametrize(("size", "workers", "consumed"), [(1, 0, 16), (2, 1, 24), (4, 0, 40), (2, 0, 48)])
def test_resume_goes_on_with_the_same_batches(split, tokenizer, reference, size, workers, consumed):
    ranks = [
        batches(split, tokenizer, start=consumed, rank=r, size=size, workers=workers) for r in range(size)
    ]
    for whole in reference[consumed // 8 :]:
        assert_same([next(rank) for rank in ranks], whole)


def test_resume_with_another_batch_size_loses_and_repeats_nothing(split, tokenizer, reference):
    seen = [key for batch in reference[:2] for key in batch.keys]
    rest = islice(batches(split, tokenizer, start=16, global_batch=6, rank=0, size=1), 4)
    seen += [key for batch in rest for key in batch.keys]
    assert len(seen) == 40
    assert all(seen.count(key) == 4 for key in seen)  # three captions of its own and a falsified one


def test_pairs_are_augmented_anew_each_epoch(reference):
    def images_by_pair(chosen):
        return {
            (int(i), tuple(t[m].tolist())): image
            for batch in chosen
            for i, t, m, image in zip(
                batch.image_ids_B, batch.tokens_BL, batch.token_mask_BL, batch.images_BCSS, strict=True
            )
        }

    first, second = images_by_pair(reference[:5]), images_by_pair(reference[5:])
    assert len(first) == 40
    assert second.keys() <= first.keys()
    assert not any(torch.equal(first[pair], second[pair]) for pair in second)


def test_seed_changes_the_augmentation(split, tokenizer):
    values = {"image": {"flip": 0.0}, "labels": False}
    one, two = (next(batches(split, tokenizer, seed=s, global_batch=40, **values)) for s in (1, 2))
    by_key = dict(zip(one.keys, one.images_BCSS, strict=True))
    assert not any(torch.equal(by_key[k], image) for k, image in zip(two.keys, two.images_BCSS, strict=True))


def test_batch_is_what_is_packed(split, tokenizer):
    whole_image = {"min_crop_area": 1.0, "aspect": (1.2, 1.2), "flip": 0.0, "color_jitter": 0.0}
    batch = next(batches(split, tokenizer, global_batch=40, image=whole_image, max_objects=3))
    labels = LabelReader(sf.labels_folder(split.folder, "bank"), split)
    samples = {int(row["image_id"]): i for i, row in enumerate(split.index)}
    assert batch.matched_B.sum() == 30
    for row in range(40):
        sample = samples[int(batch.image_ids_B[row])]
        record = split.read_json(sample)
        assert record["key"] == batch.keys[row]
        words = tokenizer.tokenizer.decode(batch.tokens_BL[row][batch.token_mask_BL[row]][1:-1])
        caption = [c for c in record["captions"] if c["text"].lower() == words]
        assert sf.key_id(caption[0]["image_key"]) == int(batch.caption_ids_B[row])
        stored = [[b[k] for k in ("x0", "y0", "x1", "y1")] for b in record["boxes"]]
        expected = torch.tensor(stored) / torch.tensor([96.0, 80.0, 96.0, 80.0])
        assert torch.allclose(batch.boxes_BM4[row, :2], expected, atol=1e-6)
        assert batch.box_mask_BM[row].tolist() == [True, True, False]
        ids, probs = labels.objects(sample)
        assert batch.object_labels.ids[row, :2].tolist() == ids.tolist()
        keep = [*(probs.max(1) >= 0.2).tolist(), False]
        assert batch.object_labels.keep[row].tolist() == keep
        # the first box is painted on top: its middle has its colour
        middle = (expected[0].view(2, 2).mean(0) * 32).long()
        pixel = batch.images_BCSS[row, :, middle[1], middle[0]] / 255
        colour = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
        assert (pixel > 0.5).long().tolist() == list(colour[record["boxes"][0]["label"]])


def test_matched_pairs_only(split, tokenizer):
    some = list(islice(batches(split, tokenizer, pairs="matched", global_batch=10), 6))
    assert all(batch.matched_B.all() for batch in some)
    keys = [key for batch in some[:3] for key in batch.keys]
    assert all(keys.count(key) == 3 for key in keys)
    assert len(keys) == 30


def test_uneven_global_batch_is_refused_at_once(split, tokenizer):
    with pytest.raises(
        ConfigError, match="global batch of 10 pairs does not divide over 4 ranks; use 8 or 12"
    ):
        batches(split, tokenizer, global_batch=10, size=4)
    with pytest.raises(ConfigError, match=r"global batch of 2 .* over 4 ranks; use 4, or another"):
        batches(split, tokenizer, global_batch=2, size=4)


def test_split_without_matched_pairs_is_refused(split_folder, tmp_path):
    split = PackedSplit(shutil.copytree(split_folder, tmp_path / "train"))
    split.manifest = replace(
        split.manifest, shards=tuple(replace(entry, matched_pairs=0) for entry in split.manifest.shards)
    )
    with pytest.raises(ShardError, match=r"data.pairs=matched leaves none"):
        training_order(split, seed=0, window=1, pairs="matched")


def damaged_split(split_folder, folder, *, sample=5):
    """A copy of the split in which a photo is overwritten; what is beside it says when it was."""
    split = PackedSplit(shutil.copytree(split_folder, folder))
    row = split.index[sample]
    path = split.folder / split.manifest.shards[row["shard"]].name
    with path.open("r+b") as file:
        file.seek(int(row["image_offset"]) + 300)
        file.write(b"\0" * 50)
    os.utime(path, ns=(0, 0))  # long before the run
    return PackedSplit(split.folder), sf.key_of(int(row["image_id"])), path


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (1, 3), (2, 1), (4, 0)])
def test_damaged_samples_are_replaced_and_nothing_else_changes(
    split_folder, tmp_path, tokenizer, reference, size, workers
):
    split, key, path = damaged_split(split_folder, tmp_path / "train")
    ranks = [batches(split, tokenizer, rank=r, size=size, workers=workers) for r in range(size)]
    alone = batches(split, tokenizer)
    found = []
    for k, whole in enumerate(reference[:5]):
        parts = [next(rank) for rank in ranks]
        assert_same(parts, next(alone))  # the substitutes too are the same on any number of ranks
        keys = [key for part in parts for key in part.keys]
        substitutes = {s.position - 8 * k: s for part in parts for s in part.substitutes}
        assert [i for i, own in enumerate(whole.keys) if own == key] == sorted(substitutes)
        assert all(keys[i] == own for i, own in enumerate(whole.keys) if own != key)
        assert all(keys[i] == s.by != key for i, s in substitutes.items())
        found += substitutes.values()
    assert len(found) == 4  # an epoch has four pairs of each photo
    offset = int(split.index[5]["image_offset"])
    assert {(s.shard, s.key, s.offset) for s in found} == {(str(path), key, offset)}
    assert {s.reason for s in found} == {"the CRC-32 of its bytes is not the index's"}


def test_without_checksums_only_what_cannot_be_decoded_is_replaced(split_folder, tmp_path, tokenizer):
    split, key, _ = damaged_split(split_folder, tmp_path / "train")
    row = split.index[2]
    path = split.folder / split.manifest.shards[row["shard"]].name
    with path.open("r+b") as file:
        file.seek(int(row["image_offset"]))
        file.write(b"\0" * 200)
    os.utime(path, ns=(0, 0))
    some = list(islice(batches(PackedSplit(split.folder), tokenizer, checksums=False), 5))
    found = [s for batch in some for s in batch.substitutes]
    assert {s.key for s in found} == {
        sf.key_of(int(row["image_id"]))
    }  # the other one is gray in places: unseen
    assert all(s.reason.startswith("not a readable image") for s in found)
    assert key in {k for batch in some for k in batch.keys}


def test_damage_everywhere_ends_with_an_error(split_folder, tmp_path, tokenizer):
    split = PackedSplit(shutil.copytree(split_folder, tmp_path / "train"))
    for row in split.index:
        path = split.folder / split.manifest.shards[row["shard"]].name
        with path.open("r+b") as file:
            file.seek(int(row["image_offset"]))
            file.write(b"\0" * 200)
        os.utime(path, ns=(0, 0))
    with pytest.raises(
        ShardError, match=r"16 pairs that were to take its place are damaged too: run shards/verify"
    ):
        next(batches(PackedSplit(split.folder), tokenizer))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_is_named(split_folder, tmp_path, tokenizer, workers):
    split = PackedSplit(shutil.copytree(split_folder, tmp_path / "train"))
    running = batches(split, tokenizer, workers=workers)
    for entry in split.manifest.shards:
        (split.folder / entry.name).unlink()
    with pytest.raises(
        ShardError, match=r"cannot open .*shard-00000\d.tar: No such file .* was there when the run"
    ):
        list(islice(running, 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_changes_is_named_and_not_patched_up(split_folder, tmp_path, tokenizer, workers):
    split = PackedSplit(shutil.copytree(split_folder, tmp_path / "train"))
    running = batches(split, tokenizer, workers=workers)
    path = split.folder / "shard-000001.tar"
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(2**62, 2**62))
    with pytest.raises(
        ShardError, match=r"shard-000001.tar was written to after it was opened, while"
    ) as caught:
        list(islice(running, 5))
    assert not isinstance(caught.value, DamagedSampleError)
    assert "Traceback" not in str(caught.value)
    path.write_bytes(b"short")
    with pytest.raises(ShardError, match=r"shard-000001.tar has 5 bytes, the manifest says \d+"):
        list(islice(batches(split, tokenizer), 5))


def test_workers_outlive_the_signals_of_a_job(split, tokenizer, reference):
    running = batches(split, tokenizer, workers=2)
    for whole in reference[:2]:  # one of each worker: both have begun
        assert_same([next(running)], whole)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(worker.pid, number)
    for whole in reference[2:]:
        assert_same([next(running)], whole)
    running.close()
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_ends_with_an_error_that_says_what_to_do(split, tokenizer):
    running = batches(split, tokenizer, workers=2)
    next(running)
    victim, stuck = (worker.pid for worker in multiprocessing.active_children())
    os.kill(stuck, signal.SIGSTOP)  # as where it waits for a lock that died with the other one
    threading.Timer(0.2, os.kill, (victim, signal.SIGKILL)).start()  # wherever it is then
    with pytest.raises(TrainingError, match=r"a process that reads data died: .*Killed.* lower data.workers"):
        for _ in running:
            pass
    assert not multiprocessing.active_children()


def test_exit_in_the_middle_ends_the_workers():
    # A process that leaves while batches are being made must not wait for workers that ignore SIGTERM.
    code = (
        "from promptmeup.data.workers import run_workers\n"
        "running = run_workers(str, range(100), workers=2)\n"
        "print(next(running), next(running))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")


def test_exit_of_a_forked_rank_in_the_middle_ends_the_workers(split, tokenizer):
    def leave(folder):
        running = batches(PackedSplit(folder), tokenizer, workers=2)
        leave.kept = running, next(running)

    process = multiprocessing.get_context("fork").Process(target=leave, args=(split.folder,))
    process.start()
    process.join(20)
    code = process.exitcode
    process.kill()
    assert code == 0


def test_batch_moves_and_keeps_everything(reference):
    batch = reference[0]
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert_same([moved], batch)


def test_config_from_yaml(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("train: packed/train\nimage: {size: 128, aspect: [0.8, 1.25], flip: 0}\nworkers: 2\n")
    config = configuration.load(DataConfig, file, ["image.eval_mode=whole", "pairs=matched"])
    assert config.train == "packed/train"
    assert (config.image.size, config.image.aspect, config.image.flip) == (128, (0.8, 1.25), 0)
    assert (config.image.eval_mode, config.pairs, config.workers) == ("whole", "matched", 2)
    file.write_text(configuration.dump(config))
    assert configuration.load(DataConfig, file) == config
    with pytest.raises(ConfigError, match=r"'image.siz'.*did you mean 'image.size'"):
        configuration.load(DataConfig, file, ["image.siz=3"])


def test_a_damaged_photo_gives_no_caption_and_costs_no_other(tmp_path, tokenizer):
    """Of one shard, where every other pair that could take the place would ask the same photo for its caption."""
    folder = write_packed_split(
        tmp_path / "train",
        num_images=20,
        captions_per_image=1,
        boxes_per_image=1,
        seed=3,
        images_per_shard=20,
    )
    sound = PackedSplit(folder)
    row = sound.index[7]
    sound.close()
    with (folder / "shard-000000.tar").open("r+b") as file:
        file.seek(int(row["json_offset"]))
        file.write(b"?")
    split = PackedSplit(folder)
    running = batches(split, tokenizer, labels=False, mismatched=0.9)
    found = [s for batch in islice(running, 40) for s in batch.substitutes]
    assert found and {s.key for s in found} == {sf.key_of(int(row["image_id"]))}


@pytest.mark.parametrize(("roots", "shared"), [(("/a", "/a"), True), (("/a", "/b"), False)])
def test_photos_of_one_name_in_two_corpora_are_two(tmp_path, tokenizer, roots, shared):
    """Their keys are equal where two corpora call their photos alike, as img2dataset does; ids in a batch are not."""
    splits = []
    for number, root in enumerate(roots):
        folder = write_packed_split(
            tmp_path / str(number), num_images=8, captions_per_image=1, boxes_per_image=1, seed=3
        )
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["packed_with"] = {"photos": {"image_root": root}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        splits.append(PackedSplit(folder))
    sources = Sources(tuple(splits), (0.5, 0.5), seed=1, window=2, pairs="all")
    found = train_batches(
        sources,
        config=make_config(splits[0]),
        tokenizer=tokenizer,
        start_pairs=0,
        global_batch=32,
        rank=0,
        size=1,
    )
    batch = next(iter(found))
    first = set(np.load(splits[0].folder / "pairs.npy")["image_id"].tolist())
    other = set(batch.image_ids_B.tolist()) - first
    assert bool(other) is not shared
    assert len(set(batch.image_ids_B.tolist())) == (8 if shared else 16)
    matched = batch.image_ids_B == batch.caption_ids_B
    assert matched.sum() == 16, "half of the pairs are falsified, in both"
