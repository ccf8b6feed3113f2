from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from torch import Tensor, nn

from promptmeup.records import TaggedSentence
from tests.benchmarks.peers import token_classification
from tests.benchmarks.peers.token_classification import CrfTagger, PeerResult

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NAMES = ("Ada Lovelace", "Grace Hopper", "Marie Curie", "Emmy Noether")
PLACES = ("London", "New York", "Warsaw")


def tagged(*parts: str) -> TaggedSentence:
    """Return a sentence of parts such as "in" and "New York/LOC"."""
    words: list[str] = []
    tags: list[str] = []
    for part in parts:
        text, _, kind = part.partition("/")
        for number, word in enumerate(text.split(" ")):
            words.append(word)
            tags.append(f"{'I' if number else 'B'}-{kind}" if kind else "O")
    return TaggedSentence(id="1", words=tuple(words), tags=tuple(tags))


SENTENCES = [
    tagged("yesterday", f"{name}/PER", "went", "to", f"{place}/LOC", "unhesitatingly")
    for name in NAMES
    for place in PLACES
]
NOTHING = TaggedSentence(id="2", words=("\xa0",), tags=("B-PER",))
"""a sentence for which the tokenizer has no token"""


def train(
    encoder: Path,
    test: list[TaggedSentence],
    *,
    training: list[TaggedSentence] = SENTENCES,
    val: list[TaggedSentence] = SENTENCES,
    **changes: Any,
) -> PeerResult:
    values: dict[str, Any] = {"epochs": 2, "batch": 4, "lr": 5e-3, "head_lr": 2e-2, "warmup": 0.1}
    values |= {"weight_decay": 0.01, "max_tokens": 64, "seed": 0, "crf": False}
    return token_classification.train(
        training, val, test, encoder=encoder, labels=LABELS, **(values | changes)
    )


def gold(sentences: list[TaggedSentence]) -> list[list[str]]:
    return [list(sentence.tags) for sentence in sentences]


@pytest.mark.parametrize("crf", [False, True])
def test_it_learns_a_dozen_sentences_by_heart(tiny_bert: Path, crf: bool) -> None:
    result = train(tiny_bert, SENTENCES, epochs=12, crf=crf)
    assert f1_score(gold(SENTENCES), result.tags) == 1.0
    assert max(result.val_f1) == 1.0
    assert result.best_epoch == 1 + result.val_f1.index(1.0)


@pytest.mark.parametrize("crf", [False, True])
def test_the_best_epoch_tags_the_test_split(tiny_bert: Path, crf: bool) -> None:
    """The rule is learned first and its one exception later, of which the dev split knows nothing."""
    exception = ("suddenly", "Ada Lovelace/LOC", "went", "to", "London/LOC", "unhesitatingly")
    val = [tagged(*(part.replace("Lovelace/LOC", "Lovelace/PER") for part in exception))]
    training = [*SENTENCES, *[tagged(*exception)] * 4]
    result = train(tiny_bert, val, val=val, training=training, epochs=20, crf=crf)
    assert len(result.val_f1) == len(result.epoch_seconds) == 20
    assert result.best_epoch == 1 + int(np.argmax(result.val_f1))
    assert f1_score(gold(val), result.tags) == max(result.val_f1) > result.val_f1[-1]


@pytest.mark.parametrize("crf", [False, True])
def test_words_without_a_token_and_words_cut_off_are_outside(tiny_bert: Path, crf: bool) -> None:
    """Beside [CLS] and [SEP] there is room for four words at most: not for the fifth, nor the place behind it."""
    nothing_within = tagged("yesterday", "\xa0", "Ada Lovelace/PER", "went")
    test = [NOTHING, *SENTENCES, nothing_within]
    kept = train(tiny_bert, test, epochs=12, crf=crf)
    assert kept.tags == gold([tagged("\xa0"), *test[1:]])
    cut = train(tiny_bert, test, epochs=12, max_tokens=6, crf=crf)
    assert [len(tags) for tags in cut.tags] == [len(sentence.words) for sentence in test]
    assert all(tags[1] != "O" and set(tags[4:]) == {"O"} for tags in cut.tags[1:-1])


def test_dev_score_counts_all_words_of_all_sentences(tiny_bert: Path) -> None:
    """Two names are cut off or have no token; seqeval counts both as missed: P 1, R 1/3."""
    val = [tagged("yesterday", "Ada Lovelace/PER", "went", "to", "London/LOC"), NOTHING]
    result = train(tiny_bert, val, val=val, epochs=12, max_tokens=6)
    assert max(result.val_f1) == pytest.approx(f1_score(gold(val), result.tags))
    assert max(result.val_f1) == 0.5


def test_equal_seeds_give_equal_runs_and_leave_nothing_behind(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (train(tiny_bert, SENTENCES, seed=3) for _ in range(2))
    assert (one.tags, one.val_f1) == (two.tags, two.val_f1)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


class Given(nn.Module):
    """A tagger whose logits are given."""

    def __init__(self, logits_BLT: Tensor) -> None:
        super().__init__()
        self.logits = logits_BLT

    def forward(self, **_: Tensor) -> "Given":
        return self


def test_crf_sees_first_sub_words_only() -> None:
    """Against torchcrf, given each sentence alone and without what is to be ignored."""
    torch.manual_seed(0)
    logits_BLT = torch.randn(2, 6, 3)
    labels_BL = torch.tensor([[-100, 2, -100, 0, 1, -100], [-100, 1, -100, -100, -100, -100]])
    model = CrfTagger(Given(logits_BLT), 3).eval()
    unused = torch.zeros_like(labels_BL)
    found = model(unused, unused, labels_BL)
    losses = []
    for row, places in enumerate(([1, 3, 4], [1])):
        alone = logits_BLT[row : row + 1, places]
        everywhere = torch.ones(1, len(places), dtype=torch.bool)
        losses.append(-model.crf(alone, labels_BL[row : row + 1, places], everywhere))
        (best,) = model.crf.decode(alone, everywhere)
        expected = torch.full((6,), -100)
        expected[places] = torch.tensor(best)
        assert found["predicted"][row].tolist() == expected.tolist()
    torch.testing.assert_close(found["loss"], sum(losses) / 2)
