"""Named entities as transformers' own example tags them (examples/pytorch/token-classification/run_ner.py).

Words go to the tokenizer one by one, a word's first sub-word has its label and the others -100, and the state that
is best on the validation split is what tags the test split. With `crf`, pytorch-crf stands on the same logits.
Sentences are tokenized before the clock starts.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchcrf
from seqeval.metrics import f1_score
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
    set_seed,
)

from promptmeup.models.weights import quiet_transformers
from promptmeup.records import TaggedSentence
from tests.benchmarks.peers import hugging_face

OUTSIDE = "O"
IGNORED = -100
"""the label that transformers' losses and collators leave out"""


@dataclass(frozen=True)
class PeerResult:
    """What the benchmark compares."""

    tags: list[list[str]]
    """predicted for the test split by the best epoch's state, one a word"""
    val_f1: list[float]
    """seqeval's default F1 over all words of the validation split, after each epoch"""
    epoch_seconds: list[float]
    """of training alone"""
    best_epoch: int
    """counted from 1; the earliest of equal ones"""


@dataclass(frozen=True)
class _Encoded:
    """A split as the model sees it. Sentences of which no token is left have no row."""

    words: list[int]
    """number of words of each sentence"""
    sentences: list[int]
    """which sentence each row is"""
    rows: list[dict[str, list[int]]]
    first: list[list[tuple[int, int]]]
    """(token, word) of each first sub-word of each row"""

    def tags(self, predicted_NL: np.ndarray, labels: Sequence[str]) -> list[list[str]]:
        """Return a tag for each word: "O" where it has no token, or none within the tokens that were kept."""
        tags = [[OUTSIDE] * number for number in self.words]
        for sentence, first, predicted_L in zip(self.sentences, self.first, predicted_NL, strict=True):
            for token, word in first:
                tags[sentence][word] = labels[predicted_L[token]]
        return tags


def _encode(
    sentences: Sequence[TaggedSentence], tokenizer: Any, ids: Mapping[str, int], max_tokens: int
) -> _Encoded:
    encoded = tokenizer(
        [list(sentence.words) for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=max_tokens,
    )
    result = _Encoded([len(sentence.words) for sentence in sentences], [], [], [])
    for number, sentence in enumerate(sentences):
        words = encoded.word_ids(number)
        first = [
            (token, word)
            for token, word in enumerate(words)
            if word is not None and (token == 0 or words[token - 1] != word)
        ]
        if not first:
            continue
        labels = [IGNORED] * len(words)
        for token, word in first:
            labels[token] = ids[sentence.tags[word]]
        result.sentences.append(number)
        result.rows.append({**{name: values[number] for name, values in encoded.items()}, "labels": labels})
        result.first.append(first)
    return result


class CrfTagger(nn.Module):
    """The token classifier with pytorch-crf as its loss and decoder, over first sub-words."""

    def __init__(self, tagger: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.tagger = tagger
        self.crf = torchcrf.CRF(num_labels, batch_first=True)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the mean loss of a sentence and, unless training, the best label at each first sub-word.

        The places that `labels` does not ignore are moved to the front: over a hole in its mask, pytorch-crf scores
        the gold labels by the transition from the place before, which has none.
        """
        logits_BLT = self.tagger(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits
        is_first_BL = labels != IGNORED
        num_words = int(is_first_BL.sum(1).max())
        order_BW = torch.argsort((~is_first_BL).int(), dim=1, stable=True)[:, :num_words]
        mask_BW = is_first_BL.gather(1, order_BW)
        tags_BW = labels.gather(1, order_BW).clamp(min=0)
        emissions_BWT = logits_BLT.gather(1, order_BW[..., None].expand(-1, -1, logits_BLT.shape[2]))
        result = {"loss": -self.crf(emissions_BWT, tags_BW, mask_BW, reduction="mean")}
        if not self.training:
            best_BW = torch.full_like(tags_BW, IGNORED)
            for row, best in enumerate(self.crf.decode(emissions_BWT, mask_BW)):
                best_BW[row, : len(best)] = torch.tensor(best)
            result["predicted"] = torch.full_like(labels, IGNORED).scatter(1, order_BW, best_BW)
        return result


def _argmax(logits_BLT: Tensor, labels_BL: Tensor) -> Tensor:
    return logits_BLT.argmax(-1)


def train(
    train: Sequence[TaggedSentence],
    val: Sequence[TaggedSentence],
    test: Sequence[TaggedSentence],
    *,
    encoder: Path,
    labels: Sequence[str],
    epochs: int,
    batch: int,
    lr: float,
    head_lr: float,
    warmup: float,
    weight_decay: float,
    max_tokens: int,
    seed: int,
    crf: bool,
) -> PeerResult:
    """Fine-tune on `train`, choose the epoch on `val`, tag `test`.

    Args:
        encoder: a folder that transformers loads with its tokenizer, a BERT.
        labels: every tag, "O" among them.
        lr: peak rate of the encoder; `head_lr` of classifier and CRF.
        warmup: share of the steps.
        max_tokens: of a sentence, special tokens included; a word behind them counts as tagged "O".
        crf: a conditional random field in place of the softmax.
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        ids = {label: number for number, label in enumerate(labels)}
        splits = [_encode(split, tokenizer, ids, max_tokens) for split in (train, val, test)]
        tagger = AutoModelForTokenClassification.from_pretrained(
            encoder, label2id=ids, id2label=dict(enumerate(labels))
        )
        model = CrfTagger(tagger, len(labels)) if crf else tagger
        gold = [list(sentence.tags) for sentence in val]
        val_f1: list[float] = []

        def score(prediction: EvalPrediction) -> dict[str, float]:
            tags = splits[1].tags(prediction.predictions, labels)
            val_f1.append(float(f1_score(gold, tags, zero_division=0)))
            return {"f1": val_f1[-1]}

        trainer = Trainer(
            model,
            hugging_face.arguments(
                Path(folder),
                epochs=epochs,
                batch=batch,
                warmup=warmup,
                seed=seed,
                save_strategy="best",
                save_only_model=True,
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="f1",
            ),
            train_dataset=splits[0].rows,
            eval_dataset=splits[1].rows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=score,
            preprocess_logits_for_metrics=None if crf else _argmax,
            optimizers=(
                hugging_face.optimizer(
                    model, tagger.base_model, lr=lr, head_lr=head_lr, weight_decay=weight_decay
                ),
                None,
            ),
        )
        seconds = hugging_face.train(trainer)
        trainer.compute_metrics = None
        predicted_NL = trainer.predict(splits[2].rows).predictions
    return PeerResult(
        tags=splits[2].tags(predicted_NL, labels),
        val_f1=val_f1,
        epoch_seconds=seconds,
        best_epoch=1 + int(np.argmax(val_f1)),
    )
