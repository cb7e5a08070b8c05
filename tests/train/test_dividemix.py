"""DivideMix: its formulas against numbers, the split of samples, and whole runs of two networks."""

from dataclasses import replace

import pytest
import torch
from ranks import together

from launch.saved.run import build, read_run
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import CheckpointError, ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.ranks import Processes
from pipeline.train.continuing import check_samples
from pipeline.train.loop import train
from pipeline.train.setup import build_run
from pipeline.train.steps.dividemix import DivideMix, losses_of, mixed_loss, ramp, refined, sharpened
from pipeline.train.steps.sample_losses import UNKNOWN, SampleLosses, low_component
from pipeline.train.storage import read_checkpoint

CPU = torch.device("cpu")
SECTIONS = dict(
    backbone=dict(peers=2),
    data=dict(views=2, batch_size=20),
    step=dict(type="dividemix", options=dict(warmup_epochs=1, ramp_epochs=1.0)),
    train=dict(mode="joint", steps=10, save_every=3, log_every=5, keep_checkpoints=9),
)
"""Epochs of four steps: the samples are judged behind the steps 4 and 8."""


def test_sharpening_is_that_of_mixmatch():
    found = sharpened(torch.tensor([0.6, 0.3, 0.1]), 0.5)
    torch.testing.assert_close(found, torch.tensor([0.7826, 0.1957, 0.0217]), atol=1e-4, rtol=0)
    assert [ramp(epochs, 16) for epochs in (-3, 0, 8, 16, 40)] == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_mixture_tells_two_kinds_of_losses_apart(share):
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(4000, generator=draw) < share
    losses = torch.where(right, 0.2, 0.8) + 0.05 * torch.randn(4000, generator=draw)
    losses[:3] = UNKNOWN
    found = low_component(losses)
    assert (found[:3] == UNKNOWN).all()
    assert torch.equal(found[3:] > 0.5, right[3:])
    assert low_component(torch.full((5,), 2.0)).isfinite().all()


def test_a_label_that_is_believed_is_kept_and_another_is_what_both_networks_say():
    guesses = torch.tensor([[[[0.6, 0.3, 0.1], [0.4, 0.5, 0.1]]] * 2, [[[0.2, 0.2, 0.6]] * 2] * 2])
    labels = torch.tensor([2, 1])
    kept = refined(labels, guesses, torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), 0.5)
    assert torch.equal(kept, torch.nn.functional.one_hot(labels, 3).float().expand(2, -1, -1))
    own = refined(labels, guesses, torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), 0.5)
    torch.testing.assert_close(own, sharpened(guesses.mean(dim=2), 0.5))
    unknown = torch.full((2, 2), UNKNOWN)
    both = refined(labels, guesses, unknown, unknown > 0.5, 0.5)
    torch.testing.assert_close(both[0], sharpened(guesses.mean(dim=(0, 2)), 0.5))
    torch.testing.assert_close(both[0], both[1])
    torch.testing.assert_close(losses_of(guesses, labels)[1], -torch.tensor([0.6, 0.2]).log())


def test_neither_loss_reaches_the_other_network_and_an_empty_part_has_none():
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 4, generator=draw).requires_grad_()
    targets = torch.randn(2, 6, 4, generator=draw).softmax(-1)
    believed = torch.tensor([[True, False] * 3, [True] * 6])

    def gradient(logits, targets, believed):
        (found,) = torch.autograd.grad(mixed_loss(logits, targets, believed, 5.0), logits)
        return found

    both = gradient(logits, targets, believed)
    for number in (0, 1):
        part = slice(number, number + 1)
        alone = gradient(own := logits[part].detach().requires_grad_(), targets[part], believed[part])
        torch.testing.assert_close(both[part], alone)
        assert own.shape == (1, 6, 4)
    none = mixed_loss(logits, targets, torch.zeros(2, 6, dtype=torch.bool), 0.0)
    spread = -(0.25 * (logits.softmax(-1).mean(dim=1) * 4).log()).sum()
    torch.testing.assert_close(none, spread)


def test_losses_are_noted_by_key_and_those_that_are_not_finite_are_left_out():
    samples, ranks = SampleLosses(["a", "b", "c"], CPU), Processes(CPU)
    samples.note(ranks, ["c", "a"], torch.tensor([[1.0, 2.0], [3.0, torch.nan]]))
    samples.note(ranks, ["c"], torch.tensor([[torch.inf], [4.0]]))
    samples.note(ranks, ["c", "c"], torch.tensor([[0.5, torch.nan], [3.0, 2.0]]))
    expected = torch.tensor([[2.0, UNKNOWN, 0.5], [UNKNOWN, UNKNOWN, 3.0]])
    torch.testing.assert_close(samples.losses, expected)
    with pytest.raises(SampleError, match="two samples have the key 'b'"):
        SampleLosses(["a", "b", "c", "b"], CPU)


def test_all_ranks_know_the_same_of_all_samples():
    def noted(rank, ranks):
        samples = SampleLosses(["a", "b", "c"], CPU)
        samples.note(
            ranks, [("a", "b"), ("b", "c")][rank], torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank
        )
        return samples.losses.tolist()

    # the second sample was in both ranks' batches
    assert together(2, noted) == [[[1.0, 11.0, 12.0], [3.0, 13.0, 14.0]]] * 2


def test_each_network_is_told_by_the_other_which_labels_to_believe(tiny_run):
    run = build_run(tiny_run(**SECTIONS), "none")
    assert isinstance(run.procedure, DivideMix)
    samples = run.procedure._samples
    assert samples is not None and samples.losses.shape == (2, 80)
    samples.clean[0], samples.clean[1] = 0.25, 0.75
    key = run.streams["digits"].keys()[7]
    clean = run.procedure._clean((key, key), torch.zeros(2, 2, 2, 10))
    assert clean.tolist() == [[0.75, 0.75], [0.25, 0.25]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    from tinyrun import tiny_plain

    from pipeline.config.load import from_plain

    folder = tmp_path_factory.mktemp("dividemix")
    train(from_plain(tiny_plain(digits, folder / "whole", **SECTIONS)))
    return folder / "whole"


def test_a_run_knows_its_samples_evaluates_both_networks_and_is_resumed_exactly(whole, tiny_run, tmp_path):
    early, end = (read_checkpoint(whole / f"checkpoints/step_{step:08d}") for step in (3, 10))
    known = end.tensors["samples.losses"]
    assert (known != UNKNOWN).all() and (end.tensors["samples.clean"] != UNKNOWN).all()
    # saved in the first epoch, before each sample was seen
    assert (early.tensors["samples.losses"] == UNKNOWN).sum() == 2 * 20
    assert (early.tensors["samples.clean"] == UNKNOWN).all()
    first, second = "model.backbone.norm.weight", "model.peer.backbone.norm.weight"
    assert not torch.equal(end.tensors[first], end.tensors[second])
    train(tiny_run(tmp_path / "parts", **SECTIONS), resume=str(early.folder))
    parts = read_checkpoint(tmp_path / "parts/checkpoints/step_00000010")
    assert parts.tensors.keys() == end.tensors.keys()
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in end.tensors.items())
    lines = (whole / "metrics.jsonl").read_text()
    for name in (
        "val/digits/top1",
        "val/digits/top1_network1",
        "val/digits/top1_network2",
        "digits/believed",
    ):
        assert f'"{name}"' in lines


def test_what_is_known_of_samples_is_not_taken_for_that_of_others(whole):
    """Also where a run may go on with other shards (`--resume extend`)."""
    saved = read_checkpoint(whole / "checkpoints/step_00000003")
    shapes = {name: tuple(saved.tensors[name].shape) for name in ("samples.losses", "samples.clean")}
    manifest = saved.facts["streams"]["digits"]["manifest"]
    check_samples(saved, shapes, {"digits": manifest})
    with pytest.raises(CheckpointError, match="tasks.digits.data.train has other shards"):
        check_samples(saved, shapes, {"digits": manifest + 1})
    with pytest.raises(CheckpointError, match="lacks the tensor samples.losses"):
        check_samples(replace(saved, tensors={}), shapes, {"digits": manifest})


REFUSED = {
    "one network": (dict(backbone=dict(peers=1)), "two networks .* give backbone.peers=2"),
    "one view": (dict(data=dict(views=1)), "two views .* give tasks.digits.data.views=2"),
    "mixed already": (dict(augment=dict(mixup=0.8)), "leave mixup and cutmix out"),
    "a head's own loss": (None, "tasks.digits.head.class_weight is given"),
    "another objective": (dict(objective=dict(type="distill")), "has a loss of its own"),
    "embeddings alone": (dict(train=dict(mode="modular", steps=3)), "carries out train.mode 'joint'"),
    "no first epochs": (
        dict(step=dict(type="dividemix", options=dict(warmup_epochs=0))),
        "warmup_epochs is 0",
    ),
    "weighed": (dict(balancing=dict(type="uncertainty")), "give balancing.type='fixed'"),
    "compiled": (dict(engine=dict(type="local", compile="model")), "neither compiled nor divided"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_two_networks_cannot_do_is_refused_before_the_start(why, tiny_run):
    sections, message = REFUSED[why]
    config = tiny_run(**SECTIONS | (sections or {}))
    if sections is None:
        task = config.tasks["digits"]
        weighed = replace(task, head={**task.head, "class_weight": [1.0] * 10})
        config = replace(config, tasks={"digits": weighed})
    with pytest.raises(ConfigError, match=message):
        build_run(config, "none")


def test_a_saved_run_is_both_networks(whole):
    saved = read_run(whole, "last")
    model = build(saved)
    for network, prefix in zip(model.networks, ("", "peer."), strict=True):
        for name, tensor in network.backbone.state_dict().items():
            assert torch.equal(tensor, saved.tensors[f"{prefix}backbone.{name}"])
    batch = Batch("digits", torch.randn(6, 3, 32, 32), ClassificationTargets(torch.arange(6)))
    with torch.no_grad():
        tallies = model.evaluate(batch)
        means = [
            network.tasks["digits"].infer(network.encoder("digits"), batch) for network in model.networks
        ]
    expected = (means[0] + means[1]) / 2
    assert int(tallies["top1"]) == int((expected.argmax(-1) == torch.arange(6)).sum())
    for number, own in enumerate(means, start=1):
        found = int(tallies[f"network{number}.top1"])
        assert found == int((own.argmax(-1) == torch.arange(6)).sum())
