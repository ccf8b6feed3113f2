"""Relations by entity markers, "entity start" (Baldini Soares et al., ACL 2019, https://arxiv.org/abs/1906.03158).

Four tokens are new, <s> and </s> around the head, <o> and </o> around the tail. The encoder's states at <s> and <o>
stand side by side before dropout and one linear layer. Sentences are tokenized before the clock starts.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    set_seed,
)

from promptmeup.models.weights import quiet_transformers
from promptmeup.records import RelationInstance
from tests.benchmarks.peers import hugging_face

HEAD, TAIL = ("<s>", "</s>"), ("<o>", "</o>")


@dataclass(frozen=True)
class PeerResult:
    """What the benchmark compares."""

    relations: list[str]
    """predicted for each instance of the validation split after the last epoch"""
    by_epoch: list[list[str]]
    """likewise, after each epoch"""
    epoch_seconds: list[float]
    """of training alone"""


def marked(instance: RelationInstance) -> tuple[list[str], int, int]:
    """Return the words with the four markers among them, and where <s> and <o> are.

    Each marker stands right before or right behind the words of its own span, whatever the other span is. Between
    two words, ends come before starts, so that adjacent spans stay apart. Of two starts the longer span's is first,
    of two ends that of the span that began later, so that one span lies whole within another. Equal spans give
    <s> <o> a </o> </s>, spans that overlap otherwise <s> a <o> b </s> c </o>.
    """
    spans = ((instance.head, HEAD), (instance.tail, TAIL))
    markers = []
    for number, (span, (start, end)) in enumerate(spans):
        markers.append((span.start, 1, -span.end, number, start))
        markers.append((span.end, 0, -span.start, -number, end))
    words: list[str] = []
    places: dict[str, int] = {}
    done = 0
    for position, *_, marker in sorted(markers):
        words += instance.words[done:position]
        places[marker] = len(words)
        words.append(marker)
        done = position
    words += instance.words[done:]
    return words, places[HEAD[0]], places[TAIL[0]]


def _encode(
    instances: Sequence[RelationInstance], tokenizer: Any, ids: Mapping[str, int], max_tokens: int
) -> list[dict[str, Any]]:
    texts = [marked(instance) for instance in instances]
    encoded = tokenizer(
        [words for words, _, _ in texts], is_split_into_words=True, truncation=True, max_length=max_tokens
    )
    rows = []
    for number, (instance, (_, head, tail)) in enumerate(zip(instances, texts, strict=True)):
        words = encoded.word_ids(number)
        row = {name: values[number] for name, values in encoded.items()}
        # a marker behind the last token that is kept: [CLS] takes its place
        row["head"], row["tail"] = (words.index(word) if word in words else 0 for word in (head, tail))
        row["labels"] = ids[instance.relation]
        rows.append(row)
    return rows


class EntityStart(nn.Module):
    """The encoder and a classifier of the states at the two start markers."""

    def __init__(self, encoder: nn.Module, num_relations: int) -> None:
        super().__init__()
        config: Any = encoder.config
        self.encoder = encoder
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * config.hidden_size, num_relations)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        head: Tensor,
        tail: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        states_BLH = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        rows_B = torch.arange(len(labels), device=labels.device)
        starts_B2H = torch.cat([states_BLH[rows_B, head], states_BLH[rows_B, tail]], dim=-1)
        logits_BR = self.classifier(self.dropout(starts_B2H))
        return {"loss": F.cross_entropy(logits_BR, labels), "logits": logits_BR}


def train(
    train: Sequence[RelationInstance],
    val: Sequence[RelationInstance],
    *,
    encoder: Path,
    relations: Sequence[str],
    epochs: int,
    batch: int,
    lr: float,
    head_lr: float,
    warmup: float,
    weight_decay: float,
    max_tokens: int,
    seed: int,
) -> PeerResult:
    """Fine-tune on `train` and classify `val` after every epoch.

    Args:
        encoder: a folder that transformers loads with its tokenizer, a BERT.
        relations: every relation.
        lr: peak rate of the encoder with its new tokens; `head_lr` of the classifier.
        warmup: share of the steps.
        max_tokens: of a sentence, special tokens and markers included; a start marker behind them is read at [CLS].
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        tokenizer.add_tokens([*HEAD, *TAIL], special_tokens=True)
        ids = {relation: number for number, relation in enumerate(relations)}
        rows = [_encode(split, tokenizer, ids, max_tokens) for split in (train, val)]
        pretrained = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
        pretrained.resize_token_embeddings(len(tokenizer))
        model = EntityStart(pretrained, len(relations))
        by_epoch: list[list[str]] = []

        def keep(prediction: EvalPrediction) -> dict[str, float]:
            by_epoch.append([relations[number] for number in prediction.predictions.argmax(-1)])
            return {}

        trainer = Trainer(
            model,
            hugging_face.arguments(
                Path(folder), epochs=epochs, batch=batch, warmup=warmup, seed=seed, save_strategy="no"
            ),
            train_dataset=rows[0],
            eval_dataset=rows[1],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=keep,
            optimizers=(
                hugging_face.optimizer(model, pretrained, lr=lr, head_lr=head_lr, weight_decay=weight_decay),
                None,
            ),
        )
        seconds = hugging_face.train(trainer)
    return PeerResult(relations=by_epoch[-1], by_epoch=by_epoch, epoch_seconds=seconds)
