"""Consistency of two reductions: what its loss is, whom it teaches, and what it is refused."""

import pytest
import torch
from tiny import images, tiny_vit
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets, MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.consistency import distance, share_of
from tasks.classification import ClassificationTask

CLASSES = 4


def model(reduction=8, policy="mctf", pool=None, **options):
    """In float64, as merges are a chain of choices; with a head that is sure of some images."""
    backbone = tiny_vit(policy, reduction=reduction)
    task = ClassificationTask(backbone, num_classes=CLASSES, pool=pool)
    torch.nn.init.normal_(task.head.weight, std=0.5)
    return MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("consistency", **options)).double()


def batch(size=8, labels=None):
    labels = torch.arange(size) % CLASSES if labels is None else labels
    return Batch("animals", images(size).double(), ClassificationTargets(labels))


def value(output, name):
    total, count = output.logs[name]
    return float(total) / float(count)


@pytest.mark.parametrize("draw", [0.0, 0.7])
def test_a_model_that_merges_nothing_agrees_with_itself(draw):
    trained = model(reduction=0)
    output = trained(batch(), StepSpec(draw=draw))
    assert value(output, "consistency") == 0
    torch.testing.assert_close(output.loss, 2 * trained.predict(batch()).loss, check_dtype=False)


@pytest.mark.parametrize("policy", ["mctf", "tome"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(policy, pool):
    """The student's features are drawn to those of the teacher, held fixed, of images that it is sure of."""
    trained, spec = model(policy=policy, pool=pool, weight=2.0, confidence=0.3), StepSpec(draw=0.6)
    trained.train()
    head, x = trained.tasks["animals"], batch()
    student, teacher = (trained.encode("animals", x.images, reduction=r) for r in ([8, 8, 8], [2, 2, 3]))
    own, fixed = head(student, x), head(teacher, x)
    features, wanted = ((pooled(state, pool)) for state in (student.final, teacher.final))
    probability = own.predictions.softmax(dim=-1)[torch.arange(8), x.targets.labels]
    sure = probability > 0.3
    assert 0 < sure.sum() < 8, "some count and others do not"
    gap = (features - wanted.detach())[sure].square().mean()
    parameters = list(trained.parameters())
    output = trained(x, spec)
    torch.testing.assert_close(output.loss, own.loss + fixed.loss + 2 * gap)
    expected = torch.autograd.grad(own.loss + fixed.loss + 2 * gap, parameters)
    torch.testing.assert_close(torch.autograd.grad(output.loss, parameters), expected, atol=1e-9, rtol=1e-6)
    assert value(output, "sure") == sure.double().mean() and value(output, "consistency") == pytest.approx(
        gap.item()
    )
    assert value(output, "teacher_loss") == pytest.approx(fixed.loss.item())
    assert value(output, "loss") == pytest.approx(own.loss.item())


def pooled(state, kind):
    if kind == "token":
        return state.tokens[:, 0]
    return (state.patch_tokens * state.patch_size[..., None]).sum(1) / state.patch_size.sum(1, keepdim=True)


def test_no_gradient_of_the_distance_reaches_the_teacher():
    features, wanted = torch.randn(2, 3, 5, requires_grad=True).unbind()
    everything = torch.ones(3, dtype=torch.bool)
    gap = distance(features, wanted.detach(), everything)
    assert torch.autograd.grad(gap, wanted, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(gap, features)[0].abs().max() > 0


def test_only_images_that_count_have_a_distance():
    features, wanted = torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.zeros(2, 2)
    assert distance(features, wanted, torch.tensor([True, False])) == 5
    assert distance(features, wanted, torch.tensor([True, True])) == 15
    features.requires_grad_()
    none = distance(features, wanted, torch.tensor([False, False]))
    assert none == 0 and torch.autograd.grad(none, features)[0].abs().max() == 0


def test_of_a_mixed_image_all_labels_count():
    task = model().tasks["animals"]
    logits = torch.tensor([[0.6, 0.3, 0.1, 0.0]]).clamp(min=1e-9).log()
    for labels, expected in (
        (torch.tensor([1]), 0.3),
        (torch.tensor([[0.7, 0.0, 0.3, 0.0]]), 0.7),
        (torch.tensor([[0.0, 1.0, 0.0, 0.0]]), 0.3),
    ):
        given = Batch("animals", images(1), ClassificationTargets(labels))
        found = task.label_probability(TaskOutput(torch.zeros(()), predictions=logits), given)
        torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_the_teacher_merges_a_drawn_share_of_what_the_student_merges():
    """With the authors' numbers, r = 16 and less than 8: each whole r of the teacher."""
    for r in range(8):
        assert share_of([16] * 12, 0.5 * r / 8) == [r] * 12
    for schedule in ([2] * 12, [16, 0, 9, 1], [0, 0], [7, 3, 1, 30]):
        for share in (0.0, 0.1, 0.49, 0.5, 0.99, 1.0):
            found = share_of(schedule, share)
            assert all(0 <= less <= r for less, r in zip(found, schedule, strict=True))
            assert sum(found) == int(share * sum(schedule))
    assert share_of([7, 3, 1, 30], 1.0) == [7, 3, 1, 30]


def test_the_draw_of_a_step_is_the_teachers_reduction(monkeypatch):
    """And the step's reduction the student's, where it has one."""
    trained, asked = model(teacher=1.0), []
    encode = trained.encode

    def watched(*args, **options):
        asked.append(options["reduction"])
        return encode(*args, **options)

    monkeypatch.setattr(trained, "encode", watched)
    trained(batch(2), StepSpec(reduction=4, draw=0.5))
    trained(batch(2), StepSpec(draw=0.25))
    assert asked == [[4, 4, 4], [2, 2, 2], [8, 8, 8], [2, 2, 2]]


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 0},
        {"weight": float("inf")},
        {"confidence": 1},
        {"confidence": -0.1},
        {"teacher": 0},
        {"teacher": 1.5},
        {"wieght": 1},
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError):
        OBJECTIVES.build("consistency", **options)


def test_tasks_without_a_class_are_refused_before_a_model_is_loaded(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run", objective=dict(type="consistency"))
    with pytest.raises(ConfigError, match="objective 'consistency' reads the class of an image") as caught:
        build_model(from_plain(plain))
    told = str(caught.value)
    assert "tasks.captions: " in told and "tasks.masks: " in told and "tasks.digits" not in told


def test_images_of_several_classes_are_refused_by_a_step():
    backbone = tiny_vit("mctf")
    task = TASKS.build("multi_label", backbone, num_classes=CLASSES)
    trained = MultiTaskModel(backbone, {"tags": task}, OBJECTIVES.build("consistency"))
    with pytest.raises(ConfigError, match="tasks.tags: objective 'consistency'.* MultiLabelTask has none"):
        trained(Batch("tags", images(2), MultiLabelTargets(torch.zeros(2, CLASSES))))
