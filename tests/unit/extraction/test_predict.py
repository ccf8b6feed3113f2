"""Predicting from Python: offsets, probabilities, batches, photos that cannot be seen, and what evaluation says."""

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptmeup.errors import InputError, WeightsError
from promptmeup.extraction.batches import collate
from promptmeup.extraction.examples import SentenceEncoder
from promptmeup.extraction.folder import finetuned_folder, load_finetuned
from promptmeup.extraction.inference import spans
from promptmeup.extraction.predict import Entities, Extractor, Query
from promptmeup.records import Box, Post, WordSpan
from tests.support.extraction_models import MAX_TOKENS, RELATIONS, save_tiny

TEXT = "RT @ada: Grace Hopper (née Murray) flew to New York-City…\n#Navy it's http://t.co/x"
LONG = " ".join(f"word{number}" for number in range(40))


@pytest.fixture(scope="module")
def entities(tiny: dict[str, Path]) -> Extractor:
    return Extractor.load(tiny["entities"])


@pytest.fixture(scope="module")
def relations(tiny: dict[str, Path]) -> Extractor:
    return Extractor.load(str(tiny["relations"].parent))  # the run, which has best/


def texts(number: int) -> list[str]:
    """Return sentences of different lengths."""
    words = TEXT.split()
    return [" ".join((words[k % 7 :] + words)[: 3 + 2 * (k % 6)]) for k in range(number)]


def alike(one: Entities, other: Entities) -> bool:
    """Return whether two results are equal, but for rounding."""
    return (
        vars(one) == vars(other)
        and [replace(e, score=0.0) for e in one] == [replace(e, score=0.0) for e in other]
        and all(abs(a.score - b.score) < 1e-5 for a, b in zip(one, other, strict=True))
    )


def test_offsets_slice_the_text(entities: Extractor) -> None:
    found = [found for text in texts(12) for found in [entities.entities(text)]]
    assert sum(map(len, found)) > 12
    for of_sentence in found:
        for entity in of_sentence:
            assert of_sentence.text[entity.start : entity.end] == entity.text
            words = of_sentence.words[slice(*entity.words)]
            assert "".join(words) == "".join(entity.text.split())
            assert 0 < entity.score <= 1
            assert entity.type in ("LOC", "PER")
    ends = [(e.start, e.end) for e in entities.entities(TEXT)]
    assert ends == sorted(ends)


def test_a_batch_is_its_sentences(entities: Extractor, photos: Path) -> None:
    queries = [
        Query(text, photos / name if name else None)
        for text, name in zip(texts(9), ["red.jpg", None, "noise.png"] * 3, strict=True)
    ]
    single = [entities.entities(query.text, image=query.image) for query in queries]
    for batch in (1, 4, 32):
        together = entities.entities_batch(queries, batch=batch)
        assert all(map(alike, single, together))
    assert [found.has_image for found in single] == [True, False, True] * 3


def test_relations_in_batches(relations: Extractor, photos: Path) -> None:
    heads = ["Ada", "Grace Hopper", "0:3"]
    queries = [
        Query(
            f"Ada knows Grace Hopper {'well ' * k}",
            photos / "red.jpg" if k % 2 else None,
            heads[k % 3],
            "knows",
        )
        for k in range(6)
    ]
    together = relations.relations_batch(queries, batch=4)
    for query, found in zip(queries, together, strict=True):
        assert query.head is not None and query.tail is not None
        single = relations.relation(query.text, head=query.head, tail=query.tail, image=query.image)
        assert single.probabilities == pytest.approx(found.probabilities, abs=1e-5)
        assert (single.head, single.tail, single.relation) == (found.head, found.tail, found.relation)
        assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert set(found.probabilities) == set(RELATIONS)
        values = list(found.probabilities.values())
        assert values == sorted(values, reverse=True)
        assert (found.relation, found.probability) == next(iter(found.probabilities.items()))
        assert found.text[found.head.start : found.head.end] == found.head.text
    assert [found.head.text for found in together[:3]] == ["Ada", "Grace Hopper", "Ada"]
    assert together[0].tail.words == (1, 2)


def test_the_photo_counts(entities: Extractor, relations: Extractor, photos: Path) -> None:
    seen = [
        relations.relation("Ada met Grace", head="Ada", tail="Grace", image=photos / name).probabilities
        for name in ("red.jpg", "noise.png")
    ]
    alone = relations.relation("Ada met Grace", head="Ada", tail="Grace").probabilities
    assert seen[0] != pytest.approx(seen[1], abs=1e-4)
    assert seen[0] != pytest.approx(alone, abs=1e-4)


def test_boxes_count_where_the_model_looks_at_them(
    tiny: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    boxes = (Box(2, 2, 20, 30, "person", 0.9),)
    said: list[str] = []
    folder = save_tiny(tmp_path / "best", "relations", vision=True, max_crops=2)
    looks = Extractor.load(folder, warn=said.append)
    plain = Extractor.load(tiny["relations"])
    queries = [Query("Ada met Eve", photos / "noise.png", "Ada", "Eve", given) for given in (None, boxes)]
    without, with_boxes = (found.probabilities for found in looks.relations_batch(queries))
    assert without != pytest.approx(with_boxes, abs=1e-4)
    looks.relations_batch(queries)
    (warning,) = said
    assert "trained with up to 2 objects beside a photo and sees the photo alone: give their" in warning
    alike = [found.probabilities for found in plain.relations_batch(queries)]
    assert alike[0] == pytest.approx(alike[1], abs=1e-6)
    assert alike[0] == pytest.approx(without, abs=1e-5)


def test_crops_take_the_place_of_boxes(photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = save_tiny(tmp_path / "best", "relations", vision=True, max_crops=2)
    looks = Extractor.load(folder, warn=said.append)
    box = (Box(2, 2, 20, 30, "person", 0.9),)
    given = [(), (photos / "red.jpg",), (photos / "gone.jpg", photos / "red.jpg"), (photos / "damaged.jpg",)]
    alone, cropped, one_lost, none_left = looks.relations_batch(
        [Query("Ada met Eve", photos / "noise.png", "Ada", "Eve", box if c else None, c) for c in given]
    )
    assert len(said) == 1, "of the first one alone"
    assert cropped.probabilities != pytest.approx(alone.probabilities, abs=1e-4)
    assert one_lost.probabilities == pytest.approx(cropped.probabilities, abs=1e-5)
    assert none_left.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert [found.has_image for found in (alone, cropped, one_lost, none_left)] == [True] * 4
    assert alone.image_error is None and cropped.image_error is None
    (no_photo,) = looks.relations_batch([Query("Ada met Eve", None, "Ada", "Eve", crops=given[1])])
    assert (no_photo.has_image, no_photo.image_error) == (False, "crops are seen beside a photo alone")
    assert one_lost.image_error == f"there is no file {photos}/gone.jpg"
    assert none_left.image_error == f"{photos}/damaged.jpg is no image, or a damaged one"


def test_words_are_taken_as_they_are(entities: Extractor, relations: Extractor) -> None:
    words = ["New York", "is", "@a b", "big", "don't"]
    found = entities.entities(words)
    assert found.words == tuple(words)
    assert found.text == "New York is @a b big don't"
    assert all(entity.text == " ".join(words[slice(*entity.words)]) for entity in found)
    of_words = relations.relation(words, head=(0, 1), tail=(3, 5))
    assert (of_words.head.text, of_words.tail.text) == ("New York", "big don't")
    assert relations.relation(words, head="New York", tail="big don't") == of_words
    with pytest.raises(
        InputError, match=r"tail \[4, 6\] must be words START and END with 0 <= START < END <= 5"
    ):
        relations.relation(words, head=(0, 1), tail=(4, 6))


def test_nothing_in_nothing(entities: Extractor) -> None:
    assert entities.entities_batch([]) == []
    assert list(entities.entities("")) == list(entities.entities(" \n")) == list(entities.entities([])) == []
    assert [len(found) for found in entities.entities_batch(["", TEXT, ""])] == [
        0,
        len(entities.entities(TEXT)),
        0,
    ]


@pytest.mark.parametrize("text", ["\ud800", ["Ada", ""]])
def test_no_text(entities: Extractor, text: Any) -> None:
    with pytest.raises(InputError, match="UTF-8 can hold, or words that are not empty"):
        entities.entities(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jpg", "there is no file .*absent.jpg; give another one, or none"),
        ("damaged.jpg", "damaged.jpg is no image, or a damaged one"),
        (".", "Is a directory"),
    ],
)
def test_a_photo_that_cannot_be_seen(entities: Extractor, photos: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        entities.entities(TEXT, image=photos / name)
    alone, other, damaged = entities.entities_batch(
        [Query(TEXT), Query(TEXT, photos / "red.jpg"), Query(TEXT, photos / name)]
    )
    assert damaged.image_error is not None and not damaged.has_image
    assert (other.image_error, other.has_image, alone.image_error) == (None, True, None)
    damaged.image_error = None
    assert alike(alone, damaged)


def test_text_only(tiny: dict[str, Path], photos: Path) -> None:
    said: list[str] = []
    extractor = Extractor.load(tiny["text"], warn=said.append)
    alone = extractor.entities(TEXT)
    assert not said
    for name in ("red.jpg", "absent.jpg"):
        assert alike(extractor.entities(TEXT, image=photos / name), alone)
    assert len(said) == 1
    assert said[0].endswith("reads text only: photos are left alone")
    with pytest.warns(UserWarning, match="reads text only"):
        Extractor.load(tiny["text"]).entities(TEXT, image="a.jpg")


def test_the_other_task(entities: Extractor, relations: Extractor) -> None:
    with pytest.raises(
        WeightsError, match=r"fine-tuned for entities, not for relations: ask it for entities\(\)"
    ):
        entities.relation("Ada met Grace", head="Ada", tail="Grace")
    with pytest.raises(
        WeightsError, match=r"fine-tuned for relations, not for entities: ask it for relation\(\)"
    ):
        relations.entities("Ada")


def test_mistakes_of_mentions(relations: Extractor) -> None:
    with pytest.raises(InputError, match="head 'Ada' occurs 2 times"):
        relations.relation("Ada or Ada", head="Ada", tail="or")
    with pytest.raises(InputError, match="no tail was given"):
        relations.relations_batch([Query("Ada or Eve", head="Ada")])
    assert relations.relation("Ada or Ada", head=(7, 10), tail="or").head.words == (2, 3)


def test_long_sentences_say_what_was_cut(entities: Extractor, relations: Extractor) -> None:
    found = entities.entities(LONG)
    seen = len(found.words) - found.cut_words
    assert 0 < seen < MAX_TOKENS
    assert all(entity.words[1] <= seen for entity in found)
    shorter = entities.entities(" ".join(found.words[:seen]))
    assert shorter.cut_words == 0
    assert [(e.words, e.type) for e in shorter] == [(e.words, e.type) for e in found]
    near = relations.relation(LONG, head="word30", tail="word32")
    far = relations.relation(LONG, head="word1", tail="word39")
    assert 20 < near.cut_words < 40 and 20 < far.cut_words < 40
    assert relations.relation("Ada met Eve", head="Ada", tail="Eve").cut_words == 0


def test_which_words_a_relation_is_cut_to(relations: Extractor, tiny: dict[str, Path]) -> None:
    """A word counts as cut where one of its tokens is missing."""
    found = load_finetuned(tiny["relations"])
    encoder = SentenceEncoder(found.tokenizer, labels=RELATIONS, max_tokens=16)
    words = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")  # a token each, and four markers
    for head, tail in [(0, 1), (0, 11), (5, 6), (11, 10)]:
        example = encoder.relation(
            Post(id="", words=words), head=WordSpan(head, head + 1, ()), tail=WordSpan(tail, tail + 1, ())
        )
        kept = found.tokenizer.convert_ids_to_tokens(example.tokens)
        assert len(kept) <= 16
        assert [kept[place] for place in example.places] == ["<s>", "<o>"]
        assert example.cut_words == len(set(words) - set(kept)) > 0


def entity_probability(
    model: Any, words: Sequence[str], *, found: tuple[int, int, str], encoder: SentenceEncoder
) -> float:
    """Return the share of all sequences that keep to BIO in which `found` is an entity, added up one by one."""
    example = encoder.entities(Post(id="", words=tuple(words)))
    inputs = collate([example], pad_id=0)
    inputs.pop("labels")
    with torch.no_grad():
        emissions = model(**inputs).logits[0, list(example.places)].double()
    start, moves, end = (p.detach().double() for p in (model.crf.start, model.crf.transitions, model.crf.end))
    labels = model.crf.labels
    total = with_it = 0.0
    for tags in itertools.product(range(len(labels)), repeat=len(words)):
        names = [labels[tag] for tag in tags]
        if any(
            name[0] == "I" and before[1:] != name[1:]
            for before, name in zip(["O", *names], names, strict=False)
        ):
            continue
        score = start[tags[0]] + end[tags[-1]] + sum(emissions[k, tag] for k, tag in enumerate(tags))
        score += sum(moves[a, b] for a, b in itertools.pairwise(tags))
        weight = math.exp(score)
        total += weight
        with_it += weight * (found in spans(names))
    return with_it / total


def test_scores_of_entities_are_the_crfs_probabilities(tiny: dict[str, Path]) -> None:
    loaded = load_finetuned(tiny["text"])
    encoder = SentenceEncoder(loaded.tokenizer, labels=loaded.labels, max_tokens=MAX_TOKENS)
    extractor = Extractor(loaded)
    compared = 0
    for words in (
        ["Ada", "Byron", "wrote"],
        ["in", "New", "York", "City"],
        ["Untergrundbahn"],
        ["a", "b", "a", "b"],
    ):
        for entity in extractor.entities(words):
            expected = entity_probability(
                loaded.model, words, found=(*entity.words, entity.type), encoder=encoder
            )
            assert entity.score == pytest.approx(expected, rel=1e-4)
            compared += 1
    assert compared >= 4


def broken(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if name == "missing":
        del tensors["classifier.weight"]
    if name == "unknown":
        tensors["classifier.other"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if name == "cut":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing or unknown: classifier.weight; the two files come from different runs"),
        ("unknown", "missing or unknown: classifier.other"),
        ("cut", "cannot read the model in"),
    ],
)
def test_a_damaged_model_never_predicts(
    tiny: dict[str, Path], tmp_path: Path, name: str, message: str
) -> None:
    """transformers would fill missing tensors with random numbers."""
    folder = shutil.copytree(tiny["text"], tmp_path / "best")
    broken(folder, name)
    with pytest.raises(WeightsError, match=message):
        Extractor.load(folder)


def test_which_folders_hold_a_fine_tuned_model(tiny: dict[str, Path], tmp_path: Path) -> None:
    assert finetuned_folder(tiny["text"]) == finetuned_folder(tiny["text"].parent) == tiny["text"]
    assert finetuned_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert finetuned_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert finetuned_folder(tmp_path) is None
