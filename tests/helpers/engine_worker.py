"""Run by `deepspeed` in every rank: the same short runs at every ZeRO stage. Rank 0 writes curves and states
for the test to read."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import policy_runs
import procedures  # noqa: F401  (registration)
import pytest
import torch
from names import owner_of
from reads import Reads
from safetensors.torch import load_file, save_file
from standin import CLASSES, StandinModel, standin_batch, standin_config
from tiny import tiny_vit
from torch import Tensor, distributed

from pipeline.backbone.build import build_backbone
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.targets import ClassificationTargets
from pipeline.engine import build_engine
from pipeline.engine.optimizers import OPTIMIZERS
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from pipeline.parts import set_trainable
from pipeline.rng import generator
from pipeline.train import storage
from pipeline.train.collective import joined_json
from pipeline.train.gate import GradientGate
from pipeline.train.groups import parameter_groups
from pipeline.train.metrics import MetricSums
from pipeline.train.rates import learning_rates
from pipeline.train.steps import STEPS, build_procedure
from pipeline.train.steps.procedure import MicroBatch, StepWork
from tasks.classification import ClassificationTask

Stage = int | str
STAGES: tuple[Stage, ...] = (0, 1, 2, 3, "fsdp")
"""Of ZeRO, and the engine of FSDP2."""
DIVIDED: tuple[Stage, ...] = (3, "fsdp")
"""Where weights are divided."""
NUM_STEPS, GLOBAL_BATCH = 6, 16
RUNS = {
    "joint": {},
    "modular": {"mode": "modular"},
    "end_to_end": {"mode": "end_to_end", "alternate_period": 2},
    "all": {},
    "sampled": {},
    "merge_cost": {"mode": "modular"},
    "merge_cost_end_to_end": {"mode": "end_to_end", "alternate_period": 2},
    "sharpness_aware": {},
    "consistency": {"mode": "backbone"},
    "budget": {},
    "frozen_checkpointed": {"mode": "modular"},
    "recovery": {},
    "labels_of_tokens": {},
    "sgd": {},
    "lamb": {},
} | policy_runs.USUAL
WHOLE = ("sharpness_aware",)
"""Runs of a procedure that moves the weights itself, which needs them whole."""
UNDIVIDED = tuple(
    name for name in OPTIMIZERS.names() if not getattr(OPTIMIZERS.get(name), "elementwise", True)
)
"""Runs of optimizers that need whole parameters, which only stage 0 has."""
PARTED = ("consistency", "budget")
"""Runs of real modules of whose batch each rank has a part. The first averages over the images of all ranks
that it is sure of, and merges by mctf, two patches into one, in which nothing is chosen. The second has one
budget over all images; its thresholds lie below all scores, with a wide gradient, so that nothing is
masked."""
REAL = ("merge_cost", "merge_cost_end_to_end", "frozen_checkpointed", "labels_of_tokens", "recovery")
"""Runs of real modules. The objective merge_cost takes gradients inside its forward pass. Its prices are in
units of a batch's mean price and its labels are drawn, so that ranks with a part of a batch each are not one
with the whole: here each has the same. `frozen_checkpointed` computes frozen blocks again in the backward
pass, through which the gradient of an embedding goes, and so does `labels_of_tokens`, whose labels follow the
tokens of mixed images. `recovery` has semantic tokens and recovers the patches, by parts of their own."""
WHERE_DIVIDED = ("recovery",)
"""Runs of which no other stages are tried, for time: parts that lie in blocks are gathered with them."""
EVERY_POLICY = "every_policy"
"""The argument before the folder with which only runs of policies are made, all of them."""
DRAWN = "aababb"
"""The task of each step of `sampled`: b's head rests before it is first used and in between, a's at the
end."""


def settings(stage: Stage, engine_type: str) -> dict[str, Any]:
    return {"type": "fsdp"} if stage == "fsdp" else {"type": engine_type, "zero_stage": stage}


def optimizer_of(kind: str) -> str:
    return kind if kind in OPTIMIZERS.names() else "adamw"


def is_possible(kind: str, stage: Stage) -> bool:
    if kind in policy_runs.USUAL:
        return stage == policy_runs.stage_of(kind)
    if kind in WHERE_DIVIDED:
        return stage in DIVIDED
    return not (stage in DIVIDED and kind in WHOLE) and (stage == 0 or kind not in UNDIVIDED)


def steps_of(kind: str) -> int:
    return policy_runs.STEPS if kind in policy_runs.EVERY else NUM_STEPS


def plan(kind: str, step: int) -> str:
    """The task of each of the step's two micro-batches; in `all` the last one does not touch b's head."""
    return {"all": "ba", "sampled": 2 * DRAWN[step]}.get(kind, "aa")


def make(kind: str, stage: Stage, engine_type: str = "deepspeed", precision: str = "fp32"):
    torch.manual_seed(1)
    engine = settings(stage, engine_type) | {"precision": precision}
    config = standin_config(
        train=(RUNS | policy_runs.EVERY).get(kind),
        step={"type": kind if kind in STEPS.names() else None},
        optim={"type": optimizer_of(kind)},
        engine=engine,
    )
    model = MODELS.get(kind, StandinModel)()
    set_trainable(model, config.train.mode)
    groups = parameter_groups(model, config)
    return build_engine(config, model, groups), groups, config


def real_model() -> MultiTaskModel:
    """It prices all blocks and merges nothing: to merge is a chain of choices, in which rounding may
    decide."""
    backbone = tiny_vit(
        "dtem", reduction=0, img_size=32, timm_options={"depth": 2, "embed_dim": 24, "num_heads": 2}
    )
    return MultiTaskModel(
        backbone, {"a": ClassificationTask(backbone, num_classes=CLASSES)}, OBJECTIVES.build("merge_cost")
    )


def checkpointed_model() -> MultiTaskModel:
    """Its first block merges, with shares in which nothing is chosen; its second one is frozen as well."""
    backbone = build_backbone(
        "vit_tiny_patch16_224",
        policy="dtem",
        reduction=[2, 0],
        img_size=32,
        timm_options=dict(patch_size=8, depth=2, embed_dim=24, num_heads=2),
        grad_checkpointing=True,
        relaxation="soft",
        candidates=8,
    )
    task = ClassificationTask(backbone, num_classes=CLASSES)
    return MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build("supervised"))


def consistent_model() -> MultiTaskModel:
    """Its student merges two patches into one, and its teacher none; it is sure of some images."""
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    backbone = tiny_vit("mctf", reduction=[1, 0], img_size=(8, 16), timm_options=sizes)
    task = ClassificationTask(backbone, num_classes=CLASSES)
    torch.nn.init.normal_(task.head.weight, std=0.5)
    return MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build("consistency", confidence=0.25))


def recovering_model() -> MultiTaskModel:
    """Five semantic tokens of 16 patches, whose parts count from the first step on."""
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    options = {"img_size": 32, "timm_options": sizes, "block": 0, "recovery": True, "init_values": 1.0}
    backbone = tiny_vit("stvit", reduction=[11, 0], **options)
    task = ClassificationTask(backbone, num_classes=CLASSES, pool="avg")
    return MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build("supervised"))


def masking_model() -> MultiTaskModel:
    """Its thresholds start far below all scores, and have a gradient all the same."""
    sizes = {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    options = {"img_size": (8, 16), "timm_options": sizes, "temperature": 2.0, "start": -2.0}
    backbone = build_backbone("deit_tiny_patch16_224", policy="as_vit", reduction=[1, 0], **options)
    task = ClassificationTask(backbone, num_classes=CLASSES)
    return MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build("budget", ratio=0.5, weight=1e3))


MODELS = dict.fromkeys(("merge_cost", "merge_cost_end_to_end"), real_model) | {
    "frozen_checkpointed": checkpointed_model,
    "recovery": recovering_model,
    "labels_of_tokens": checkpointed_model,
    "consistency": consistent_model,
    "budget": masking_model,
    **policy_runs.MODELS,
}


MIXER = BatchMixer(
    AugmentConfig(cutmix=1.0, mix_labels="tokens"), CLASSES, ClassificationTargets, patch=(8, 8)
)


def real_batch(first: int, size: int, task: str) -> Batch:
    images = torch.stack(
        [torch.randn(3, 32, 32, generator=generator("image", first + i)) for i in range(size)]
    )
    return Batch(task, images, ClassificationTargets(torch.arange(first, first + size) % CLASSES))


def run(
    kind: str, engine, groups, config, first: int, last: int, nan_at: tuple[int, int] | None = None
) -> list[list[float]]:
    """[loss over the global batch, gradient norm] of steps first ... last - 1; at nan_at = (step, rank) one
    rank's image is NaN."""
    gate = GradientGate(groups, engine.device)
    return [
        train_step(kind, engine, groups, config, gate, step, bad=nan_at == (step, engine.rank))
        for step in range(first, last)
    ]


def train_step(
    kind: str, engine, groups, config, gate: GradientGate, step: int, *, bad: bool = False
) -> list[float]:
    procedure, tasks = build_procedure(config), plan(kind, step)
    spec = procedure.spec(step)
    gate.open(spec.trains)
    rates = learning_rates(groups, step, config, NUM_STEPS, trains=spec.trains, tasks=tasks)
    work = Watched(engine, micro_batches(kind, engine, spec, step, bad), rates, MetricSums(), None, step)
    norm = procedure(work)
    return [float(engine.all_reduce(torch.stack(work.losses).sum())) / engine.world_size, float(norm)]


class Watched(StepWork):
    """Remembers what was minimised."""

    @cached_property
    def losses(self) -> list[Tensor]:
        return []

    def backward(self, micro: MicroBatch, output: TaskOutput, *, last: bool) -> None:
        self.losses.append(output.loss.detach() * micro.share)
        super().backward(micro, output, last=last)


def micro_batches(kind: str, engine, spec: StepSpec, step: int, bad: bool) -> Iterator[MicroBatch]:
    tasks = plan(kind, step)
    size = GLOBAL_BATCH // len(tasks) // engine.world_size
    for micro, task in enumerate(tasks):
        if kind in REAL:
            torch.manual_seed(2 * step + micro)
            batch = real_batch(8 * step + 4 * micro, 4, task)
            if kind == "labels_of_tokens":
                batch = MIXER(batch, 1, 2 * step + micro)
        elif kind in PARTED or kind in policy_runs.EVERY:
            spec = replace(spec, draw=0.7)
            first = step * GLOBAL_BATCH + (micro * engine.world_size + engine.rank) * size
            batch = real_batch(first, size, task)
            batch = replace(batch, images=batch.images[..., :8, :16].contiguous())
        else:
            batch = standin_batch(
                step * GLOBAL_BATCH + (micro * engine.world_size + engine.rank) * size, size, task
            )
        if bad:
            batch.images[0] = float("nan")
        yield MicroBatch(batch, spec, 1 / tasks.count(task), last=micro == len(tasks) - 1)


def moved_heads(engine, groups, config) -> list[list[str]]:
    """Of a run of `sampled`: what each step changed to any bit of the heads, weights, moments and step
    counts."""
    gate, before, moved = GradientGate(groups, engine.device), engine.state_tensors(), []
    for step in range(NUM_STEPS):
        train_step("sampled", engine, groups, config, gate, step)
        after = engine.state_tensors()
        moved.append(
            [name for name in after if owner_of(name) and not torch.equal(before[name], after[name])]
        )
        before = after
    return moved


def kept(name: str, stage: Stage, folder: Path) -> bool:
    """Whether the state of an optimizer is saved as it was loaded."""
    wanted = load_file(folder / f"{name}.safetensors")
    with engine_parts(name, stage) as (engine, _, _):
        engine.load_state_tensors(wanted)
        saved = engine.state_tensors()
        return engine.rank != 0 or (
            saved.keys() == wanted.keys() and all(torch.equal(saved[key], wanted[key]) for key in wanted)
        )


@contextmanager
def engine_parts(kind: str, stage: Stage, precision: str = "fp32"):
    """One engine at a time: a run has one, and the hooks of this one are taken off before the next is
    made."""
    parts = make(kind, stage, precision=precision)
    yield parts
    end(parts[0])


def end(engine: Any) -> None:
    if hasattr(engine, "_deepspeed"):
        engine._deepspeed.destroy()


def wide_parts(engine_type: str = "deepspeed", stage: Stage = 0):
    """An engine of real modules, of about 20 parameters."""
    torch.manual_seed(1)
    config = standin_config(train={"mode": "joint"}, engine=settings(stage, engine_type))
    backbone = tiny_vit("dtem", timm_options={"depth": 1, "embed_dim": 48, "num_heads": 2})
    task = ClassificationTask(backbone, num_classes=CLASSES)
    model = MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build("supervised"))
    return build_engine(config, model, parameter_groups(model, config))


class Counted:
    """How often functions of torch.distributed are called inside."""

    NAMES = ("all_reduce", "all_gather_into_tensor", "broadcast", "all_gather")

    def __enter__(self) -> "Counted":
        self.calls, self._patch = Counter(), pytest.MonkeyPatch()
        for name in self.NAMES:
            self._patch.setattr(distributed, name, self._counting(name))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _counting(self, name: str):
        real = getattr(distributed, name)

        def call(*args, **named):
            self.calls[name] += 1
            return real(*args, **named)

        return call


def loaded_and_saved(stage: Stage, folder: Path) -> dict[str, Any]:
    """What each rank reads of a checkpoint, whether the same is saved again, and collectives of either."""
    engine = wide_parts(stage=stage)
    found = storage.open_checkpoint(folder, storage.read_manifest(folder))
    names = ("model", "exp_avg", "exp_avg_sq")
    parts = {kind: [t for name, t in found.tensors.items() if name.startswith(f"{kind}.")] for kind in names}
    mapped = ((kind, tensor) for kind, tensors in parts.items() for tensor in tensors)
    with Counted() as loading, Reads(mapped) as reads:
        engine.load_state_tensors(found.tensors)
    shares = {
        kind: reads.bytes.get(kind, 0) / sum(tensor.nbytes for tensor in tensors)
        for kind, tensors in parts.items()
    }
    with Counted() as saving:
        saved = engine.state_tensors()
    same = engine.rank != 0 or (
        all(torch.equal(saved[name], tensor) for name, tensor in found.tensors.items())
        and saved.keys() == found.tensors.keys()
    )
    result = {"read": shares, "same": same, "loading": loading.calls, "saving": saving.calls}
    results = joined_json(engine, [result])
    end(engine)
    return results


def trained(kind: str, stage: Stage, folder: Path) -> list[list[float]]:
    """The curve of a run, whose state rank 0 writes."""
    with engine_parts(kind, stage) as parts:
        curve, states = run(kind, *parts, 0, steps_of(kind)), parts[0].state_tensors()
        if parts[0].rank == 0:
            save_file(states, folder / f"{kind}.{stage}.safetensors")
    return curve


def every_policy(folder: Path) -> None:
    """Each policy with each objective at each stage."""
    curves = {
        f"{kind}.{stage}": trained(kind, stage, folder) for kind in policy_runs.EVERY for stage in STAGES
    }
    if distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(curves))


def main(folder: Path) -> None:
    results = {}
    for stage in STAGES:
        for kind in (kind for kind in RUNS if is_possible(kind, stage)):
            results[f"{kind}.{stage}"] = trained(kind, stage, folder)
        with engine_parts("joint", stage) as parts:
            parts[0].load_state_tensors(load_file(folder / "local.safetensors"))
            results[f"continued.{stage}"] = run("joint", *parts, 3, NUM_STEPS)
        for kind in ("joint", "merge_cost"):
            with engine_parts(kind, stage) as parts:
                results[f"nan.{kind}.{stage}"] = run(
                    kind, *parts, 0, NUM_STEPS, nan_at=(2, parts[0].world_size - 1)
                )
        with engine_parts("joint", stage, "bf16") as parts:
            results[f"bf16.{stage}"] = run("joint", *parts, 0, NUM_STEPS)
        with engine_parts("sampled", stage) as parts:
            results[f"moved.{stage}"] = moved_heads(*parts)
        for name in (name for name in OPTIMIZERS.names() if is_possible(name, stage)):
            results[f"kept.{name}.{stage}"] = kept(name, stage, folder)
        results[f"wide.{stage}"] = loaded_and_saved(stage, folder / "step_00000001")
    if parts[0].rank == 0:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    (every_policy if EVERY_POLICY in sys.argv else main)(Path(sys.argv[-1]))
