"""The total: which terms there are, what they weigh, what is watched."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from promptmeup.config import ConfigError, load
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.total import (
    LossConfig,
    Losses,
    LossWeights,
    captions_to_send,
    rows_not_finite,
    total_loss,
)
from promptmeup.records import Banks, Batch, Features
from tests.numerics import reference
from tests.support.loss_inputs import (
    ENTITIES,
    RELATIONS,
    ClassifyingStudent,
    Inputs,
    Student,
    banks,
    scenarios,
)

ALONE = WorldExchange(World(rank=0, size=1, local_rank=0, device=torch.device("cpu")))
NAMES = ("image_text", "object_entity", "image_relation", "matching")


def _losses(features: Features, batch: Batch, config: LossConfig, bank: Banks | None = None) -> Losses:
    columns = captions_to_send(batch, ALONE)
    features = replace(features, text_BD=columns.send_one(features.text_BD))
    return total_loss(features, columns, batch, bank, config, ALONE)


def _reported(inputs: Inputs, config: LossConfig) -> dict[str, torch.Tensor]:
    return _losses(Student()(inputs), inputs.batch(), config, banks()).reported


def _whole_labels(ids: torch.Tensor, probs: torch.Tensor, num_prompts: int) -> Any:
    return reference.np.stack(
        [
            reference.whole_label(i, p, num_prompts)
            for i, p in zip(ids.flatten(0, -2).tolist(), probs.flatten(0, -2).tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", list(scenarios()))
def test_every_term_equals_reference(name: str, hard: bool) -> None:
    inputs = scenarios()[name]
    reported = _reported(inputs, LossConfig(hard_labels=hard))
    with torch.no_grad():
        features = Student()(inputs)
    assert features.object_BMD is not None
    assert features.relation_BD is not None
    assert features.matching_logits_B2 is not None
    q_objects = _whole_labels(inputs.object_ids_GMT, inputs.object_probs_GMT, ENTITIES)
    q_relations = _whole_labels(inputs.relation_ids_GT, inputs.relation_probs_GT, RELATIONS)
    if hard:
        q_objects, q_relations = (reference.np.eye(q.shape[1])[q.argmax(1)] for q in (q_objects, q_relations))
    image_ids, caption_ids = inputs.image_ids_G.tolist(), inputs.caption_ids_G.tolist()
    expected = {
        "image_text": reference.image_text(
            features.image_BD.numpy(), features.text_BD.numpy(), image_ids, caption_ids, 0.2, "positive"
        ),
        "object_entity": reference.soft_label_contrast(
            features.object_BMD.flatten(0, 1).numpy(),
            banks().entities_KD.numpy(),
            q_objects,
            (inputs.object_mask_GM & inputs.object_keep_GM).flatten().tolist(),
            0.4,
        ),
        "image_relation": reference.soft_label_contrast(
            features.relation_BD.numpy(),
            banks().relations_KD.numpy(),
            q_relations,
            inputs.relation_keep_G.tolist(),
            0.6,
        ),
        "matching": reference.matching(
            features.matching_logits_B2.numpy(), [i == c for i, c in zip(image_ids, caption_ids, strict=True)]
        ),
    }
    for term, value in expected.items():
        assert reported[f"loss/{term}"].item() == pytest.approx(value, rel=1e-9, abs=0), term
    assert reported["loss/total"].item() == pytest.approx(sum(expected.values()), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_computes_nothing(name: str) -> None:
    """The student of a switched-off term need not even have its features, nor the batch its labels."""
    weights = LossWeights(**{n: float(n == name) for n in NAMES})
    inputs = scenarios()["plain"]
    features = Student()(inputs)
    needed = {
        "image_text": (),
        "object_entity": ("object_BMD", "object_mask_BM", "object_temperature"),
        "image_relation": ("relation_BD", "relation_temperature"),
        "matching": ("matching_logits_B2",),
    }
    optional = {field for fields in needed.values() for field in fields} - set(needed[name])
    features = replace(features, **dict.fromkeys(optional))
    batch = inputs.batch()
    if name != "object_entity":
        batch = replace(batch, object_labels=None)
    if name != "image_relation":
        batch = replace(batch, image_labels=None)
    bank = banks() if name in ("object_entity", "image_relation") else None
    alone = _losses(features, batch, LossConfig(weights=weights), bank).reported
    assert {n for n in alone if n.startswith("loss/")} == {"loss/total", f"loss/{name}"}
    whole = _reported(inputs, LossConfig())
    torch.testing.assert_close(alone[f"loss/{name}"], whole[f"loss/{name}"])
    assert all(torch.equal(value, whole[n]) for n, value in alone.items() if not n.startswith("loss/"))


def test_weights_scale_the_loss_and_its_gradient() -> None:
    inputs = scenarios()["falsified"]
    factors = dict(zip(NAMES, (0.5, 2.0, 3.0, 0.25), strict=True))
    student = Student()
    features, batch = student(inputs), inputs.batch()

    def means(**weights: float) -> Losses:
        config = LossConfig(weights=LossWeights(**(dict.fromkeys(NAMES, 0.0) | weights)))
        return _losses(features, batch, config, banks())

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                (p.new_zeros(p.shape) if g is None else g).flatten()
                for p, g in zip(student.parameters(), found, strict=True)
            ]
        )

    single = {name: means(**{name: 1.0}) for name in NAMES}
    whole = means(**factors)
    expected = torch.stack([factors[n] * single[n].local for n in NAMES]).sum()
    torch.testing.assert_close(whole.local, expected)
    torch.testing.assert_close(whole.reported["loss/total"], whole.local.detach())
    expected = torch.stack([factors[n] * gradient(single[n].local) for n in NAMES]).sum(0)
    torch.testing.assert_close(gradient(whole.local), expected)


def test_metrics_of_labels() -> None:
    inputs = scenarios()["plain"]
    reported = _reported(inputs, LossConfig(hard_labels=True))
    keep = (inputs.object_mask_GM & inputs.object_keep_GM).flatten()
    q = _whole_labels(inputs.object_ids_GMT, inputs.object_probs_GMT, ENTITIES)[keep.numpy()]
    # of the teacher's distribution, also where training uses its arg-max alone
    entropy = float(-(q * reference.np.log(q)).sum(1).mean())
    assert reported["object_label_entropy"].item() == pytest.approx(entropy, rel=1e-9)
    kept = keep.sum().item() / inputs.object_mask_GM.sum().item()
    assert reported["object_label_kept"].item() == pytest.approx(kept)
    top = reference.np.bincount(q.argmax(1)).max() / len(q)
    assert reported["object_label_top_share"].item() == pytest.approx(top)
    kept = inputs.relation_keep_G.double().mean().item()
    assert reported["relation_label_kept"].item() == pytest.approx(kept)
    assert 0 <= reported["contrastive_accuracy"] <= 1
    assert 0 <= reported["matching_accuracy"] <= 1


@pytest.mark.parametrize("hard", [False, True])
def test_a_classifier_is_watched_like_a_contrast(hard: bool) -> None:
    inputs, config = scenarios()["falsified"], LossConfig(hard_labels=hard)
    contrasts = _reported(inputs, config)
    classified = _losses(ClassifyingStudent()(inputs), inputs.batch(), config, banks()).reported
    assert classified.keys() == contrasts.keys()
    for name in classified:
        if not name.startswith("loss/") or name in ("loss/image_text", "loss/matching"):
            torch.testing.assert_close(classified[name], contrasts[name], rtol=0, atol=0)


@pytest.mark.parametrize("field", ["object_logits_BMK", "relation_logits_BK"])
def test_logits_that_are_not_finite_are_seen_even_where_they_count_nowhere(field: str) -> None:
    inputs = scenarios()["nothing"]
    features = ClassifyingStudent()(inputs)
    assert not rows_not_finite(features).any()
    logits = getattr(features, field).detach().clone()
    logits[3] = torch.inf
    features = replace(features, **{field: logits})
    assert rows_not_finite(features).nonzero().flatten().tolist() == [3]
    found = _losses(features, inputs.batch(), LossConfig(), banks())
    assert found.reported["loss/total"].isfinite()
    assert not found.sound


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights.matching=-1", "'weights.matching' = -1: input should be greater than or equal to 0"),
        ("same_image=keep", "'same_image' = 'keep': input should be 'positive', 'mask' or 'negative'"),
        ("negatives=node", "'negatives' = 'node': input should be 'world' or 'rank'"),
        ("image_text_mean=rows", "'image_text_mean' = 'rows': input should be 'matched' or 'all'"),
        ("weights={image_text: 0, object_entity: 0, image_relation: 0, matching: 0}", "nothing to train"),
    ],
)
def test_wrong_configuration_says_so(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(LossConfig, None, [override])
