"""Work division: every sample once, budgets kept, ranks in step."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.packing import plan_micro_batches


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
