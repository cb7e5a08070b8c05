"""The merge adapter of a run, with its recipe and its curves."""

from dataclasses import asdict

from launch.exported.curves import curves_of
from launch.exported.formats import reduction_of
from launch.saved.run import SavedRun
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import Pixels, Recipe, name_of_data
from pipeline.backbone.adapters.embeddings import hub_name
from pipeline.errors import ConfigError
from pipeline.model import MultiTaskModel
from pipeline.parts import BASE, TRAINED


def adapter_of_run(
    run: SavedRun,
    model: MultiTaskModel,
    task: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> Adapter:
    """The adapter of a run, folded for a task.

    base_model: name of the base on the hub; None takes timm's where the run started from timm's weights and
    left them as they were. Raises ConfigError for a policy that does not learn, and for a backbone that
    merges nothing.
    """
    config = run.config
    if why := model.backbone.never_merges:
        raise ConfigError(f"'{config.backbone.name}' has no embeddings, and can have none: {why}")
    everybodys = config.merging.embedding == "shared"
    return collect_adapter(
        model.backbone,
        task=task,
        architecture=config.backbone.name.partition(".")[0],
        options=config.backbone.options,
        base_model=base_model or _base_model(run),
        reduction=reduction_of(model, task),
        pixels=Pixels(**asdict(config.tasks[task].data.augment.preprocessing)),
        recipe=_recipe(run, task),
        curves=curves_of(run, list(config.tasks) if everybodys else [task]),
        license=license,
        made_with=_versions(run),
    )


def _versions(run: SavedRun) -> dict[str, str]:
    """Commit and versions that the run was trained with."""
    known = {"commit": run.facts["commit"] or "", **run.facts["versions"]}
    return {name: text for name, text in known.items() if text not in ("", "not installed")}


def _base_model(run: SavedRun) -> str | None:
    """Name on the hub of the weights in the run's backbone; None where it learned, or started from others."""
    backbone = run.config.backbone
    if not backbone.pretrained or backbone.weights or BASE in TRAINED[run.config.train.mode]:
        return None
    return hub_name(backbone.name)


def _recipe(run: SavedRun, task: str) -> Recipe:
    config, stream = run.config, run.facts.get("streams", {}).get(task, {})
    manifest, source = stream.get("manifest"), config.tasks[task].data.train
    return Recipe(
        objective=config.objective.type,
        options=config.objective.options,
        mode=config.train.mode,
        steps=run.facts["step"],
        seed=config.seed,
        data=name_of_data(source if isinstance(source, str) else None),
        data_digest=None if manifest is None else f"{manifest:012x}",
    )
