"""Padding, masks and which soft labels count."""

import numpy as np
import torch

from promptmeup.data.collate import Example, collate


def make_example(boxes, *, label_probs=None, image_probs=None, text="a dog", key="00000000000000aa"):
    """An example whose labels are ids 5, 6, 7... with the given probabilities."""
    labels = image_label = None
    if label_probs is not None:
        probs = np.array(label_probs, dtype=np.float16).astype(np.float32).reshape(-1, 3)
        labels = np.tile(np.arange(5, 8), (len(probs), 1)), probs
        image_label = np.arange(3), np.array(image_probs, dtype=np.float16).astype(np.float32)
    return Example(
        key=key,
        image_id=int(key, 16),
        caption_id=1,
        text=text,
        image_CSS=torch.full((3, 8, 8), 100, dtype=torch.uint8),
        color_3=np.ones(3, dtype=np.float32),
        boxes_M4=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        object_labels=labels,
        image_label=image_label,
    )


def make_batch(tokenizer, examples, max_objects=2, min_confidence=0.2):
    return collate(
        examples,
        tokenizer=tokenizer,
        max_tokens=16,
        max_objects=max_objects,
        min_confidence=min_confidence,
    )


A, B, C = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.4, 0.4]
GONE = [0.3, 0.0, 0.3, 1.0]


def test_boxes_are_padded_and_the_first_are_taken(tokenizer):
    batch = make_batch(tokenizer, [make_example([A, B, C]), make_example([]), make_example([GONE, C])])
    assert batch.box_mask_BM.tolist() == [[True, True], [False, False], [False, True]]
    expected = torch.tensor([[A, B], [[0.0] * 4, [0.0] * 4], [[0.0] * 4, C]])
    assert torch.equal(batch.boxes_BM4, expected)
    assert batch.object_labels is None
    assert batch.image_labels is None


def test_identities_and_pixels(tokenizer):
    batch = make_batch(tokenizer, [make_example([], key="ff" * 8, text="a cat"), make_example([])][1:])
    assert batch.images_BCSS.dtype == torch.uint8
    assert (batch.images_BCSS == 100).all()
    assert batch.color_B3 is None  # nothing is left to be done
    assert batch.image_ids_B.tolist() == [0xAA]
    assert batch.caption_ids_B.tolist() == [1]
    assert batch.keys == ("00000000000000aa",)
    assert tokenizer.tokenizer.decode(batch.tokens_BL[0][batch.token_mask_BL[0]][1:-1]) == "a dog"


def test_labels_stay_with_their_boxes(tokenizer):
    probs = [[0.5, 0.3, 0.1], [0.9, 0.05, 0.05], [0.4, 0.2, 0.1]]
    batch = make_batch(
        tokenizer, [make_example([A, GONE, C], label_probs=probs, image_probs=[0.6, 0.2, 0.2])]
    )
    labels = batch.object_labels
    assert labels.ids.tolist() == [[[5, 6, 7], [5, 6, 7]]]
    assert torch.allclose(labels.probs[0], torch.tensor(probs[:2]), atol=1e-3)
    assert labels.keep.tolist() == [[True, False]]  # the second is confident, but was cut off
    assert batch.image_labels.keep.tolist() == [True]
    assert batch.image_labels.ids.tolist() == [[0, 1, 2]]


def test_labels_are_kept_by_value(tokenizer):
    # The largest probability decides, wherever it stands, and not the id it belongs to.
    probs = [[0.05, 0.3, 0.1], [0.29, 0.01, 0.0]]
    example = make_example([A, B], label_probs=probs, image_probs=[0.1, 0.1, 0.1])
    batch = make_batch(tokenizer, [example], min_confidence=0.3)
    assert batch.object_labels.keep.tolist() == [[True, False]]
    assert batch.image_labels.keep.tolist() == [False]
    everything = make_batch(tokenizer, [example], min_confidence=0.0)
    assert everything.object_labels.keep.tolist() == [[True, True]]


def test_label_of_exactly_the_threshold_is_kept_in_spite_of_half_precision(tokenizer):
    example = make_example([A], label_probs=[[0.2, 0.1, 0.1]], image_probs=[0.2, 0.0, 0.0])
    assert example.image_label[1][0] < 0.2
    batch = make_batch(tokenizer, [example], min_confidence=0.2)
    assert batch.object_labels.keep.tolist() == [[True, False]]
    assert batch.image_labels.keep.tolist() == [True]


def test_absent_objects_have_no_label(tokenizer):
    with_object = make_example([A], label_probs=[[0.7, 0.2, 0.1]], image_probs=[0.7, 0.1, 0.1])
    without = make_example([], label_probs=[], image_probs=[0.7, 0.1, 0.1])
    batch = make_batch(tokenizer, [without, with_object], min_confidence=0.0)
    assert batch.object_labels.ids.shape == (2, 2, 3)
    assert batch.object_labels.keep.tolist() == [[False, False], [True, False]]
    assert (batch.object_labels.probs[~batch.object_labels.keep] == 0).all()
