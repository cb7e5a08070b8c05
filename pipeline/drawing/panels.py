"""What is drawn of a sample: panels of pictures and of text, for pages, logs and files alike."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Line:
    """One answer. label: whose it is, such as `unmerged`. right: None where it is neither right nor wrong.
    merged: whether it is that of the merged model; None where it is of both or of none."""

    text: str
    label: str = ""
    right: bool | None = None
    merged: bool | None = None


@dataclass(frozen=True)
class Text:
    """Answers of a model, and behind them what people say."""

    answers: tuple[Line, ...] = ()
    references: tuple[str, ...] = ()
    """Of equal standing, so that the first stands for all where there is little room."""
    heading: str = "references"


@dataclass(frozen=True)
class Panel:
    """One cell of what is drawn. content: a picture uint8 [H, W, 3], or text. owner: for instance its task,
    where there are panels of several. right, merged: as those of a line."""

    content: np.ndarray | Text
    caption: str = ""
    owner: str = ""
    merged: bool | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Drawing:
    """What is drawn of one sample. right: whether no answer is wrong; None where none can be. changed:
    whether merging changes an answer. present: classes in its masks, of the reference and of predictions."""

    key: str
    image: Panel
    answers: tuple[Panel, ...] = ()
    groups: tuple[Panel, ...] = ()
    right: bool | None = None
    changed: bool = False
    present: frozenset[int] = field(default_factory=frozenset)

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in the order in which they are read."""
        return (self.image, *self.answers, *self.groups)
