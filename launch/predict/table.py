"""The rows of the table that `dtem predict` prints."""

from launch.predict.results import Caption, Classes, Mask, Prediction, SeveralClasses, Unread

SHOWN = 3
"""Classes in a row."""
COLUMNS = ("image", "task", "prediction")


def row_of(found: Prediction | Unread) -> tuple[str, str, str]:
    """The cells of an image."""
    if isinstance(found, Unread):
        return found.image, "-", f"not read: {found.reason}"
    return found.image, found.task, _answer(found)


def _answer(found: Prediction) -> str:
    if isinstance(found, SeveralClasses) and not found.num_predicted:
        return f"none of the classes (the likeliest: {found.names[0]} {100 * found.probabilities[0]:.1f} %)"
    if isinstance(found, Classes):
        shown = min(SHOWN, found.num_predicted) if isinstance(found, SeveralClasses) else SHOWN
        pairs = zip(found.names[:shown], found.probabilities, strict=False)
        return ", ".join(f"{name.split(',')[0]} {100 * share:.1f} %" for name, share in pairs)
    if isinstance(found, Caption):
        return found.text
    assert isinstance(found, Mask)
    shares = list(found.shares.items())
    more = f" and {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
    return ", ".join(f"{found.name(label)} {100 * share:.1f} %" for label, share in shares[:SHOWN]) + more
