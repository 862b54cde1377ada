"""Work division: every sample once, budgets kept, ranks in step."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.division.packing import plan_micro_batches


@pytest.mark.parametrize("ranks", range(1, 7))
@pytest.mark.parametrize("samples", range(41))
def test_every_sample_once_and_ranks_in_step(samples: int, ranks: int) -> None:
    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(1, 60), min_size=samples, max_size=samples), st.integers(1, 100))
    def check(lengths: list[int], budget: int) -> None:
        plan = plan_micro_batches(lengths, ranks, budget)
        assert len(plan) == ranks
        assert len({len(micro_batches) for micro_batches in plan}) == 1 and plan[0]
        assert sorted(i for rank in plan for micro_batch in rank for i in micro_batch) == list(range(samples))
        for rank in plan:
            _check_rank(rank, lengths, budget)
        loads = [sum(lengths[i] for micro_batch in rank for i in micro_batch) for rank in plan]
        assert max(loads) - min(loads) <= max(lengths, default=0)
        assert any(all(rank[-1:]) for rank in plan) or not lengths, "no micro-batch is empty on every rank"
        assert plan == plan_micro_batches(list(lengths), ranks, budget)

    check()


def _check_rank(rank: list[list[int]], lengths: list[int], budget: int) -> None:
    work = [micro_batch for micro_batch in rank if micro_batch]
    assert rank[: len(work)] == work, "empty micro-batches come last"
    totals = [sum(lengths[i] for i in micro_batch) for micro_batch in work]
    for micro_batch, total in zip(work, totals, strict=True):
        assert total <= budget or len(micro_batch) == 1
        assert [lengths[i] for i in micro_batch] == sorted(lengths[i] for i in micro_batch)
    assert all(a + b > budget for a, b in combinations(totals, 2)), "two micro-batches would fit into one"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 6)), max_size=40), st.integers(1, 5), st.integers(1, 400))
def test_groups_change_neither_balance_nor_budget(samples: list[tuple[int, int]], ranks: int, budget: int) -> None:
    lengths, groups = [length for length, _ in samples], [group for _, group in samples]
    plan = plan_micro_batches(lengths, ranks, budget, groups)
    assert sorted(i for rank in plan for micro_batch in rank for i in micro_batch) == list(range(len(samples)))
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    for rank in plan:
        _check_rank(rank, lengths, budget)
    loads = [sum(lengths[i] for micro_batch in rank for i in micro_batch) for rank in plan]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equal_groups_are_divided_whole(ranks: int) -> None:
    """16 groups of 8 samples: none is on two ranks, and with room for all of a rank's, none in two micro-batches."""
    groups = [i % 16 for i in range(128)]
    plan = plan_micro_batches([10] * 128, ranks, 8192, groups)
    found = [sorted({groups[i] for i in micro_batch}) for rank in plan for micro_batch in rank]
    assert sum(map(len, found)) == 16 and len(found) == ranks


def test_groups_stay_together_where_lengths_differ() -> None:
    lengths, groups = [20 + 7 * i % 230 for i in range(64)], [i % 8 for i in range(64)]
    parts = [
        len({groups[i] for i in micro_batch})
        for rank in plan_micro_batches(lengths, 2, 2048, groups)
        for micro_batch in rank
    ]
    assert sum(parts) <= 8 + 2 * len(parts), "at a border, few groups are divided"
    assert sum(parts) < sum(
        len({groups[i] for i in micro_batch}) for rank in plan_micro_batches(lengths, 2, 2048) for micro_batch in rank
    )


def test_refuses_groups_of_another_size() -> None:
    with pytest.raises(ValueError, match="groups must be as many as lengths, 2, got 1"):
        plan_micro_batches([3, 4], 1, 10, [0])


def test_no_samples_leave_one_empty_micro_batch_per_rank() -> None:
    assert plan_micro_batches([], 3, 10) == [[[]], [[]], [[]]]


def test_fewer_samples_than_ranks() -> None:
    assert plan_micro_batches([5, 7], 3, 10) == [[[1]], [[0]], [[]]]


def test_packs_tightly() -> None:
    assert plan_micro_batches([6, 4, 5, 5, 3, 7, 20], 1, 10) == [[[6], [4, 5], [1, 0], [3, 2]]]


@pytest.mark.parametrize(("lengths", "ranks", "budget", "field"), [([0], 1, 1, "lengths"), ([1], 0, 1, "ranks")])
def test_refuses_nonsense(lengths: list[int], ranks: int, budget: int, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        plan_micro_batches(lengths, ranks, budget)


def test_groups_that_fit_stay_whole_the_longest_first() -> None:
    """In another order the last one would have to be divided."""
    [[first], [second]] = plan_micro_batches([1, 1, 2, 2, 3, 3], 2, 100, [0, 0, 1, 1, 2, 2])
    assert sorted(map(sorted, (first, second))) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("lengths", "ranks", "budget", "name"), [([1], 0, 1, "ranks"), ([1], 1, 0, "token_budget"), ([0], 1, 1, "lengths")]
)
def test_what_is_below_1_is_named(lengths: list[int], ranks: int, budget: int, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        plan_micro_batches(lengths, ranks, budget)
    assert str(caught.value) == f"{name} must be at least 1, got 0"
