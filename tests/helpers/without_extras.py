"""Runs commands where no extra is installed: `python without_extras.py COMMANDS.json` prints what each says.

A child process, as what is imported once cannot be missing afterwards. COMMANDS.json: name -> arguments of
`dtem`, or a function and its arguments (see `said`). Prints JSON: name -> [exit code, what went to stderr],
and under "modules" what of the extras was imported all the same.
"""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

PACKAGES = {
    "deepspeed": {"deepspeed": "deepspeed"},
    "segmentation": {"mmcv": "onedl-mmcv", "mmseg": "onedl-mmsegmentation"},
    "captioning": {"open_clip": "open-clip-torch", "pycocoevalcap": "pycocoevalcap"},
    "hf": {"transformers": "transformers"},
    "lightning": {"lightning": "lightning"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript"},
    "plots": {"matplotlib": "matplotlib", "tensorboard": "tensorboard"},
    "trackers": {"wandb": "wandb", "mlflow": "mlflow-skinny"},
    "completion": {"shtab": "shtab"},
    "mixing": {"scipy": "scipy"},
    "demo": {"sklearn": "scikit-learn"},
    "datasets": {"datasets": "datasets"},
    "video": {"av": "av"},
    "s3": {"s3fs": "s3fs"},
    "gs": {"gcsfs": "gcsfs"},
    "az": {"adlfs": "adlfs"},
}
"""Extra -> module -> the package that has it."""
MODULES = {module for packages in PACKAGES.values() for module in packages}


class Without:
    """Another finder, which does not find the modules of the extras."""

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in MODULES else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def said(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command, or of a function for `MODULE:FUNCTION ARGUMENTS`."""
    from launch import cli

    module, colon, function = arguments[0].partition(":")
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = called(module, function, arguments[1:]) if colon else cli.main(arguments)
        except SystemExit as done:  # of --help
            code = int(done.code or 0)
    return code, error.getvalue()


def called(module: str, function: str, arguments: list[str]) -> int:
    from pipeline.errors import PipelineError, exit_code

    try:
        getattr(importlib.import_module(module), function)(*arguments)
    except PipelineError as err:
        print(err, file=sys.stderr)
        return exit_code(err)
    return 0


def main() -> None:
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    from dtem import build_backbone

    build_backbone("vit_tiny_patch16_224", policy="dtem", reduction=8)
    answers = {name: said(words) for name, words in json.loads(Path(sys.argv[1]).read_text()).items()}
    print(json.dumps(answers | {"modules": sorted(MODULES & {name.split(".")[0] for name in sys.modules})}))


if __name__ == "__main__":
    main()
