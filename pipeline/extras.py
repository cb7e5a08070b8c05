"""The extras of the package (setup.cfg): what each is for, and the command that adds it.

Who needs a package that the core does not bring imports it inside `extra(NAME)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigError

DISTRIBUTION = "dtem-pipeline"
EXTRAS = {
    "deepspeed": "engine.type 'deepspeed'",
    "segmentation": "a segmentation task, whose heads are MMSegmentation's,",
    "captioning": "captioning, with open_clip's parts and the COCO tools' scores,",
    "plots": "drawing",
    "demo": "the data set digit_scenes",
    "s3": "s3://",
    "gs": "gs://",
}
"""Extra -> what needs it, as the subject of a sentence."""


def command(name: str | None = None) -> str:
    """The command that adds an extra to what is installed, or what the core lacks."""
    return f"pip install '{DISTRIBUTION}[{name}]'" if name else f"pip install {DISTRIBUTION}"


@contextmanager
def extra(name: str, otherwise: str = "") -> Iterator[None]:
    """Around imports of what an extra brings: an ImportError becomes a ConfigError that names the command.

    otherwise: another way out, behind "or".
    """
    try:
        yield
    except ImportError as err:
        way_out = f"{command(name)}{f', or {otherwise}' if otherwise else ''}"
        raise ConfigError(
            f"{EXTRAS[name]} needs packages that cannot be imported ({err}); run {way_out}"
        ) from err
