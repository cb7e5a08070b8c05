"""Which optimizer a configuration gives, and what is refused before anything is connected. Their laws are in
test_local_engine.py, and over processes in tests/distributed/test_engines.py."""

import pytest
import torch
from standin import standin_config, standin_groups

from pipeline.config.schema import OptimConfig
from pipeline.engine import check_engine
from pipeline.engine.optimizers import OPTIMIZERS, build_optimizer, complete_optimizer
from pipeline.errors import ConfigError

WHOLE = ("lamb", "muon")
"""Optimizers that look at a parameter as a whole."""


def optimizer(**settings):
    return build_optimizer(OptimConfig(**settings), [{"params": [torch.zeros(3, 2)], "name": "a"}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(type="adamv"), "unknown optimizer 'adamv'; did you mean 'adamw'"),
        (dict(type="sgd", betas=(0.9, 0.99)), "'sgd'.*'betas'.*its options: momentum, nesterov"),
        (dict(type="sgd", options=dict(momentum="0.9")), "momentum is '0.9'; give a value of type float"),
        (dict(type="sgd", options=dict(momentum=-1.0)), "momentum': -1.0.*Invalid momentum"),
        (dict(options=dict(betas=(0.9, 0.99))), "set optim.betas"),
        (dict(options=dict(amsgrad=True)), "'adamw'.*'amsgrad'.*its options: betas, eps"),
        (dict(type="muon", options=dict(adjust_lr_fn="mine")), "optim.options.*mine"),
    ],
)
def test_a_mistake_names_the_setting_and_what_there_is(settings, said):
    with pytest.raises(ConfigError, match=said):
        optimizer(**settings)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_needs_whole_parameters_is_refused_where_they_are_cut_up(name, stage):
    config = standin_config(optim={"type": name}, engine={"type": "deepspeed", "zero_stage": stage})
    if stage and name in WHOLE:
        with pytest.raises(ConfigError, match=f"'{name}'.*engine.zero_stage={stage} cuts them up; give"):
            check_engine(config)
    else:
        check_engine(config)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_fsdp_cuts_parameters_up_where_there_are_several_ranks(name, monkeypatch):
    config = standin_config(optim={"type": name}, engine={"type": "fsdp"})
    check_engine(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if name in WHOLE:
        with pytest.raises(ConfigError, match=f"'{name}'.*engine.type='fsdp' cuts them up"):
            check_engine(config)
    else:
        check_engine(config)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest():
    by_name, _, _ = standin_groups(type="muon")
    matrices = {name for name, group in by_name.items() if group["matrix"]}
    assert matrices == {f"backbone.blocks.{i}.fc.weight" for i in (0, 1)}
    assert not any(group["matrix"] for group in standin_groups()[0].values())


def test_muon_is_refused_where_no_matrix_of_the_backbone_learns():
    with pytest.raises(ConfigError, match="'muon'.*train.mode='modular' trains none of them"):
        check_engine(standin_config(optim={"type": "muon"}, train={"mode": "modular"}))


def test_betas_are_the_optimizers_own_where_none_are_given():
    def betas(**optim):
        return complete_optimizer(standin_config(optim=optim)).optim.betas

    assert betas() == (0.9, 0.999) and betas(type="lion") == (0.9, 0.99) and betas(type="sgd") is None
    assert betas(type="lion", betas=(0.5, 0.6)) == (0.5, 0.6)
