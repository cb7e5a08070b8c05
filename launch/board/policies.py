"""The policies of a board, and the runs that it may compare."""

from collections.abc import Sequence

from launch.measure.setups import check_one_setup, share_base
from launch.saved.policy_names import KINDS, all_policies, kind_of
from launch.saved.run import SavedRun
from pipeline.errors import ConfigError

ALL = "all"


def asked_policies(names: Sequence[str]) -> list[str]:
    """The policies that are named, `all` being every one, in the order of their kinds. Raises ConfigError for
    an unknown one."""
    found = [name for given in names for name in (all_policies() if given == ALL else [given])]
    kinds = {name: KINDS.index(kind_of(name)) for name in found}
    return sorted(kinds, key=lambda name: kinds[name])


def check_same_weights(runs: Sequence[SavedRun]) -> None:
    """Raises ConfigError for runs of several setups, and for runs whose backbones or heads differ because
    they were trained under different policies: each policy would be at home in other weights."""
    check_one_setup(runs)
    trained = {run.config.merging.policy: run for run in runs}
    if len(trained) > 1 and not share_base(runs):
        said = ", ".join(f"{run.folder} under '{policy}'" for policy, run in trained.items())
        raise ConfigError(
            f"backbones or heads differ, as they were trained under different policies: {said}. A board "
            "compares policies on the same weights: give each of these a board of its own"
        )
