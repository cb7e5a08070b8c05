"""The table of classes on the terminal: it never scrolls the scores away, and says what it leaves out."""

import pytest

from launch.report.tables import LOWEST_CLASSES, MOST_CLASSES, class_table


def scores_of(values):
    return {f"top1/{i}": value for i, value in enumerate(values)} | {"top1": 0.5}


def rows(table):
    return [line.split("|")[1].strip() for line in table.splitlines()[2:] if line.startswith("|")]


@pytest.mark.parametrize("count", [2, MOST_CLASSES])
def test_it_has_all_of_a_few_classes_in_their_order(count):
    names = [f"class {i}" for i in range(count)]
    assert rows(class_table(scores_of([0.5] * count), names)) == names


def test_of_many_it_has_the_lowest_and_says_so():
    count = MOST_CLASSES + 9
    values = [1 - i / count for i in range(count)]
    values[3] = 0.0
    table = class_table(scores_of(values), [f"c{i}" for i in range(count)])
    assert rows(table) == ["c3", *(f"c{i}" for i in range(count - LOWEST_CLASSES + 1, count))]
    assert table.endswith(f"the {LOWEST_CLASSES} lowest of {count} classes; --out has all")


def test_classes_without_a_sample_are_left_out_and_counted():
    table = class_table(scores_of([None, 0.25, None]), ["a", "b", "c"])
    assert rows(table) == ["b"] and "25.00" in table
    assert table.endswith("without a sample, and left out: 2 of 3 classes")


def test_without_scores_of_classes_there_is_none():
    assert class_table({"top1": 0.5}, ["a"]) == class_table(scores_of([None]), ["a"]) == ""
