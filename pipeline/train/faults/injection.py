"""Puts faults into a run, each once, at its moment."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.overrides import parse_value
from pipeline.errors import ConfigError
from pipeline.files import folder_within
from pipeline.train.faults.fault import FAULTS, Fault, Victim

log = logging.getLogger(__name__)

FOLDER = "injected"
EXAMPLES = "kill@step=30,rank=1; outage@step=10,seconds=60; enospc@save=2"


@dataclass(frozen=True)
class Planned:
    """A fault, and the spec that it was made of."""

    spec: str
    fault: Fault


class Injection:
    """The faults of this rank. Each strikes once in the life of a run: a mark in `injected/` of the run's
    folder says that it has, so that a run that goes on is not struck again."""

    def __init__(self, specs: Sequence[str] = ()):
        """Raises ConfigError for a spec that cannot be carried out."""
        self._planned = [Planned(spec, fault_of(spec)) for spec in specs]
        if doubled := {spec for spec in specs if specs.count(spec) > 1}:
            raise ConfigError(f"--inject {min(doubled)} is given twice; give it once")
        self._saves = 0

    def prepare(self, run: Victim) -> None:
        """Before the first step. Raises ConfigError for a fault that would never strike."""
        for one in self._planned:
            fault, step = one.fault, one.fault.step
            fault.prepare(run)
            if fault.rank is not None and fault.rank >= run.engine.world_size:
                ranks = run.engine.world_size
                raise ConfigError(f"--inject {one.spec}: the ranks are 0 to {ranks - 1}; give one of them")
            if step is not None and step >= run.total_steps:
                last = run.total_steps - 1
                raise ConfigError(f"--inject {one.spec}: the steps are 0 to {last}; give one of them")
        self._planned = [one for one in self._planned if one.fault.rank in (None, run.engine.rank)]
        for one in self._planned:
            if _mark(run, one).exists():
                log.warning("--inject %s: has struck in this run, and does not again", one.spec)
            elif one.fault.step is not None and one.fault.step < run.progress.step:
                log.warning("--inject %s: the run goes on after that step", one.spec)

    def before_step(self, run: Victim) -> None:
        self._strike(run, [one for one in self._planned if one.fault.step == run.progress.step])

    def before_save(self, run: Victim) -> None:
        if self._planned:
            self._saves += 1
            self._strike(run, [one for one in self._planned if one.fault.save == self._saves])

    def _strike(self, run: Victim, due: Sequence[Planned]) -> None:
        for one in due:
            mark = _mark(run, one)
            try:
                os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            except FileExistsError:
                continue
            log.warning("rank %d: injected %s", run.engine.rank, one.spec)
            one.fault.strike(run)


def fault_of(spec: str) -> Fault:
    """The fault of a spec `NAME@OPTION=VALUE,OPTION=VALUE`. Raises ConfigError."""
    name, at, rest = spec.partition("@")
    items = [item.partition("=") for item in rest.split(",")]
    if not at or not all(key and equals and value for key, equals, value in items):
        raise ConfigError(f"--inject {spec} is no fault with its options; for instance {EXAMPLES}")
    keys = [key for key, _, _ in items]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--inject {spec} gives a key twice")
    fault = FAULTS.build(name, **{key: parse_value(value) for key, _, value in items})
    for key, least in (("step", 0), ("save", 1), ("rank", 0)):
        value = getattr(fault, key)
        if value is not None and value < least:
            raise ConfigError(f"--inject {spec}: {key} is {value}; give {least} or more")
    return fault


def _mark(run: Victim, one: Planned) -> Path:
    return folder_within(Path(run.config.output), FOLDER) / f"{one.spec}.rank_{run.engine.rank:05d}"
