"""Sections that do not fit one another are told together, before anything is built."""

from dataclasses import replace

import pytest

from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.plan.facts import ModelFacts, near_multiples
from pipeline.plan.resolve import resolve

FACTS = ModelFacts(patch=(16, 16), depth=12, num_prefix=1, grid=(14, 14))


def run(**sections):
    data = {"schema": "imagenet", "train": "train.tar", "batch_size": 4, **sections.pop("data", {})}
    plain = {
        "backbone": {"name": "deit_small_patch16_224"},
        "tasks": {"a": {"type": "classification", "data": data}},
        "train": {"steps": 10},
        "merging": {"policy": "dtem", "reduction": 16},
        "output": "runs/x",
    }
    return from_plain({**plain, **sections})


def complaint(config, world_size=1, facts=FACTS, num_samples=None) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(config, world_size, facts, num_samples)
    return str(caught.value)


def test_the_papers_schedule_fits_and_one_more_token_does_not():
    assert resolve(run(), 1, FACTS).total_steps == 10
    assert "the largest even reduction is 16 per block" in complaint(
        run(merging={"policy": "dtem", "reduction": 17})
    )


@pytest.mark.parametrize("labels", ["patches", "tokens"])
def test_labels_of_mixed_patches_go_where_the_tokens_of_images_are(labels):
    config = run(data={"augment": {"cutmix": 1, "mix_labels": labels}})
    assert resolve(config, 1, FACTS).total_steps == 10
    said = complaint(config, facts=replace(FACTS, grid=(8, 14, 14)))
    assert f"tasks.a.data.augment.mix_labels is '{labels}', and the backbone reads clips" in said
    said = complaint(config, facts=replace(FACTS, never_merges="it has a dense grid"))
    assert ("labels do not follow the tokens of 'deit_small_patch16_224'" in said) == (labels == "tokens")


@pytest.mark.parametrize("world_size, accumulation, epochs", [(1, 1, 1), (8, 2, 30), (3, 1, 0.5)])
def test_an_epoch_shows_every_sample_once(world_size, accumulation, epochs):
    engine = {"accumulation": accumulation}
    resolved = resolve(run(train={"epochs": epochs}, engine=engine), world_size, FACTS, {"a": 1001})
    assert resolved.global_batch == {"a": 4 * world_size * accumulation}
    seen = resolved.total_steps * resolved.global_batch["a"]
    assert 0 <= seen - epochs * 1001 < resolved.global_batch["a"]


@pytest.mark.parametrize("optim", [{"warmup_epochs": 2.0}, {"warmup_share": 0.2}])
def test_a_warm_up_in_epochs_or_as_a_share_becomes_steps(optim):
    config = run(train={"epochs": 10}, optim=optim)
    resolved = resolve(config, 1, FACTS, {"a": 100}).config.optim
    assert (resolved.warmup_steps, resolved.warmup_epochs, resolved.warmup_share) == (50, 0, 0)
    assert resolve(config, 1, FACTS).config == config, "without the number of samples it stays as it is"
    again = resolve(resolve(config, 1, FACTS, {"a": 100}).config, 1, FACTS, {"a": 100})
    assert again.config.optim == resolved
    assert "optim.warmup_steps is 250, but the run has 250 steps" in complaint(
        run(train={"epochs": 10}, optim={"warmup_epochs": 10.0}), num_samples={"a": 100}
    )


def test_steps_of_a_run_in_epochs_wait_for_the_number_of_samples():
    assert resolve(run(train={"epochs": 3}), 1, FACTS).total_steps is None


@pytest.mark.parametrize("pixels, near", [(225, [224, 240]), (239, [240, 224]), (3, [16])])
def test_a_crop_that_does_not_divide_gets_its_neighbours(pixels, near):
    assert near_multiples(pixels, 16) == near
    said = complaint(run(data={"img_size": pixels}, merging={"policy": "dtem"}))
    assert f"tasks.a.data.img_size is {pixels}, which does not divide by patch 16; nearest: {near[0]}" in said


@pytest.mark.parametrize(
    "sections, part",
    [
        ({"merging": {"policy": "dtm"}}, "unknown merge policy 'dtm'; did you mean 'dtem'?"),
        ({"merging": {"policy": "dtem", "options": {"tau9": 1}}}, "tau9"),
        (
            {"merging": {"policy": "none", "reduction": 4}, "train": {"steps": 1, "mode": "backbone"}},
            "merging.policy is 'none'",
        ),
        ({"merging": {"policy": "none", "target_macs": 0.5}}, "merging.policy is 'none'"),
        ({"merging": {"policy": "tome"}}, "policy 'tome' has no metric embedding to learn"),
        ({"merging": {"policy": "dtem"}}, "nothing merges, so nothing would reach the embeddings"),
        (
            {"merging": {"policy": "stvit", "reduction": 4, "embedding": "per_task"}},
            "policy 'stvit' has one reducer for all tasks",
        ),
        ({"merging": {"policy": "none"}}, "policy 'none' has no metric embedding to learn"),
        ({"merging": {"policy": "dtem", "reduction": [1] * 13}}, "lists 13 blocks, but the backbone has 12"),
        (
            {"train": {"steps": 9, "reduction_range": [8, 99]}},
            "a block can merge at most 98 of the 196 patches",
        ),
        (
            {"objective": {"type": "distill"}, "merging": {"policy": "none"}},
            "teacher and student would be the same",
        ),
        (
            {"objective": {"type": "consistency"}, "merging": {"policy": "none"}},
            "objective.type is 'consistency' and merging.policy is 'none'",
        ),
        *(
            (
                {
                    "objective": {"type": objective},
                    "merging": {"policy": "tome"},
                    "train": {"steps": 9, "mode": "backbone"},
                },
                f"objective.type is '{objective}', but nothing merges",
            )
            for objective in ("distill", "consistency")
        ),
        (
            {"objective": {"type": "consistency"}, "train": {"steps": 9, "mode": "heads"}},
            "compares what the backbone makes of two reductions",
        ),
        (
            {"objective": {"type": "consistency"}, "engine": {"compile": "model"}},
            "objective.type 'consistency' draws a reduction in each step",
        ),
        (
            {"objective": {"type": "merge_cost"}, "train": {"steps": 9, "mode": "joint"}},
            "teaches the embeddings alone",
        ),
        ({"data": {"train": None}}, "tasks.a.data.train is not given"),
        ({"data": {"batch_size": 1, "augment": {"cutmix": 1}}}, "tasks.a.data.batch_size is 1, and mixup"),
        ({"train": {"steps": 9, "eval_every": 3}}, "tasks.a.data.val is not given"),
        ({"optim": {"warmup_steps": 10}}, "optim.warmup_steps is 10, but the run has 10 steps"),
        ({"engine": {"type": "local", "deepspeed": {"zero_optimization": {}}}}, "engine.type is 'local'"),
        (
            {"engine": {"type": "deepspeed", "zero_stage": 3, "compile": "blocks"}},
            "engine.compile is 'blocks', and engine.zero_stage is 3",
        ),
        (
            {"engine": {"compile": "model"}, "train": {"steps": 9, "reduction_range": [2, 8]}},
            "train.reduction_range draws one of 7 reductions in each step",
        ),
        ({"backbone": {"name": "x", "img_size": 100}}, "backbone.img_size is 100"),
        (
            {"backbone": {"name": "x", "img_size": [96, 100]}},
            "backbone.img_size is (96, 100), which does not divide by patch 16 (100)",
        ),
        ({"data": {"img_size": [64, 100]}, "merging": {"policy": "dtem"}}, "nearest: 96 or 112"),
    ],
)
def test_a_disagreement_is_named(sections, part):
    assert part in complaint(run(**sections))


def test_a_crop_need_not_be_square():
    oblong = {"data": {"img_size": [96, 160]}, "merging": {"policy": "dtem", "reduction": 4}}
    assert resolve(run(**oblong), 1, FACTS).config.tasks["a"].data.img_size == (96, 160)
    assert "60 patches" in complaint(run(**oblong | {"train": {"steps": 9, "reduction_range": [0, 31]}}))
    tall = ModelFacts(patch=(16, 10), depth=12, num_prefix=1, grid=(6, 16))
    assert resolve(run(**oblong), 1, tall).total_steps == 10, "each side has its own patch"


def test_a_local_engine_is_one_process():
    assert "which is one process, but there are 2" in complaint(run(engine={"type": "local"}), world_size=2)


def test_all_disagreements_are_told_at_once():
    said = complaint(run(data={"img_size": 225, "train": None}, merging={"policy": "tome", "reduction": 99}))
    assert "4 mistakes" in said
    assert len(said.splitlines()) == 6


def test_a_trial_is_shorter_and_keeps_the_warm_up_of_its_run():
    train, optim = {"epochs": 2}, {"warmup_steps": 7}
    samples = {"a": 40}
    assert resolve(run(train=train, optim=optim), 1, FACTS, samples).total_steps == 20
    trial = run(train=train | {"max_steps": 3}, optim=optim)
    assert resolve(trial, 1, FACTS, samples).total_steps == 3
    assert resolve(run(train=train | {"max_steps": 30}), 1, FACTS, samples).total_steps == 20
