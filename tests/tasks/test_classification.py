"""Pooling, and classification with timm's heads."""

from dataclasses import replace

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from tiny import IMG, PREFIXES, RELAXED, SIZES, images, merged, tiny_vit

from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.load import load_weights
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.policies import POLICIES
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.model import TASKS, MultiTaskModel
from pipeline.objectives import OBJECTIVES
from pipeline.token_state import TokenState
from tasks.classification import ClassificationTask
from tasks.shared.pooling import pool


def classifier(variant="dtem", prefix="class token", reduction=8, **head):
    backbone = tiny_vit(variant, prefix=prefix, reduction=reduction)
    task = TASKS.build("classification", backbone, **{"num_classes": 10} | head)
    return MultiTaskModel(backbone, {"animals": task}, OBJECTIVES.build("supervised"))


def batch(size=8, labels=None):
    return Batch(
        "animals", images(size), ClassificationTargets(torch.arange(size) % 10 if labels is None else labels)
    )


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.0, 0.0), (0.1, 0.2)])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_is_timms(smoothing, threshold, mixed):
    """timm smooths the labels of a mixed batch where it mixes."""
    labels = torch.tensor([1, 4, 0, 9])
    logits = torch.randn(4, 10)
    theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    target = mixup_target(labels, 10, lam=0.3, smoothing=smoothing) if mixed else labels
    plain = mixup_target(labels, 10, lam=0.3) if mixed else labels
    task = classifier(
        label_smoothing=smoothing, loss="binary_cross_entropy", target_threshold=threshold
    ).tasks["animals"]
    torch.testing.assert_close(task._loss(logits, plain), theirs(logits, target))


def test_a_loss_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="loss is 'bce'.*one of cross_entropy, binary_cross_entropy"):
        classifier(loss="bce")
    with pytest.raises(ConfigError, match="target_threshold 0.1"):
        classifier(target_threshold=0.1)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_unmerged_logits_are_those_of_timm(prefix):
    name, timm_options = PREFIXES[prefix]
    vit = create_vit(name, num_classes=10, img_size=IMG, timm_options=SIZES | timm_options).eval()
    model = classifier(prefix=prefix, reduction=0).eval()
    report = load_weights(model, vit.state_dict())
    assert not report.left and all(".metric." in key for key in report.missing)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(batch()).predictions, vit(images(8)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(global_pool="avg", norm_layer="rmsnorm"),
        dict(global_pool="avg", norm_layer="layernorm"),
        dict(global_pool="avg", final_norm=False),
        dict(final_norm=False),
        dict(fc_norm=True),
    ],
    ids=str,
)
def test_the_norm_of_the_head_is_timms(options):
    """Of its kind, with its epsilon (tokens this small show it), and none where timm has none."""
    vit = create_vit(
        "vit_tiny_patch16_224", num_classes=10, img_size=IMG, timm_options=SIZES | options
    ).eval()
    for block in vit.blocks:
        torch.nn.init.zeros_(block.mlp.fc2.weight)
    torch.nn.init.normal_(vit.patch_embed.proj.weight, std=1e-4)
    torch.nn.init.normal_(vit.head.weight)
    backbone = tiny_vit("none", reduction=0, timm_options=options)
    model = MultiTaskModel(
        backbone, {"animals": ClassificationTask(backbone, num_classes=10)}, OBJECTIVES.build("supervised")
    ).eval()
    report = load_weights(model, vit.state_dict())
    assert not report.left and not report.missing
    with torch.no_grad():
        torch.testing.assert_close(model.predict(batch()).predictions, vit(images(8)), atol=1e-5, rtol=1e-4)


def test_average_pooling_counts_a_token_by_its_size():
    tokens = torch.tensor([[[9.0], [1.0], [4.0]]])
    state = TokenState(tokens, torch.tensor([[1.0, 3.0, 1.0]]), (2, 2), 1, 3)
    assert pool(state, "avg").tolist() == [[(3 * 1 + 4) / 4]] and pool(state, "token").tolist() == [[9.0]]


@pytest.mark.parametrize("policy", [name for name in POLICIES.names() if POLICIES.build(name).conserves])
def test_a_merge_does_not_change_the_average(policy):
    tokens = torch.randn(2, 17, 5)
    state = TokenState.start(tokens, (4, 4), 1)
    after = merged(POLICIES.build(policy), state, tokens, 6)
    torch.testing.assert_close(pool(after, "avg"), tokens[:, 1:].mean(1))


@pytest.mark.parametrize("prefix", [prefix for prefix in PREFIXES if "attention pooling" in prefix])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling_by_attention_reads_merged_tokens_as_all_their_patches(prefix, dtype):
    model = classifier("tome", prefix=prefix).eval().to(dtype)
    task = model.tasks["animals"]
    with torch.no_grad():
        state = model.backbone(images(2).to(dtype)).final
        merged_pool, every = task._pooled(state), unmerge_tokens(state.tokens, state.merges)
        first = 0 if task.pools_prefix else state.num_prefix
        torch.testing.assert_close(merged_pool, task.attn_pool(every[:, first:]), atol=1e-6, rtol=1e-6)
        once = task.attn_pool(state.tokens[:, first:])
    assert task.pools_prefix == prefix.startswith("pe") and not torch.allclose(once, merged_pool, atol=1e-4)


def test_pooling_that_cannot_be_is_refused():
    state = TokenState.start(torch.randn(2, 16, 5), (4, 4), 0)
    with pytest.raises(ConfigError, match="use pool='avg'"):
        pool(state, "token")
    with pytest.raises(ConfigError, match="'max'"):
        pool(state, "max")


UNLIKE_IN_TRAINING = ["none", "tome", "tofu", "tofu_late", "evit_fused", "gtp", *RELAXED]
"""Variants of which each moves tokens in another way: means, parts, norms, weights, sums, shares."""


@pytest.mark.parametrize("variant", UNLIKE_IN_TRAINING)
def test_eight_samples_can_be_learned_by_heart(variant):
    model, samples = classifier(variant), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(40):
        output = model(samples)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.2
    assert output.logs["loss"][1] == 8 and not output.logs["loss"][0].requires_grad


@pytest.mark.parametrize("variant", ["none", "tome", "dtem"])
def test_evaluation_counts_samples_so_that_batches_add(variant):
    """In float64: what merges, and which class is first, may change with another batch's rounding."""
    model, samples = classifier(variant).double().eval(), batch(8)
    samples = replace(samples, images=samples.images.double())
    whole = model.evaluate(samples)
    halves = [
        model.evaluate(
            Batch("animals", samples.images[part], ClassificationTargets(samples.targets.labels[part]))
        )
        for part in (slice(0, 3), slice(3, 8))
    ]
    for name in ("top1", "top5", "loss"):
        torch.testing.assert_close(halves[0][name] + halves[1][name], whole[name], atol=1e-4, rtol=1e-5)
    scores = model.scores("animals", whole | {"samples": torch.tensor(8)})
    assert scores["top1"] == whole["top1"] / 8 <= scores["top5"] and scores["loss"] == pytest.approx(
        model.predict(samples).loss.item()
    )


def test_top1_and_top5_by_hand():
    task = ClassificationTask(tiny_vit("none"), num_classes=10)
    logits = torch.zeros(3, 10)
    logits[:, :6] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    task.logits = lambda output: logits
    tallies = task.evaluate(lambda images: None, batch(3, labels=torch.tensor([0, 4, 5])))
    assert tallies["top1"] == 1 and tallies["top5"] == 2


def test_a_model_in_training_mode_is_evaluated_under_the_merge_of_inference():
    model, samples = classifier("dtem_soft"), batch()
    torch.testing.assert_close(model.train().evaluate(samples), model.eval().evaluate(samples))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_cross_entropy_with_soft_targets(smoothing):
    model = classifier("none", label_smoothing=smoothing).eval()
    soft = torch.softmax(torch.randn(8, 10), dim=1)
    output = model(batch(labels=soft))
    wanted = soft * (1 - smoothing) + smoothing / 10
    expected = -(wanted * torch.log_softmax(output.predictions, dim=1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected)
    one_hot = torch.nn.functional.one_hot(torch.arange(8), 10).float()
    torch.testing.assert_close(model(batch(labels=one_hot)).loss, model(batch()).loss)


def test_logits_are_float32_under_autocast():
    model = classifier("dtem").train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch())
    assert output.predictions.dtype == output.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("pooling", "head"),
    [("avg", {"pool": "map"}), ("max", {}), ("", {}), ("token", {"pool": "mean"})],
    ids=str,
)
def test_a_head_that_cannot_pool_is_refused_when_it_is_built(pooling, head):
    """With head.pool there is a classifier of it."""
    backbone = tiny_vit("none", timm_options=dict(global_pool=pooling))
    with pytest.raises(ConfigError, match="pooling is|pooling 'map' needs"):
        TASKS.build("classification", backbone, num_classes=10, **head)
    TASKS.build("classification", backbone, num_classes=10, pool="avg")


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 0},
        {"num_classes": 10**12},
        {"num_classes": "ten"},
        {"label_smoothing": 1.5},
        {"dropout": -1.0},
    ],
    ids=str,
)
def test_a_head_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        TASKS.build("classification", tiny_vit("none"), **({"num_classes": 10} | options))


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_multiply_the_losses_of_classes_and_halves_add(loss, mixed):
    """torch's own mean divides by the weights of a batch, so that halves would not add."""
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    task = classifier("none", loss=loss, class_weight=weights.tolist(), label_smoothing=0.1).tasks["animals"]
    logits, labels = torch.randn(6, 10), torch.arange(6) % 4
    given = mixup_target(labels, 10, lam=0.3) if mixed else labels
    soft = given if mixed else torch.nn.functional.one_hot(labels, 10).float()
    soft = soft * 0.9 + 0.01
    own = -soft * logits.log_softmax(1)
    if loss == "binary_cross_entropy":
        own = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft, reduction="none") / 10
    torch.testing.assert_close(task._loss(logits, given), (own * weights).sum(1).mean())
    halves = [task._loss(logits[part], given[part]) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, task._loss(logits, given))
    assert not any("class_weight" in name for name in task.state_dict())
