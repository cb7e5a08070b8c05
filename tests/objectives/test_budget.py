"""The budget: what it counts, which way it pushes thresholds, and what it notes of them."""

import pytest
import torch
from tiny import images, tiny_vit
from tinyrun import tiny_tasks_plain

from launch.saved.reductions import asked_reduction, measured_reduction, parse_reduction
from pipeline.backbone.auto_reduction import Auto
from pipeline.backbone.macs import count_macs
from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.budget import gmacs_of, tokens_left
from pipeline.plan.facts import ModelFacts
from pipeline.plan.resolve import resolve
from tasks.classification import ClassificationTask

CLASSES = 4
SCHEDULE = [20, 12, 8]


def model(threshold=None, policy="as_vit", pool=None, **options):
    backbone = tiny_vit(policy, reduction=SCHEDULE)
    task = ClassificationTask(backbone, num_classes=CLASSES, pool=pool)
    built = (
        MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("budget", **options)).double().train()
    )
    with torch.no_grad():
        for block in backbone.blocks if threshold is not None else ():
            block.metric.threshold.fill_(threshold)
    return built


def batch(size=6):
    return Batch("animals", images(size).double(), ClassificationTargets(torch.arange(size) % CLASSES))


def value(output, name):
    total, count = output.logs[name]
    return float(total) / float(count)


def thresholds(built):
    return [block.metric.threshold for block in built.backbone.blocks]


def gradients(built, **spec):
    return torch.autograd.grad(built(batch(), StepSpec(**spec)).loss, thresholds(built), allow_unused=True)


@pytest.mark.parametrize("reduction", [0, 8, [30, 0, 9]])
def test_the_macs_of_counts_are_those_of_the_blocks(reduction):
    backbone = tiny_vit("as_vit", reduction=reduction)
    count = count_macs(backbone)
    assert gmacs_of(backbone.blocks, 65, count.tokens) == pytest.approx(sum(count.blocks) / 1e9, rel=1e-12)
    several = [torch.tensor([float(tokens), 65.0]) for tokens in count.tokens]
    own, whole = gmacs_of(backbone.blocks, 65, several).tolist()
    full = gmacs_of(backbone.blocks, 65, [65] * 3)
    assert own == pytest.approx(sum(count.blocks) / 1e9) and whole == pytest.approx(full)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_thresholds_below_all_scores_cost_the_unmasked_model(pool):
    built = model(-1.0, pool=pool, ratio=0.5, distill=0.0)
    output, plain = built(batch()), built.predict(batch(), reduction=0)
    full = gmacs_of(built.backbone.blocks, 65, [65] * 3)
    assert value(output, "gmacs") == pytest.approx(full)
    torch.testing.assert_close(output.loss, plain.loss + 2.0 * 0.5 * full, check_dtype=False)
    assert [block.metric.kept.item() for block in built.backbone.blocks] == [1, 1, 1]


def test_what_counts_is_what_masks_leave():
    built = model(0.98, pool="avg")
    state = built.encode("animals", batch().images, relaxed=True).final
    counts = tokens_left(state, SCHEDULE)
    torch.testing.assert_close(counts[-1], state.size.sum(dim=1))
    assert (counts[0] >= counts[1]).all() and (counts[1] >= counts[2]).all() and (counts[2] < 65).all()
    output = built(batch())
    mean = gmacs_of(built.backbone.blocks, 65, counts).mean()
    assert value(output, "gmacs") == pytest.approx(mean.item())
    kept = [block.metric.kept.item() for block in built.backbone.blocks]
    assert kept == pytest.approx([(count.mean().item() - 1) / 64 for count in counts])


@pytest.mark.parametrize("how", ["copy", "soft", "residual"])
def test_counts_do_not_depend_on_how_a_head_unmerges(how):
    built = model(0.98)
    options = {"relaxed": True, "unmerge": how}
    state = built.encode("animals", batch().images, **options).final
    plain = built.encode("animals", batch().images, relaxed=True).final
    for own, other in zip(tokens_left(state, SCHEDULE), tokens_left(plain, SCHEDULE), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(("threshold", "ratio", "sign"), [(0.9, 0.1, -1), (1.0, 1.0, 1)])
def test_above_the_budget_a_step_raises_thresholds_and_below_it_lowers_them(threshold, ratio, sign):
    """The gradient of the budget alone: that of so large a weight less that of a small one. Acceptance check
    3."""
    options = {"ratio": ratio, "distill": 0.0, "pool": "avg"}
    (large, small) = (gradients(model(threshold, weight=weight, **options)) for weight in (1e6, 1e-6))
    for own, other in zip(large, small, strict=True):
        assert ((own - other) * sign > 0).all()


def test_the_loss_is_the_sum_of_its_parts():
    built = model(0.98, ratio=0.5, weight=3.0, distill=0.25)
    output = built(batch())
    own = built.predict(batch(), relaxed=True)
    full = gmacs_of(built.backbone.blocks, 65, [65] * 3)
    wanted = own.loss.item() + 3 * abs(value(output, "gmacs") - 0.5 * full) + 0.25 * value(output, "distill")
    assert output.loss.item() == pytest.approx(wanted) and value(output, "distill") > 0


def test_under_the_merge_of_inference_nothing_is_counted_or_noted():
    built = model(0.98)
    output = built(batch(), StepSpec(relaxed=False))
    assert "gmacs" not in output.logs and "distill" in output.logs
    assert all(block.metric.kept.item() == -1 for block in built.backbone.blocks)


def test_the_reduction_that_was_learned_is_asked_for_by_name():
    built = model(0.98)
    built(batch())
    left = [round(64 * block.metric.kept.item()) for block in built.backbone.blocks]
    assert asked_reduction("kept") == Auto(kept=True)
    found = measured_reduction(built, "animals", (64, 64), Auto(kept=True))
    assert found == [64 - left[0], left[0] - left[1], left[1] - left[2]] and sum(found) > 0
    with pytest.raises(ConfigError, match="'kept' is what a run's thresholds keep, which `dtem evaluate`"):
        parse_reduction("kept")
    with pytest.raises(ConfigError, match="a published model has none"):
        _ = Auto(kept=True).of_published


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.0}, {"ratio": 1.5}, {"weight": 0}, {"distill": -1}, {"temperature": 0}, {"budget": 1}],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError):
        OBJECTIVES.build("budget", **options)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"merging": {"policy": "dtem", "reduction": 2}},
            "policy 'dtem' has no thresholds to learn; give merging.policy='as_vit'",
        ),
        ({"train": {"steps": 4, "mode": "backbone"}}, "train.mode is 'backbone', give 'modular' or 'joint'"),
        ({"objective": {"type": "merge_cost"}}, "prices pairs by an embedding, and policy 'as_vit' has none"),
        (
            {"merging": {"policy": "as_vit", "reduction": 2, "embedding": "adapter"}},
            "merging.embedding is 'adapter'",
        ),
    ],
)
def test_what_does_not_go_together_is_told_before_a_model_is_built(digits, tmp_path, sections, said):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain |= {"objective": {"type": "budget"}, "merging": {"policy": "as_vit", "reduction": 2}}
    plain["train"] = {"steps": 4, "mode": "joint"}
    facts = ModelFacts(patch=(8, 8), depth=3, num_prefix=1, grid=(8, 8), class_token=True)
    with pytest.raises(ConfigError) as caught:
        resolve(from_plain(plain | sections), 1, facts)
    assert said in str(caught.value)
