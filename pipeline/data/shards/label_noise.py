"""What a manifest says of noise that was put into the labels of its set on purpose."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SYMMETRIC, ASYMMETRIC = "symmetric", "asymmetric"
KINDS = (SYMMETRIC, ASYMMETRIC)
TRUE_CLASS = "true.cls"
"""Member with the class that a sample had before. No schema reads it."""


@dataclass(frozen=True)
class LabelNoise:
    """How labels of training samples were made wrong: a function of the key, the label and these."""

    kind: str
    rate: float
    """The share of wrong labels, in (0, 1)."""
    seed: int
    flips: tuple[tuple[str, str], ...] = ()
    """Of asymmetric noise: a class, and the one that its wrong labels name. Other classes keep their
    labels. Empty where each class becomes the next one, and the last one the first."""

    def __str__(self) -> str:
        of_flips = f", {len(self.flips)} classes become others" if self.flips else ""
        return f"{self.kind}, a share of {self.rate:g} of the training labels, seed {self.seed}{of_flips}"

    def to_plain(self) -> dict[str, Any]:
        """The note as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> "LabelNoise":
        """The inverse of `to_plain`. Raises ValueError for anything else."""
        try:
            kind, rate, seed = plain["kind"], plain["rate"], plain["seed"]
            flips = tuple((before, after) for before, after in plain["flips"])
        except (KeyError, TypeError, ValueError) as err:
            raise ValueError("its label_noise is not a list of notes") from err
        texts = all(isinstance(name, str) for flip in flips for name in flip)
        numbers = type(rate) in (int, float) and type(seed) is int
        if kind not in KINDS or not texts or not numbers or not 0 < rate < 1:
            raise ValueError("an entry of label_noise is not one that `dtem shards corrupt-labels` writes")
        return LabelNoise(kind, float(rate), seed, flips)
