"""A run's model, or a published one, as what predicts. B images, H x W pixels, K classes."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from launch.predict.images import Picture
from launch.predict.results import Caption, Classes, Groups, Mask, Prediction, SeveralClasses
from launch.published.merged import merged_as_asked
from launch.published.signal import LOGITS, signal_of
from launch.saved.reductions import checked_reduction, measured_reduction
from launch.saved.run import SavedRun, build
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.auto_reduction import Auto, paying_reduction
from pipeline.backbone.published import Published
from pipeline.backbone.timm_heads import described
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.images import eval_transform
from pipeline.data.augment.images_with_masks import resize_for_evaluation
from pipeline.data.targets import CaptionTargets, ClassificationTargets, MaskTargets
from pipeline.drawing.sample import unknown_targets
from pipeline.engine.model_on_device import autocast, without_gradients
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch, Task
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.unmerge import slots
from pipeline.model import MultiTaskModel
from pipeline.pixels import Normalisation
from pipeline.token_state import BackboneOutput, TokenState
from tasks.multi_label import MultiLabelTask

CLASSIFICATION = "classification"
Seen = tuple[Picture, Tensor]
"""An image, and its pixels as the model sees them: uint8 [3, height, width]."""


class Predicting(Protocol):
    """What predicts, on its device, under the merge that it was built with."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> str: ...

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def policy(self) -> str: ...

    def seen(self, task: str, image: Tensor) -> Tensor:
        """uint8 [3, H, W] -> the pixels that the model sees, by the preprocessing of evaluation. Raises
        SampleError."""
        ...

    def predict(self, task: str, group: Sequence[Seen], *, top: int, groups: bool) -> list[Prediction]:
        """Those of images that are seen in one size; images with masks also have one size themselves."""
        ...


class RunModel:
    """See `Predicting`. policy, reduction: None takes the run's. measured: task -> r of each block, where the
    reduction asked for is what pays on the device."""

    def __init__(
        self,
        run: SavedRun,
        device: torch.device,
        precision: str,
        *,
        policy: str | None = None,
        reduction: ReductionSpec | Auto | None = None,
    ):
        self.model: MultiTaskModel = build(run, policy, compiled=True).to(device)
        self.tasks = tuple(run.config.tasks)
        self.device, self.precision = device, precision
        self.policy = policy or run.config.merging.policy
        self.run, self._auto = run, reduction if isinstance(reduction, Auto) else None
        self._reduction = None if isinstance(reduction, Auto) else reduction
        self.measured: dict[str, list[int]] = {}
        self._seen = {task: self._transform(task) for task in self.tasks}

    def seen(self, task: str, image: Tensor) -> Tensor:
        return self._seen[task](image)

    def _transform(self, task: str) -> Callable[[Tensor], Tensor]:
        data, reads = self.run.config.tasks[task].data, self.model.tasks[task].reads
        if self.model.tasks[task].reads_clips:
            raise ConfigError(
                f"task '{task}' reads clips, and these are pictures; for clips in shards give `dtem evaluate "
                "--predictions FILE`"
            )
        unknown_targets(reads, (1, 1))  # raises ConfigError for a task of which no image alone can be asked
        if reads is MaskTargets:
            return lambda image: resize_for_evaluation(image, data.augment)
        return eval_transform(data.augment, data.size)

    def batch_of(self, task: str, group: Sequence[Seen]) -> Batch:
        """The images as a batch of which nothing is known, as a stream gives it: uint8."""
        wanted = self.run.config.tasks[task].data.augment.preprocessing
        height, width = group[0][0].pixels.shape[1:]
        return Batch(
            task,
            torch.stack([pixels for _, pixels in group]),
            unknown_targets(self.model.tasks[task].reads, (height, width), len(group)),
            tuple(picture.name for picture, _ in group),
            Normalisation(wanted.mean, wanted.std),
        )

    def predict(self, task: str, group: Sequence[Seen], *, top: int, groups: bool) -> list[Prediction]:
        with without_gradients(eager=self.run.config.engine.compile == "none"):
            return self._predicted(task, group, top=top, groups=groups)

    def _predicted(self, task: str, group: Sequence[Seen], *, top: int, groups: bool) -> list[Prediction]:
        head, unseen = self.model.tasks[task], self.batch_of(task, group)
        seen, batch = unseen.images, unseen.to(self.device)
        self._settle(task, head.input_size(batch))
        with autocast(self.device, self.precision):
            answers = head.infer(self.model.encoder(task, self._reduction), batch)
            merged = self._groups(task, batch, seen) if groups else [None] * len(group)
        return [
            self._prediction(task, head, answer, picture, own, top)
            for answer, (picture, _), own in zip(answers, group, merged, strict=True)
        ]

    def _settle(self, task: str, size: tuple[int, int]) -> None:
        """Measures what pays, at the first images of a task, of (height, width) pixels; it is the task's
        reduction from then on. Raises ConfigError where these have too few tokens for the one asked for."""
        if self._auto and task not in self.measured:
            with autocast(self.device, self.precision):
                self.measured[task] = measured_reduction(self.model, task, size, self._auto)
            self.model.set_reduction(task, self.measured[task])
        if self._reduction is not None:
            checked_reduction(self.model, self.model.backbone.grid_of_size(size), self._reduction)

    def _prediction(
        self, task: str, head: Task, answer: Any, picture: Picture, groups: Groups | None, top: int
    ) -> Prediction:
        reads = head.reads
        names = tuple(self.run.classes(task))
        common = (picture.name, task, (picture.pixels.shape[1], picture.pixels.shape[2]), groups)
        if reads is ClassificationTargets:
            return Classes(*common, *most_likely(answer, names, top))
        if isinstance(head, MultiLabelTask):
            top = max(top, int(head.predicted(answer).sum()))
            shares = checked_finite(answer).double().sigmoid()
            return SeveralClasses(*common, *largest(shares, names, top), head.threshold)
        if reads is CaptionTargets:
            return Caption(*common, answer)
        return Mask(*common, answer.to(torch.uint8).cpu().numpy(), names)

    def _groups(self, task: str, batch: Batch, seen: Tensor) -> list[Groups]:
        """Those of the whole image, padded to whole patches; a mask in windows merges in each of them."""
        height, width = seen.shape[-2:]
        patch = self.model.backbone.patch_size
        padded = F.pad(batch.images, (0, -width % patch[1], 0, -height % patch[0]))
        options = dict(unmerge=None, relaxed=False, training=False)
        state = self.model.encode(task, padded, reduction=self._reduction, **options).final
        return groups_of(state, seen, patch)


class PublishedModel:
    """See `Predicting`. policy, reduction: see `merged_as_asked`. Raises ConfigError for a model
    without classes."""

    tasks = (CLASSIFICATION,)

    def __init__(
        self,
        published: Published,
        device: torch.device,
        precision: str,
        *,
        policy: str | None = None,
        reduction: ReductionSpec | Auto | None = None,
        adapter: Adapter | None = None,
    ):
        if not published.classifies:
            raise ConfigError(
                f"{published.name} has no classes to predict; give a classifier, or a run with a head. `dtem "
                "sweep` measures what merging does to its features"
            )
        auto = reduction if isinstance(reduction, Auto) else None
        wished = auto.of_published if auto else cast("ReductionSpec | None", reduction)
        self.policy, self.model = merged_as_asked(
            published.model.to(device), published.size, policy=policy, reduction=wished, adapter=adapter
        )
        self.device, self.precision = device, precision
        if auto:
            with autocast(device, precision):
                self.model.reduction = paying_reduction(
                    self.model, self.model.reduction, batch=auto.batch, size=published.size
                )
        self._published, self._signal = published, signal_of(published, LOGITS)
        pixels = published.pixels
        config = AugmentConfig(
            crop_pct=pixels.crop_pct, crop_mode=pixels.crop_mode, interpolation=pixels.interpolation
        )
        self._transform = eval_transform(config, published.size)
        self.names = described(published.classes)

    def seen(self, task: str, image: Tensor) -> Tensor:
        return self._transform(image)

    @torch.no_grad()
    def answer(self, seen: Tensor, **options: Any) -> tuple[Tensor, BackboneOutput]:
        """Logits [B, K] and states of images, uint8 [B, 3, height, width]. options: those of
        `MergingModel.encode`."""
        wanted = self._published.pixels
        images = Normalisation(wanted.mean, wanted.std)(seen.to(self.device))
        with autocast(self.device, self.precision):
            output = self._signal.encode(self.model, images, **options)
            return self._signal.read(self.model, output), output

    @torch.inference_mode()
    def predict(self, task: str, group: Sequence[Seen], *, top: int, groups: bool) -> list[Prediction]:
        seen = torch.stack([pixels for _, pixels in group])
        logits, output = self.answer(seen)
        merged: list[Groups | None] = [None] * len(group)
        if groups:
            merged[:] = groups_of(output.final, seen, patch_of(output.final, seen))
        return [
            Classes(
                picture.name,
                task,
                (picture.pixels.shape[1], picture.pixels.shape[2]),
                own,
                *most_likely(answer, self.names, top),
            )
            for answer, (picture, _), own in zip(logits, group, merged, strict=True)
        ]


def most_likely(
    logits: Tensor, names: tuple[str, ...], top: int
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[float, ...]]:
    """Numbers, names and probabilities of the `top` classes of logits [K]. Raises SampleError where they are
    not finite."""
    return largest(checked_finite(logits).double().softmax(-1), names, top)


def checked_finite(logits: Tensor) -> Tensor:
    """The logits. Raises SampleError where they are not finite."""
    if not bool(logits.isfinite().all()):
        raise SampleError("the logits are not finite; try precision fp32, or look at the weights")
    return logits


def largest(
    probabilities: Tensor, names: tuple[str, ...], top: int
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[float, ...]]:
    """Numbers, names and probabilities of the `top` most likely of the classes, whose probabilities are
    [K]."""
    shares, labels = probabilities.topk(min(top, len(probabilities)))
    numbers = tuple(labels.tolist())
    words = tuple(names[label] if label < len(names) else str(label) for label in numbers)
    return numbers, words, tuple(shares.tolist())


def patch_of(state: TokenState, seen: Tensor) -> tuple[int, int]:
    """(height, width) in pixels of the patches of images, uint8 [B, 3, height, width]."""
    (rows, columns), (height, width) = state.grid, seen.shape[-2:]
    return -(-height // rows), -(-width // columns)


def groups_of(state: TokenState, seen: Tensor, patch: tuple[int, int]) -> list[Groups]:
    """The groups of each image. state: of the last block. seen: uint8 [B, 3, height, width]."""
    owner = slots(state)[:, state.num_prefix :].reshape(-1, *state.grid).cpu().numpy()
    pixels: list[np.ndarray] = list(seen.permute(0, 2, 3, 1).cpu().numpy())
    return [
        Groups(image, own, patch, state.tokens.shape[1]) for image, own in zip(pixels, owner, strict=True)
    ]
