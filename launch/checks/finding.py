"""Result of a check of `dtem doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the table. status: `missing` fails the command, `warn` costs speed or an optional
    feature."""

    name: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    way_out: str = ""
