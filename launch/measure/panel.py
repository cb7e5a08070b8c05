"""Many models that are evaluated in one pass over the data."""

from collections.abc import Sequence

from torch import nn

from launch.measure.compute import Entry
from launch.measure.divergence import Remembered, distributions, gap, mean_gap
from pipeline.interfaces import Batch, LogProbs, Scores, Tallies
from pipeline.merging.schedule import AnyReduction


class Panel(nn.Module):
    """Many entries as one module, so that a batch is read and decoded once. Tallies and scores of entry i are
    named `i/NAME`.

    wholes: for each entry the number of its unmerged model, which stands before it, or its own. With them
    there is a score of the divergence from that model; None: without.
    """

    def __init__(self, entries: Sequence[Entry], wholes: Sequence[int] | None = None):
        super().__init__()
        self.models = nn.ModuleList(model for model, _ in entries)
        self._entries, self._wholes = tuple(entries), wholes

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        """Tallies of all entries. reduction: for all of them; None takes each entry's own."""
        tallies: Tallies = {}
        unmerged: dict[int, LogProbs | None] = {}
        for i, (model, own) in enumerate(self._entries):
            task = model.tasks[batch.task]
            encode = Remembered(model.encoder(batch.task, own if reduction is None else reduction))
            found = task.evaluate(encode, batch)
            if self._wholes is not None:
                predicted = distributions(task, encode.first, batch)
                if self._wholes[i] == i:
                    unmerged[i] = predicted
                found = found | gap(predicted, unmerged[self._wholes[i]])
            tallies |= {f"{i}/{name}": tensor for name, tensor in found.items()}
        return tallies

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores:
        scores: Scores = {}
        for i, (model, _) in enumerate(self._entries):
            own = {
                name.removeprefix(f"{i}/"): tensor
                for name, tensor in tallies.items()
                if name.startswith(f"{i}/")
            }
            divergence = mean_gap(own)
            found = model.scores(task, own | {"samples": tallies["samples"]}, thorough=thorough)
            scores |= {f"{i}/{name}": value for name, value in (found | divergence).items()}
        return scores
