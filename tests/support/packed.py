"""Writes a tiny packed split with plain tarfile and Pillow: data for tests that need no packing."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw

from promptmeup import shard_format as sf

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (230, 230, 30)}
NUM_ENTITIES, NUM_RELATIONS, NUM_KEPT = 10, 6, 4


def _boxes(rng: np.random.Generator, number: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return `number` boxes in stored order: by score x area, largest first."""
    boxes = []
    for colour in rng.choice(list(COLOURS), size=number):
        width, height = (int(side * rng.uniform(0.2, 0.5)) for side in size)
        x0, y0 = int(rng.integers(0, size[0] - width)), int(rng.integers(0, size[1] - height))
        score = round(float(rng.uniform(0.3, 0.99)), 2)
        box = {"x0": float(x0), "y0": float(y0), "x1": float(x0 + width), "y1": float(y0 + height)}
        boxes.append({**box, "label": str(colour), "score": score})
    return sorted(boxes, key=lambda b: -b["score"] * (b["x1"] - b["x0"]) * (b["y1"] - b["y0"]))


def _jpeg(rng: np.random.Generator, boxes: list[dict[str, Any]], size: tuple[int, int]) -> bytes:
    """Paint the boxes in their colours, the first one on top, on a grey of the image's own."""
    image = Image.new("RGB", size, (int(rng.integers(60, 180)),) * 3)
    draw = ImageDraw.Draw(image)
    for box in reversed(boxes):
        corners = (box["x0"], box["y0"], box["x1"] - 1, box["y1"] - 1)  # Pillow includes the last pixel
        draw.rectangle(corners, fill=COLOURS[box["label"]])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member and return where its content lies."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return offset


def _caption(key: str, image: int, number: int, boxes: list[dict[str, Any]]) -> dict[str, Any]:
    colours = " and ".join(f"a {box['label']} square" for box in boxes) or "nothing at all"
    text = f"Photo {image} seen by reporter {number} shows {colours}"
    return {
        "id": f"{key}-{number}",
        "text": text,
        "image_key": key,
        "entities": [],
        "nouns": [{"start": 0, "end": 5, "text": "Photo", "label": "photo"}],
    }


def _soft_labels(rng: np.random.Generator, rows: int, num_prompts: int) -> Any:
    """Return `rows` labels whose largest probability is anything from 0.1 to 0.9."""
    labels = np.zeros(rows, dtype=sf.label_dtype(NUM_KEPT))
    for row in range(rows):
        largest = rng.uniform(0.1, 0.9)
        rest = rng.dirichlet(np.ones(NUM_KEPT - 1)) * min(1 - largest, largest) * 0.9
        labels["ids"][row] = rng.permutation(num_prompts)[:NUM_KEPT]
        labels["probs"][row] = [largest, *sorted(rest, reverse=True)]
    return labels


def write_labels(folder: Path, name: str, *, seed: int) -> Path:
    """Write random soft labels `name` for the packed split in `folder` and return their folder."""
    manifest = sf.read_manifest(folder)
    rng = np.random.default_rng(seed)
    target = sf.labels_folder(folder, name)
    target.mkdir(parents=True)
    for entry in manifest.shards:
        objects, images = (
            _soft_labels(rng, n, k) for n, k in ((entry.boxes, NUM_ENTITIES), (entry.samples, NUM_RELATIONS))
        )
        sf.write_array(sf.label_file(target, entry.name, "objects"), objects)
        sf.write_array(sf.label_file(target, entry.name, "images"), images)
    entities, relations = (
        tuple(f"{kind} {i}" for i in range(n)) for kind, n in (("e", NUM_ENTITIES), ("r", NUM_RELATIONS))
    )
    files = sf.file_entries(target, sorted(path.name for path in target.iterdir()))
    made = sf.LabelManifest(name, manifest.fingerprint, NUM_KEPT, entities, relations, files=files)
    sf.write_label_manifest(target, made)
    return target


def write_packed_split(
    folder: Path,
    *,
    num_images: int,
    captions_per_image: int,
    boxes_per_image: int,
    seed: int,
    image_size: tuple[int, int] = (96, 80),
    falsified: bool = True,
    labels: str | None = None,
    images_per_shard: int = 4,
) -> Path:
    """Write a packed split and return its folder.

    Every image shows coloured rectangles, its boxes, which its captions name. With `falsified`, it has
    another image's caption too. `labels` names a folder of random soft labels to write beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [f"images/{seed}/{i:04d}.jpg" for i in range(num_images)]
    keys = [sf.image_key(path) for path in paths]
    boxes = [_boxes(rng, boxes_per_image, image_size) for _ in keys]
    index, pairs, shards = [], [], []
    for shard, first in enumerate(range(0, num_images, images_per_shard)):
        path = folder / sf.shard_name(shard)
        box_start, first_pair = 0, len(pairs)
        members = range(first, min(first + images_per_shard, num_images))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, i in enumerate(members):
                captions = [_caption(keys[i], i, n, boxes[i]) for n in range(captions_per_image)]
                if falsified:
                    other = (i + 1) % num_images
                    captions.append(_caption(keys[other], other, 0, boxes[other]))
                record = {
                    "schema": sf.SCHEMA,
                    "key": keys[i],
                    "image_path": paths[i],
                    "width": image_size[0],
                    "height": image_size[1],
                    "original_width": image_size[0],
                    "original_height": image_size[1],
                    "captions": captions,
                    "boxes": boxes[i],
                    "boxes_by": "painter",
                    "entities_by": None,
                }
                jpeg = _jpeg(rng, boxes[i], image_size)
                text = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
                places = _add(tar, keys[i] + sf.IMAGE_SUFFIX, jpeg), _add(tar, keys[i] + sf.JSON_SUFFIX, text)
                image_id = sf.key_id(keys[i])
                extents = places[0], len(jpeg), places[1], len(text), crc32(jpeg), crc32(text)
                index.append((shard, row, *extents, len(boxes[i]), box_start, image_id))
                box_start += len(boxes[i])
                for position, caption in enumerate(captions):
                    pairs.append((i, position, image_id, sf.key_id(caption["image_key"])))
        matched = sum(pair[2] == pair[3] for pair in pairs[first_pair:])
        counts = len(members), len(pairs) - first_pair, matched, box_start
        shards.append(sf.ShardEntry(path.name, *counts, path.stat().st_size, sf.file_sha256(path)))
    sf.write_array(folder / "index.npy", np.array(index, dtype=sf.INDEX_DTYPE))
    sf.write_array(folder / "pairs.npy", np.array(pairs, dtype=sf.PAIR_DTYPE))
    made = {"photos": {}, "boxes": {}, "entities": None}
    sf.write_manifest(folder, sf.describe_split(folder, shards, rejects={}, packed_with=made))
    if labels is not None:
        write_labels(folder, labels, seed=seed)
    return folder
