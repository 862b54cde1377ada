"""Health warnings: range, one warning per excursion, and no false alarm on learned or tiny tasks."""

import math

import pytest

from launch.health import CEILINGS, HISTORY, RECOVERY_STEPS, REWARD_WINDOW, warnings_for


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda ceiling: ceiling.metric)
def test_ceiling_warns_at_its_limit_and_not_below(ceiling) -> None:
    assert warnings_for({ceiling.metric: ceiling.limit - 1e-6}, []) == []
    (line,) = warnings_for({ceiling.metric: ceiling.limit + 0.01}, [])
    assert ceiling.metric in line
    assert f"{ceiling.limit + 0.01:.3g}" in line
    assert f"below {ceiling.limit:g}" in line


def warned_steps(values: list[float], metric: str) -> list[int]:
    history: list[dict[str, float]] = []
    steps = []
    for step, value in enumerate(values):
        if warnings_for({metric: value}, history):
            steps.append(step)
        history.append({metric: value})
    return steps


def test_one_warning_until_the_metric_has_recovered() -> None:
    bad, good = [0.6] * 40, [0.1] * RECOVERY_STEPS
    assert warned_steps(bad + good + bad, "policy/kl") == [0, 50]
    flapping = [0.6, 0.1] * 20
    assert warned_steps(flapping, "policy/kl") == [0]


def test_reward_that_stays_near_zero_warns_once_the_window_is_full() -> None:
    assert warned_steps([0.01] * 60, "reward/mean") == [REWARD_WINDOW - 1]
    assert warned_steps([0.01 * step for step in range(60)], "reward/mean") == []
    assert warned_steps([1.0] * 60, "reward/mean") == []


def test_entropy_warns_only_when_it_falls() -> None:
    assert warned_steps([0.02] * 40, "policy/entropy") == []
    assert warned_steps([0.4, 0.3, 0.2, 0.1, 0.04, 0.03], "policy/entropy") == [4]


def test_not_a_number_is_no_warning_and_older_history_changes_nothing() -> None:
    assert warnings_for({"policy/kl": math.nan}, []) == []
    old = [{"policy/kl": 0.9}] + [{"policy/kl": 0.0}] * HISTORY
    assert len(warnings_for({"policy/kl": 0.9}, old)) == 1
