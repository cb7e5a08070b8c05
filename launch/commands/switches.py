"""Environment variables that say how a model computes, looked at before a command works: a name that there is
not would else be found at the first merge on a GPU, or never."""

import os

NAMES = ("DTEM_KERNELS", "DTEM_ATTENTION", "DTEM_PACKED_WEIGHTS")


def check_switches() -> None:
    """Raises ConfigError for a variable that is none of its values. Imports torch only where one is set."""
    if not any(os.environ.get(name) for name in NAMES):
        return
    from pipeline.backbone.attention_kernels import WAYS
    from pipeline.backbone.packed_linear import ON_OR_OFF
    from pipeline.kernels.choice import KERNELS, asked

    for name, values in zip(NAMES, (KERNELS, tuple(WAYS), ON_OR_OFF), strict=True):
        asked(name, values)
