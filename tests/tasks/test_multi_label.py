"""Images with any number of classes: losses are timm's, metrics are scikit-learn's, and parts add up to the
whole."""

import warnings

import pytest
import torch
from ranks import ONE_RANK
from sklearn.metrics import average_precision_score, f1_score
from timm.data.mixup import Mixup
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy
from tiny import images, tiny_vit

from pipeline.data.targets import MultiLabelTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.model import TASKS
from pipeline.rng import seed_generators
from pipeline.train.metrics import TallySums
from tasks.multi_label import MultiLabelTask
from tasks.shared.average_precision import average_precision

K = 7


def task(**head) -> MultiLabelTask:
    made = TASKS.build("multi_label", tiny_vit("none"), **{"num_classes": K} | head)
    assert isinstance(made, MultiLabelTask)
    return made


def decisions(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with ties, and labels: class 0 on no image, class 1 on all, class 2 never predicted."""
    draws = torch.Generator().manual_seed(5)
    labels = (torch.rand(count, K, generator=draws) < 0.3).float()
    logits = (torch.randn(count, K, generator=draws) + labels).mul(4).round().div(4)
    labels[:, 0], labels[:, 1], logits[:, 2] = 0, 1, logits[:, 2].clamp(max=-0.25)
    return logits, labels


def scored(made: MultiLabelTask, *parts: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float | None]:
    sums, number = TallySums(), 0
    for logits, labels in parts:
        batch = Batch("t", images(1), MultiLabelTargets(labels))
        sums.add(made.tally(logits, batch) | {"samples": torch.tensor(len(labels))})
        number += len(labels)
    return made.scores(sums.reduce(ONE_RANK))


def test_metrics_are_those_of_scikit_learn():
    logits, labels = decisions()
    found, truth, said = scored(task(), (logits, labels)), labels.numpy(), (logits >= 0).numpy()
    with warnings.catch_warnings(action="ignore"):
        precision = average_precision_score(truth, logits.sigmoid().numpy(), average=None)
        f1 = f1_score(truth, said, average=None, zero_division=0)
    assert found["AP/0"] is None and found["F1/0"] == 0, "no image has class 0, and some are said to"
    for k in range(1, K):
        assert found[f"AP/{k}"] == pytest.approx(precision[k], abs=1e-9)
        assert found[f"F1/{k}"] == pytest.approx(f1[k], abs=1e-9)
    assert found["mAP"] == pytest.approx(precision[1:].mean(), abs=1e-9)
    assert found["F1_macro"] == pytest.approx(f1.mean(), abs=1e-9)
    assert found["F1_micro"] == pytest.approx(f1_score(truth, said, average="micro"), abs=1e-9)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert found["loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_class_that_is_neither_there_nor_predicted_does_not_count():
    logits, labels = torch.full((4, K), -1.0), torch.zeros(4, K)
    labels[0, 3] = 1
    found = scored(task(), (logits, labels))
    assert found["F1/2"] is None and found["F1/3"] == found["F1_macro"] == 0
    assert found["AP/3"] == 0.25, "of four equal scores, whatever their order"


def test_parts_in_any_order_have_the_scores_of_the_whole():
    """As ranks have them: the average precision is no mean over batches."""
    logits, labels = decisions()
    whole, order = scored(task(), (logits, labels)), torch.randperm(60)
    parts = [(logits[order[i : i + 13]], labels[order[i : i + 13]]) for i in range(0, 60, 13)]
    for name, value in scored(task(), *parts).items():
        assert value == pytest.approx(whole[name], abs=1e-6)


def test_the_threshold_says_what_is_predicted():
    logits = torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0, -9.0, 9.0]])
    assert task().predicted(logits).tolist() == [[False, False, True, True, True, False, True]]
    assert task(threshold=0.9).predicted(logits).tolist() == [[False] * 4 + [True, False, True]]


def test_the_asymmetric_loss_is_timms():
    logits, labels = decisions(8)
    for options in ({}, {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0}):
        made = task(loss="asymmetric", loss_options=options, label_smoothing=0.1)
        theirs = AsymmetricLossMultiLabel(**options, smoothing=0.1)
        torch.testing.assert_close(made._loss(logits, labels), theirs(logits, labels))
    both = task(loss="asymmetric")
    halves = [both._loss(logits[part], labels[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, both._loss(logits, labels))


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "asymmetric"])
def test_mixed_labels_are_those_of_timms_code(loss):
    """timm smooths where it mixes, here the loss does."""
    logits, labels = decisions(6)
    seed_generators(3)
    _, plain = Mixup(0.8, label_smoothing=0.0, num_classes=K, multi_label=True)(images(6), labels)
    seed_generators(3)
    _, smoothed = Mixup(0.8, label_smoothing=0.1, num_classes=K, multi_label=True)(images(6), labels)
    theirs = AsymmetricLossMultiLabel() if loss == "asymmetric" else BinaryCrossEntropy(smoothing=0.0)
    ours = task(loss=loss, label_smoothing=0.1)._loss(logits, plain)
    torch.testing.assert_close(ours, theirs(logits, smoothed))


def test_class_weights_multiply_the_losses_of_classes():
    logits, labels = decisions(6)
    weights = [0.0, 1.0, 2.0, 1.0, 0.5, 3.0, 1.0]
    for loss in ("binary_cross_entropy", "asymmetric"):
        whole = task(loss=loss, class_weight=weights)._loss(logits, labels)
        each = []
        for k in range(K):
            alone = [0.0] * K
            alone[k] = 1.0
            each.append(weights[k] * task(loss=loss, class_weight=alone)._loss(logits, labels))
        torch.testing.assert_close(whole, torch.stack(each).sum())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (dict(loss="cross_entropy"), "loss is 'cross_entropy'; give one of binary_cross_entropy, asymmetric"),
        (dict(threshold=1.0), "threshold is 1.0; give a probability"),
        (dict(loss_options=dict(clip=0.1)), "has no loss_options"),
        (dict(loss="asymmetric", loss_options=dict(gama_neg=2)), "has no 'gama_neg'; it has gamma_neg"),
        (dict(loss="asymmetric", loss_options=dict(clip=1.5)), "clip below 1"),
        (dict(class_weight=[1.0]), "class_weight has 1 numbers and num_classes is 7"),
        (dict(class_weight=[0.0] * K), "not all 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(head, message):
    with pytest.raises(ConfigError, match=message):
        task(**head)


def test_the_average_precision_of_no_positive_is_none():
    assert average_precision(torch.rand(4), torch.zeros(4, dtype=torch.bool)) is None
    assert average_precision(torch.tensor([0.1, 0.9]), torch.tensor([False, True])) == 1
