"""What is said of a run that could start: model, what is trained, steps, tokens, MACs, data, memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from launch.configs.memory import Memory
from launch.configs.prepared import Prepared
from pipeline.backbone.macs import count_macs
from pipeline.errors import counted
from pipeline.model import training_grid
from pipeline.parts import roles_of

SIZES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}


def facts_of(prepared: Prepared, memory: Memory | None) -> dict[str, Any]:
    """All facts as plain data. Sizes are counts, MACs of one image, and bytes."""
    resolved, config = prepared.resolved, prepared.config
    trained = trained_parts(prepared)
    return {
        "parameters": sum(item.numel() for item in prepared.model.parameters()),
        "trained": sum(trained.values()),
        "trained_parts": trained,
        "world_size": resolved.world_size,
        "steps": resolved.total_steps,
        "steps_per_epoch": steps_per_epoch(prepared),
        "tasks": {name: _task(prepared, name) for name in config.tasks},
        "data": [asdict(held) for held in prepared.data],
        "troubles": prepared.troubles,
        "memory": None if memory is None else asdict(memory) | {"total": memory.total},
    }


def trained_parts(prepared: Prepared) -> dict[str, int]:
    """Numbers that training changes, by kind of part (see `pipeline.parts`) and task that alone uses it."""
    roles, counts = roles_of(prepared.model), Counter[str]()
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad:
            role = roles[name]
            owner = f" of {role.owner}" if role.owner else ""
            counts[f"{role.kind}{owner}"] += parameter.numel()
    return dict(counts)


def steps_per_epoch(prepared: Prepared) -> dict[str, float]:
    """Steps until each fed task has seen each of its samples once; empty where their number is not known."""
    resolved = prepared.resolved
    return {
        name: number / (resolved.global_batch[name] * resolved.shares[name])
        for name, number in prepared.samples.items()
    }


def _task(prepared: Prepared, name: str) -> dict[str, Any]:
    resolved, model, task = prepared.resolved, prepared.model, prepared.config.tasks[name]
    grid = training_grid(model.backbone, task)
    whole = count_macs(model.backbone, grid, 0)
    merged = count_macs(model.backbone, grid, model.reduction_of(name))
    fed = name in resolved.global_batch
    return {
        "image": list(task.data.size),
        "batch_per_rank": task.data.batch_size if fed else 0,
        "micro_batches": resolved.micro_batches.get(name, 0),
        "global_batch": resolved.global_batch.get(name, 0),
        "share_of_steps": resolved.shares.get(name),
        "schedule": list(model.schedule(name, grid)),
        "tokens": [model.backbone.tokens_at_start(grid), *merged.tokens],
        "macs": merged.total,
        "macs_unmerged": whole.total,
    }


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts as lines of a report."""
    parts = ", ".join(f"{part} {short(number)}" for part, number in facts["trained_parts"].items())
    yield f"parameters  {short(facts['parameters'])}, {short(facts['trained'])} trained: {parts or 'nothing'}"
    steps = "not known without the data" if facts["steps"] is None else str(facts["steps"])
    epoch = max(facts["steps_per_epoch"].values(), default=None)
    of_epoch = "" if epoch is None else f"; an epoch is {epoch:.4g}"
    yield f"steps       {steps}{of_epoch}; ranks {facts['world_size']}"
    for name, about in facts["tasks"].items():
        yield from _task_lines(name, about, facts["steps_per_epoch"].get(name), facts["steps"])
    for held in facts["data"]:
        yield _data_line(held)
    if facts["memory"] is not None:
        yield memory_line(facts["memory"])
    yield from (f"trouble     {trouble}" for trouble in facts["troubles"])


def _task_lines(name: str, about: dict[str, Any], epoch: float | None, steps: int | None) -> Iterator[str]:
    height, width = about["image"]
    ratio = 100 * about["macs"] / about["macs_unmerged"]
    yield (
        f"task        {name}: images of {height}x{width}; backbone {short(about['macs'])} MACs an image, "
        f"{ratio:.3g} % of {short(about['macs_unmerged'])} unmerged"
    )
    yield f"            tokens before and after each block: {' '.join(map(str, about['tokens']))}"
    if not about["global_batch"]:
        yield "            frozen: no training batches"
        return
    epochs = "" if not epoch or steps is None else f"; {steps / epoch:.3g} epochs"
    share = (
        "" if about["share_of_steps"] in (None, 1.0) else f"; in {about['share_of_steps']:.1%} of the steps"
    )
    yield (
        f"            global batch {about['global_batch']}: {about['batch_per_rank']} on a rank, "
        f"{about['micro_batches']} accumulated{share}{epochs}"
    )


def _data_line(held: dict[str, Any]) -> str:
    where = f"data        {held['task']}.{held['split']}: "
    if held["trouble"]:
        return f"{where}cannot be used: {held['trouble']}"
    classes = f", {len(held['classes'])} classes" if held["classes"] else ""
    samples, shards = counted(held["num_samples"], "sample"), counted(held["num_shards"], "shard")
    return f"{where}{samples} in {shards}{classes}"


def memory_line(memory: dict[str, Any]) -> str:
    names = ("weights", "gradients", "moments", "averages")
    parts = [f"{name} {in_bytes(memory[name])}" for name in names if memory[name]]
    parts += [f"micro-batch of {task} {in_bytes(size)}" for task, size in memory["activations"].items()]
    return f"memory      about {in_bytes(memory['total'])} a rank, estimated: {', '.join(parts)}"


def in_bytes(size: int) -> str:
    for unit, number in SIZES.items():
        if size >= number:
            return f"{_three_digits(size / number)} {unit}"
    return f"{size} B"


def short(number: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{_three_digits(number / size)}{unit}"
    return str(number)


def _three_digits(value: float) -> str:
    """At least three; not 1e+03."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
