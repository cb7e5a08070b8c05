"""The signal of a published model."""

from collections.abc import Callable

from pipeline.backbone.hugging_face import pools
from pipeline.backbone.published import HF, Published
from pipeline.errors import ConfigError
from pipeline.objectives.signal import LOGITS, PATCHES, POOLED, Signal


def signal_of(published: Published, wanted: str | None = None) -> Signal:
    """The signal of this kind; None: the first of SIGNALS that the model has. Raises ConfigError for one that
    it has not."""
    model, from_timm = published.model, not published.name.startswith(HF)
    has: dict[str, Callable[[], bool]] = {
        LOGITS: lambda: published.classifies,
        POOLED: lambda: bool(getattr(model, "global_pool", "")) if from_timm else pools(model),
        PATCHES: lambda: True,
    }
    there = [kind for kind, is_there in has.items() if is_there()]
    if wanted is not None and wanted not in there:
        raise ConfigError(f"{published.name} has no signal '{wanted}'; it has {', '.join(there)}")
    return Signal(wanted or there[0])
