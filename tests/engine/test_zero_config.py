import pytest
from standin import standin_config

from pipeline.engine.zero_config import zero_config
from pipeline.errors import ConfigError


def test_the_user_may_add_what_we_do_not_own():
    user = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    merged = zero_config(standin_config(engine={"zero_stage": 2, "deepspeed": user}))
    assert (
        merged["zero_optimization"]["overlap_comm"]
        and merged["zero_optimization"]["stage"] == 2
        and merged["wall_clock_breakdown"]
    )


def test_overlapped_sums_are_refused_at_stage_1_where_they_lose_idle_heads():
    with pytest.raises(
        ConfigError,
        match=r"zero_optimization.overlap_comm is True, but engine.zero_stage=1 \(take 2 or 3\) says False",
    ):
        zero_config(
            standin_config(
                engine={"zero_stage": 1, "deepspeed": {"zero_optimization": {"overlap_comm": True}}}
            )
        )


def test_agreeing_is_allowed():
    merged = zero_config(
        standin_config(engine={"zero_stage": 2, "deepspeed": {"zero_optimization": {"stage": 2}}})
    )
    assert merged["zero_optimization"]["stage"] == 2


def test_all_contradictions_are_named_with_both_fields():
    user = {
        "zero_optimization": {"stage": 3},
        "gradient_clipping": 7.0,
        "optimizer": {"type": "Adam"},
        "bf16": {"enabled": True},
    }
    with pytest.raises(ConfigError) as caught:
        zero_config(standin_config(engine={"deepspeed": user}))
    fields = ("gradient_clipping", "optim.clip_grad", "optimizer.type", "bf16.enabled", "engine.precision")
    for words in ("zero_optimization.stage is 3, but engine.zero_stage says 1", *fields):
        assert words in str(caught.value)


def test_auto_is_what_the_run_says():
    user = {
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": "auto"},
    }
    assert zero_config(standin_config(engine={"deepspeed": user})) == zero_config(standin_config())


def test_accumulation_is_the_runs():
    with pytest.raises(
        ConfigError, match="gradient_accumulation_steps is 4; leave it out and set engine.accumulation"
    ):
        zero_config(
            standin_config(engine={"accumulation": 4, "deepspeed": {"gradient_accumulation_steps": 4}})
        )
