"""What every task promises, whatever its head. A task that is registered joins by an example below."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from asks_nothing import AsksNothing, never_waits
from names import owner_of
from objectives_for import objectives_for
from ranks import ONE_RANK
from segheads import CLASSES, HEADS
from standin import standin_config
from tiny import IMG, MASKED, RELAXED, WAYS, clips, images, tiny_video_vit, tiny_vit
from tinycoca import SPEC, TOKENIZER, captions

from pipeline.backbone.metric import EmbeddingSpec
from pipeline.balancing import BALANCING
from pipeline.data.targets import ClassificationTargets, ClipTargets, MaskTargets, MultiLabelTargets
from pipeline.engine.optimizer import mark_nonfinite
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec
from pipeline.model import TASKS, MultiTaskModel
from pipeline.modes import set_modes
from pipeline.objectives import OBJECTIVES
from pipeline.objectives.distill import divergence
from pipeline.objectives.merge_cost import drawn_log_likelihood
from pipeline.parts import TRAINED, set_trainable
from pipeline.train.metrics import MetricSums, TallySums
from pipeline.train.steps import build_procedure

EXAMPLES = {
    "captioning": ({"model": SPEC, "tokenizer": TOKENIZER}, captions),
    "classification": ({"num_classes": CLASSES}, lambda n: ClassificationTargets(torch.arange(n) % CLASSES)),
    "multi_label": ({"num_classes": CLASSES}, lambda n: MultiLabelTargets(subsets(n))),
    "segmentation": ({"num_classes": CLASSES} | HEADS["segmenter"], lambda n: MaskTargets(stripes(n))),
    "video_classification": ({"num_classes": CLASSES}, lambda n: ClipTargets(torch.arange(n) % CLASSES)),
}
"""Task -> a small head, and targets of n images."""
TASK = pytest.mark.parametrize("name", TASKS.names())
PAIRS = [(name, objective) for name in TASKS.names() for objective in objectives_for(TASKS.get(name))]
"""Each task and each objective that computes its loss."""
SERVED = pytest.mark.parametrize("name, objective", PAIRS)


def subsets(num: int) -> torch.Tensor:
    """Each image has the classes that its number has bits of, counted from 1."""
    return torch.tensor([[float((i + 1) >> k & 1) for k in range(CLASSES)] for i in range(num)])


def stripes(num: int) -> torch.Tensor:
    """Each image in broad stripes, in an order of its own, with a rim that is ignored."""
    columns = torch.arange(IMG) * CLASSES // IMG
    mask = (
        torch.stack([(columns + i) % CLASSES for i in range(num)])[:, None].repeat(1, IMG, 1).to(torch.uint8)
    )
    mask[:, :4] = 255
    return mask


def of_one_backbone(name):
    """The tasks that read what this one reads: images, or clips."""
    return [other for other in TASKS.names() if TASKS.get(other).reads_clips == TASKS.get(name).reads_clips]


def model(*names, variant="dtem", objective="supervised", balancing="fixed", embedding="shared", **options):
    options |= dict(embedding=EmbeddingSpec(embedding, names))
    if TASKS.get(names[0]).reads_clips:
        policy, own = WAYS[variant]
        backbone = tiny_video_vit(policy, **own, **options)
    else:
        backbone = tiny_vit(variant, **options)
    tasks = {name: TASKS.build(name, backbone, **EXAMPLES[name][0]) for name in names}
    balance = BALANCING.build(balancing, dict.fromkeys(names, 1.0))
    return MultiTaskModel(backbone, tasks, OBJECTIVES.build(objective), balancing=balance)


def batch(name, size=8):
    seen = clips(size) if TASKS.get(name).reads_clips else images(size)
    return Batch(name, seen, EXAMPLES[name][1](size), tuple(str(i) for i in range(size)))


def joined(*parts):
    """Tallies of batches: counts added, rows behind one another, as evaluation does."""
    sums = TallySums()
    for part in parts:
        sums.add(part)
    return sums.reduce(ONE_RANK)


def agree(tallies, expected):
    assert tallies.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(tallies[name], value, atol=1e-4, rtol=1e-5)
        else:
            assert tallies[name] == value


def test_every_task_has_an_example():
    assert sorted(EXAMPLES) == TASKS.names(), "give the new task an example, so that the laws run on it"


@TASK
@pytest.mark.parametrize("variant", ["none", "tome", "dtem"])
def test_eight_samples_can_be_learned(name, variant):
    trained, samples = model(name, variant=variant).train(), batch(name)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        output = trained(samples)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
    unreached = [key for key, parameter in trained.tasks.named_parameters() if parameter.grad is None]
    assert not unreached, f"no gradient reaches {unreached}"


@TASK
def test_logs_are_detached_sums_over_samples_and_have_the_loss(name):
    output = model(name).train()(batch(name))
    total, count = output.logs["loss"]
    assert count == 8 and not any(total.requires_grad for total, _ in output.logs.values())
    torch.testing.assert_close(total / count, output.loss.detach())


@TASK
def test_the_size_of_the_first_input_is_known_without_inference(name):
    made, samples, sizes = model(name).eval(), batch(name, 2), []
    encode = made.encoder(name)

    def noted(images):
        sizes.append(tuple(images.shape[-2:]))
        return encode(images)

    made.tasks[name].infer(noted, samples)
    assert made.tasks[name].input_size(samples) == sizes[0]


@TASK
def test_losses_are_float32_under_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(name).train()(batch(name))
    assert output.loss.dtype == output.predictions.dtype == torch.float32 and output.loss.isfinite()


@TASK
def test_a_state_dict_is_all_that_a_task_is(name):
    one, other = model(name), model(name)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        other.load_state_dict(one.state_dict())
        first, second = (each.eval().predict(batch(name)).predictions for each in (one, other))
    assert torch.equal(first, second)


@TASK
def test_an_idle_head_gets_no_gradient(name):
    trained = model(*of_one_backbone(name)).train()
    trained(batch(name)).loss.backward()
    for key, parameter in trained.tasks.named_parameters():
        assert (parameter.grad is not None) == key.startswith(f"{name}."), key


@SERVED
def test_the_parts_of_a_loss_are_the_named_ones_and_add_up(name, objective):
    """In each kind of step."""
    trained = model(name, objective=objective).train()
    for mode in ("modular", "backbone"):
        spec = replace(StepSpec(TRAINED[mode]), relaxed=mode == "modular")
        output = trained(batch(name, 4), spec)
        named = trained.objective.losses(trained.tasks[name], spec.trains)
        assert list(output.parts) == [part for part in named if part in output.parts]
        assert set(named) - set(output.parts) <= {"budget"}, "without masks nothing is within a budget"
        torch.testing.assert_close(torch.stack(list(output.parts.values())).sum(), output.unweighed)


@SERVED
@pytest.mark.parametrize("embedding, balancing", [("per_task", "uncertainty"), ("adapter", "gradient_norm")])
def test_a_batch_reaches_what_its_task_owns_and_nothing_of_another(name, objective, embedding, balancing):
    """Head, embedding and what weighs its loss."""
    others = of_one_backbone(name)
    trained = model(*others, objective=objective, balancing=balancing, embedding=embedding).train()
    trained(batch(name, 4)).loss.backward()
    reached = {key for key, parameter in trained.named_parameters() if parameter.grad is not None}
    assert {owner_of(key) for key in reached} - {None} == {name}
    assert any(".metric." in key and owner_of(key) == name for key in reached)
    assert (f"balancing.log_variance.{name}" in reached) == (balancing == "uncertainty")


@TASK
@pytest.mark.parametrize("parts", [(3, 5), (8,), (1, 6, 1)])
def test_tallies_of_batches_add_to_those_of_all(name, parts):
    """In float64: which class is first may change with another batch's rounding."""
    evaluated, samples = model(name).double().eval(), batch(name)
    samples = replace(samples, images=samples.images.double())
    whole, pieces, start = joined(evaluated.evaluate(samples)), [], 0
    for size in parts:
        end = start + size
        target = {key: value[start:end] for key, value in vars(samples.targets).items() if value is not None}
        piece = Batch(
            name, samples.images[start:end], type(samples.targets)(**target), samples.keys[start:end]
        )
        pieces.append(evaluated.evaluate(piece))
        start = end
    agree(joined(*pieces), whole)
    totals = evaluated.scores(name, whole | {"samples": torch.tensor(8)})
    assert evaluated.tasks[name].main_metric in totals
    assert all(value is None or isinstance(value, float) for value in totals.values())


@TASK
def test_a_backbone_in_training_mode_is_evaluated_under_the_merge_of_inference(name):
    evaluated = model(name, variant="dtem_soft").eval()
    expected = joined(evaluated.evaluate(batch(name)))
    evaluated.backbone.train()
    agree(joined(evaluated.evaluate(batch(name))), expected)


def said(built, name, reduction=None):
    """The log-probabilities of a batch, of which captions do not count all."""
    return built.tasks[name].log_probs(built.predict(batch(name), reduction=reduction), batch(name))


def counted(log_probs):
    """[n, K]: the distributions that count."""
    values = log_probs.values
    return values.flatten(0, -2) if log_probs.counts is None else values[log_probs.counts]


@TASK
def test_log_probs_are_distributions_in_float32(name):
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = said(model(name).eval(), name)
    assert log_probs.values.dtype == torch.float32 and counted(log_probs).numel()
    assert log_probs.counts is None or log_probs.counts.shape == log_probs.values.shape[:-1]
    torch.testing.assert_close(log_probs.values.logsumexp(-1), torch.zeros(log_probs.values.shape[:-1]))


@TASK
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_divergence_is_the_mean_over_what_counts_and_nothing_from_itself(name, temperature):
    built = model(name).eval()
    with torch.no_grad():
        plain, merged = (said(built, name, reduction) for reduction in (0, 12))
    p, q = ((counted(each) / temperature).softmax(-1) for each in (plain, merged))
    expected = (p * (p / q).log()).sum(-1).mean() * temperature**2
    torch.testing.assert_close(divergence(merged, plain, temperature), expected, rtol=1e-3, atol=1e-7)
    assert divergence(plain, plain, temperature).abs() < 1e-7 < expected


@TASK
def test_a_drawn_likelihood_is_on_average_the_negative_entropy_of_what_counts(name):
    log_probs = said(model(name).eval(), name)
    with torch.no_grad():
        drawn = torch.stack([drawn_log_likelihood(log_probs) for _ in range(200)])
    expected = (counted(log_probs).exp() * counted(log_probs)).sum()
    assert (drawn.mean() - expected).abs() <= 4 * drawn.std() / 200**0.5 + 1e-3 * expected.abs()


@TASK
def test_a_drawn_likelihood_takes_one_outcome_of_each_distribution_that_counts(name):
    """Its gradient for the logits is then that outcome's place less the probabilities."""
    log_probs = said(model(name).eval(), name)
    logits = log_probs.values.detach().requires_grad_()
    [grad] = torch.autograd.grad(
        drawn_log_likelihood(replace(log_probs, values=logits.log_softmax(-1))), logits
    )
    chosen = grad + logits.detach().softmax(-1)
    counts = torch.ones(logits.shape[:-1]).bool() if log_probs.counts is None else log_probs.counts
    torch.testing.assert_close(chosen[counts].amax(-1), torch.ones(int(counts.sum())))
    torch.testing.assert_close(chosen[counts].sum(-1), torch.ones(int(counts.sum())), atol=1e-4, rtol=0)
    assert not grad[~counts].any()


@TASK
def test_what_does_not_count_changes_nothing(name):
    with torch.no_grad():
        plain, merged = (said(model(name).eval(), name, reduction) for reduction in (0, 12))
    counts = torch.rand(plain.values.shape[:-1]) < 0.5
    plain, merged = (replace(each, counts=counts) for each in (plain, merged))
    noisy = replace(merged, values=torch.where(counts[..., None], merged.values, torch.randn(()) - 5))
    assert torch.equal(divergence(noisy, plain), divergence(merged, plain))
    drawn = []
    for each in (merged, noisy):
        torch.manual_seed(3)
        drawn.append(drawn_log_likelihood(each))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", [name for name, (head, _) in EXAMPLES.items() if "num_classes" in head])
def test_more_classes_than_the_head_has_are_refused(name):
    task = model(name).tasks[name]
    task.check_classes(["x"] * CLASSES)
    with pytest.raises(ConfigError, match=f"num_classes={CLASSES + 1}"):
        task.check_classes(["x"] * (CLASSES + 1))


@SERVED
def test_a_pixel_that_is_not_a_number_makes_a_loss_that_is_none(name, objective):
    """By which all ranks skip the step: an error here would leave the other ranks waiting."""
    samples = batch(name)
    samples.images[3, 0, 0, 0] = torch.nan
    assert not model(name, objective=objective).train()(samples).loss.isfinite()


@SERVED
@pytest.mark.parametrize("balancing", BALANCING.names())
def test_a_micro_batch_asks_the_device_nothing(name, objective, balancing):
    trained, samples, sums = (
        model(name, objective=objective, balancing=balancing).train(),
        batch(name),
        MetricSums(only_finite=True),
    )
    with AsksNothing():
        output = trained(samples)
        mark_nonfinite(output.loss).backward()
        sums.add(output.logs)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@SERVED
@pytest.mark.parametrize("balancing", BALANCING.names())
def test_a_micro_batch_on_a_gpu_does_not_wait_for_it(name, objective, balancing):
    trained = model(name, objective=objective, balancing=balancing).train().cuda()
    samples, sums = batch(name).to("cuda"), MetricSums(only_finite=True)
    for context in (nullcontext, never_waits):  # the first pass chooses kernels and allocates
        with context():
            output = trained(samples)
            mark_nonfinite(output.loss).backward()
            sums.add(output.logs)


@SERVED
@pytest.mark.parametrize("variant", RELAXED)
def test_every_objective_trains_the_metric_embeddings_alone(name, variant, objective):
    """But the last, which reaches a class-token head through nothing."""
    trained = model(name, variant=variant, objective=objective)
    for key, parameter in trained.named_parameters():
        parameter.requires_grad_(".metric." in key)
    with torch.no_grad():
        for parameter in trained.tasks.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    output = trained.train()(batch(name, 4))
    output.loss.backward()
    assert output.loss.isfinite() and all(parameter.grad is None for parameter in trained.tasks.parameters())
    assert all(block.metric.weight.grad.abs().max() > 0 for block in trained.backbone.blocks[:-1])


def gradients(trained, samples, spec, checkpointing):
    """Of a micro-batch, by name, with or without recomputed blocks."""
    trained.backbone.grad_checkpointing = checkpointing
    trained.zero_grad()
    torch.manual_seed(5)  # of dropped paths and drawn outcomes
    trained(samples, spec).loss.backward()
    return {key: each.grad for key, each in trained.named_parameters() if each.grad is not None}


RECOMPUTED = sorted(
    {("classification", "dtem", objective, mode) for objective in OBJECTIVES.names() for mode in TRAINED}
    | {
        ("classification", variant, objective, "joint")
        for variant in RELAXED
        for objective in OBJECTIVES.names()
    }
    | {(name, "dtem", objective, "joint") for name, objective in PAIRS}
    | {("classification", variant, "budget", "joint") for variant in MASKED}
)
"""(task, variant, objective, mode)"""


@pytest.mark.parametrize("name, variant, objective, mode", RECOMPUTED)
def test_recomputed_blocks_have_the_same_gradients(name, variant, objective, mode):
    """In each kind of step of the mode."""
    trained = model(name, variant=variant, objective=objective, drop_path=0.2)
    set_trainable(trained, mode)
    procedure = build_procedure(standin_config(train={"mode": mode, "alternate_period": 2}))
    for spec in {procedure.spec(step) for step in range(2)}:
        set_modes(trained, spec.trains)
        samples, drawn = batch(name, 2), replace(spec, draw=0.5)
        whole, again = (gradients(trained, samples, drawn, checkpointing) for checkpointing in (False, True))
        assert any(grad.any() for grad in whole.values())
        torch.testing.assert_close(again, whole, atol=0, rtol=0)


@TASK
def test_predictions_without_a_loss_are_those_of_a_forward_pass(name):
    """Where they count: what a captioner says behind the end of a caption is nothing."""
    built, samples = model(name).double().eval(), batch(name)
    samples = replace(samples, images=samples.images.double())
    task = built.tasks[name]
    with torch.no_grad():
        output = built.encode(name, samples.images, reduction=12)
        found = replace(task(output, samples), predictions=task.predictions(output, samples))
        own, other = (task.log_probs(each, samples) for each in (found, task(output, samples)))
    torch.testing.assert_close(counted(own), counted(other))
