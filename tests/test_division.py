"""From scored groups to the work of each rank: samples, updates by seed, and who gets which group."""

from collections import Counter
from itertools import chain, groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Prompt
from actors.rollout.types import RolloutInfo
from actors.train.worker import Totals
from algorithms.division.deals import hand_episodes
from algorithms.division.work import (
    RankWork,
    Sample,
    count_micro_batches,
    deal_groups,
    divide,
    samples_of,
    split_updates,
    totals_of,
)
from algorithms.rewards.scores import empty_scores
from algorithms.rollouts.groups import ScoredGroup


def group(number: int, prompt: int, *responses: int, statuses: str = "") -> ScoredGroup:
    """Tokens of the prompt and of each response."""
    said: Any = statuses.split() or ["ok"] * len(responses)
    infos = [
        RolloutInfo(
            tokens=prompt + tokens, prompt_tokens=prompt, sampled_tokens=tokens, status=status, oldest_version=0
        )
        for tokens, status in zip(responses, said, strict=True)
    ]
    of = Prompt(index=number, token_ids=[1] * prompt, text="", row={})
    return ScoredGroup(prompt=of, rollouts=f"rollouts {number}", infos=infos, scores=empty_scores(len(infos)))


def samples(groups: list[ScoredGroup]) -> list[Sample]:
    """Each with an advantage of its own."""
    return samples_of(groups, [np.arange(len(each.infos)) + 10.0 * number for number, each in enumerate(groups)])


def no_split(asked: Any) -> Any:
    pytest.fail(f"nothing is to be split, got {asked}")


def named(updates: list[list[Sample]]) -> list[list[tuple[int, int]]]:
    return [[(sample.group, sample.index) for sample in update] for update in updates]


def test_a_sample_has_what_the_driver_sees_of_its_response() -> None:
    groups = [group(0, 5, 2, 3), group(1, 7, 4, 9, statuses="ok truncated")]
    found = samples_of(groups, [np.array([0.5, -0.5]), np.array([np.nan, 2.0])])
    assert [(s.group, s.index, s.tokens, s.actions, s.truncated) for s in found] == [
        (0, 0, 7, 2, False), (0, 1, 8, 3, False), (1, 0, 11, 4, False), (1, 1, 16, 9, True),
    ]  # fmt: skip
    assert [s.advantage for s in found] == pytest.approx([0.5, -0.5, np.nan, 2.0], nan_ok=True)


@pytest.mark.parametrize("per_update", [8, 9])
def test_one_update_has_all_samples_in_their_order(per_update: int) -> None:
    found = samples([group(number, 5, 2, 3) for number in range(4)])
    assert all(split_updates(found, per_update, seed) == [found] for seed in range(5))


def test_several_updates_are_drawn_by_the_seed() -> None:
    found = samples([group(number, 5, 2, 3) for number in range(16)])
    first, again, other = (named(split_updates(found, 8, seed)) for seed in (1, 1, 2))
    assert first == again != other
    for updates in (first, other):
        assert [len(update) for update in updates] == [8] * 4
        visited, [all_of_them] = list(chain(*updates)), named([found])
        assert sorted(visited) == all_of_them != visited, "each once, and not in the order of the groups"
    assert [len(update) for update in split_updates(found, 31, 1)] == [31, 1]


@pytest.mark.parametrize(("sizes", "per_update"), [([4] * 16, 8), ([4] * 16, 6), ([4] * 16, 3), ([1, 5, 2, 7, 4], 5)])
def test_updates_are_of_whole_groups(sizes: list[int], per_update: int) -> None:
    """Of which one at most is begun in an update before, and one at most goes on in the next; in their order."""
    found = samples([group(number, 5, *range(1, size + 1)) for number, size in enumerate(sizes)])
    updates = named(split_updates(found, per_update, 3))
    assert [len(update) for update in updates[:-1]] == [per_update] * (len(updates) - 1)
    for update in updates:
        whole = Counter(number for number, _ in update)
        parts = [number for number, count in whole.items() if count < sizes[number]]
        assert set(parts) <= {update[0][0], update[-1][0]}
        assert not parts or per_update % 4 or set(sizes) != {4}
    visited = list(chain(*updates))
    assert len(list(groupby(number for number, _ in visited))) == len(sizes), "one group after the other"
    for number, size in enumerate(sizes):
        assert [index for of, index in visited if of == number] == list(range(size))


def test_an_update_is_divided_by_all_its_samples_and_metrics_by_those_trained_on() -> None:
    found = samples([group(0, 5, 2, 3), group(1, 7, 4)])
    assert totals_of(found, found[1:]) == Totals(tokens=9, sequences=3, trained_tokens=7)


def of_group(work: RankWork) -> Counter[int]:
    return Counter(number for plan in work.plans for batch in plan for number, _, _ in batch)


def test_equal_groups_are_each_on_one_rank() -> None:
    """So that their samples can share a prompt; each is sent once, however many updates it is in."""
    groups = [group(number, 50, 10, 10, 10, 10) for number in range(4)]
    found = samples(groups)
    works = divide([found, found], ranks=2, token_budget=240)
    assert [sorted(of_group(work).values()) for work in works] == [[8, 8], [8, 8]]
    assert set(of_group(works[0])) | set(of_group(works[1])) == {0, 1, 2, 3}
    for work in works:
        assert [len(plan) for plan in work.plans] == [2, 2]
        keys = list(dict.fromkeys(n for plan in work.plans for batch in plan for n, _, _ in batch))
        assert work.held == {key: [0, 1, 2, 3] for key in keys} and list(work.held) == keys
        [(held, given)] = hand_episodes(groups, [work], no_split)
        assert held == [(key, [0, 1, 2, 3]) for key in keys] and given == [f"rollouts {key}" for key in keys]
        for batch in (batch for plan in work.plans for batch in plan):
            assert len({number for number, _, _ in batch}) == 1 and len(batch) == 4


def test_every_sample_is_in_one_place_with_its_advantage_and_within_the_budget() -> None:
    groups = [group(number, 3 + number, 2, 9, 4) for number in range(5)]
    found = samples(groups)
    lengths = {(sample.group, sample.index): sample.tokens for sample in found}
    updates = split_updates(found, 5, seed=3)
    works = divide(updates, ranks=3, token_budget=20)
    for number, update in enumerate(updates):
        placed = [place for work in works for batch in work.plans[number] for place in batch]
        assert sorted(placed) == sorted((sample.group, sample.index, sample.advantage) for sample in update)
        assert len({len(work.plans[number]) for work in works}) == 1, "ranks take part in as many micro-batches"
    sizes = [[sum(lengths[place[:2]] for place in b) for b in plan] for work in works for plan in work.plans]
    assert all(size <= 20 for plan in sizes for size in plan)
    assert count_micro_batches(works) == (sum(map(len, sizes)), sum(plan.count(0) for plan in sizes))


def test_micro_batches_are_counted_over_ranks_and_updates() -> None:
    one = (0, 0, 1.0)
    works = [
        RankWork(plans=[[[one], [one, one]], [[one]]]),
        RankWork(plans=[[[one], []], [[]]]),
    ]
    assert count_micro_batches(works) == (6, 2)


def test_groups_are_dealt_to_the_rank_with_the_fewest_tokens() -> None:
    """Prompt and response count, of each sample."""
    groups = [group(0, 9, 1), group(1, 1, 1, 2), group(2, 2, 1), group(3, 6, 2), group(4, 1, 1)]
    assert deal_groups(groups, 2) == [[0, 4], [1, 2, 3]]
    assert deal_groups(groups, 1) == [[0, 1, 2, 3, 4]]
    assert deal_groups(groups[:1], 3) == [[0], [], []]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 30), min_size=1, max_size=4))), st.integers(1, 5))
def test_dealt_groups_are_whole_and_balanced(sizes: list[tuple[int, list[int]]], ranks: int) -> None:
    groups = [group(number, prompt, *responses) for number, (prompt, responses) in enumerate(sizes)]
    tokens = [sum(prompt + response for response in responses) for prompt, responses in sizes]
    shares = deal_groups(groups, ranks)
    assert sorted(chain(*shares)) == list(range(len(groups)))
    loads = [sum(tokens[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)
