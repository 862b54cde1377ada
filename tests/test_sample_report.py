"""Which responses a step writes to samples.jsonl and tokens.jsonl, and what it tells of them; no Ray."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episodes import Episode, EpisodeStatus, Prompt, VersionSpan
from actors.rollout.types import RolloutInfo
from algorithms.loop import spread_over
from algorithms.rewards.scores import Score
from algorithms.rl import responses
from algorithms.rl.sample_report import MOST_TOKENS, SampleReport, best_to_worst, most_different, token_columns
from algorithms.rollouts.groups import ScoredGroup
from tests.episodes import episode, turn

REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 0.1, 0.3, -2.5]), min_size=1, max_size=5), min_size=0, max_size=6
)


def texts(token_ids: Sequence[int]) -> list[str]:
    return [f"<{token}>" for token in token_ids]


def group(number: int, *rewards: float, row: dict[str, Any] | None = None) -> ScoredGroup:
    statuses: list[EpisodeStatus] = ["ok", "truncated"]
    infos = [
        RolloutInfo(
            tokens=1 + 10 * number + index,
            prompt_tokens=1,
            sampled_tokens=10 * number + index,
            status=statuses[index % 2],
            oldest_version=3 + index,
        )
        for index in range(len(rewards))
    ]
    return ScoredGroup(
        prompt=Prompt(index=number, token_ids=[1], text=f"ask {number}", row=row or {}),
        rollouts=[f"{number}:{index}" for index in range(len(rewards))],
        infos=infos,
        scores=[
            Score(reward=reward, parts={"math": reward, "length": 2.0 * reward}, status="ok") for reward in rewards
        ],
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """What was fetched, with its deadline."""
    found: list[tuple[Any, float]] = []

    def get(rollouts: list[str], timeout: float) -> list[Episode]:
        found.append((rollouts, round(timeout)))
        return [episode([1], [2, 7], [-0.5, -1.23456], text=text, version=4) for text in rollouts]

    monkeypatch.setattr(responses.ray, "get", get)
    return found


def test_rows_are_the_chosen_responses_with_their_columns(asked: list[tuple[Any, float]]) -> None:
    """A prompt column that is the prompt's text is not repeated; one that differs, or is named as a field, is told."""
    rows = (
        {"answer": "7", "prompt": "ask 0", "status": "new", "step": "a) add", "turns": 3},
        {"prompt": "another", "group": "b"},
    )
    groups = [group(0, 1.0, row=rows[0]), group(1, 0.4), group(2, 0.5, 0.0, row=rows[1])]
    advantages = {(0, 0): 0.1, (1, 0): 0.4, (2, 0): 0.3, (2, 1): 0.2}
    told = SampleReport(samples=3, groups=0).rows(groups, advantages, pytest.fail)
    assert sorted(asked) == [(["0:0"], 60), (["2:0", "2:1"], 60)]
    assert told.spread == [
        _row((0, 0), 1.0, 0.1, 3) | {"answer": "7", "row.status": "new", "row.step": "a) add", "row.turns": 3},
        _row((2, 0), 0.5, 0.3, 3) | {"row.prompt": "another", "row.group": "b"},
        _row((2, 1), 0.0, 0.2, 4) | {"row.prompt": "another", "row.group": "b"},
    ]
    assert told.others == told.tokens == []


def _row(place: tuple[int, int], reward: float, advantage: float, version: int) -> dict[str, Any]:
    number, index = place
    return {
        "group": number,
        "sample": index,
        "row": number,
        "prompt": f"ask {number}",
        "completion": f"{number}:{index}",
        "reward": reward,
        "rewards": {"math": reward, "length": 2 * reward},
        "advantage": advantage,
        "length": 10 * number + index,
        "version": version,
        "status": "ok",
    }


def test_whole_groups_follow_and_each_response_is_written_and_fetched_once(asked: list[tuple[Any, float]]) -> None:
    groups = [group(0, 1.0, 1.0, 1.0), group(1, 0.0, 1.0, 0.5), group(2, 0.0, 0.0, 1.0)]
    told = SampleReport(samples=2, groups=2, tokens=3, texts=texts).rows(groups, {}, pytest.fail)
    assert [row["completion"] for row in told.spread] == ["0:0", "2:1"], "the best and the worst of the step"
    assert [row["completion"] for row in told.others] == ["2:0", "2:2", "1:0", "1:1", "1:2"]
    assert [(row["group"], row["sample"]) for row in told.others] == [(2, 0), (2, 2), (1, 0), (1, 1), (1, 2)]
    assert [rollouts[0] for rollouts, _ in asked] == ["0:0", "2:0", "1:0"], "each group once"
    assert told.tokens == [
        {
            "group": number,
            "sample": index,
            "pieces": ["<2>", "<7>"],
            "sampled": [True, True],
            "logprobs": [-0.5, -1.2346],
            "versions": [4, 4],
        }
        for number, index in ((2, 2), (2, 1), (1, 1))
    ], "the best and the worst of each whole group"


def test_a_group_that_cannot_be_read_is_in_neither_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(group: ScoredGroup, note: Any, until: float) -> list[Episode]:
        if group.prompt.index == 1:
            note("gone")
            return []
        return [episode([1], [2]) for _ in group.infos]

    monkeypatch.setattr("algorithms.rl.sample_report.responses_of", read)
    notes: list[str] = []
    groups = [group(0, 0.5, 0.5), group(1, 1.0, 0.0)]
    told = SampleReport(samples=3, groups=2, tokens=4, texts=texts).rows(groups, {}, notes.append)
    assert notes == ["gone"]
    assert [(row["group"], row["sample"]) for row in told.spread + told.others] == [(0, 0), (0, 1)]
    assert [(row["group"], row["sample"]) for row in told.tokens] == [(0, 0), (0, 1)]


def test_without_a_tokenizer_no_tokens_are_told(asked: list[tuple[Any, float]]) -> None:
    assert SampleReport(tokens=3).rows([group(0, 1.0, 0.0)], {}, pytest.fail).tokens == []


@given(rewards=REWARDS, samples=st.integers(0, 9), whole=st.integers(0, 7), tokens=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_what_is_chosen(rewards: list[list[float]], samples: int, whole: int, tokens: int) -> None:
    """Whole groups are whole, no response is there twice, and those whose tokens are told are among them."""
    groups = [group(number, *own) for number, own in enumerate(rewards)]
    report = SampleReport(samples=samples, groups=whole, tokens=tokens, texts=texts)
    chosen = report.choose(groups)
    assert chosen.spread == best_to_worst(groups, samples), "as without whole groups"
    assert len(set(chosen.written)) == len(chosen.written)
    numbers = most_different(groups, whole)
    several = [number for number, own in enumerate(rewards) if len(own) > 1]
    assert len(numbers) == len(set(numbers)) == min(whole, len(several)) and set(numbers) <= set(several)
    everyone = {(number, index) for number in numbers for index in range(len(rewards[number]))}
    assert set(chosen.written) == everyone | set(chosen.spread)
    assert [number for number, _ in chosen.others] == sorted(
        (number for number, _ in chosen.others), key=numbers.index
    ), "group by group"
    assert len(chosen.tokens) == len(set(chosen.tokens)) == min(tokens, len(chosen.written))
    assert set(chosen.tokens) <= set(chosen.written)
    for number, first in zip(numbers, chosen.tokens[::2], strict=False):
        assert rewards[first[0]][first[1]] == max(rewards[number]) and first[0] == number
    for number, second in zip(numbers, chosen.tokens[1 : 2 * len(numbers) : 2], strict=False):
        assert rewards[second[0]][second[1]] == min(rewards[number]) and second[0] == number
    assert report.choose(groups) == chosen


@given(rewards=REWARDS, generator=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_whole_groups_are_those_that_differ_most(rewards: list[list[float]], generator: Any) -> None:
    """Of equal ones the first, whatever the order of their responses."""
    groups = [group(number, *own) for number, own in enumerate(rewards)]
    numbers = most_different(groups, len(groups))
    deviations = [0.0 if len(set(own)) == 1 else float(np.std(sorted(own))) for own in rewards]
    order = [(-deviations[number], number) for number in numbers]
    assert order == sorted(order)
    shuffled = [group(number, *generator.sample(own, len(own))) for number, own in enumerate(rewards)]
    assert most_different(shuffled, len(groups)) == numbers


def test_equal_rewards_do_not_differ_by_rounding() -> None:
    """The mean of three times 0.1 is no 0.1, and a sum in another order another one."""
    assert np.std([0.1] * 3) > 0
    assert most_different([group(0, 1.0, 1.0), group(1, 0.1, 0.1, 0.1)], 1) == [0]
    assert np.std([1.1, 0.7, 0.1]) > np.std([0.7, 0.1, 1.1])
    assert most_different([group(0, 0.7, 0.1, 1.1), group(1, 1.1, 0.7, 0.1)], 1) == [0]


def test_of_equal_rewards_those_of_other_prompts_come_first_in_the_order_of_the_groups() -> None:
    groups = [group(0, 1.0, 1.0), group(1, 2.0, 1.0), group(2, 1.0)]
    assert best_to_worst(groups, 9) == [(1, 0), (0, 0), (2, 0), (0, 1), (1, 1)]


def test_shown_samples_go_from_the_best_to_the_worst() -> None:
    """The wrong ones are among them, also where most are right."""
    right = [1.0] * 8
    groups = [group(number, *own) for number, own in enumerate([right, right, [*right[:6], 0.0, 0.5], right])]
    rewards = [groups[number].scores[index].reward for number, index in best_to_worst(groups, 4)]
    assert rewards == [1.0, 1.0, 1.0, 0.0]
    assert len({number for number, _ in best_to_worst(groups, 4)[:3]}) > 1
    assert best_to_worst(groups, 1) == [(2, 6)], "one alone is the worst"
    assert best_to_worst(groups, 0) == []
    assert len(best_to_worst(groups, 100)) == 32
    assert spread_over([5, 4, 3, 2, 1], 3) == [5, 3, 1]


def test_tokens_of_several_turns_tell_which_were_sampled_and_by_which_weights() -> None:
    spans = [VersionSpan(version=2, start=0, end=1), VersionSpan(version=3, start=1, end=2)]
    turns = [turn([1, 2], [5, 6], [-0.25, -0.12345], versions=spans), turn([8], [9], [-np.inf], version=4)]
    told = token_columns(Episode(turns=turns, status="ok", text=""), texts)
    assert told == {
        "pieces": ["<5>", "<6>", "<8>", "<9>"],
        "sampled": [True, True, False, True],
        "logprobs": [-0.25, -0.1235, None, -np.inf],
        "versions": [2, 3, None, 4],
    }
    assert all(type(value) is int for value in told["versions"] if value is not None)


@pytest.mark.parametrize("beyond", [0, 3])
def test_long_responses_are_cut(beyond: int) -> None:
    length = MOST_TOKENS + beyond
    told = token_columns(episode([1, 2, 3], range(length)), texts)
    assert told.pop("left_out", 0) == beyond
    assert {len(values) for values in told.values()} == {MOST_TOKENS}
    assert told["pieces"][-1] == f"<{MOST_TOKENS - 1}>"
