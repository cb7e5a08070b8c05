"""DivideMix (Li et al., ICLR 2020): learning with wrong labels by two networks. Each says by its losses which
labels the other one should believe.

B samples, V = 2 views of each, K classes; the first dimension of tensors is that of the two networks.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.data.stream import TrainStream
from pipeline.errors import ConfigError
from pipeline.interfaces import TaskOutput
from pipeline.model import TASKS
from pipeline.plan.facts import fed_tasks
from pipeline.ranks import mean_over_ranks
from pipeline.train.steps.plain import Plain
from pipeline.train.steps.procedure import STEPS, MicroBatch, StepWork
from pipeline.train.steps.sample_losses import UNKNOWN, SampleLosses

VIEWS = 2
LOSSES = ("loss", "class_weight", "target_threshold", "token_mixup")
"""Options of a head that change its loss."""


@STEPS.register("dividemix")
class DivideMix(Plain):
    """In the first epochs both networks learn from all labels. Then a mixture of two normal distributions is
    fitted to the losses of each at the end of each epoch. Samples whose labels the other network believes
    keep them, refined by the network's own predictions; the others get the predictions of both. All are mixed
    (MixMatch)."""

    modes = ("joint", "backbone", "heads")
    peers = 2

    def __init__(
        self,
        train: TrainConfig,
        *,
        warmup_epochs: int = 10,
        ramp_epochs: float = 16.0,
        unlabelled_weight: float = 25.0,
        threshold: float = 0.5,
        temperature: float = 0.5,
        alpha: float = 4.0,
        confidence_penalty: float = 0.0,
    ):
        """threshold: of the probability that a label is right. alpha: of the Beta distribution of shares of
        mixed images; 0 mixes none. confidence_penalty: weight of the negative entropy in the first epochs,
        for asymmetric noise. Raises ConfigError."""
        super().__init__(train)
        if warmup_epochs < 1 or ramp_epochs <= 0 or temperature <= 0 or not 0 < threshold < 1:
            raise ConfigError(
                f"step.options of dividemix: warmup_epochs is {warmup_epochs}, ramp_epochs {ramp_epochs}, "
                f"temperature {temperature}, threshold {threshold}; give 1 or more, two numbers above 0, and "
                "one in (0, 1)"
            )
        if min(unlabelled_weight, alpha, confidence_penalty) < 0:
            raise ConfigError(
                "step.options of dividemix: unlabelled_weight, alpha and confidence_penalty are 0 or more"
            )
        self._warmup, self._ramp, self._weight = warmup_epochs, ramp_epochs, unlabelled_weight
        self._threshold, self._temperature, self._alpha = threshold, temperature, alpha
        self._penalty = confidence_penalty
        self._epoch_steps = 1.0
        self._samples: SampleLosses | None = None

    def check(self, config: RunConfig) -> None:
        fed = fed_tasks(config)
        (name, task), *others = fed.items()
        if others or not getattr(TASKS.get(task.type), "has_one_class", False):
            raise ConfigError(
                f"step.type is 'dividemix', which trains one task of classification, and there is tasks."
                f"{', tasks.'.join(fed)} ({task.type}); give another step.type"
            )
        if task.data.views != VIEWS or task.data.augment.mixes:
            raise ConfigError(
                f"step.type is 'dividemix', which mixes two views of each sample itself; give tasks.{name}."
                "data.views=2, and leave mixup and cutmix out"
            )
        if own := [word for word in LOSSES if task.head.get(word)]:
            raise ConfigError(
                f"step.type is 'dividemix', which has a loss of its own, and tasks.{name}.head.{own[0]} is "
                "given; leave that out"
            )
        if task.weight != 1:
            raise ConfigError(
                f"step.type is 'dividemix', which has a loss of its own, and tasks.{name}.weight is "
                f"{task.weight}; leave that out"
            )
        if config.objective.type != "supervised":
            raise ConfigError(
                f"step.type is 'dividemix', which has a loss of its own, and objective.type is "
                f"'{config.objective.type}'; leave that out"
            )

    def begin(self, streams: Mapping[str, TrainStream], epoch_steps: float, device: torch.device) -> None:
        (stream,) = streams.values()
        self._samples, self._epoch_steps = SampleLosses(stream.keys(), device), epoch_steps

    def state(self) -> dict[str, Tensor]:
        own = self._samples
        return {} if own is None else {"losses": own.losses, "clean": own.clean}

    def __call__(self, work: StepWork) -> Tensor:
        epoch = work.number / self._epoch_steps
        keys: list[str] = []
        seen: list[Tensor] = []
        for micro in work.micro_batches:
            output, losses = self._warm(work, micro) if epoch < self._warmup else self._mixed(work, micro)
            work.backward(micro, output, last=micro.last)
            keys += micro.batch.keys[::VIEWS]
            seen.append(losses)
        norm = work.step()
        if self._samples is not None:
            self._samples.note(work.engine, keys, torch.cat(seen, dim=1))
            if int((work.number + 1) / self._epoch_steps) > int(epoch):
                self._samples.judge()
        return norm

    def _warm(self, work: StepWork, micro: MicroBatch) -> tuple[TaskOutput, Tensor]:
        """The output of a step on all labels, and the loss [2, B] of each sample."""
        output = work.forward(micro, predictions=True)
        share = output.predictions.log_softmax(dim=-1)
        if self._penalty:
            certainty = (share.exp() * share).sum(dim=-1).mean(dim=1).sum()
            output = replace(output, loss=output.loss + self._penalty * certainty)
        return output, losses_of(share.detach().exp().unflatten(1, (-1, VIEWS)), _labels(micro))

    def _mixed(self, work: StepWork, micro: MicroBatch) -> tuple[TaskOutput, Tensor]:
        """The output of a step on believed labels and guesses, mixed, and the loss [2, B] of each sample."""
        batch, labels = micro.batch, _labels(micro)
        with torch.no_grad():
            guesses = work.forward(micro, predictions=True).predictions.softmax(dim=-1)
        guesses = guesses.unflatten(1, (-1, VIEWS))
        clean = self._clean(batch.keys[::VIEWS], guesses)
        believed = clean > self._threshold
        targets = refined(labels, guesses, clean, believed, self._temperature)
        targets = targets.repeat_interleave(VIEWS, dim=1)
        believed = believed.repeat_interleave(VIEWS, dim=1)
        share = np.random.beta(self._alpha, self._alpha) if self._alpha else 1.0
        share = max(share, 1 - share)
        other = torch.randperm(len(batch.images), device=batch.images.device)
        images = torch.lerp(batch.images[other], batch.images, share)
        targets = torch.lerp(targets[:, other], targets, share)
        output = work.forward(replace(micro, batch=replace(batch, images=images)), predictions=True)
        weight = self._weight * ramp(work.number / self._epoch_steps - self._warmup, self._ramp)
        loss = mixed_loss(output.predictions, targets, believed, weight)
        logs = {
            "loss": (loss.detach(), 1.0),
            "believed": (believed.float().sum(), believed.numel()),
        }
        return TaskOutput(loss, logs), losses_of(guesses, labels)

    def _clean(self, keys: tuple[str, ...], guesses: Tensor) -> Tensor:
        """[2, B]: what the other network says of each label; UNKNOWN where it never saw it."""
        if self._samples is None:
            return torch.full(guesses.shape[:2], UNKNOWN, device=guesses.device)
        return self._samples.clean.flip(0)[:, self._samples.rows(keys)]


def _labels(micro: MicroBatch) -> Tensor:
    """[B]"""
    return micro.batch.targets.labels[::VIEWS]


def losses_of(guesses: Tensor, labels: Tensor) -> Tensor:
    """[2, B]: the cross-entropy of each label under the mean of the views' predictions [2, B, V, K]."""
    share = guesses.mean(dim=2).gather(2, labels.expand(len(guesses), -1)[..., None])
    return -share.squeeze(2).clamp(min=1e-12).log()


def sharpened(share: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., K] to the power of 1 / temperature, which sum to 1 again."""
    powers = share ** (1 / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def refined(labels: Tensor, guesses: Tensor, clean: Tensor, believed: Tensor, temperature: float) -> Tensor:
    """[2, B, K]: what each network learns. A label [B] that is believed [2, B] is mixed with the network's
    own prediction, by the probability `clean` [2, B] that it is right. In place of others stands the mean
    prediction of both. guesses [2, B, V, K]."""
    mean = guesses.mean(dim=2)
    given = torch.nn.functional.one_hot(labels, mean.shape[-1]).to(mean.dtype)
    right = torch.where(believed, clean, 0.0)[..., None]
    own = right * given + (1 - right) * mean
    guessed = mean.mean(dim=0).expand_as(mean)
    return sharpened(torch.where(believed[..., None], own, guessed), temperature)


def ramp(epochs: float, length: float) -> float:
    """From 0 to 1 over so many epochs."""
    return min(max(epochs / length, 0.0), 1.0)


def mixed_loss(logits: Tensor, targets: Tensor, believed: Tensor, weight: float) -> Tensor:
    """The sum of both networks' losses: cross-entropy where labels are believed [2, B], `weight` times the
    squared error of the probabilities elsewhere, and the divergence of equal classes from the mean prediction
    of this rank. logits, targets [2, B, K]."""
    logs = logits.log_softmax(dim=-1)
    share = logs.exp()
    entropies = -(targets * logs).sum(dim=-1)
    errors = ((share - targets) ** 2).mean(dim=-1)
    labelled = [mean_over_ranks((x * on).sum(), on.sum()) for x, on in zip(entropies, believed, strict=True)]
    others = [mean_over_ranks((x * on).sum(), on.sum()) for x, on in zip(errors, ~believed, strict=True)]
    prior = 1 / logits.shape[-1]
    spread = -(prior * (share.mean(dim=1) / prior).clamp(min=1e-12).log()).sum(dim=-1)
    return torch.stack(labelled).sum() + weight * torch.stack(others).sum() + spread.sum()
