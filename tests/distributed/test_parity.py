"""The same global batch at 1, 2 and 4 ranks: the same losses, metrics and averaged gradients."""

from dataclasses import fields, replace
from functools import cache
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.contrast import contrast
from promptmeup.losses.exchange import Columns
from promptmeup.losses.image_text import IdPair, Teacher
from promptmeup.losses.total import (
    LossConfig,
    Losses,
    LossWeights,
    captions_to_send,
    seen_by,
    total_loss,
)
from promptmeup.records import Batch, Features
from tests.numerics import paper, plain
from tests.support.loss_inputs import ClassifyingStudent, Inputs, Student, banks, scenarios
from tests.support.ranks import run_ranks

Result = tuple[dict[str, float], dict[str, Tensor]]
SAME_IMAGE: tuple[Literal["positive", "mask"], ...] = ("positive", "mask")
CONFIGS = {
    (same_image, hard): LossConfig(same_image=same_image, hard_labels=hard, weights=LossWeights(matching=0.5))
    for same_image in SAME_IMAGE
    for hard in (False, True)
}
# the share of the most frequent prompt is each rank's own by design
LOCAL_METRICS = {"object_label_top_share", "relation_label_top_share"}


def _losses(world: World, features: Features, batch: Batch, config: LossConfig) -> Losses:
    exchange = WorldExchange(world)
    columns = captions_to_send(batch, seen_by(config, exchange))
    features = replace(features, text_BD=columns.send_one(features.text_BD))
    return total_loss(features, columns, batch, banks(), config, exchange)


def _step(world: World, inputs: Inputs, config: LossConfig, kind: type[Student] = Student) -> Result:
    """Reported values and gradients averaged over ranks, as the engine averages them."""
    student = kind()
    shard = inputs.shard(world.rank, world.size)
    found = _losses(world, student(shard), shard.batch(), config)
    found.local.backward()
    gradients = {}
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad / world.size
        if world.size > 1:
            dist.all_reduce(gradients[name])
    return {name: value.item() for name, value in found.reported.items()}, gradients


def _all_steps(world: World) -> dict[tuple[str, str, bool], Result]:
    return {
        (name, *choice): _step(world, inputs, config)
        for name, inputs in scenarios().items()
        for choice, config in CONFIGS.items()
    }


@cache
def _results(size: int) -> list[dict[tuple[str, str, bool], Result]]:
    """Four ranks are two "nodes" of two: LOCAL_RANK is 0, 1, 0, 1."""
    if size == 1:
        return [_all_steps(World(rank=0, size=1, local_rank=0, device=torch.device("cpu")))]
    return run_ranks(_all_steps, size, ranks_per_node=2)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("same_image", SAME_IMAGE)
@pytest.mark.parametrize("name", list(scenarios()))
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_gives_the_same_step(size: int, name: str, same_image: str, hard: bool) -> None:
    expected_values, expected_gradients = _results(1)[0][name, same_image, hard]
    for values, gradients in (answers[name, same_image, hard] for answers in _results(size)):
        assert values.keys() == expected_values.keys()
        for metric in values.keys() - LOCAL_METRICS:
            assert values[metric] == pytest.approx(expected_values[metric], rel=0, abs=1e-10), metric
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=0, atol=1e-10)


def test_the_scenarios_are_what_they_say() -> None:
    """Guards the test above: gradients are not trivially zero, and "nothing" is exactly zero."""
    for (name, _, _), (values, gradients) in _results(4)[0].items():
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        untrained = {n for n, gradient in gradients.items() if gradient.count_nonzero() == 0}
        assert untrained == (set() if name != "nothing" else gradients.keys() - {"match"})
        assert (values["loss/image_text"] == 0) == (name == "nothing")
        assert (values["loss/object_entity"] == 0) == (name == "nothing")
        assert (values["loss/image_relation"] == 0) == (name == "nothing")


def _of_the_paper(inputs: Inputs, hard: bool) -> Result:
    """Losses and gradients as the paper has them, of the whole batch at once; a term without a row is 0."""
    student, batch = ClassifyingStudent(), inputs.batch()
    features = student(inputs)
    assert features.matching_logits_B2 is not None
    losses = {
        "image_text": paper.image_text(
            features.image_BD,
            features.text_BD,
            matched_B=batch.matched_B,
            temperature=features.temperature,
        ),
        "matching": F.cross_entropy(features.matching_logits_B2, batch.matched_B.long()),
    }
    for name, logits, labels, present in (
        ("object_entity", features.object_logits_BMK, batch.object_labels, batch.box_mask_BM),
        ("image_relation", features.relation_logits_BK, batch.image_labels, torch.tensor(True)),
    ):
        assert logits is not None and labels is not None
        keep = labels.keep & present
        q = plain.dense(labels, num_prompts=logits.shape[-1])
        if hard:
            q = F.one_hot(q.argmax(-1), logits.shape[-1]).double()
        losses[name] = paper.soft_label(logits[keep], q_NK=q[keep]) if keep.any() else logits[keep].sum() * 0
    total = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(total, list(student.parameters()))
    names = [name for name, _ in student.named_parameters()]
    return {f"loss/{n}": loss.item() for n, loss in losses.items()}, dict(zip(names, gradients, strict=True))


def _paper_steps(world: World) -> dict[tuple[str, bool], Result]:
    return {
        (name, hard): _step(
            world,
            inputs,
            LossConfig(same_image="negative", image_text_mean="all", hard_labels=hard),
            ClassifyingStudent,
        )
        for name, inputs in scenarios().items()
        for hard in (False, True)
    }


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks_gives_the_papers_step(size: int) -> None:
    """Falsified pairs, repeated images and ranks without a row that counts, against whole matrices."""
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    answers = [_paper_steps(alone)] if size == 1 else run_ranks(_paper_steps, size, ranks_per_node=2)
    for answer in answers:
        for (name, hard), (values, gradients) in answer.items():
            expected_values, expected_gradients = _of_the_paper(scenarios()[name], hard)
            for loss, value in expected_values.items():
                assert values[loss] == pytest.approx(value, rel=0, abs=1e-10), (name, loss)
            assert gradients.keys() == expected_gradients.keys()
            for parameter, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=0, atol=1e-10)
            assert (values["loss/object_entity"] == 0) == (name == "nothing")


ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
RANKS_ALONE: dict[str, tuple[LossConfig, type[Student]]] = {
    **{
        f"{same_image}, hard: {hard}": (config.model_copy(update={"negatives": "rank"}), Student)
        for (same_image, hard), config in CONFIGS.items()
    },
    "classifiers": (
        LossConfig(same_image="negative", image_text_mean="all", negatives="rank"),
        ClassifyingStudent,
    ),
}


def _steps_of_ranks_alone(world: World) -> dict[tuple[str, str], Result]:
    return {
        (name, case): _step(world, inputs, config, kind)
        for name, inputs in scenarios().items()
        for case, (config, kind) in RANKS_ALONE.items()
    }


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_see_their_own_rows_alone_train_on_the_mean_of_their_losses(size: int) -> None:
    """Counts that are uneven over the ranks too, and ranks without a row that counts."""
    answers = run_ranks(_steps_of_ranks_alone, size, ranks_per_node=2)
    for (name, case), (values, gradients) in answers[0].items():
        config, kind = RANKS_ALONE[case]
        shards = [scenarios()[name].shard(rank, size) for rank in range(size)]
        gathered = config.model_copy(update={"negatives": "world"})
        parts = [_step(ALONE, shard, gathered, kind) for shard in shards]
        for loss in (metric for metric in values if metric.startswith("loss/")):
            mean = sum(part[loss] for part, _ in parts) / size
            assert values[loss] == pytest.approx(mean, rel=0, abs=1e-10), (name, case, loss)
        for parameter, gradient in gradients.items():
            mean_of_ranks = torch.stack([part[parameter] for _, part in parts]).mean(0)
            torch.testing.assert_close(gradient, mean_of_ranks, rtol=0, atol=1e-10)
        # metrics are the world's; each rank's images are ranked among its own captions
        accuracies = [part["contrastive_accuracy"] for part, _ in parts]
        assert min(accuracies) <= values["contrastive_accuracy"] <= max(accuracies)
        assert all(others[name, case][0] == values for others in answers)


def test_ranks_alone_report_the_worlds_metrics() -> None:
    expected, _ = _results(1)[0]["empty_ranks", "positive", False]
    values, _ = run_ranks(_steps_of_ranks_alone, 2)[1]["empty_ranks", "positive, hard: False"]
    for metric in ("object_label_entropy", "object_label_kept", "relation_label_kept", "matching_accuracy"):
        assert values[metric] == pytest.approx(expected[metric], rel=0, abs=1e-12), metric
    assert abs(values["loss/image_text"] - expected["loss/image_text"]) > 0.1


@pytest.mark.parametrize("case", list(RANKS_ALONE))
def test_a_rank_that_is_the_world_sees_the_same(case: str) -> None:
    config, kind = RANKS_ALONE[case]
    gathered = config.model_copy(update={"negatives": "world"})
    for inputs in scenarios().values():
        (values, gradients), (expected_values, expected) = (
            _step(ALONE, inputs, choice, kind) for choice in (config, gathered)
        )
        assert list(values.items()) == list(expected_values.items())
        assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def _unsound(world: World) -> bool:
    """Rank 1 alone has a feature that is not finite, where it counts nowhere."""
    shard = scenarios()["nothing"].shard(world.rank, world.size)
    features = Student()(shard)
    if world.rank == 1:
        objects = torch.full_like(shard.objects_GMX, torch.inf)
        features = replace(features, object_BMD=objects)
    found = _losses(world, features, shard.batch(), LossConfig(negatives="rank"))
    assert found.reported["loss/total"].isfinite()
    return bool(found.sound)


def test_what_one_rank_alone_sees_wrong_is_wrong_for_all() -> None:
    assert run_ranks(_unsound, 2) == [False, False]


def _nothing_at_all(world: World) -> Result:
    config = LossConfig(weights=LossWeights(matching=0))
    inputs = scenarios()["nothing"]
    # what an absent object's state may be after a division by an empty box
    broken = torch.full_like(inputs.objects_GMX, torch.nan)
    shard = replace(inputs, objects_GMX=broken).shard(world.rank, world.size)
    student = Student()
    features, batch = student(shard), shard.batch()
    objects = features.object_BMD
    assert objects is not None
    leaf = objects.detach().requires_grad_()
    features = replace(features, object_BMD=leaf)
    found = _losses(world, features, batch, config)
    found.local.backward()
    gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert leaf.grad is not None
    return {"total": found.reported["loss/total"].item()}, gradients | {"objects": leaf.grad}


def test_no_valid_row_in_the_world_is_exactly_zero() -> None:
    for values, gradients in run_ranks(_nothing_at_all, 2):
        assert values["total"] == 0
        assert all(gradient.count_nonzero() == 0 for gradient in gradients.values())


def _float32_at(world: World, temperature: float) -> Result:
    """The step in float32, at the clamp's end, where exponentials of logits do not even fit into float64."""
    inputs = scenarios()["falsified"]
    student = Student(temperature)
    features = student(inputs.shard(world.rank, world.size))
    narrow = {f.name: getattr(features, f.name) for f in fields(features)}
    floats = {n: v.float() for n, v in narrow.items() if v is not None and v.is_floating_point()}
    found = _losses(
        world, replace(features, **floats), inputs.shard(world.rank, world.size).batch(), LossConfig()
    )
    found.local.backward()
    gradients = {n: p.grad / world.size for n, p in student.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        if world.size > 1:
            dist.all_reduce(gradient)
    return {name: value.item() for name, value in found.reported.items()}, gradients


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.07])
def test_ranks_agree_at_every_temperature(temperature: float) -> None:
    expected_values, expected = _float32_at(World(0, 1, 0, torch.device("cpu")), temperature)
    assert all(value == value for value in expected_values.values())
    for values, gradients in run_ranks(_float32_at, 2, temperature):
        for name in values.keys() - LOCAL_METRICS:
            assert values[name] == pytest.approx(expected_values[name], rel=1e-5), name
        for name, gradient in gradients.items():
            assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def _several_sets(world: World, dtype: torch.dtype | None) -> tuple[list[float], list[Tensor]]:
    """Two sets of odd width and a teacher; means, and the averaged gradients of this rank's rows."""
    generator = torch.Generator().manual_seed(0)
    whole = [F.normalize(torch.randn(12, 7, generator=generator), dim=-1) for _ in range(5)]
    if dtype is None:
        whole = [rows.double() for rows in whole]
    own = slice(12 // world.size * world.rank, 12 // world.size * (world.rank + 1))
    image, text, other, u, v = (rows[own].clone() for rows in whole)
    leaves = [image.requires_grad_(), text.requires_grad_(), other.requires_grad_()]
    exchange = WorldExchange(world)
    ids = torch.tensor([0, 1, 2, 2, 4, 5, 6, 7, 8, 9, 9, 11])[own]
    columns = Columns(exchange, torch.stack([ids, ids % 9], dim=1), dtype=dtype)
    columns.send(text, other, constant=[v])
    temperatures = [torch.tensor([t]).to(image.dtype).requires_grad_() for t in (0.1, 0.2)]
    pairs = [
        IdPair(
            image,
            columns=columns,
            temperature=temperatures[0],
            teacher=Teacher(u, position=2, temperature=0.1, share=0.4),
        ),
        IdPair(image, columns=columns, position=1, temperature=temperatures[1], same_image="mask"),
    ]
    means, _ = contrast(pairs, exchange=exchange, riders=torch.zeros(0))
    gradients = torch.autograd.grad(means[0] + 2 * means[1], [*leaves, *temperatures])
    result = [gradient / world.size for gradient in gradients]
    for gradient in result[3:]:
        if world.size > 1:
            dist.all_reduce(gradient)
    return [mean.item() for mean in means], result


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-12), (torch.bfloat16, 2e-2)])
def test_several_sets_and_a_teacher_at_any_number_of_ranks(
    dtype: torch.dtype | None, tolerance: float
) -> None:
    """In bf16 against float64 in a world of one: what is rounded on the way is rounded no further."""
    expected_means, expected = _several_sets(World(0, 1, 0, torch.device("cpu")), None)
    for size in (2, 4):
        answers = run_ranks(_several_sets, size, dtype)
        for means, _ in answers:
            assert means == pytest.approx(expected_means, rel=tolerance)
        for position, truth in enumerate(expected):
            parts = [gradients[position] for _, gradients in answers]
            found = torch.cat(parts) if position < 3 else parts[0]
            assert (found - truth).norm() < tolerance * truth.norm(), position


def _bare_exchanges(world: World, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    exchange = WorldExchange(world)
    rows = torch.arange(6, dtype=dtype).reshape(3, 2).T + 10 * world.rank  # not contiguous
    gathered = exchange.gather(rows)()
    back = exchange.scatter_sum(torch.arange(24).to(dtype).reshape(3, 8).T * (world.rank + 1))()
    kept = torch.full((3,), world.rank + 1.0, dtype=torch.float64)
    total = exchange.sum(kept)
    assert kept[0] == world.rank + 1
    return gathered, back, total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8])
def test_exchanges_go_by_global_rank(dtype: torch.dtype) -> None:
    block = torch.tensor([[0, 2, 4], [1, 3, 5]])
    expected = torch.cat([block + 10 * rank for rank in range(4)]).to(dtype)
    summed = (torch.arange(24).reshape(3, 8).T * (1 + 2 + 3 + 4)).to(dtype)
    for rank, (gathered, back, total) in enumerate(run_ranks(_bare_exchanges, 4, dtype, ranks_per_node=2)):
        assert torch.equal(gathered, expected)
        assert torch.equal(back.to(dtype), summed[2 * rank : 2 * rank + 2])
        assert total.tolist() == [10, 10, 10]


def _collectives(world: World, config: LossConfig) -> list[str]:
    """Names of all the collectives of one step."""
    called: list[str] = []
    names = [
        name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast", "scatter", "gather"))
    ]

    def counted(name: str) -> None:
        original = getattr(dist, name)

        def call(*args: object, **kwargs: object) -> object:
            called.append(name)
            return original(*args, **kwargs)

        setattr(dist, name, call)

    for name in names:
        counted(name)
    shard = scenarios()["plain"].shard(world.rank, world.size)
    _losses(world, Student()(shard), shard.batch(), config).local.backward()
    return called


def test_one_step_exchanges_three_times() -> None:
    # gloo's reduce-scatter: see WorldExchange
    expected = ["all_gather_into_tensor", "all_reduce", "all_to_all_single"]
    assert run_ranks(_collectives, 2, LossConfig()) == [expected] * 2


def test_ranks_alone_exchange_what_is_reported() -> None:
    assert run_ranks(_collectives, 2, LossConfig(negatives="rank")) == [["all_reduce"]] * 2
