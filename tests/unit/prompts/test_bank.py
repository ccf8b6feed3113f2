"""Prompt banks against a slow reference, and their file."""

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from promptmeup.errors import ShardError
from promptmeup.prompts.bank import (
    BANKS_FILE,
    bank_fingerprint,
    build_bank,
    build_banks,
    load_banks,
    save_banks,
)
from promptmeup.prompts.vocabulary import Vocabulary
from promptmeup.records import Banks

TEMPLATES = ("This is an image of {}.", "An image of {} is shown here", "{}!")


def vector(text: str) -> np.ndarray:
    """A unit vector that depends on every character of the text."""
    direction = np.random.default_rng(zlib.crc32(text.encode())).normal(size=8)
    return direction / np.linalg.norm(direction)


def encode(texts: Sequence[str]) -> Tensor:
    return torch.tensor(np.stack([vector(text) for text in texts]), dtype=torch.float32)


def reference(names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    rows = []
    for name in names:
        mean = np.mean([vector(template.replace("{}", name)) for template in templates], axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_bank_equals_the_reference_at_any_batch(batch):
    names = [f"name {n} of many words" for n in range(7)]
    bank_KD = build_bank(names, TEMPLATES, encode, batch=batch)
    assert bank_KD.dtype == torch.float32
    np.testing.assert_allclose(bank_KD.numpy(), reference(names, TEMPLATES), atol=1e-6)


def test_rows_are_unit_vectors_though_templates_disagree():
    # the public release stores the bare mean, here 0.58 times as long on average
    bank_KD = build_bank(["a", "b", "c"], TEMPLATES, encode)
    np.testing.assert_allclose(bank_KD.norm(dim=-1), np.ones(3), atol=1e-6)
    bare = np.mean([vector(template.replace("{}", "a")) for template in TEMPLATES], axis=0)
    assert np.linalg.norm(bare) < 0.9


def test_whole_names_are_asked_for_in_every_template():
    asked: list[str] = []

    def listening(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return encode(texts)

    build_bank(["chief executive officer", "{odd} name"], TEMPLATES[:2], listening, batch=8)
    assert asked == [
        "This is an image of chief executive officer.",
        "This is an image of {odd} name.",
        "An image of chief executive officer is shown here",
        "An image of {odd} name is shown here",
    ]


def test_half_precision_encoders_give_a_float32_bank_without_gradient():
    weight = torch.nn.Parameter(torch.eye(8))

    def half(texts: Sequence[str]) -> Tensor:
        return (encode(texts) @ weight).to(torch.bfloat16)

    bank_KD = build_bank(["a", "b"], TEMPLATES, half)
    assert bank_KD.dtype == torch.float32
    assert not bank_KD.requires_grad
    assert not bank_KD.is_inference()  # a loss has to save it for its backward
    np.testing.assert_allclose(bank_KD.norm(dim=-1), np.ones(2), atol=1e-6)


def test_each_bank_has_its_own_names_and_templates():
    vocabulary = Vocabulary(
        ("dog", "ice cream"), ("spouse", "sibling", "place of birth"), TEMPLATES[:2], TEMPLATES[2:]
    )
    banks = build_banks(vocabulary, encode, batch=2)
    np.testing.assert_allclose(banks.entities_KD, reference(vocabulary.entities, TEMPLATES[:2]), atol=1e-6)
    np.testing.assert_allclose(banks.relations_KD, reference(vocabulary.relations, TEMPLATES[2:]), atol=1e-6)


def test_banks_survive_the_file_bit_for_bit(tmp_path):
    banks = Banks(build_bank(["a", "b", "c"], TEMPLATES, encode), build_bank(["r", "s"], TEMPLATES, encode))
    folder = tmp_path / "labels" / "0123"
    save_banks(folder, banks, corpus="c0ffee")
    again = load_banks(folder, corpus="c0ffee")
    assert torch.equal(again.entities_KD, banks.entities_KD)
    assert torch.equal(again.relations_KD, banks.relations_KD)
    assert [path.name for path in folder.iterdir()] == [BANKS_FILE]


def test_banks_of_another_corpus_are_refused_with_both_names(tmp_path):
    banks = Banks(build_bank(["a"], TEMPLATES, encode), build_bank(["r"], TEMPLATES, encode))
    save_banks(tmp_path, banks, corpus="old")
    with pytest.raises(ShardError, match="labels the corpus old, but the split beside it is new"):
        load_banks(tmp_path, corpus="new")


def test_absent_and_damaged_banks_say_what_to_do(tmp_path):
    with pytest.raises(ShardError, match="holds no prompt banks"):
        load_banks(tmp_path, corpus="c")
    (tmp_path / BANKS_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ShardError, match=r"remove .* and run launch/label\.py"):
        load_banks(tmp_path, corpus="c")


def test_the_fingerprint_sees_everything_that_changes_labels():
    vocabulary = Vocabulary(("a", "b"), ("r", "s"), ("{}",), ("{}.",))
    settings = {"temperature": 0.05, "num_kept": 32, "crop_padding": 0.0}
    base = bank_fingerprint("teacher", vocabulary, **settings)
    others = [
        bank_fingerprint("other", vocabulary, **settings),
        bank_fingerprint("teacher", Vocabulary(("a", "c"), ("r", "s"), ("{}",), ("{}.",)), **settings),
        bank_fingerprint("teacher", vocabulary, **settings | {"temperature": 0.06}),
        bank_fingerprint("teacher", vocabulary, **settings | {"num_kept": 16}),
        bank_fingerprint("teacher", vocabulary, **settings | {"crop_padding": 0.1}),
    ]
    assert len({base, *others}) == 6
    assert base == bank_fingerprint("teacher", vocabulary, **settings)
