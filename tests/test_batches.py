"""The order of rows: what is drawn for one set or several, and which checkpoints it goes on from."""

from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from algorithms.batches import Batches, WeightedBatches, row_order


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_order_is_that_of_the_sets_the_weights_and_the_seed(shuffle: bool) -> None:
    sizes, weights = {"a": 5, "b": 9}, {"a": 1.0, "b": 3.0}
    one, several = row_order(sizes, {}, seed=4, shuffle=shuffle), row_order(sizes, weights, seed=4, shuffle=shuffle)
    assert one.next(40) == Batches(14, seed=4, shuffle=shuffle).next(40)
    assert several.next(40) == WeightedBatches(sizes, weights, seed=4, shuffle=shuffle).next(40)
    in_order = [row_order(sizes, each, seed=4, shuffle=shuffle).next(4) for each in ({}, weights)]
    assert (in_order == [[0, 1, 2, 3], [5, 0, 6, 7]]) is not shuffle


def test_sets_are_shuffled_otherwise_than_each_other_and_by_the_seed() -> None:
    first, second = (WeightedBatches({"a": 30, "b": 30}, {"a": 1, "b": 1}, seed=seed, shuffle=True) for seed in (0, 1))
    rows = first.next(60)
    of_a, of_b = [row for row in rows if row < 30], [row - 30 for row in rows if row >= 30]
    assert sorted(of_a) == sorted(of_b) == list(range(30)) and of_a != of_b
    assert rows != second.next(60)


def test_the_sets_of_equal_shares_take_turns_from_the_first() -> None:
    assert WeightedBatches({"a": 2, "b": 9}, {"a": 1, "b": 2}, seed=0, shuffle=False).next(4) == [2, 0, 3, 4]
    assert WeightedBatches({"a": 2, "b": 2}, {"a": 1, "b": 1}, seed=0, shuffle=False).next(4) == [0, 2, 1, 3]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_state_tells_epoch_position_and_rows(shuffle: bool) -> None:
    rows = Batches(3, seed=7, shuffle=shuffle)
    rows.next(5)
    assert rows.save(Path()) == {"epoch": 1, "position": 2, "rows": 3}
    later = Batches(3, seed=7, shuffle=shuffle)
    later.load(Path(), rows.save(Path()))
    assert later.next(7) == rows.next(7)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"epoch": 1, "position": 2, "rows": 4}, "must hold the checkpoint's 4 rows to resume, got 3"),
        ({"sets": {"a": {}, "b": {}}}, "must draw from the checkpoint's sets (a, b) to resume, got one"),
    ],
)
def test_one_set_resumes_with_the_same_rows_only(state: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        Batches(3, seed=0, shuffle=True).load(Path(), state)
    assert str(caught.value) == f"data.train: {told}"


def test_several_sets_do_not_go_on_from_one() -> None:
    with pytest.raises(UserError) as caught:
        WeightedBatches({"a": 2, "b": 3}, {"a": 1, "b": 1}, seed=0, shuffle=True).load(Path(), {"rows": 5})
    assert str(caught.value) == "data.train: must draw from the checkpoint's sets (one set) to resume, got a, b"


def test_there_are_rows() -> None:
    with pytest.raises(ValueError, match=r"^rows must be at least 1, got 0$"):
        Batches(0, seed=0, shuffle=False)


def test_seeds_are_told_apart_and_a_negative_one_is_its_twos_complement() -> None:
    orders = [tuple(Batches(50, seed=seed, shuffle=True).next(50)) for seed in (0, 1, 2, 3, 2**64 - 1)]
    assert len(set(orders)) == 5
    assert tuple(Batches(50, seed=-1, shuffle=True).next(50)) == orders[-1]


@pytest.mark.parametrize("seed", [0, 5])
def test_each_set_has_the_next_seed_and_each_draw_goes_to_the_one_furthest_behind(seed: int) -> None:
    """By plain counting, until every set has been through several epochs."""
    sizes, weights = {"a": 3, "b": 7, "c": 5}, {"a": 5.0, "b": 1.0, "c": 2.5}
    order = {name: Batches(size, seed=seed + i, shuffle=True) for i, (name, size) in enumerate(sizes.items())}
    starts, drawn, expected = {"a": 0, "b": 3, "c": 10}, dict.fromkeys(sizes, 0), []
    for draws in range(1, 120):
        behind = {name: weights[name] / 8.5 * draws - drawn[name] for name in sizes}
        name = max(behind, key=lambda name: behind[name])
        drawn[name] += 1
        expected.append(starts[name] + order[name].next(1)[0])
    assert WeightedBatches(sizes, weights, seed=seed, shuffle=True).next(119) == expected
