import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from ranks import ThreadRanks, together
from standin import StandinModel, standin_batch, standin_config
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.engine import build_engine
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Rows
from pipeline.train.evaluate import evaluate
from pipeline.train.groups import parameter_groups
from pipeline.train.metrics import MetricSums, TallySums
from pipeline.train.reporting import Reporter


@pytest.fixture
def engine():
    """In float64, as which class is first may change with another batch's rounding."""
    config, model = standin_config(), StandinModel().double()
    return build_engine(config, model, parameter_groups(model, config))


def test_every_sample_counts_once_however_it_is_batched(engine):
    whole: Batch = standin_batch(0, 23)
    cuts = [0, 1, 9, 17, 23]
    parts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        targets = replace(whole.targets, labels=whole.targets.labels[start:end])
        parts.append(replace(whole, images=whole.images[start:end], targets=targets))
    one, many = evaluate(engine, {"a": [whole]}), evaluate(engine, {"a": parts})
    assert one == many and one["a"]["samples"] == 23


@pytest.mark.parametrize("shares", [(9, 14, 0), (1, 2, 20)])
def test_three_ranks_with_uneven_shares_score_as_one(engine, shares):
    def run(rank, ranks):
        ranks.module = copy.deepcopy(engine.module)
        return evaluate(
            ranks, {"a": [standin_batch(sum(shares[:rank]), shares[rank])] if shares[rank] else []}
        )

    one = evaluate(engine, {"a": [standin_batch(0, 23)]})
    assert together(3, run, Evaluators) == [one] * 3


def test_evaluation_leaves_every_part_in_its_mode(engine):
    engine.module.train()
    engine.module.backbone.eval()  # as where it is frozen
    modes = [part.training for part in engine.module.modules()]
    evaluate(engine, {"a": [standin_batch(0, 4)]})
    assert [part.training for part in engine.module.modules()] == modes


def test_no_batches_are_no_samples(engine):
    assert evaluate(engine, {"a": []}) == {"a": {"samples": 0.0}}


class Evaluators(ThreadRanks):
    """Ranks that evaluate the module that they are given."""

    forward_is_collective = False
    module: StandinModel

    def evaluate(self, batch, **options):
        with torch.no_grad():
            return self.module.evaluate(batch, **options)


def test_tallies_of_any_shape_add_exactly():
    big = 2**60 + 1  # which no float holds
    tables = {0: [[[big, 0], [0, 2]], [[1, 0], [3, 0]]], 1: [[[0, 1], [2, 3]]]}

    def total(rank, ranks):
        sums = TallySums()
        for i, table in enumerate(tables[rank]):
            counts = torch.tensor(table, dtype=torch.int32 if i else torch.int64)
            sums.add({"table": counts, "loss": torch.tensor(0.75), "hits": torch.tensor(True)})
        return sums.reduce(ranks)

    for totals in together(2, total):
        assert totals["table"].tolist() == [[big + 1, 1], [5, 5]] and totals["table"].dtype == torch.int64
        assert totals["hits"] == 3 and totals["loss"] == 2.25 and totals["loss"].dtype == torch.float64


def test_rows_of_all_ranks_stay_side_by_side():
    """A rank's rows: two names that belong together, in batches of their own number."""
    batches = {0: [["a", "b"], ["c"]], 1: [["\u2028 \n", "é"]], 2: []}
    numbers = {"a": [0.0, 1.0], "b": [2.0, 3.0], "c": [4.0, 5.0], "\u2028 \n": [6.0, 7.0], "é": [8.0, 9.0]}

    def tallies(rank):
        sums = TallySums()
        for keys in batches[rank]:
            features = torch.tensor([numbers[key] for key in keys], dtype=torch.bfloat16)
            sums.add(
                {
                    "key": Rows(tuple((key, 1) for key in keys)),
                    "feature": Rows(features),
                    "hits": torch.tensor(len(keys)),
                }
            )
        return sums

    found = together(3, lambda rank, engine: tallies(rank).reduce(engine))
    assert found[0]["key"] == [[key, 1] for key in numbers] and found[0]["hits"] == 5  # as JSON says a tuple
    assert (
        found[0]["feature"].tolist() == list(numbers.values()) and found[0]["feature"].dtype == torch.float32
    )
    assert all(str(other) == str(found[0]) for other in found)


def test_one_rank_has_the_rows_that_many_have():
    engine = build_engine(
        standin_config(), model := StandinModel(), parameter_groups(model, standin_config())
    )
    sums = TallySums()
    sums.add({"key": Rows((("a", 1),)), "feature": Rows(torch.tensor([[1, 2]], dtype=torch.int32))})
    assert str(sums.reduce(engine)) == str({"key": [["a", 1]], "feature": torch.tensor([[1, 2]])})


def test_a_rank_whose_samples_are_all_bad_hides_those_of_no_other():
    def counted(rank, engine):
        sums = TallySums()
        if rank != 0:
            sums.add({"hits": torch.tensor(rank), "captions": Rows([(f"of {rank}",)])})
        return sums.reduce(engine)

    assert together(3, counted) == [{"hits": 3, "captions": [["of 1"], ["of 2"]]}] * 3
    assert together(2, lambda rank, engine: TallySums().reduce(engine)) == [{}, {}]


def test_scores_are_computed_once_and_every_rank_has_them():
    """What one process measures another might not: an external scorer can fail on one of them."""

    class Model(StandinModel):
        def scores(self, task, tallies, *, thorough=False):
            return {"asked": float(torch.rand(())), "absent": None}

    def run(rank, engine):
        engine.module = Model()
        return evaluate(engine, {"a": [standin_batch(4 * i, 4) for i in range(rank + 1)]})

    first, second = together(2, run, Evaluators)
    assert first == second and first["a"]["samples"] == 12 and first["a"]["absent"] is None


class Holed(list):
    """A loader of three batches on each rank, of which it passes over those that cannot be read."""

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("lost", [[], [0], [1, 2]])
def test_where_a_forward_is_a_collective_ranks_run_equally_many_whatever_could_be_read(lost):
    forwards: dict[int, int] = {}

    class Collective(Evaluators):
        forward_is_collective = True

        def evaluate(self, batch, **options):
            forwards[self.rank] = forwards.get(self.rank, 0) + 1
            return super().evaluate(batch, **options)

    def run(rank, engine):
        engine.module = StandinModel()
        return evaluate(
            engine, {"a": Holed(standin_batch(4 * i, 4) for i in range(3) if rank == 0 or i not in lost)}
        )

    first, second = together(2, run, Collective)
    assert forwards == {0: 3, 1: 3} and first == second and first["a"]["samples"] == 24 - 4 * len(lost)


def test_where_a_rank_can_read_nothing_and_all_must_take_part_each_says_so():
    def run(rank, engine):
        engine.forward_is_collective, engine.module = True, StandinModel()
        with pytest.raises(ConfigError, match="each of the 2 ranks that divide the weights"):
            evaluate(engine, {"a": Holed([standin_batch(0, 4)] * 3 if rank else [])})

    together(2, run, Evaluators)


def test_a_class_that_is_not_there_is_none_and_not_nan(engine):
    whole: Batch = standin_batch(0, 23)
    labels = whole.targets.labels.clamp(max=3)
    scores = evaluate(engine, {"a": [replace(whole, targets=replace(whole.targets, labels=labels))]})["a"]
    assert scores["Acc/4"] is None and 0 <= scores["Acc/0"] <= 1


def test_sums_leave_out_what_is_not_finite_only_where_asked(engine):
    one, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    strict, lenient = MetricSums(), MetricSums(only_finite=True)
    for sums in (strict, lenient):
        sums.add({"loss": (one * 3, one)})
        sums.add({"loss": (bad, one)})
    assert lenient.reduce(engine) == {"loss": (3.0, 1.0)} and lenient.reduce(engine) == {}
    assert math.isnan(strict.reduce(engine)["loss"][0])


def test_sums_are_those_of_each_name_whatever_comes_together(engine):
    """In float64, whatever the dtypes: 2**24 + 1 is no float32."""
    big, half = torch.tensor(2**24 + 1), torch.tensor(0.5)
    sums = MetricSums(only_finite=True)
    sums.add({"hits": (big, big), "loss": (half.bfloat16(), 3)}, "a/")
    sums.add({"loss": (half, half * 2)}, "a/")
    sums.add({"loss": (half * torch.nan, 1), "hits": (big, 1)}, "a/")
    sums.add({})
    sums.add({"loss": (half.double() / 3, 0.1)}, "b/")
    expected = {"a/hits": (2**25 + 2.0, 2**24 + 2.0), "a/loss": (1.0, 4.0), "b/loss": (0.5 / 3, 0.1)}
    assert sums.reduce(engine) == expected and sums.reduce(engine) == {}


def test_a_micro_batch_has_as_many_kernels_for_many_figures_as_for_one():
    def kernels(count):
        figures = {str(i): (torch.tensor(float(i)), 8) for i in range(count)}
        sums, calls = MetricSums(only_finite=True), Calls()
        sums.add(figures)
        with calls:
            sums.add(figures)
        return calls.number

    assert kernels(12) == kernels(1) > 0


class Calls(TorchDispatchMode):
    """Counts operations."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **kwargs or {})


def test_figures_of_steps_that_will_be_repeated_are_removed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    with Reporter(tmp_path, main=True, step=1, total_steps=5) as reporter:
        reporter.write(2, {"loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": null}\n'


def test_what_is_not_applicable_is_null_and_details_stay_out_of_the_terminal(tmp_path, capsys):
    with Reporter(tmp_path, main=True, step=0, total_steps=5) as reporter:
        reporter.write(1, {"val/a/mIoU": None, "val/a/IoU/3": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "val/a/mIoU": None,
        "val/a/IoU/3": 0.5,
    }
    said = capsys.readouterr().err
    assert "val/a/mIoU n/a" in said and "IoU/3" not in said


def test_other_ranks_write_nothing(tmp_path):
    with Reporter(tmp_path / "run", main=False, step=0, total_steps=5) as reporter:
        reporter.advance(), reporter.write(1, {"loss": 1.0}), reporter.say("hello")
    assert not (tmp_path / "run").exists()
