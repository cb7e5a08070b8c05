"""Saving, loading and publishing of merge adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.card import card_text, is_written
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import Recipe
from pipeline.backbone.adapters.folder import CARD, TENSORS, read_folder, write_folder
from pipeline.backbone.adapters.hub import PREFIX, download, upload
from pipeline.config.build import build_dataclass
from pipeline.errors import CheckpointError
from pipeline.merging.schedule import ReductionSpec


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    base_model: str | None = None,
    task: str | None = None,
    reduction: ReductionSpec | None = None,
    recipe: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> Path:
    """Writes the embeddings of a model that merges as an adapter. Returns the folder.

    base_model: name on the Hugging Face hub of the weights that the model has, for instance
    `timm/deit_small_patch16_224.fb_in1k`. task: the one to fold the embeddings for, where tasks have parts of
    their own. reduction: recommended; None: the model's own. recipe: fields of `Recipe`. What is not given is
    left out. Raises ConfigError for a policy that does not learn, and for wrong values; OSError.
    """
    adapter = collect_adapter(
        model,
        task=task,
        base_model=base_model,
        reduction=reduction,
        recipe=None if recipe is None else build_dataclass(Recipe, dict(recipe), "recipe"),
        license=license,
    )
    write_folder(adapter, Path(folder))
    return Path(folder)


def load_adapter(source: "str | Path | Adapter") -> Adapter:
    """The adapter of a folder, of an adapter.safetensors in one, or of `hf-hub:USER/NAME[@REVISION]`. An
    adapter is returned as it is. Nothing in it can run code. Raises ConfigError and CheckpointError."""
    if isinstance(source, Adapter):
        return source
    if str(source).startswith(PREFIX):
        place = download(str(source))
        try:
            return read_folder(place)
        except CheckpointError as err:
            raise CheckpointError(f"{source}: {err}") from err
    path = Path(source)
    return read_folder(path.parent if path.name == TENSORS else path)


def push_adapter(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    message: str = "Add merge adapter",
) -> str:
    """Publishes a folder that `save_adapter` or `dtem export --adapter` wrote, as USER/NAME on the Hugging
    Face hub. Returns the URL of the commit, or of the pull request.

    The repository is made if there is none. A README.md there that somebody wrote or edited stays, as with
    timm; the card of an earlier adapter is replaced. token: None takes that of `hf auth login`, or HF_TOKEN.
    Raises ConfigError and CheckpointError.
    """
    config, place = read_folder(Path(folder)).config, Path(folder)

    def card(name: str) -> str:
        path = place / CARD
        own = path.read_text(encoding="utf-8") if path.is_file() else ""
        return own if own and not is_written(own, config) else card_text(config, name)

    return upload(
        place,
        repository,
        card=card,
        private=private,
        revision=revision,
        create_pr=create_pr,
        token=token,
        message=message,
    )
