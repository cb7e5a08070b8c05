"""Checks of images that are mixed, and of labels that say what they were mixed of."""

from collections.abc import Iterator

from pipeline.config.schema import RunConfig
from pipeline.plan.facts import ModelFacts, fed_tasks


def mixing_mistakes(config: RunConfig, facts: ModelFacts) -> Iterator[str]:
    """Yields a sentence for each mistake, with the way out."""
    for name, task in fed_tasks(config).items():
        data, augment = task.data, task.data.augment
        if data.batch_size % 2 and augment.mixes:
            yield (
                f"tasks.{name}.data.batch_size is {data.batch_size}, and mixup and cutmix mix pairs of "
                "samples; give an even number, or leave data.augment.mixup and cutmix out"
            )
        asked = f"tasks.{name}.data.augment.mix_labels is '{augment.mix_labels}', and"
        if augment.mix_labels != "area" and facts.times is not None:
            yield f"{asked} the backbone reads clips, whose patches are not mixed; give 'area'"
        elif augment.mix_labels == "tokens" and facts.never_merges:
            yield (
                f"{asked} labels do not follow the tokens of '{config.backbone.name}', with which nothing "
                "travels; give 'patches' or 'area'"
            )
