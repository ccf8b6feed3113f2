"""Every image and every matched caption once, whatever the number of ranks."""

import numpy as np
import pytest
import torch

from promptmeup.data.evaluation import caption_batches, image_batches, rank_part
from promptmeup.data.reader import PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.transforms import ImageConfig, decode
from promptmeup.errors import ShardError

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def make_config(split, workers=0, **image):
    return DataConfig(
        train=str(split.folder), image=ImageConfig(size=32, **image), workers=workers, max_tokens=24
    )


@pytest.mark.parametrize(("size", "workers"), [(1, 0), (3, 0), (2, 2), (16, 0)])
def test_every_image_once(split, size, workers):
    config = make_config(split, workers)
    parts = [
        list(image_batches(split, config=config, mean=MEAN, std=STD, batch=3, rank=r, size=size))
        for r in range(size)
    ]
    assert len({tuple(len(b.positions_B) for b in part) for part in parts}) == 1  # all ranks make equal steps
    found = [batch for part in parts for batch in part]
    keep = torch.cat([b.weights_B for b in found]) > 0
    assert torch.cat([b.positions_B for b in found])[keep].tolist() == list(range(10))
    assert np.array_equal(torch.cat([b.image_ids_B for b in found])[keep].numpy(), split.index["image_id"])
    assert all(len(b.positions_B) == len(b.images_BCSS) <= 3 for b in found)
    whole = list(
        image_batches(split, config=make_config(split), mean=MEAN, std=STD, batch=10, rank=0, size=1)
    )
    assert torch.equal(torch.cat([b.images_BCSS for b in found])[keep], whole[0].images_BCSS)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_matched_caption_once(split, tokenizer, size):
    config = make_config(split)
    found = [
        batch
        for r in range(size)
        for batch in caption_batches(split, config=config, tokenizer=tokenizer, batch=4, rank=r, size=size)
    ]
    keep = torch.cat([b.weights_B for b in found]) > 0
    assert torch.cat([b.positions_B for b in found])[keep].tolist() == list(range(30))
    texts = []
    for batch in found:
        for row in range(len(batch.positions_B)):
            sample = int(batch.image_positions_B[row])
            assert int(split.index["image_id"][sample]) == int(batch.image_ids_B[row])
            words = tokenizer.tokenizer.decode(batch.tokens_BL[row][batch.token_mask_BL[row]][1:-1])
            record = split.read_json(sample)
            own = [c["text"].lower() for c in record["captions"] if c["image_key"] == record["key"]]
            assert words in own
            texts.append((sample, words))
    assert len(set(texts)) == 30


def test_image_is_not_augmented(split):
    config = make_config(split, eval_mode="whole")
    batch = next(image_batches(split, config=config, mean=MEAN, std=STD, batch=10, rank=0, size=1))
    stored = decode(split.read_image(4)).float() / 255
    small = torch.nn.functional.interpolate(
        stored[None], size=(32, 32), mode="bicubic", antialias=True, align_corners=False
    )
    assert (batch.images_BCSS[4] - small[0]).abs().max() < 0.06


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (2, 4), (7, 1), (9, 3)])
def test_parts_are_contiguous_and_equal_and_count_every_row_once(rows, size):
    parts = [rank_part(rows, rank=r, size=size) for r in range(size)]
    assert len({len(positions) for positions, _ in parts}) == 1
    counted = [int(p) for positions, weights in parts for p, w in zip(positions, weights, strict=True) if w]
    assert counted == list(range(rows))
    assert all((positions < rows).all() for positions, _ in parts)


def test_a_split_without_matched_captions_is_refused(split, tokenizer, monkeypatch):
    monkeypatch.setattr(PackedSplit, "matched", lambda split: np.zeros(len(split.pairs), dtype=bool))
    with pytest.raises(ShardError, match="no caption that matches its image, so retrieval cannot"):
        caption_batches(split, config=make_config(split), tokenizer=tokenizer, batch=4, rank=0, size=1)
