"""Tiny models and photos, shared by the tests of extraction."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptmeup.models.text import load_tokenizer
from tests.support.extraction_models import save_tiny
from tests.support.tiny_alignment import TINY


@pytest.fixture
def tokenizer() -> Any:
    """Return a tokenizer that a test may add words to."""
    return load_tokenizer(TINY.text)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the models: entities, relations, text (entities without photos)."""
    root = tmp_path_factory.mktemp("tiny")
    return {
        "entities": save_tiny(root / "entities" / "best", "entities", vision=True),
        "relations": save_tiny(root / "relations" / "best", "relations", vision=True),
        "text": save_tiny(root / "text" / "best", "entities", vision=False),
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with red.jpg, noise.png, and damaged.jpg, which is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (40, 24), "red").save(folder / "red.jpg")
    Image.effect_noise((30, 50), 90).convert("RGB").save(folder / "noise.png")
    (folder / "damaged.jpg").write_bytes(b"no photo")
    return folder
