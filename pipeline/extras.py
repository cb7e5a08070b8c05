"""The extras of the package (setup.cfg): what each is for, and the command that adds it.

Who needs a package that the core does not bring imports it inside `extra(NAME)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from traceback import walk_tb

from pipeline.errors import ConfigError, PipelineError

DISTRIBUTION = "dtem-pipeline"
EXTRAS = {
    "deepspeed": "engine.type 'deepspeed'",
    "segmentation": "a segmentation task, whose heads are MMSegmentation's,",
    "captioning": "captioning, with open_clip's parts and the COCO tools' scores,",
    "hf": "a model of Hugging Face transformers",
    "lightning": "the callback for Lightning",
    "onnx": "`dtem export --format onnx`",
    "plots": "drawing",
    "trackers": "log.trackers",
    "completion": "`dtem completion`",
    "mixing": "token_mixup across images",
    "demo": "the data set digit_scenes",
    "datasets": "a data set of Hugging Face datasets",
    "video": "a stored video",
    "s3": "s3://",
    "gs": "gs://",
    "az": "az://",
}
"""Extra -> what needs it, as the subject of a sentence."""
LOADERS = {"importlib", "_frozen_importlib", "_frozen_importlib_external", "fsspec"}
"""Who imports the packages of extras."""


def command(name: str | None = None) -> str:
    """The command that adds an extra to what is installed, or what the core lacks."""
    return f"pip install '{DISTRIBUTION}[{name}]'" if name else f"pip install {DISTRIBUTION}"


@contextmanager
def extra(name: str, otherwise: str = "") -> Iterator[None]:
    """Around imports of what an extra brings, and nothing else: whatever they raise becomes a ConfigError.

    It names the command where a package is not installed, and the package and its error where one is
    installed and broken. otherwise: another way out, behind "or".
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as err:
        if is_missing(err):
            raise _missing(name, err, otherwise) from err
        raise ConfigError(
            f"{EXTRAS[name]} needs {_broken(err) or 'packages'}, which cannot be imported although it is "
            f"installed ({type(err).__name__}: {err}); `dtem doctor` looks at the packages"
            f"{f', or {otherwise}' if otherwise else ''}"
        ) from err


def require(name: str, module: str, otherwise: str = "") -> None:
    """Raises the ConfigError of `extra` where a module of an extra is not installed. Imports nothing."""
    if util.find_spec(module) is None:
        raise _missing(name, ModuleNotFoundError(f"No module named '{module}'"), otherwise)


def is_missing(err: BaseException | None) -> bool:
    """Whether an import failed as a package is not installed: what is not there is a module of the top."""
    while err is not None:
        if (
            isinstance(err, ModuleNotFoundError)
            and err.name
            and util.find_spec(err.name.split(".")[0]) is None
        ):
            return True
        err = err.__cause__ or err.__context__
    return False


def _missing(name: str, err: Exception, otherwise: str) -> ConfigError:
    way_out = f"{command(name)}{f', or {otherwise}' if otherwise else ''}"
    return ConfigError(f"{EXTRAS[name]} needs packages that cannot be imported ({err}); run {way_out}")


def _broken(err: Exception) -> str | None:
    """The package whose import failed: the first of the traceback, behind `extra` and who called it, that is
    no loader."""
    tops = [str(frame.f_globals.get("__name__")).split(".")[0] for frame, _ in walk_tb(err.__traceback__)]
    return next((top for top in tops[2:] if top not in LOADERS), getattr(err, "name", None))
