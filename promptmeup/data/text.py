"""Captions to padded token ids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from promptmeup.errors import WeightsError

MULTIPLE = 8
"""Lengths are padded to a multiple of this, so that a run meets few different shapes."""


class TextTokenizer:
    """A `transformers` fast tokenizer that returns token ids and a mask of real tokens."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.pad_token_id is None:
            raise WeightsError(
                f"the tokenizer {tokenizer.name_or_path!r} has no padding token, so captions of different "
                "length cannot form a batch; set pad_token in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id)
        # Data workers are forked; the tokenizer's own threads would not be there and it would wait for them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    @classmethod
    def load(cls, source: str | Path) -> "TextTokenizer":
        """Load from a directory, or by a model's name.

        Raises:
            WeightsError: nothing there, or not a tokenizer.
        """
        from transformers import AutoTokenizer  # takes seconds to import; most users of this file have one

        local = Path(source).is_dir()
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=local)
        # transformers 5.0 looks for sentencepiece and protobuf where it finds no tokenizer
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"no tokenizer in '{source}' ({reason}); give a directory with tokenizer.json, or the name "
                "of a model that is in the local cache or can be downloaded"
            ) from error
        return cls(tokenizer)

    def __call__(
        self, texts: Sequence[str], *, max_length: int, pad_to: Literal["longest", "max"] = "longest"
    ) -> tuple[Tensor, Tensor]:
        """Return int64 token ids [B, L] and a bool mask [B, L], true on real tokens.

        Texts are cut at `max_length` tokens, special tokens included. L is `max_length`, or, with
        "longest", the longest text's length rounded up to a multiple of 8 and at most `max_length`.
        """
        assert texts
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=max_length, return_attention_mask=False
        )["input_ids"]
        longest = max(len(ids) for ids in encoded)
        length = max_length if pad_to == "max" else min(-(-longest // MULTIPLE) * MULTIPLE, max_length)
        tokens_BL = torch.full((len(texts), length), self.pad_id, dtype=torch.int64)
        mask_BL = torch.zeros((len(texts), length), dtype=torch.bool)
        for row, ids in enumerate(encoded):
            tokens_BL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask_BL[row, : len(ids)] = True
        return tokens_BL, mask_BL
