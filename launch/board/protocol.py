"""The protocol of a board: what was done, in sentences that a reader can hold it to."""

from collections.abc import Iterator
from typing import Any

from launch.measure.points import DIVERGENCE, MACS, MERGED, Sweep
from launch.report.words import policy_words
from launch.saved.policy_names import CONTROL, FREE, TRAINED, is_drawn, kind_of

REPEATS = (
    "The same command with the same versions gives scores, divergences and MACs again to 0.1 in their units; "
    "images/s depend on the machine."
)


def protocol(result: Sweep) -> list[str]:
    """The protocol of the board of one task."""
    where, rounds = result.conditions, len(result.whole.images_per_s)
    return [
        *_weights(result),
        f"Images: the {where['samples']} samples of {where['split']}, each once, the same for all"
        + (f"; {where['missing']} could not be read" if where["missing"] else "")
        + ".",
        *_kinds(result),
        _points(where),
        _divergence(result),
        "MACs: of one image, by formula, with all that a policy needs (embedding, similarities, logits of "
        "attention once more) and the head. Norms, softmax, sorting and gathering are in the time alone.",
        _speed(where, rounds),
        "Memory: the most that tensors have at once in that inference, not compiled; on a GPU with the "
        "weights, on a CPU without.",
        REPEATS,
    ]


def _weights(result: Sweep) -> Iterator[str]:
    where = result.conditions
    several = len(result.whole.scores[result.metric]) > 1
    yield (
        f"Weights: {'; '.join(where['runs'])}. "
        + ("Their backbones or heads differ, and each policy runs on all of them. " if several else "")
        + "All policies run on the same backbone and heads; a trained one adds what it has learned."
    )
    if home := where.get("merged_in_training"):
        names = " and ".join(map(policy_words, home))
        yield (
            f"Training: the backbone learned while tokens merged by {names}, so it is at home with that, and "
            "with no other policy."
        )
    drawn = [point.policy for point in result.points if is_drawn(point.policy)]
    if drawn:
        names = "; ".join(map(policy_words, dict.fromkeys(drawn)))
        seeds = ", ".join(map(str, where.get("seeds", ()))) or "each run's own"
        yield f"Drawn: {names}, with the seeds {seeds}. Of several figures: the mean, ± half of their range."


def _kinds(result: Sweep) -> Iterator[str]:
    """What each kind of policy on the board is."""
    told = {
        CONTROL: "controls look at no token, or by what is learned as it starts",
        FREE: "training-free policies take the weights as they are",
        TRAINED: "trained policies have an embedding that was learned on these weights",
    }
    there = dict.fromkeys(kind_of(point.policy) for point in result.points)
    if there:
        yield f"Kinds, which are compared apart: {'; '.join(told[kind] for kind in told if kind in there)}."


def _points(where: dict[str, Any]) -> str:
    within = f", in the first {where['within']:.0%} of the blocks" if where["within"] < 1 else ""
    if (names := where.get("schedules", ["even"])) != ["even"]:
        within += f", by schedules that are {' or '.join(names)}"
    if where["targets"] == MACS:
        return (
            "Points: each policy merges as much as it must to reach the same share of the encoder's unmerged "
            f"MACs{within}, so one that costs more merges more."
        )
    if where["targets"] == MERGED:
        return (
            f"Points: each policy merges the same share of the patches{within}, by the same r per block; its "
            "MACs are beside it."
        )
    return "Points: each policy merges the same r per block; its MACs are beside it."


def _divergence(result: Sweep) -> str:
    if DIVERGENCE not in result.units:
        return "Divergence: how far the features are from the unmerged model's, see `error`."
    return (
        "Divergence: that of the merged model's predictions from the unmerged one's on the same weights "
        "(Kullback-Leibler, in nats): the mean over images, over the cells of masks, over the words of a "
        "caption. It needs no label."
    )


def _speed(where: dict[str, Any], rounds: int) -> str:
    if not rounds:
        return "images/s: not measured (--rounds 0)."
    timed = where.get("timed", "of the whole inference (all windows, all words)")
    size = "x".join(map(str, where["pixels"]))
    return (
        f"images/s: {timed}, of {where['batch']} images of {size} pixels, in turns with all others: the "
        f"median of {rounds} rounds, and the lowest and the highest; {where['device']}, "
        f"{where['threads']} threads, {where['precision']}. Speed-up: the median over rounds of the ratio to "
        "the unmerged model."
    )
