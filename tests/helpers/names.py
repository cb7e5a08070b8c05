"""What the names in a state dict tell a reader. The project asks the parts themselves; the two have to
agree."""

import re

_OWNER = re.compile(r"(?:^|\.)(?:tasks|adapters|log_variance)\.(\w+)")


def kind_of(name: str) -> str:
    if name.startswith("balancing."):
        return "balance"
    if name.startswith("tasks."):
        return "head"
    return "metric" if ".metric." in name else "base"


def owner_of(name: str) -> str | None:
    """The task that alone uses the parameter; None for what tasks share."""
    found = _OWNER.search(name)
    return found[1] if found else None
