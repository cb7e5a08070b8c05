"""A model, a stream and a configuration of the real interfaces, small enough that an engine is what is
tested."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.config.schema import (
    BackboneConfig,
    DataConfig,
    EngineConfig,
    OptimConfig,
    RunConfig,
    StepConfig,
    TaskConfig,
    TrainConfig,
)
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import JOINT_STEP, Batch, Scores, StepSpec, Tallies, TaskOutput
from pipeline.model import Heads
from pipeline.parts import METRIC, set_trainable
from pipeline.rng import generator
from pipeline.train.groups import parameter_groups

DIM, CLASSES = 12, 5


class StandinMetric(nn.Linear):
    part_kind = METRIC


class StandinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)
        self.metric = StandinMetric(DIM, 3)

    def forward(self, x: Tensor, relaxed: bool) -> Tensor:
        x = x + torch.tanh(self.fc(x))
        return x + torch.tanh(self.metric(x)).repeat(1, DIM // 3) if relaxed else x


class StandinBackbone(Backbone):
    undecayed = ("pos_embed",)

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, DIM))
        self.blocks = nn.ModuleList([StandinBlock(), StandinBlock()])
        self.norm = nn.LayerNorm(DIM)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, images: Tensor, relaxed: bool) -> Tensor:
        x = images.flatten(1) + self.pos_embed
        for block in self.blocks:
            x = block(x, relaxed)
        return self.norm(x)


class StandinModel(nn.Module):
    """Two heads; a batch uses the one of its task, so the other one is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = StandinBackbone()
        self.tasks = Heads({"a": nn.Linear(DIM, CLASSES), "b": nn.Linear(DIM, CLASSES)})

    @property
    def networks(self) -> tuple[nn.Module]:
        return (self,)

    def forward(self, batch: Batch, spec: StepSpec = JOINT_STEP) -> TaskOutput:
        logits = self.tasks[batch.task](self.backbone(batch.images, spec.relaxed))
        losses = nn.functional.cross_entropy(logits.float(), batch.targets.labels, reduction="none")
        return TaskOutput(losses.mean(), {"loss": (losses.detach().sum(), len(losses))}, logits)

    def evaluate(self, batch: Batch, *, reduction: Any = None) -> Tallies:
        """`table`: how often each class was taken for each."""
        said, labels = self(batch, StepSpec(relaxed=False)).predictions.argmax(-1), batch.targets.labels
        return {
            "top1": (said == labels).sum(),
            "table": torch.bincount(labels * CLASSES + said, minlength=CLASSES**2).view(CLASSES, -1),
        }

    def as_forward(self, function: Any) -> Any:
        return function(self)

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores:
        table = tallies["table"]
        of_class = {
            f"Acc/{i}": float(table[i, i] / table[i].sum()) if table[i].sum() else None
            for i in range(CLASSES)
        }
        return {"top1": float(tallies["top1"] / tallies["samples"])} | of_class


def standin_batch(first: int, size: int, task: str = "a") -> Batch:
    """Samples first ... first + size - 1 of an endless sequence in which a sample depends on its position
    only."""
    images = torch.stack([torch.randn(3, 2, 2, generator=generator("image", first + i)) for i in range(size)])
    labels = (images.flatten(1)[:, :CLASSES]).argmax(1)
    return Batch(task, images, ClassificationTargets(labels), tuple(str(first + i) for i in range(size)))


class StandinStream:
    num_samples = 64

    def __init__(self, size: int, rank: int = 0, world_size: int = 1, task: str = "a"):
        self.size, self.rank, self.world_size, self.task, self.samples = size, rank, world_size, task, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            first = self.samples + self.rank * self.size
            self.samples += self.size * self.world_size
            yield standin_batch(first, self.size, self.task)

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.samples = state["samples"]


def standin_config(
    output: str = "runs/standin",
    *,
    batch_size: int = 8,
    train: Any = None,
    step: Any = None,
    optim: Any = None,
    engine: Any = None,
) -> RunConfig:
    data = DataConfig(schema="standin", train="-", val="-", batch_size=batch_size)
    return RunConfig(
        backbone=BackboneConfig(name="standin"),
        tasks={"a": TaskConfig(type="classification", data=data)},
        train=TrainConfig(**({"mode": "joint", "steps": 6} | (train or {}))),
        step=StepConfig(**(step or {})),
        optim=OptimConfig(
            **({"lr": 1e-2, "weight_decay": 0.05, "clip_grad": 0.5, "warmup_steps": 2} | (optim or {}))
        ),
        engine=EngineConfig(**({"type": "local", "precision": "fp32"} | (engine or {}))),
        output=output,
    )


def standin_groups(mode: str = "joint", frozen: Collection[str] = (), **optim: Any):
    """Of a stand-in model: parameter -> its group, the groups, and the configuration."""
    model, config = StandinModel(), standin_config(train={"mode": mode}, optim=optim)
    set_trainable(model, mode, frozen)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}, groups, config
