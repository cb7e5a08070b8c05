"""The answers of a task for one image, unmerged and at each reduction, beside what is true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.data.members.masks import IGNORED
from pipeline.drawing.groups import reduction_text
from pipeline.drawing.masks import classes_found, paint_classes, paint_errors, share_wrong
from pipeline.drawing.palette import class_colours, ground_of
from pipeline.drawing.panels import Line, Panel, Text
from pipeline.errors import first_few
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel

Reductions = Sequence[ReductionSpec | None]
"""The unmerged model's 0 first; None is the task's own."""
NONE = "none of the classes"
MOST = 5
"""Classes of an image that are listed."""
CHANGED = 0.02
"""Share of the pixels from which another answer counts as another."""


@dataclass(frozen=True)
class Answers:
    """See `Drawing`."""

    panels: list[Panel]
    right: bool | None = None
    changed: bool = False
    present: frozenset[int] = frozenset()


def class_answers(
    model: MultiTaskModel, batch: Batch, reductions: Reductions, classes: Sequence[str]
) -> Answers:
    """The predicted classes with their probabilities, and the true one. A label below 0 is unknown."""
    task, label = model.tasks[batch.task], int(batch.targets.labels[0])
    lines: list[Line] = []
    for reduction in reductions:
        shares = task.infer(model.encoder(batch.task, reduction), batch)[0].softmax(-1)
        share, found = (float(value) for value in shares.max(-1))
        text = f"{name_of(int(found), classes)} {100 * share:.0f} %"
        right = None if label < 0 else int(found) == label
        lines.append(Line(text, reduction_text(reduction), right, merged=reduction != 0))
    true = Text(tuple(lines)) if label < 0 else Text(tuple(lines), (name_of(label, classes),), "true")
    names = {line.text.rpartition(" %")[0].rpartition(" ")[0] for line in lines}
    return Answers([Panel(true)], _all_right([line.right for line in lines]), len(names) > 1)


def several_answers(
    model: MultiTaskModel, batch: Batch, reductions: Reductions, classes: Sequence[str]
) -> Answers:
    """The classes that the image is said to have, the surest first, and those that it has. Labels below 0 are
    unknown."""
    task, labels = model.tasks[batch.task], batch.targets.labels[0]
    known, lines, made = bool((labels >= 0).all()), [], []
    for reduction in reductions:
        logits = task.infer(model.encoder(batch.task, reduction), batch)
        said = task.predicted(logits)[0]
        made.append(said)
        text = _listed(logits[0].sigmoid(), said, classes)
        right = bool((said == (labels > 0.5)).all()) if known else None
        lines.append(Line(text, reduction_text(reduction), right, merged=reduction != 0))
    true = [name_of(int(label), classes) for label in (labels > 0.5).nonzero()] or [NONE]
    text = Text(tuple(lines), (", ".join(true),), "true") if known else Text(tuple(lines))
    changed = any(not bool((said == made[0]).all()) for said in made)
    return Answers([Panel(text)], _all_right([line.right for line in lines]), changed)


def _listed(shares: Tensor, said: Tensor, classes: Sequence[str]) -> str:
    """The first few classes that are said, with their probabilities."""
    order = [int(label) for label in shares.argsort(descending=True, stable=True) if bool(said[label])]
    texts = [f"{name_of(label, classes)} {100 * float(shares[label]):.0f} %" for label in order]
    return first_few(texts, MOST, ", ") or NONE


def caption_answers(model: MultiTaskModel, batch: Batch, reductions: Reductions) -> Answers:
    """The generated captions, and those of people, if any."""
    task, lines = model.tasks[batch.task], []
    for reduction in reductions:
        (made,) = task.infer(model.encoder(batch.task, reduction), batch)
        lines.append(Line(made, reduction_text(reduction), merged=reduction != 0))
    text = Text(tuple(lines), tuple(batch.targets.references[0]), "references")
    return Answers([Panel(text)], changed=len({line.text for line in lines}) > 1)


def mask_answers(
    model: MultiTaskModel,
    batch: Batch,
    picture: np.ndarray,
    reductions: Reductions,
    classes: Sequence[str],
) -> Answers:
    """Pictures of each prediction and of its errors, and of the reference; without errors and reference
    where all of the mask is ignored."""
    task, reference = model.tasks[batch.task], batch.targets.mask[0].cpu().numpy()
    ground = ground_of(classes)
    colours = class_colours(task.num_classes, ground)
    known, panels, made, right = bool((reference != IGNORED).any()), [], [], []
    for reduction in reductions:
        name, merged = f"predicted, {reduction_text(reduction)}", reduction != 0
        (pixels,) = task.infer(model.encoder(batch.task, reduction), batch)
        labels = pixels.cpu().numpy()
        made.append(labels)
        panels.append(Panel(paint_classes(picture, labels, colours, ground), name, merged=merged))
        if known:
            found, there = classes_found(labels, reference, ground)
            right.append(found == there)
            share = 100 * share_wrong(labels, reference)
            caption, errors = (
                f"{share:.1f} % wrong, {found} of {there} found",
                paint_errors(picture, labels, reference),
            )
            panels.append(Panel(errors, caption, merged=merged, right=right[-1]))
    if known:
        panels.append(Panel(paint_classes(picture, reference, colours, ground), "reference"))
    present = {int(label) for labels in (*made, reference) for label in np.unique(labels)}
    changed = any((labels != made[0]).mean() > CHANGED for labels in made)
    shown = frozenset(label for label in present if label < task.num_classes)
    return Answers(panels, _all_right(right), changed, shown)


def name_of(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)


def _all_right(found: Sequence[bool | None]) -> bool | None:
    return None if not found or None in found else all(found)
