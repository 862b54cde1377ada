"""Rewards on their way to baselines: normalised over the run, clipped, then penalised for length."""

import json
import statistics
from typing import Any

import numpy as np
import pytest

from actors.batch import Prompt, RolloutStatus
from actors.rollout_types import RolloutInfo, Sampling
from algorithms.config_rl import GRPOConfig, OverlongPenalty
from algorithms.grpo import GRPO
from algorithms.loop import spread_over
from algorithms.rewards import Score
from algorithms.rl_metrics import best_to_worst
from algorithms.sampler import ScoredGroup
from algorithms.shaper import RewardShaper

Response = tuple[float, int, RolloutStatus]
"""Reward, tokens, status."""
LIMIT = 10
OVERLONG = OverlongPenalty(buffer=4, penalty=2.0)
STEPS: list[list[list[Response]]] = [
    [[(3.0, 5, "ok"), (-1.0, 7, "ok")], [(0.5, 10, "truncated"), (9.0, 8, "ok")]],
    [[(2.0, 10, "ok"), (2.0, 10, "truncated")], [(-6.0, 1, "ok"), (0.0, 9, "ok")]],
    [[(1.0, 6, "ok"), (1.5, 10, "truncated")], [(20.0, 2, "ok"), (0.0, 3, "ok")]],
]


def _groups(step: list[list[Response]]) -> list[ScoredGroup]:
    return [
        ScoredGroup(
            prompt=Prompt(index=number, token_ids=[1], text="", row={}),
            rollouts=None,
            infos=[
                RolloutInfo(prompt_tokens=1, response_tokens=tokens, status=status, oldest_version=0)
                for _, tokens, status in group
            ],
            scores=[Score(reward=reward, parts={}, status="ok") for reward, _, _ in group],
        )
        for number, group in enumerate(step)
    ]


def _shaper(**changes: Any) -> RewardShaper:
    settings: dict[str, Any] = {"normalize": False, "clip": None, "overlong": None, "missing_eos_penalty": 0.0}
    settings |= {"max_response_tokens": LIMIT} | changes
    return RewardShaper(**settings)


def _assert_scores(found: list[np.ndarray], expected: list[list[float]]) -> None:
    assert len(found) == len(expected)
    for scores, values in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores, values, rtol=1e-12)


def test_shown_samples_go_from_the_best_to_the_worst() -> None:
    """The wrong ones are among them, also where most are right."""
    right: list[Response] = [(1.0, 5, "ok")] * 8
    groups = _groups([right, right, [*right[:6], (0.0, 5, "ok"), (0.5, 5, "ok")], right])
    rewards = [groups[number].scores[index].reward for number, index in best_to_worst(groups, 4)]
    assert rewards == [1.0, 1.0, 1.0, 0.0]
    assert len({number for number, _ in best_to_worst(groups, 4)[:3]}) > 1
    assert best_to_worst(groups, 1) == [(2, 6)], "one alone is the worst"
    assert best_to_worst(groups, 0) == []
    assert len(best_to_worst(groups, 100)) == 32
    assert spread_over([5, 4, 3, 2, 1], 3) == [5, 3, 1]


def test_rewards_pass_unchanged_when_nothing_is_set() -> None:
    _assert_scores(_shaper()(_groups(STEPS[0])), [[3.0, -1.0], [0.5, 9.0]])


def test_rewards_are_normalised_over_the_run_so_far() -> None:
    """The step's own rewards count; the deviation is Bessel-corrected."""
    shaper, seen = _shaper(normalize=True), list[float]()
    for step in STEPS:
        seen += [reward for group in step for reward, _, _ in group]
        mean, deviation = statistics.mean(seen), statistics.stdev(seen)
        _assert_scores(shaper(_groups(step)), [[(r - mean) / deviation for r, _, _ in group] for group in step])


def test_what_is_clipped_is_the_normalised_reward() -> None:
    rewards = [3.0, -1.0, 0.5, 9.0]
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    expected = [min(0.6, max(-0.6, (reward - mean) / deviation)) for reward in rewards]
    assert expected.count(0.6) == 1 and expected.count(-0.6) >= 1, "both bounds are at work"
    _assert_scores(_shaper(normalize=True, clip=0.6)(_groups(STEPS[0])), [expected[:2], expected[2:]])


def test_clip_without_normalisation() -> None:
    _assert_scores(_shaper(clip=1.0)(_groups(STEPS[0])), [[1.0, -1.0], [0.5, 1.0]])


def test_penalties_come_after_the_clip() -> None:
    """A truncated response of the full length gets both, though the clip would allow no score below -1."""
    shaper = _shaper(clip=1.0, overlong=OVERLONG, missing_eos_penalty=0.25)
    # Beyond 6 tokens each costs 2 / 4: 7 tokens 0.5, 8 tokens 1, 10 tokens 2.
    _assert_scores(shaper(_groups(STEPS[0])), [[1.0, -1.5], [0.5 - 2.25, 0.0]])
    _assert_scores(shaper(_groups(STEPS[1])), [[-1.0, -1.25], [-1.0, -1.5]])


def test_penalties_do_not_enter_the_moments() -> None:
    """Or the mean of the rewards would follow the lengths."""
    plain, penalised = _shaper(normalize=True), _shaper(normalize=True, overlong=OVERLONG, missing_eos_penalty=0.25)
    for step in STEPS:
        plain(_groups(step))
        penalised(_groups(step))
    assert plain.state_dict() == penalised.state_dict()
    assert plain.state_dict()["count"] == 12


def test_rewards_themselves_stay_as_they_are() -> None:
    """They are what is reported, and what says which groups teach something."""
    groups = _groups(STEPS[0])
    _shaper(normalize=True, clip=0.1, overlong=OVERLONG, missing_eos_penalty=3.0)(groups)
    assert [group.rewards.tolist() for group in groups] == [[3.0, -1.0], [0.5, 9.0]]


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_baselines_compare_shaped_scores(advantage: str) -> None:
    """Two equal rewards differ by their penalties; two rewards that the clip makes equal teach nothing."""
    config = GRPOConfig.model_validate(
        {"name": "grpo", "advantage": advantage, "samples_per_prompt": 2, "prompts_per_step": 2}
        | ({"normalize_std": False} if advantage == "group" else {})
    )
    unused = ("policy", "reference", "read_reference", "sampler", "batches", "publish", "checkpoint", "reporter")
    loop = GRPO(
        config=config,
        shaper=_shaper(clip=1.0, missing_eos_penalty=0.5),
        models=[],
        prompts=[],
        evaluation=[],
        sampling=Sampling(samples=2, temperature=1.0, max_tokens=LIMIT),
        micro_batch_tokens={},
        seed=0,
        total_steps=1,
        **dict.fromkeys(unused),  # type: ignore[arg-type]
    )
    step: list[list[Response]] = [[(2.0, 10, "ok"), (2.0, 10, "truncated")], [(7.0, 3, "ok"), (3.0, 4, "ok")]]
    samples, fields, _ = loop._advantages(_groups(step), [])
    scale = {"group": 1.0, "leave_one_out": 2.0}[advantage]
    assert fields == []
    assert [sample.advantage for sample in samples] == [0.25 * scale, -0.25 * scale, 0.0, 0.0]


@pytest.mark.parametrize("cut", [1, 2])
def test_a_resumed_run_gives_the_same_numbers(cut: int) -> None:
    """Bit for bit, after a checkpoint has passed through JSON."""
    settings = {"normalize": True, "clip": 0.8, "overlong": OVERLONG, "missing_eos_penalty": 0.25}
    whole = _shaper(**settings)
    uninterrupted = [whole(_groups(step)) for step in STEPS]
    first, second = _shaper(**settings), _shaper(**settings)
    for step in STEPS[:cut]:
        first(_groups(step))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, expected in zip(STEPS[cut:], uninterrupted[cut:], strict=True):
        for scores, values in zip(second(_groups(step)), expected, strict=True):
            assert np.array_equal(scores, values)
    anew = _shaper(**settings)(_groups(STEPS[cut]))
    assert not np.array_equal(anew[0], uninterrupted[cut][0]), "the state makes a difference"
