"""Two networks that are trained beside each other: their outputs as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Encode, Scores, Sums, Tallies, Task, TaskOutput

NETWORK = "network{}."
"""Before the tallies of network 1 and 2; those of their mean have no such word."""


def check_peers(tasks: Mapping[str, Task]) -> None:
    """Raises ConfigError for a task of which two networks' answers have no mean."""
    if others := [name for name, task in tasks.items() if not task.has_one_class]:
        raise ConfigError(
            f"backbone.peers is 2, which is for classification, and tasks.{others[0]} is none; leave "
            "backbone.peers out"
        )


def joint_output(outputs: Sequence[TaskOutput]) -> TaskOutput:
    """The sum of the networks' losses, the means of what they report, and their predictions [networks, B,
    K] where they have such. Neither loss reaches the other network."""
    logs: Sums = {}
    for name in outputs[0].logs:
        pairs = [output.logs[name] for output in outputs]
        count = pairs[0][1]
        for _, other in pairs[1:]:
            count = count + other
        logs[name] = torch.stack([total for total, _ in pairs]).sum(), count
    predictions = [output.predictions for output in outputs]
    return TaskOutput(
        torch.stack([output.loss for output in outputs]).sum(),
        logs,
        None if predictions[0] is None else torch.stack(predictions),
        torch.stack([output.loss.detach() for output in outputs]).sum(),
    )


def joint_tallies(tasks: Sequence[Task], encoders: Sequence[Encode], batch: Batch) -> Tallies:
    """The tallies of the mean of the networks' logits, and those of each network. tasks, encoders: of
    each."""
    logits = [task.infer(encode, batch) for task, encode in zip(tasks, encoders, strict=True)]
    tallies = dict(tasks[0].tally(torch.stack(logits).mean(dim=0), batch))
    for number, (task, own) in enumerate(zip(tasks, logits, strict=True), start=1):
        tallies |= {NETWORK.format(number) + name: each for name, each in task.tally(own, batch).items()}
    return tallies


def joint_scores(task: Task, tallies: Tallies, *, thorough: bool) -> Scores:
    """The metrics of the mean, and the main metric of each network, as `top1_network1`."""
    words = [NETWORK.format(number) for number in (1, 2)]
    shared = {name: each for name, each in tallies.items() if not name.startswith(tuple(words))}
    scores = dict(task.scores(shared, thorough=thorough))
    for word in words:
        own: dict[str, Any] = {
            name.removeprefix(word): each for name, each in tallies.items() if word in name
        }
        found = task.scores(own | {"samples": tallies["samples"]})
        scores[f"{task.main_metric}_{word[:-1]}"] = found[task.main_metric]
    return scores
