import json
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertForMaskedLM, BertModel

from promptmeup.errors import ConfigError, WeightsError
from promptmeup.models.text import TextConfig, TextEncoder, build_bert, load_tokenizer, run_layers
from promptmeup.models.weights import find
from tests.unit.models.support import MINILM, batch, tiny_text


def _save_bert(folder: Path, kind: type = BertModel) -> object:
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    model = kind(sizes).eval()
    model.save_pretrained(folder)
    return model


def test_text_half_with_all_layers_is_bert() -> None:
    bert = build_bert(TextConfig(weights=MINILM, fusion_layer=6)).eval()
    data = batch()
    expected = bert(data["tokens_BL"], attention_mask=data["token_mask_BL"]).last_hidden_state
    states_BLH = TextEncoder(bert, fusion_layer=6)(data["tokens_BL"], data["token_mask_BL"])
    real = data["token_mask_BL"]
    torch.testing.assert_close(states_BLH[real], expected[real], atol=1e-6, rtol=0)


def test_two_halves_in_a_row_are_bert() -> None:
    bert = build_bert(TextConfig(weights=MINILM, fusion_layer=2)).eval()
    data = batch()
    half = TextEncoder(bert, fusion_layer=2)
    assert len(half.layers) == 2
    states_BLH = half(data["tokens_BL"], data["token_mask_BL"])
    states_BLH = run_layers(bert.encoder.layer[2:], states_BLH, mask_BL=data["token_mask_BL"])
    expected = bert(data["tokens_BL"], attention_mask=data["token_mask_BL"]).last_hidden_state
    real = data["token_mask_BL"]
    torch.testing.assert_close(states_BLH[real], expected[real], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_local_directory(tmp_path: Path, kind: type) -> None:
    # bert-base-uncased on the hub is a BertForMaskedLM checkpoint: names start with "bert."
    saved = _save_bert(tmp_path, kind)
    expected = (saved.bert if kind is BertForMaskedLM else saved).embeddings.word_embeddings.weight
    bert = build_bert(TextConfig(weights=str(tmp_path), tokenizer=MINILM, fusion_layer=2))
    assert torch.equal(bert.embeddings.word_embeddings.weight, expected)
    assert bert.pooler is None
    assert bert.config._attn_implementation == "sdpa"


def test_half_precision_files_are_loaded_as_float32(tmp_path: Path) -> None:
    _save_bert(tmp_path).half().save_pretrained(tmp_path)
    bert = build_bert(TextConfig(weights=str(tmp_path), tokenizer=MINILM, fusion_layer=2))
    assert {parameter.dtype for parameter in bert.parameters()} == {torch.float32}


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _save_bert(tmp_path)
    capfd.readouterr()
    build_bert(TextConfig(weights=str(tmp_path), tokenizer=MINILM, fusion_layer=2))
    assert capfd.readouterr() == ("", "")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    _save_bert(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 5}))
    with pytest.raises(WeightsError, match=r"lacks weights of the model: encoder.layer.4.*and \d+ more"):
        build_bert(TextConfig(weights=str(tmp_path), tokenizer=MINILM, fusion_layer=2))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    _save_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=f"cannot read a BERT from {re.escape(str(tmp_path))}"):
        build_bert(TextConfig(weights=str(tmp_path), tokenizer=MINILM, fusion_layer=2))


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(WeightsError, match=r"'roberta'.*bert-base-uncased"):
        build_bert(TextConfig(weights=str(tmp_path), fusion_layer=2))


# transformers 5.0 guesses an unnamed model's type from its path, and there is an "mpt" in "empty"
def test_bare_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=f"model.text.weights: cannot read a BERT from {re.escape(str(tmp_path))}"
    ):
        build_bert(TextConfig(weights=str(tmp_path), fusion_layer=2))
    with pytest.raises(WeightsError, match="cannot read a tokenizer"):
        load_tokenizer(TextConfig(weights=str(tmp_path), fusion_layer=2))


def test_fusion_layer_beyond_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"fusion_layer is 7, but the BERT has 6 layers; choose 1 to 5"):
        build_bert(TextConfig(weights=MINILM, fusion_layer=7))


def test_random_bert_has_the_tokenizers_vocabulary_and_the_sizes_asked_for() -> None:
    bert = build_bert(tiny_text(layers=3, dropout=0.25))
    tokenizer = load_tokenizer(tiny_text())
    assert bert.embeddings.word_embeddings.weight.shape == (len(tokenizer), 64)
    assert len(bert.encoder.layer) == 3
    assert bert.encoder.layer[0].output.dropout.p == 0.25
    assert bert.config.attention_probs_dropout_prob == 0.25


def test_dropout_of_pretrained_weights_is_kept_unless_set() -> None:
    kept = build_bert(TextConfig(weights=MINILM, fusion_layer=3))
    off = build_bert(TextConfig(weights=MINILM, fusion_layer=3, dropout=0.0))
    assert (kept.embeddings.dropout.p, off.embeddings.dropout.p) == (0.1, 0.0)


def test_tokenizer_is_the_weights_own() -> None:
    tokenizer = load_tokenizer(TextConfig(weights=MINILM, fusion_layer=3))
    assert tokenizer("news")["input_ids"] == [101, 2739, 102]
    assert find(MINILM, key="k").name == "model"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "random", "fusion_layer": 2}, "needs a tokenizer"),
        ({"weights": "random", "fusion_layer": 2, "tokenizer": MINILM, "hidden": 65}, "65 is not a multiple"),
        ({"weights": MINILM, "fusion_layer": 0}, "greater than or equal to 1"),
        ({"weights": MINILM, "fusion_layer": 3, "dropout": 1.0}, "less than 1"),
    ],
)
def test_wrong_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextConfig(**values)
