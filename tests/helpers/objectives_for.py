"""Which objectives a kind of task can have."""

from typing import Any

from pipeline.objectives import OBJECTIVES


def objectives_for(kind: Any) -> list[str]:
    """Names of the objectives that refuse no task of this class."""
    return [name for name in OBJECTIVES.names() if OBJECTIVES.build(name).refuses(kind) is None]
