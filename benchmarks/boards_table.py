"""Writes the README's table of all merge policies from the records of the boards, so that no figure in it is
typed. The best of a column is bold, whoever has it.

    python benchmarks/boards_table.py     # after a board was recorded anew

`tests/benchmarks/test_boards_table.py` fails where the README's table is not what the records say.
"""

from collections.abc import Callable
from functools import cache
from statistics import mean
from typing import Any, NamedTuple

from page_table import filled, table
from results_table import NONE, README, results_of

from launch.measure.points import DIVERGENCE
from launch.saved.policy_names import all_policies, kind_of

UNMERGED = "none"


class Board(NamedTuple):
    """Three columns. shown: the figure of a policy in a result, as text. best: of the means."""

    record: str
    title: str
    column: str
    scale: float
    best: Callable[..., float]


BOARDS = (
    Board("board_cifar10", "CIFAR-10, top-1 %", "scores", 1, max),
    Board("board_camvid", "CamVid, mIoU %", "scores", 1, max),
    Board("board_vit_small_saliency", "saliency, divergence x 1e4", DIVERGENCE, 1e4, min),
)


def boards() -> str:
    """The table: a row for each policy that a board has, three points of each board."""
    names = [UNMERGED, *(name for name in all_policies() if any(_has(board, name) for board in BOARDS))]
    head = (
        "policy",
        "kind",
        *(f"{board.title}, {_point(one)}" for board in BOARDS for one in _points(board)),
    )
    rows = [
        (f"`{name}`", kind_of(name), *(_cell(board, one, name) for board in BOARDS for one in _points(board)))
        for name in names
    ]
    return table(head, rows)


@cache
def _points(board: Board) -> list[dict[str, Any]]:
    return results_of(board.record)


def _has(board: Board, policy: str) -> bool:
    return any(policy in one[board.column] for one in _points(board))


def _point(result: dict[str, Any]) -> str:
    """`MACs 70 %` or `merged 30 %`: what the name of a result says."""
    share = next(word for word in result["name"].split() if word.endswith("%"))
    return f"{'MACs' if 'MACs' in result['name'] else 'merged'} {share.removesuffix('%')} %"


def _mean(board: Board, result: dict[str, Any], policy: str) -> float:
    return board.scale * mean(result[board.column][policy])


def _cell(board: Board, result: dict[str, Any], policy: str) -> str:
    if policy not in result[board.column]:
        return NONE
    own = _mean(board, result, policy)
    others = (_mean(board, result, name) for name in result[board.column] if name != UNMERGED)
    shown = f"{own:.1f}"
    return f"**{shown}**" if policy != UNMERGED and own == board.best(others) else shown


TABLES = {"boards": boards}


def main() -> None:
    README.write_text(filled(README.read_text(), TABLES))
    print(boards())


if __name__ == "__main__":
    main()
