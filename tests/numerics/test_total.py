"""The total: which terms there are, what they weigh, what is watched."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from promptmeup.config import ConfigError, load
from promptmeup.distributed.collectives import gather, world_means
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig, LossWeights, total_loss
from promptmeup.records import LossTerms, Term
from tests.numerics import reference
from tests.support.loss_inputs import ENTITIES, RELATIONS, Inputs, Student, banks, scenarios

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
NAMES = ("image_text", "object_entity", "image_relation", "matching")


def _terms(inputs: Inputs, config: LossConfig) -> LossTerms:
    features, batch = Student()(inputs), inputs.batch()
    return total_loss(features, gather(features, batch, ALONE), batch, banks(), config)


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
    reported = world_means(_terms(inputs, LossConfig(hard_labels=hard)), ALONE).reported
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
    whole = Student()(inputs)
    needed = {
        "image_text": (),
        "object_entity": ("object_BMD", "object_mask_BM", "object_temperature"),
        "image_relation": ("relation_BD", "relation_temperature"),
        "matching": ("matching_logits_B2",),
    }
    optional = {field for fields in needed.values() for field in fields} - set(needed[name])
    features = replace(whole, **dict.fromkeys(optional))
    batch = inputs.batch()
    if name != "object_entity":
        batch = replace(batch, object_labels=None)
    if name != "image_relation":
        batch = replace(batch, image_labels=None)
    bank = banks() if name in ("object_entity", "image_relation") else None
    terms = total_loss(features, gather(features, batch, ALONE), batch, bank, LossConfig(weights=weights))
    assert set(terms.terms) == {name}
    alone = world_means(terms, ALONE).reported[f"loss/{name}"]
    torch.testing.assert_close(
        alone, world_means(_terms(inputs, LossConfig()), ALONE).reported[f"loss/{name}"]
    )


def test_weights_scale_the_loss_and_its_gradient() -> None:
    inputs = scenarios()["falsified"]
    factors = dict(zip(NAMES, (0.5, 2.0, 3.0, 0.25), strict=True))
    student = Student()
    features, batch = student(inputs), inputs.batch()
    gathered = gather(features, batch, ALONE)

    def means(**weights: float) -> Any:
        config = LossConfig(weights=LossWeights(**(dict.fromkeys(NAMES, 0.0) | weights)))
        return world_means(total_loss(features, gathered, batch, banks(), config), ALONE)

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
    expected = torch.stack([factors[n] * single[n].local_loss for n in NAMES]).sum()
    torch.testing.assert_close(whole.local_loss, expected)
    torch.testing.assert_close(whole.reported["loss/total"], whole.local_loss.detach())
    expected = torch.stack([factors[n] * gradient(single[n].local_loss) for n in NAMES]).sum(0)
    torch.testing.assert_close(gradient(whole.local_loss), expected)


def test_metrics_of_labels() -> None:
    inputs = scenarios()["plain"]
    reported = world_means(_terms(inputs, LossConfig(hard_labels=True)), ALONE).reported
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


def test_world_means_in_figures() -> None:
    """Two parts are averaged, each over its own count; a term without a row is 0."""
    leaf = torch.tensor([6.0, 5.0, 4.0], requires_grad=True)
    count = torch.tensor
    terms = LossTerms(
        terms={
            "two": (Term(leaf[0], count(3.0)), Term(leaf[1], count(2.0))),
            "empty": (Term(leaf[2] * 0, count(0.0)),),
        },
        weights={"two": 2.0, "empty": 5.0},
        metrics={"hits": Term(count(3.0), count(4.0)), "none": Term(count(0.0), count(0.0))},
    )
    means = world_means(terms, ALONE)
    means.local_loss.backward()
    assert {name: value.item() for name, value in means.reported.items()} == {
        "loss/total": 4.5,
        "loss/two": 2.25,
        "loss/empty": 0.0,
        "hits": 0.75,
        "none": 0.0,
    }
    assert means.local_loss.item() == 4.5
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, torch.tensor([1 / 3, 0.5, 0.0]))
    assert not any(value.requires_grad for value in means.reported.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights.matching=-1", "'weights.matching' = -1: input should be greater than or equal to 0"),
        ("same_image=keep", "'same_image' = 'keep': input should be 'positive' or 'mask'"),
        ("weights={image_text: 0, object_entity: 0, image_relation: 0, matching: 0}", "nothing to train"),
    ],
)
def test_wrong_configuration_says_so(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(LossConfig, None, [override])
