"""Health warnings: range, one warning per excursion, and no false alarm on learned or tiny tasks."""

import math

import pytest

from launch.health import CEILINGS, RECOVERY_STEPS, REWARD_WINDOW, Health


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda ceiling: ceiling.metric)
def test_ceiling_warns_at_its_limit_and_not_below(ceiling) -> None:
    assert Health().warnings({ceiling.metric: ceiling.limit - 1e-6}) == []
    (line,) = Health().warnings({ceiling.metric: ceiling.limit + 0.01})
    assert ceiling.metric in line
    assert f"{ceiling.limit + 0.01:.3g}" in line
    assert f"below {ceiling.limit:g}" in line


def warned_steps(values: list[float], metric: str, **others: float) -> list[int]:
    health = Health()
    return [step for step, value in enumerate(values) if health.warnings({metric: value, **others})]


def test_one_warning_until_the_metric_has_recovered() -> None:
    bad, good = [0.6] * 40, [0.1] * RECOVERY_STEPS
    assert warned_steps(bad + good + bad, "policy/kl") == [0, 40 + RECOVERY_STEPS]
    flapping = [0.6, 0.1] * 20
    assert warned_steps(flapping, "policy/kl") == [0]


def test_reward_that_stays_near_zero_warns_once_the_window_is_full() -> None:
    assert warned_steps([0.01] * 60, "reward/mean") == [REWARD_WINDOW - 1]
    assert warned_steps([0.01 * step for step in range(60)], "reward/mean") == []
    assert warned_steps([1.0] * 60, "reward/mean") == []


def test_entropy_warns_only_when_it_falls() -> None:
    assert warned_steps([0.02] * 40, "policy/entropy") == []
    assert warned_steps([0.4, 0.3, 0.2, 0.1, 0.04, 0.03], "policy/entropy") == [4]


def test_not_a_number_is_no_warning() -> None:
    assert Health().warnings({"policy/kl": math.nan}) == []


EQUAL = {"reward/zero_variance_fraction": 0.95, "policy/clip_fraction": 0.3, "policy/entropy": 0.01}


def test_a_solved_task_is_good_news_once_and_no_warning() -> None:
    health = Health()
    learning = {"reward/mean": 0.3, "reward/min": 0.0, "reward/max": 1.0, "policy/entropy": 0.8}
    assert health.warnings(learning) == [] and health.good_news(learning) is None
    solved = learning | {"reward/mean": 0.97} | EQUAL
    assert health.warnings(solved) == []
    news = health.good_news(solved)
    assert news is not None and news.startswith("95% of the groups got equal rewards, near the highest so far (1)")
    for _ in range(100):
        assert health.warnings(solved) == [] and health.good_news(solved) is None


@pytest.mark.parametrize("reward", [0.0, -1.0, 0.02])
def test_groups_that_are_equal_because_all_are_wrong_are_warned_about(reward: float) -> None:
    health = Health()
    highest = 0.0 if reward <= 0 else 1.0
    wrong = {"reward/mean": reward, "reward/min": min(reward, 0.0), "reward/max": max(reward, highest)} | EQUAL
    if reward < 0:
        wrong["reward/max"] = reward
    lines = health.warnings(wrong)
    assert any("most groups teach nothing" in line for line in lines)
    assert health.good_news(wrong) is None


def test_a_solved_task_may_still_run_away_from_its_reference() -> None:
    solved = {"reward/mean": 1.0, "reward/min": 1.0, "reward/max": 1.0, "policy/kl": 0.9}
    (line,) = Health().warnings(solved)
    assert line.startswith("policy/kl")
