"""Tokens, padding and masks."""

import pytest
import torch

from promptmeup.data.text import TextTokenizer
from promptmeup.errors import WeightsError

TEXTS = ["a dog", "two people wait for the train at the station", ""]


def test_tokens_are_the_tokenizer_s_own_and_padding_is_masked(tokenizer):
    tokens, mask = tokenizer(TEXTS, max_length=40)
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    for row, text in enumerate(TEXTS):
        expected = tokenizer.tokenizer(text)["input_ids"]
        assert tokens[row][mask[row]].tolist() == expected
        assert mask[row].sum() == len(expected) == mask[row].long().argmin()  # real tokens come first
    assert (tokens[~mask] == tokenizer.pad_id).all()


@pytest.mark.parametrize(
    ("texts", "max_length", "pad_to", "length"),
    [
        (["a dog"], 40, "longest", 8),
        (["word " * 7], 40, "longest", 16),  # 7 + 2 special tokens
        (["word " * 6], 40, "longest", 8),
        (["word " * 100], 40, "longest", 40),
        (["word " * 100], 30, "longest", 30),  # never above the limit
        (["a dog"], 30, "max", 30),
    ],
)
def test_length(tokenizer, texts, max_length, pad_to, length):
    tokens, mask = tokenizer(texts, max_length=max_length, pad_to=pad_to)
    assert tokens.shape == mask.shape == (1, length)


def test_cut_texts_keep_their_end_marker(tokenizer):
    tokens, mask = tokenizer(["word " * 100], max_length=16)
    assert mask.all()
    assert tokens[0, 0] == tokenizer.tokenizer.cls_token_id
    assert tokens[0, -1] == tokenizer.tokenizer.sep_token_id


def test_missing_tokenizer_says_what_to_give(tmp_path):
    with pytest.raises(WeightsError, match=r"no tokenizer in .*give a directory with tokenizer.json"):
        TextTokenizer.load(tmp_path)


def test_tokenizer_without_padding_is_refused(tokenizer_folder):
    from transformers import AutoTokenizer

    raw = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    raw.pad_token = None
    with pytest.raises(WeightsError, match="no padding token"):
        TextTokenizer(raw)
