"""What FSDP2 cannot carry out is refused before anything is connected. Its training is in
tests/distributed/test_engines.py."""

import pytest
from standin import StandinModel, standin_config
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.engine import build_engine, check_engine
from pipeline.engine.local import LocalEngine
from pipeline.errors import ConfigError
from pipeline.parts import set_trainable
from pipeline.train.ema import check_ema
from pipeline.train.groups import parameter_groups

FSDP = {"type": "fsdp"}


def test_one_process_is_the_local_engine():
    config, model = standin_config(engine=FSDP), StandinModel()
    set_trainable(model, config.train.mode)
    assert isinstance(build_engine(config, model, parameter_groups(model, config)), LocalEngine)


def test_an_average_of_weights_is_refused():
    with pytest.raises(ConfigError, match="optim.ema_decay needs whole parameters"):
        check_ema(standin_config(engine=FSDP, optim={"ema_decay": 0.9}))


def test_gradients_of_single_tasks_are_refused(tmp_path):
    def several(every: int):
        sections = dict(engine=FSDP, balancing={"every": every})
        return from_plain(tiny_tasks_plain(tmp_path, tmp_path / "run", **sections))

    with pytest.raises(ConfigError, match="balancing.every is 7, and engine.type='fsdp' shows no gradients"):
        check_engine(several(7))
    check_engine(several(0))
