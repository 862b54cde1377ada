"""Health warnings: range, one warning per excursion, and no false alarm on learned or tiny tasks."""

import math

import pytest

from launch.screen.health import CEILINGS, RECOVERY_STEPS, REWARD_WINDOW, Health


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


def test_a_correction_that_throws_away_more_than_a_tenth_names_what_helps() -> None:
    """Once, and again when it had recovered; what helps depends on whether samples are old."""
    cut = {"policy/importance_truncated_fraction": 0.12}
    (line,) = Health().warnings(cut | {"staleness/max": 2.0})
    assert line == (
        "policy/importance_truncated_fraction is 0.12, usually below 0.1; importance correction throws much away, as "
        "samples are too old: lower algorithm.max_staleness or policy.optimizer.lr, raise "
        "algorithm.importance_correction.cap, or take its level token"
    )
    for on_policy in (cut, cut | {"staleness/max": 0.0}):
        (line,) = Health().warnings(on_policy)
        assert "as sampler and trainer disagree: use model.dtype fp32" in line and "max_staleness" not in line
    bad, good = [0.12] * 40, [0.09] * RECOVERY_STEPS
    assert warned_steps(bad + good + bad, "policy/importance_truncated_fraction", **{"staleness/max": 2.0}) == [0, 90]


def test_a_clip_around_older_weights_is_not_taken_for_large_updates() -> None:
    (line,) = Health().warnings({"policy/clip_fraction": 0.3, "staleness/max": 4.0})
    assert "algorithm.max_staleness" in line and "leave algorithm.importance_correction to auto" in line
    (line,) = Health().warnings({"policy/clip_fraction": 0.3, "staleness/max": 0.0})
    assert "max_staleness" not in line


def test_other_advice_is_the_same_where_samples_are_old() -> None:
    for ceiling in CEILINGS:
        if ceiling.when_stale is None:
            metrics = {ceiling.metric: 0.9}
            assert Health().warnings(metrics | {"staleness/max": 2.0}) == Health().warnings(metrics)


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


@pytest.mark.parametrize("ceiling", CEILINGS, ids=lambda ceiling: ceiling.metric)
def test_the_limit_itself_is_out_of_range(ceiling) -> None:
    (line,) = Health().warnings({ceiling.metric: ceiling.limit})
    assert line == f"{ceiling.metric} is {ceiling.limit:.3g}, usually below {ceiling.limit:g}; {ceiling.advice}"


@pytest.mark.parametrize(("good", "warned"), [(9, [0]), (RECOVERY_STEPS - 1, [0]), (RECOVERY_STEPS, [0, 51])])
def test_a_metric_has_recovered_after_so_many_good_steps_in_a_row(good: int, warned: list[int]) -> None:
    assert warned_steps([0.6, *[0.1] * good, 0.6], "policy/kl") == warned
    interrupted = [0.6, *[0.1] * (RECOVERY_STEPS - 1), 0.6, *[0.1] * (RECOVERY_STEPS - 1), 0.6]
    assert warned_steps(interrupted, "policy/kl") == [0]


@pytest.mark.parametrize(
    ("low", "high", "flat"),
    [(0.0, 0.05, True), (0.0, 0.06, False), (0.15, 0.15, True), (0.16, 0.16, False), (-0.15, -0.1, True),
     (-0.16, -0.16, False), (-0.02, 0.02, True)],
)  # fmt: skip
def test_a_reward_is_flat_that_neither_moves_nor_is_given(low: float, high: float, flat: bool) -> None:
    values = [low, high] * (REWARD_WINDOW // 2)
    assert warned_steps(values, "reward/mean") == ([REWARD_WINDOW - 1] if flat else [])


def test_only_the_last_rewards_say_whether_they_move() -> None:
    assert warned_steps([0.1] + [0.01] * REWARD_WINDOW, "reward/mean") == [REWARD_WINDOW]


@pytest.mark.parametrize(
    ("values", "steps"),
    [([0.4, 0.05], []), ([0.4, 0.0499], [1]), ([0.08, 0.04], [1]), ([0.08, 0.041], []), ([0.03, 0.4, 0.04], [2])],
)
def test_entropy_has_fallen_below_the_floor_and_to_half_its_highest(values: list[float], steps: list[int]) -> None:
    assert warned_steps(values, "policy/entropy") == steps


@pytest.mark.parametrize(
    ("mean", "least", "most", "solved"),
    [(0.9, 0.0, 1.0, True), (0.89, 0.0, 1.0, False), (0.8, -1.0, 1.0, True), (0.79, -1.0, 1.0, False),
     (0.9, 0.5, 1.0, True), (0.0, 0.0, 0.0, False)],
)  # fmt: skip
def test_a_task_is_solved_near_the_highest_of_all_rewards(mean: float, least: float, most: float, solved: bool) -> None:
    """The lowest is 0 at most: a reward that always lies between 0.5 and 1 has not begun at 0.5."""
    metrics = {"reward/mean": mean, "reward/min": least, "reward/max": most, "reward/zero_variance_fraction": 0.8}
    health = Health()
    lines = health.warnings(metrics)
    assert bool(lines) is not solved
    assert (health.good_news(metrics) is not None) is solved


def test_what_was_the_highest_reward_stays_so() -> None:
    health = Health()
    health.warnings({"reward/mean": 0.5, "reward/min": 0.0, "reward/max": 1.0})
    later = {"reward/mean": 0.5, "reward/min": 0.5, "reward/max": 0.5, "reward/zero_variance_fraction": 1.0}
    assert len(health.warnings(later)) == 1 and health.good_news(later) is None


def test_few_equal_groups_are_no_news() -> None:
    health = Health()
    metrics = {"reward/mean": 1.0, "reward/min": 0.0, "reward/max": 1.0, "reward/zero_variance_fraction": 0.79}
    assert health.warnings(metrics) == [] and health.good_news(metrics) is None


def test_advice_that_no_longer_helps_is_kept_back_where_the_task_is_solved() -> None:
    solved = {"reward/mean": 1.0, "reward/min": 0.0, "reward/max": 1.0}
    told = {ceiling.metric for ceiling in CEILINGS if Health().warnings(solved | {ceiling.metric: 1.0})}
    assert told == {
        "policy/kl",
        "texts/at_limit_fraction",
        "mismatch/logprob_abs_mean",
        "policy/importance_truncated_fraction",
    }


def test_the_ranges_are_those_that_are_published() -> None:
    assert {ceiling.metric: ceiling.limit for ceiling in CEILINGS} == {
        "reward/zero_variance_fraction": 0.8,
        "policy/kl": 0.5,
        "policy/clip_fraction": 0.1,
        "rollout/truncated_fraction": 0.3,
        "texts/at_limit_fraction": 0.3,
        "mismatch/logprob_abs_mean": 0.1,
        "policy/importance_truncated_fraction": 0.1,
    }


def test_a_solved_task_is_no_news_where_groups_are_not_compared() -> None:
    health = Health()
    metrics = {"reward/mean": 1.0, "reward/min": 0.0, "reward/max": 1.0}
    assert health.warnings(metrics) == [] and health.good_news(metrics) is None


def test_rewards_below_zero_are_far_from_it_too() -> None:
    """The farthest decides, not the highest."""
    assert warned_steps([-0.14, -0.16] * (REWARD_WINDOW // 2), "reward/mean") == []
    assert warned_steps([-0.12, -0.14] * (REWARD_WINDOW // 2), "reward/mean") == [REWARD_WINDOW - 1]
