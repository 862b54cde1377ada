"""Rewards on their way to baselines: normalised over the run, clipped, then penalised for length."""

import itertools
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.episodes import EpisodeStatus, Prompt
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.config_rl import GRPOConfig, OverlongPenalty
from algorithms.rewards.scores import Score
from algorithms.rl.baselines import BASELINES
from algorithms.rl.grpo import GRPO
from algorithms.rl.judging import Teaching
from algorithms.rl.metrics import reward_metrics, rollout_metrics, teaches
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup

Response = tuple[float, int, EpisodeStatus]
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
                RolloutInfo(tokens=1 + tokens, prompt_tokens=1, sampled_tokens=tokens, status=status, oldest_version=0)
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


def test_rewards_of_turns_come_last_and_as_they_are() -> None:
    """Behind clip and penalties, which are for what was sampled: not for what a tool has said."""
    plain = _groups(STEPS[0])
    turns = iter([(0.5, 3.0), (), (), (-4.0,)])
    groups = [
        replace(group, infos=[replace(info, tokens=90, turns=2, turn_rewards=next(turns)) for info in group.infos])
        for group in plain
    ]
    shaper = _shaper(clip=1.0, overlong=OVERLONG, missing_eos_penalty=0.25)
    _assert_scores(shaper(groups), [[1.0 + 3.5, -1.5], [0.5 - 2.25, 0.0 - 4.0]])
    every = [np.ones(2, np.bool_)] * 2
    assert _shaper().metrics(_shaper().shape(groups, every)) == {"reward/shaped_mean": pytest.approx(11.0 / 4)}
    assert _shaper().metrics(_shaper().shape(plain, every)) == {}


def test_penalties_do_not_enter_the_moments() -> None:
    """Or the mean of the rewards would follow the lengths."""
    plain, penalised = _shaper(normalize=True), _shaper(normalize=True, overlong=OVERLONG, missing_eos_penalty=0.25)
    for step in STEPS:
        plain(_groups(step))
        penalised(_groups(step))
    assert plain.save(Path()) == penalised.save(Path())
    assert plain.save(Path())["count"] == 12


def test_rewards_themselves_stay_as_they_are() -> None:
    """They are what is reported."""
    groups = _groups(STEPS[0])
    _shaper(normalize=True, clip=0.1, overlong=OVERLONG, missing_eos_penalty=3.0)(groups)
    assert [group.rewards.tolist() for group in groups] == [[3.0, -1.0], [0.5, 9.0]]


def _loop(shaper: RewardShaper, **algorithm: Any) -> GRPO:
    """One whose stages are called one by one: nothing samples, trains or reports."""
    unused = (
        "roster",
        "reference",
        "read_reference",
        "rollouts",
        "split",
        "reads",
        "batches",
        "publish",
        "checkpoint",
        "reporter",
    )
    return GRPO(
        config=GRPOConfig.model_validate({"name": "grpo", "samples_per_prompt": 2, "prompts_per_step": 2} | algorithm),
        shaper=shaper,
        models=[],
        evaluation=[],
        sampling=Sampling(samples=2, temperature=1.0, max_tokens=LIMIT),
        micro_batch_tokens={},
        seed=0,
        total_steps=1,
        **dict.fromkeys((*unused, "checkpoint", "reporter")),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_baselines_compare_shaped_scores(advantage: str) -> None:
    """Two equal rewards differ by their penalties; two rewards that the clip makes equal teach nothing."""
    more = {"normalize_std": False} if advantage == "group" else {}
    loop = _loop(_shaper(clip=1.0, missing_eos_penalty=0.5), advantage=advantage, **more)
    step: list[list[Response]] = [[(2.0, 10, "ok"), (2.0, 10, "truncated")], [(7.0, 3, "ok"), (3.0, 4, "ok")]]
    samples = loop._advantages(_groups(step))
    scale = {"group": 1.0, "leave_one_out": 2.0}[advantage]
    assert not loop._by_token, "nothing is left for the ranks to compute"
    assert [sample.advantage for sample in samples] == [0.25 * scale, -0.25 * scale, 0.0, 0.0]


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_what_the_loss_leaves_out_is_in_no_baseline(advantage: str) -> None:
    """Right answers beside a truncated one that is not trained on are no better than each other."""
    loop = _loop(_shaper(), advantage=advantage, mask_truncated=True, samples_per_prompt=4)
    step: list[list[Response]] = [
        [(1.0, 5, "ok"), (1.0, 5, "ok"), (1.0, 5, "ok"), (0.0, 10, "truncated")],
        [(1.0, 5, "ok"), (0.0, 5, "ok"), (1.0, 10, "truncated"), (1.0, 10, "truncated")],
        [(1.0, 5, "ok"), (0.0, 10, "truncated"), (0.0, 10, "truncated"), (0.0, 10, "truncated")],
        [(1.0, 10, "truncated"), (0.0, 10, "truncated"), (0.0, 10, "truncated"), (1.0, 10, "truncated")],
    ]
    groups = loop.shape(_groups(step))
    samples = loop._advantages(groups)
    one = {"group": 0.5 / (math.sqrt(0.5) + 1e-4), "leave_one_out": 1.0}[advantage]
    assert [sample.advantage for sample in samples] == pytest.approx([0, 0, 0, 0, one, -one, *[0] * 10])
    assert [teaches(group) for group in groups] == [False, True, False, False]
    assert rollout_metrics(groups, 0, Failures(0))["reward/zero_variance_fraction"] == 0.75


def test_ranks_whiten_also_what_is_one_number_for_a_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sees no tokens, over which the mean is."""
    monkeypatch.setitem(BASELINES, "leave_one_out", replace(BASELINES["leave_one_out"], whitened=True))
    for advantage, of_ranks in {"leave_one_out": True, "group": False, "reinforce_pp": True}.items():
        loop = _loop(_shaper(), advantage=advantage)
        samples = loop._advantages(_groups([[(1.0, 3, "ok"), (0.0, 3, "ok")]]))
        assert loop._by_token == of_ranks
        assert [math.isnan(sample.advantage) for sample in samples] == [of_ranks] * 2


def _naive_scores(step: list[list[Response]], seen: list[float], mask: bool, **shaping: Any) -> list[list[float]]:
    """Scores of a step, those left out as NaN, with every reward of the run so far in `seen`."""
    flat = [each for group in step for each in group if not (mask and each[2] == "truncated")]
    seen += [reward for reward, _, _ in flat]
    found = []
    for group in step:
        scores = []
        for reward, tokens, status in group:
            if shaping["normalize"]:
                reward = (reward - statistics.mean(seen)) / statistics.stdev(seen)
            if shaping["clip"]:
                reward = max(-shaping["clip"], min(shaping["clip"], reward))
            if shaping["overlong"] and tokens > LIMIT - OVERLONG.buffer:
                reward -= OVERLONG.penalty * (tokens - LIMIT + OVERLONG.buffer) / OVERLONG.buffer
            if status == "truncated":
                reward -= shaping["missing_eos_penalty"]
            scores.append(math.nan if mask and status == "truncated" else reward)
        found.append(scores)
    return found


def _combinations() -> list[dict[str, Any]]:
    shapings = itertools.product([False, True], [None, 0.5], [None, OVERLONG], [0.0, 0.25], [False, True])
    names = ("normalize", "clip", "overlong", "missing_eos_penalty", "mask_truncated")
    return [dict(zip(names, values, strict=True)) for values in shapings if not (values[3] and values[4])]


@pytest.mark.parametrize(
    "settings", _combinations(), ids=lambda settings: ",".join(k for k, v in settings.items() if v)
)
def test_the_score_that_decides_is_the_one_that_trains(settings: dict[str, Any]) -> None:
    """Of every two of normalize, clip, penalties for length and mask_truncated, dynamic sampling, the share of equal
    groups, the mean and the advantages read the same scores; also of groups that an earlier round has kept."""
    mask = settings["mask_truncated"]
    shaping = {name: value for name, value in settings.items() if name != "mask_truncated"}
    loop = _loop(_shaper(**shaping), advantage="leave_one_out", mask_truncated=mask)
    draw, seen = np.random.default_rng(1), list[float]()
    kept, expected = [], []
    for _ in range(4):
        step: list[list[Response]] = []
        for _ in range(30):
            rewards, tokens = draw.integers(-1, 3, 3), draw.integers(4, LIMIT + 1, 3)
            cut = draw.random(3) < 0.3
            group: list[Response] = [
                (float(reward), LIMIT, "truncated") if ended else (float(reward), int(length), "ok")
                for reward, length, ended in zip(rewards, tokens, cut, strict=True)
            ]
            step.append(group)
        for shaped, scores in zip(loop.shape(_groups(step)), _naive_scores(step, seen, mask, **shaping), strict=True):
            counted = [score for score in scores if not math.isnan(score)]
            differs = len(counted) > 1 and max(counted) - min(counted) > 1e-9
            assert teaches(shaped) == differs
            if differs:
                kept.append(shaped)
                expected.append(scores)
    samples = loop._advantages(kept)
    naive = []
    for scores in expected:
        counted = [score for score in scores if not math.isnan(score)]
        mean = sum(counted) / len(counted)
        scale = len(counted) / (len(counted) - 1)
        naive += [0.0 if math.isnan(score) else (score - mean) * scale for score in scores]
    np.testing.assert_allclose([sample.advantage for sample in samples], naive, rtol=1e-9, atol=1e-9)
    assert rollout_metrics(kept, 0, Failures(0))["reward/zero_variance_fraction"] == 0
    shown = loop.shaper.metrics(kept)
    assert set(shown) == ({"reward/shaped_mean"} if any(shaping.values()) else set())
    for value in shown.values():
        assert value == pytest.approx(np.nanmean([score for scores in expected for score in scores]))


def test_dynamic_sampling_drops_what_the_clip_makes_equal() -> None:
    """3 5 4 6 clipped at 1 are four times 1: no advantage, so none of them fills the step."""
    loop = _loop(shaper := _shaper(clip=1.0), dynamic_sampling=True, samples_per_prompt=4)
    equal: list[Response] = [(3.0, 5, "ok"), (5.0, 5, "ok"), (4.0, 5, "ok"), (6.0, 5, "ok")]
    mixed: list[Response] = [(0.0, 5, "ok"), *equal[1:]]
    judged = [Teaching(shaper=shaper, mask_truncated=False)(group) for group in _groups([equal, mixed, equal, mixed])]
    assert [each is not None for each in judged] == [False, True, False, True]
    groups = [each for each in judged if each]
    assert [group.rewards.tolist() for group in groups] == [[0, 5, 4, 6]] * 2
    assert loop.shape(groups) == groups, "what has decided about them is what trains"
    assert all(sample.advantage for sample in loop._advantages(groups))
    assert reward_metrics(_groups([equal]), "eval/reward")["eval/reward/zero_variance_fraction"] == 0, "not shaped"


def test_a_response_that_is_not_counted_decides_nothing() -> None:
    """0 1 1, of which the first was cut: with mask_truncated all that count are equal."""
    responses: list[Response] = [(0.0, 5, "truncated"), (1.0, 5, "ok"), (1.0, 5, "ok")]
    for masked in (False, True):
        [group] = _groups([responses])
        assert (Teaching(shaper=_shaper(), mask_truncated=masked)(group) is None) == masked


@pytest.mark.parametrize("cut", [1, 2])
def test_a_resumed_run_gives_the_same_numbers(cut: int) -> None:
    """Bit for bit, after a checkpoint has passed through JSON."""
    settings = {"normalize": True, "clip": 0.8, "overlong": OVERLONG, "missing_eos_penalty": 0.25}
    whole = _shaper(**settings)
    uninterrupted = [whole(_groups(step)) for step in STEPS]
    first, second = _shaper(**settings), _shaper(**settings)
    for step in STEPS[:cut]:
        first(_groups(step))
    second.load(Path(), json.loads(json.dumps(first.save(Path()))))
    for step, expected in zip(STEPS[cut:], uninterrupted[cut:], strict=True):
        for scores, values in zip(second(_groups(step)), expected, strict=True):
            assert np.array_equal(scores, values)
    anew = _shaper(**settings)(_groups(STEPS[cut]))
    assert not np.array_equal(anew[0], uninterrupted[cut][0]), "the state makes a difference"


def test_a_shaped_group_keeps_all_of_its_group() -> None:
    [group] = (replace(group, rollouts="of the engine") for group in _groups([STEPS[0][0]]))
    [shaped] = _shaper().shape([group], [np.array([True, False])])
    assert (shaped.prompt, shaped.rollouts, shaped.infos, shaped.scores) == (
        group.prompt,
        "of the engine",
        group.infos,
        group.scores,
    )
    assert shaped.counted.tolist() == [True, False] and shaped.shaped.tolist() == [3.0, -1.0]
