"""Tables in the pages of docs/, written from records between two marks, so that no figure is typed."""

import re
from collections.abc import Callable, Mapping, Sequence

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with its marked tables as they are now."""
    return _MARKED.sub(lambda found: f"{found[1]}{tables[found[2]]()}\n{found[3]}", text)
