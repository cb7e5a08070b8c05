"""The environment that the ranks of other hosts get: an allow-list, and what `--env` names.

No file of the working folder adds to it (DeepSpeed's launcher reads `.deepspeed_env` there).
"""

import re
from collections.abc import Iterable, Mapping

from pipeline.errors import ConfigError

PASSED = frozenset(
    "CUDA_DEVICE_MAX_CONNECTIONS DS_ACCELERATOR HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE LD_LIBRARY_PATH "
    "MKL_NUM_THREADS OMP_NUM_THREADS PYTHONFAULTHANDLER PYTHONPATH PYTHONUNBUFFERED PYTORCH_ALLOC_CONF "
    "PYTORCH_CUDA_ALLOC_CONF TOKENIZERS_PARALLELISM TORCHDYNAMO_DISABLE TORCH_DISTRIBUTED_DEBUG "
    "TORCH_EXTENSIONS_DIR TORCH_HOME WDS_SECURE".split()
)
PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_")
OURS = frozenset(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE LOCAL_WORLD_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR "
    "MASTER_PORT DTEM_PARENT DTEM_MARKS".split()
)
"""Set for each rank by the launcher, as those of torch's agent, which begin with `TORCHELASTIC_`."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def environment(given: Iterable[str], here: Mapping[str, str]) -> dict[str, str]:
    """Name -> value, sorted by name: what the allow-list names of `here`, and what `--env` gives.

    given: `NAME` takes the value of `here`, `NAME=VALUE` is taken as it stands. Raises ConfigError.
    """
    passed = {name: value for name, value in here.items() if name in PASSED or name.startswith(PREFIXES)}
    return dict(sorted((passed | variables(given, here)).items()))


def variables(given: Iterable[str], here: Mapping[str, str]) -> dict[str, str]:
    """What `--env` gives. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        _check(name)
        if not equals and name not in here:
            raise ConfigError(f"--env {name}: it is not set here; set it, or give --env {name}=VALUE")
        if name in found:
            raise ConfigError(f"--env {name} is given twice; give it once")
        found[name] = value if equals else here[name]
        if "\0" in found[name]:
            raise ConfigError(f"--env {name}: no value of an environment holds a zero byte")
    return found


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--env {name}: a name has letters, digits and '_', as in --env NAME=VALUE")
    if name in OURS or name.startswith("TORCHELASTIC_"):
        raise ConfigError(f"--env {name}: the launcher sets it for each rank; leave it out")
