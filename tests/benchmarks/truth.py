"""Soft labels and student against the truth, which the made-up news world of `make quickstart` knows.

Accuracy of the most probable prompt: of objects, and of photos among all relations and among the three that only some
photos show (every photo shows a location and a participant). The teacher is asked before and after its training. The
student reads the photo with one of its captions; its answer is the prompt that its fused state is most similar to.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptmeup.data.loader import train_batches
from promptmeup.data.reader import PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import single
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import normalise
from promptmeup.models.alignment import build_model
from promptmeup.models.saving import load_model, load_saved_tokenizer, save_model
from promptmeup.prompts.bank import build_banks, load_banks
from promptmeup.prompts.crops import cut_crops, decode, resize_square
from promptmeup.prompts.vocabulary import Vocabulary, read_templates
from promptmeup.records import Banks
from promptmeup.shard_format import ShardEntry, finished_labels, read_label_manifest
from promptmeup.training.label import stored_samples
from promptmeup.training.teacher import SavedTeacher
from tests.benchmarks import harness

QUICKSTART = Path("quickstart")
PROMPTS = Path("configs/prompts")
NOWHERE = -1
VARYING = ("member of", "spouse", "sibling")
"""relations of which a photo shows one or none"""
OBJECT, OBJECT_5, RELATION, RELATION_3 = "object top-1", "object top-5", "relation top-1", "relation of three"


class Truth:
    """What the objects and photos of a packed split show, as positions in the vocabulary."""

    def __init__(self, split: PackedSplit, vocabulary: Vocabulary) -> None:
        lines = (QUICKSTART / "corpus/truth.jsonl").read_text().splitlines()
        shown = {photo["image_path"]: photo for photo in map(json.loads, lines)}
        entities = {name.casefold(): place for place, name in enumerate(vocabulary.entities)}
        relations = {name: place for place, name in enumerate(vocabulary.relations)}
        self.objects: dict[str, list[int]] = {}
        """by key: the entity of each stored box; NOWHERE where it is not in the vocabulary"""
        self.relations: dict[str, set[int]] = {}
        for row in range(len(split)):
            record = split.read_json(row)
            path = record["image_path"].removeprefix("visual_news/origin/").removeprefix("./")
            photo = shown.get(f"./{path}") or shown[path]
            scale = record["width"] / record["original_width"]
            self.objects[record["key"]] = [
                entities.get(_nearest(box, photo["objects"], scale).casefold(), NOWHERE)
                for box in record["boxes"]
            ]
            labels = {relation["label"] for relation in photo["relations"]}
            self.relations[record["key"]] = {relations[label] for label in labels if label in relations}


def _nearest(box: dict[str, float], objects: list[dict[str, Any]], scale: float) -> str:
    """Return the entity of the drawn object whose corners are nearest to a stored box."""
    corners = ("x0", "y0", "x1", "y1")
    found = min(objects, key=lambda drawn: sum(abs(drawn[c] * scale - box[c]) for c in corners))
    return str(found["entity"])


class Score:
    """Counts hits among the first k prompts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.hits: dict[str, list[bool]] = {OBJECT: [], OBJECT_5: [], RELATION: [], RELATION_3: []}
        self._varying = [vocabulary.relations.index(name) for name in VARYING]

    def object(self, scores_K: Tensor, entity: int) -> None:
        if entity != NOWHERE:
            ids = scores_K.topk(5).indices.tolist()
            self.hits[OBJECT].append(entity == ids[0])
            self.hits[OBJECT_5].append(entity in ids)

    def photo(self, scores_K: Tensor, relations: set[int]) -> None:
        self.hits[RELATION].append(int(scores_K.argmax()) in relations)
        shown = [place for place in self._varying if place in relations]
        if len(shown) == 1:
            self.hits[RELATION_3].append(self._varying[int(scores_K[self._varying].argmax())] == shown[0])

    @property
    def accuracy(self) -> dict[str, float]:
        return {name: float(np.mean(hits)) for name, hits in self.hits.items()}


def of_teacher(teacher: SavedTeacher, split: PackedSplit, vocabulary: Vocabulary, truth: Truth) -> Score:
    """Return how often the labels that `teacher` gives are right, of the first three objects of each photo."""
    banks = build_banks(vocabulary, teacher.encode_texts)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.mean, teacher.std))
    score = Score(vocabulary)
    for entry in split.manifest.shards:
        for row, (content, boxes) in zip(_rows(split, entry), stored_samples(split, entry), strict=True):
            key, photo = split.read_json(row)["key"], decode(content)
            crops = cut_crops(photo, boxes[:3], size=teacher.image_size)
            pixels = torch.cat([crops, resize_square(photo, size=teacher.image_size)[None]])
            vectors = teacher.encode_images((pixels / 255 - mean) / std)
            for vector, entity in zip(vectors[:-1], truth.objects[key][:3], strict=True):
                score.object(banks.entities_KD @ vector, entity)
            score.photo(banks.relations_KD @ vectors[-1], truth.relations[key])
    return score


def _rows(split: PackedSplit, entry: ShardEntry) -> list[int]:
    number = split.manifest.shards.index(entry)
    return [int(row) for row in np.flatnonzero(split.index["shard"] == number)]


def _features(folder: Path, split: PackedSplit) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """Yield the keys and features of every matched pair of a split, photos whole."""
    model = load_model(folder).eval()
    size = model.config.vision.image_size
    image = {"size": size, "min_crop_area": 1.0, "flip": 0.0, "color_jitter": 0.0}
    config = DataConfig(train=str(split.folder), pairs="matched", image=image, workers=0)
    batch = 20
    batches = train_batches(
        single(split, seed=0, window=config.window, pairs="matched"),
        config=config,
        tokenizer=TextTokenizer(load_saved_tokenizer(folder)),
        start_pairs=0,
        global_batch=batch,
        rank=0,
        size=1,
    )
    for _ in range(split.manifest.matched_pairs // batch):
        found = next(batches)
        with torch.no_grad():
            yield (
                found.keys,
                model(
                    normalise(found.images_BCSS, mean=model.vision.mean, std=model.vision.std),
                    found.tokens_BL,
                    found.token_mask_BL,
                    found.boxes_BM4,
                    found.box_mask_BM,
                ),
            )


def of_student(folder: Path, split: PackedSplit, vocabulary: Vocabulary, banks: Banks, truth: Truth) -> Score:
    """Return how often the prompts nearest to the student's states are right."""
    score = Score(vocabulary)
    for keys, features in _features(folder, split):
        objects = features["object_BMD"] @ banks.entities_KD.T
        images = features["relation_BD"] @ banks.relations_KD.T
        for row, key in enumerate(keys):
            for place, entity in enumerate(truth.objects[key][:3]):
                if features["object_mask_BM"][row, place]:
                    score.object(objects[row, place], entity)
            score.photo(images[row], truth.relations[key])
    return score


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Ask teacher and student of the quickstart about photos that neither has seen, and that both have."""
    runs = QUICKSTART / "runs"
    if not (runs / "student/model/model.json").exists():
        raise SystemExit(
            "run `make quickstart` first: its world, teacher and student are what is measured here"
        )
    torch.manual_seed(0)
    train = PackedSplit(QUICKSTART / "packed/train")
    labels = finished_labels(train.folder, corpus=train.manifest.fingerprint)[0]
    manifest = read_label_manifest(labels)
    vocabulary = Vocabulary(
        manifest.entities,
        manifest.relations,
        read_templates(PROMPTS / "entity_templates.txt"),
        read_templates(PROMPTS / "relation_templates.txt"),
    )
    banks = load_banks(labels, corpus=train.manifest.fingerprint)
    cpu = torch.device("cpu")
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        untrained = Path(temporary) / "model"
        trained = runs / "teacher/model"
        model = build_model(load_model(trained).config)
        save_model(untrained, model, tokenizer=load_saved_tokenizer(trained), state=model.state_dict())
        for name in ("val", "train"):
            split = PackedSplit(QUICKSTART / "packed" / name)
            truth = Truth(split, vocabulary)
            known = [entity != NOWHERE for found in truth.objects.values() for entity in found[:3]]
            relations = np.mean([len(found) for found in truth.relations.values()])
            num_entities = len(vocabulary.entities)
            scores = {
                "chance": {
                    OBJECT: 1 / num_entities,
                    OBJECT_5: 5 / num_entities,
                    RELATION: float(relations) / len(vocabulary.relations),
                    RELATION_3: 1 / 3,
                }
            }
            for who, saved in (("untrained", untrained), ("trained", trained)):
                teacher = SavedTeacher(saved, device=cpu)
                scores[f"labels of the {who} teacher"] = of_teacher(
                    teacher, split, vocabulary, truth
                ).accuracy
            scores["student"] = of_student(runs / "student/model", split, vocabulary, banks, truth).accuracy
            for who, accuracy in scores.items():
                rows.append({"split": name, "who": who, **accuracy, "entities in vocabulary": np.mean(known)})
            for what, key in (("object", OBJECT), ("relation", RELATION_3)):
                student, labels_of = (
                    1 - scores[who][key] for who in ("student", "labels of the trained teacher")
                )
                summary[f"{name}_{what}_error_student_vs_labels"] = student / labels_of
    return rows, summary


if __name__ == "__main__":
    harness.run("truth", measure)
