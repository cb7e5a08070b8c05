"""Teaching of the metric embeddings of a patched model by `merge_cost`, on its own outputs. B images."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from launch.saved.device import now
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.config.schema import OptimConfig
from pipeline.engine.model_on_device import autocast
from pipeline.engine.optimizer import mark_nonfinite
from pipeline.engine.optimizers import build_optimizer
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.objectives.draw import drawn_blocks
from pipeline.objectives.merge_cost import MergeCost
from pipeline.objectives.signal import Signal
from pipeline.own_loop.phases import embeddings_of
from pipeline.rng import seed_everything, uniform
from pipeline.train.rates import lr_at

TOLD_EVERY = 10
"""Steps between looks at the loss, for which the host waits for the device."""
TIMED = range(3, 8)
"""Steps by whose time the whole is estimated once more: the first ones compile, allocate and fill queues."""


@dataclass(frozen=True)
class Teaching:
    """How the embeddings learn. reduction: r per block about which each step draws one, from half of it to
    half more, so that the embeddings see tokens as merged as any that they will be used for. Raises
    ConfigError."""

    steps: int
    optim: OptimConfig
    reduction: int
    pairs: str
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "reduction"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; give 1 or more")

    def blocks_at(self, step: int, counted: Counted, prefix_alone: bool) -> range:
        """The blocks that the step prices, see `drawn_blocks`."""
        return drawn_blocks(
            counted.schedule(self.reduction_at(step)),
            uniform(self.seed, "draw", step),
            read=len(counted.blocks),
            prefix_alone=prefix_alone,
        )

    def reduction_at(self, step: int) -> int:
        low, high = max(1, self.reduction // 2), max(1, self.reduction + self.reduction // 2)
        return low + int(uniform(self.seed, "reduction", step) * (high - low + 1))


def teach(
    model: MergingModel,
    signal: Signal,
    batches: Iterator[Batch],
    how: Teaching,
    counted: Counted,
    *,
    device: torch.device,
    precision: str,
    stopping: Callable[[], bool],
) -> int:
    """Trains the embeddings of the model, in place, and nothing else. Returns the number of steps that were
    done, which are fewer where `stopping` said so. Raises ConfigError where no step has a finite loss.

    model: on the device, in evaluation mode, with a policy that learns. counted: of it, for one image.
    """
    embeddings = learning_embeddings(model)
    objective = MergeCost(pairs=how.pairs)
    optimizer = build_optimizer(how.optim, _groups(embeddings, how.optim))
    clock, shown = now(device), torch.zeros((), device=device)
    usable = torch.zeros((), device=device)
    with tqdm(total=how.steps, desc="teach", disable=None) as bar:
        for step in range(how.steps):
            if stopping():
                return step
            images = next(batches).to(device).images
            # labels and noise are drawn anew in each step, whatever was drawn before
            seed_everything(how.seed, "signal", step)
            with autocast(device, precision):
                loss = merge_loss(model, signal, images, how, counted, objective, step)
            optimizer.zero_grad()
            mark_nonfinite(loss).backward()
            optimizer.set_lrs(dict.fromkeys(("decayed", "others"), lr_at(step, how.optim, how.steps)))
            optimizer.clip(embeddings, how.optim.clip_grad)
            optimizer.step()
            shown, usable = shown + loss.detach(), usable + loss.detach().isfinite()
            if (step + 1) % TOLD_EVERY == 0:
                _refuse_nonfinite(usable, signal.kind, precision)
                bar.set_postfix(loss=f"{float(shown) / TOLD_EVERY:.4f}")
                shown = torch.zeros_like(shown)
            bar.update()
            if step == TIMED.start:
                clock = now(device)
            elif step == TIMED.stop:
                seconds = (now(device) - clock) / len(TIMED)
                text = f"about {in_words(seconds * how.steps)} in all, at {1 / seconds:.3g} steps a second"
                tqdm.write(text, file=sys.stderr)
    _refuse_nonfinite(usable, signal.kind, precision)
    return how.steps


def merge_loss(
    model: MergingModel,
    signal: Signal,
    images: Tensor,
    how: Teaching,
    counted: Counted,
    objective: MergeCost,
    step: int,
) -> Tensor:
    """What the merges of one step's block and of the later ones cost, see `MergeCost`; the blocks before it
    merge."""
    blocks = how.blocks_at(step, counted, signal.reads_prefix_alone(model))
    first, schedule = blocks[0], counted.schedule(how.reduction_at(step))
    output = signal.encode(
        model, images, reduction=list(schedule[:first]), relaxed=False, merge_points_from=first
    )
    likelihood = signal.likelihood(signal.read(model, output))
    return objective.cost_of(output.merge_points, likelihood, blocks, schedule, counted.patches)


def learning_embeddings(model: MergingModel) -> list[nn.Parameter]:
    """The parameters of the metric embeddings, which learn from now on."""
    found = embeddings_of(model)
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def _groups(parameters: list[nn.Parameter], optim: OptimConfig) -> list[dict[str, object]]:
    decayed, others = ([p for p in parameters if (p.ndim > 1) == matrix] for matrix in (True, False))
    return [
        {"name": "decayed", "params": decayed, "weight_decay": optim.weight_decay},
        {"name": "others", "params": others, "weight_decay": 0.0},
    ]


def _refuse_nonfinite(usable: Tensor, kind: str, precision: str) -> None:
    """Raises ConfigError where no step had a finite loss: all were passed over, and nothing was learned."""
    if not usable:
        raise ConfigError(
            f"no step has a finite loss, so nothing is learned: the model's {kind} are not finite under "
            f"{precision}; give --precision fp32, or other weights"
        )


def in_words(seconds: float) -> str:
    """`40 s`, `12 minutes`, `5.5 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
