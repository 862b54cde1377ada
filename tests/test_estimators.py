"""Advantages of a step against loops over tokens, and the same numbers when its groups are divided over two ranks."""

import itertools
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.episodes import Experience
from actors.train.worker import ScoredGroups, Worker
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.rl.estimators import Estimator

Array = NDArray[np.float64]
SIZES: dict[str, Any] = {"prompts_per_step": 5, "samples_per_prompt": 3}
KINDS: tuple[Literal["k1", "k2", "k3"], ...] = ("k1", "k2", "k3")


def _step() -> ScoredGroups:
    """Five groups of three responses; in one all scores are equal, and one response has a tool's turn inside of it."""
    generator = np.random.default_rng(3)
    groups: ScoredGroups = []
    for number in range(5):
        group = []
        for index in range(3):
            prompt, response = int(generator.integers(1, 4)), int(generator.integers(1, 9))
            length = prompt + response
            mask = np.arange(length) >= prompt
            if (number, index) == (1, 1):
                mask = np.array([False, True, True, False, False, True])
                length = len(mask)
            fields = {
                name: generator.normal(size=length).astype(np.float32)
                for name in ("rollout_logprobs", "reference_logprobs", "values")
            }
            tokens = generator.integers(9, size=length)
            score = 1.0 if number == 3 else float(generator.normal())
            group.append((score, Experience(token_ids=tokens, action_mask=mask, fields=fields)))
        groups.append(group)
    return groups


STEP = _step()


def _alone(values: Array) -> Array:
    return values


def _kl(item: Experience, kind: str) -> list[float]:
    """Estimates of KL(policy || reference) at the action tokens, by http://joschu.net/blog/kl-approx.html."""
    found = []
    for position in np.flatnonzero(item.action_mask):
        # log r = log reference - log policy
        log_r = float(item.fields["reference_logprobs"][position]) - float(item.fields["rollout_logprobs"][position])
        r = np.exp(log_r)
        found.append({"k1": -log_r, "k2": log_r * log_r / 2, "k3": r - 1 - log_r}[kind])
    return found


def _at_actions(item: Experience, values: list[float]) -> list[float]:
    """Values at the action tokens, 0 elsewhere."""
    iterator = iter(values)
    return [next(iterator) if action else 0.0 for action in item.action_mask]


def _whitened(rows: list[list[list[float]]]) -> list[list[list[float]]]:
    everything = [value for group in rows for row in group for value in row]
    mean = sum(everything) / len(everything)
    variance = sum((value - mean) ** 2 for value in everything) / (len(everything) - 1)
    return [[[(value - mean) / (variance + 1e-8) ** 0.5 for value in row] for row in group] for group in rows]


def _assert_fields(found: list[list[dict[str, Any]]], name: str, expected: list[list[list[float]]]) -> None:
    for group, fields, rows in zip(STEP, found, expected, strict=True):
        for (_, item), response, row in zip(group, fields, rows, strict=True):
            assert response[name].dtype == np.float32
            np.testing.assert_allclose(response[name], _at_actions(item, row), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whiten", [False, True])
def test_gae_with_kl_in_the_reward(kind: Literal["k1", "k2", "k3"], whiten: bool) -> None:
    """delta and A by their definitions (arXiv 1506.02438), as sums over all later action tokens."""
    gamma, gae_lambda, coef = 0.9, 0.8, 0.3
    config = PPOConfig(
        name="ppo", kl_estimator=kind, gamma=gamma, gae_lambda=gae_lambda, whiten_advantages=whiten, **SIZES
    )
    advantages: list[list[list[float]]] = []
    returns: list[list[list[float]]] = []
    for group in STEP:
        advantages.append([])
        returns.append([])
        for score, item in group:
            rewards = [-coef * kl for kl in _kl(item, kind)]
            rewards[-1] += score
            values = [float(value) for value in item.fields["values"][item.action_mask]] + [0.0]
            count = len(rewards)
            deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(count)]
            row = [sum((gamma * gae_lambda) ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)]
            advantages[-1].append(row)
            returns[-1].append([a + v for a, v in zip(row, values[:-1], strict=True)])
    found, metrics = _estimator(config, coef, STEP)(STEP, _alone)
    _assert_fields(found, "advantages", _whitened(advantages) if whiten else advantages)
    _assert_fields(found, "returns", returns)
    _assert_critic_metrics(metrics, returns)


def _assert_critic_metrics(metrics: dict[str, float], returns: list[list[list[float]]]) -> None:
    """Explained variance: 1 - Var(R - V) / Var(R)."""
    flat = np.array([value for group in returns for row in group for value in row])
    values = np.concatenate([item.fields["values"][item.action_mask] for group in STEP for _, item in group])
    assert metrics["critic/returns_mean"] == pytest.approx(flat.mean(), rel=1e-6)
    assert metrics["critic/values_mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert metrics["critic/explained_variance"] == pytest.approx(1 - np.var(flat - values) / np.var(flat), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_reported_per_response_and_per_token(kind: Literal["k1", "k2", "k3"]) -> None:
    config = GRPOConfig(name="grpo", advantage="leave_one_out", kl_in="reward", kl_coef=0.2, kl_estimator=kind, **SIZES)
    _, metrics = _estimator(config, 0.25, STEP)(STEP, _alone)
    per_response = [_kl(item, kind) for group in STEP for _, item in group]
    total, tokens = sum(map(sum, per_response)), sum(map(len, per_response))
    assert metrics.keys() == {"reward/kl_per_response", "policy/kl", "reward/kl_coef"}
    assert metrics["reward/kl_per_response"] == pytest.approx(total / 15)
    assert metrics["policy/kl"] == pytest.approx(total / tokens)
    assert metrics["reward/kl_coef"] == 0.25, "the coefficient of the step, which may have been adapted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("advantage", ["leave_one_out", "group"])
def test_comparison_within_the_group_with_kl(advantage: Literal["leave_one_out", "group"], kind: Any) -> None:
    """The KL of the whole response is subtracted from its score before the baseline; the same for all its tokens."""
    coef = 0.3
    config = GRPOConfig(name="grpo", advantage=advantage, kl_in="reward", kl_coef=coef, kl_estimator=kind, **SIZES)
    expected: list[list[list[float]]] = []
    for group in STEP:
        rewards = [score - coef * sum(_kl(item, kind)) for score, item in group]
        rows = []
        for index, (_, item) in enumerate(group):
            others = [reward for other, reward in enumerate(rewards) if other != index]
            value = rewards[index] - sum(others) / len(others)
            if advantage == "group":
                mean = sum(rewards) / 3
                deviation = (sum((reward - mean) ** 2 for reward in rewards) / 2) ** 0.5
                value = (rewards[index] - mean) / (deviation + 1e-4)
            rows.append([value] * int(item.action_mask.sum()))
        expected.append(rows)
    found, _ = _estimator(config, coef, STEP)(STEP, _alone)
    _assert_fields(found, "advantages", expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("advantage", ["reinforce_pp", "reinforce_pp_baseline"])
def test_reinforce_pp(advantage: Literal["reinforce_pp", "reinforce_pp_baseline"], kind: Any) -> None:
    """Score (minus the group's mean), less the KL of this token and all later ones, whitened over all tokens."""
    coef = 0.3
    config = GRPOConfig(name="grpo", advantage=advantage, kl_in="reward", kl_coef=coef, kl_estimator=kind, **SIZES)
    expected: list[list[list[float]]] = []
    for group in STEP:
        baseline = sum(score for score, _ in group) / 3 if advantage == "reinforce_pp_baseline" else 0.0
        expected.append([])
        for score, item in group:
            kl = _kl(item, kind)
            expected[-1].append([score - baseline - coef * sum(kl[t:]) for t in range(len(kl))])
    found, _ = _estimator(config, coef, STEP)(STEP, _alone)
    _assert_fields(found, "advantages", _whitened(expected))


def test_without_kl_no_reference_is_needed() -> None:
    """Rewards are the scores alone; nothing is said of a KL."""
    groups = [[(score, _without_reference(item)) for score, item in group] for group in STEP]
    config = GRPOConfig(name="grpo", advantage="reinforce_pp", **SIZES)
    found, metrics = _estimator(config, 0.0, groups)(groups, _alone)
    scores = [[[score] * int(item.action_mask.sum()) for score, item in group] for group in STEP]
    _assert_fields(found, "advantages", _whitened(scores))
    assert metrics == {}


def _without_reference(item: Experience) -> Experience:
    fields = {"rollout_logprobs": item.fields["rollout_logprobs"]}
    return Experience(token_ids=item.token_ids, action_mask=item.action_mask, fields=fields)


class Ranks:
    """Two threads that add vectors as two ranks do, each waiting for the other."""

    def __init__(self) -> None:
        self.given: dict[int, Array] = {}
        self.barrier = threading.Barrier(2, timeout=20)

    def add(self, rank: int) -> Callable[[Array], Array]:
        """The sum over ranks, as `rank` calls it."""

        def summed(values: Array) -> Array:
            self.given[rank] = values
            self.barrier.wait()
            total = self.given[0] + self.given[1]
            self.barrier.wait()
            return total

        return summed


@pytest.mark.parametrize("cut", [0, 2, 4])
@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(name="ppo", gae_lambda=0.9, **SIZES),
        PPOConfig(name="ppo", whiten_advantages=False, **SIZES),
        GRPOConfig(name="grpo", advantage="leave_one_out", kl_in="reward", kl_coef=0.3, **SIZES),
        GRPOConfig(name="grpo", advantage="reinforce_pp", kl_in="reward", kl_coef=0.3, **SIZES),
        GRPOConfig(name="grpo", advantage="reinforce_pp_baseline", **SIZES),
    ],
    ids=["ppo", "ppo, not whitened", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline"],
)
def test_two_ranks_find_what_one_finds(config: PPOConfig | GRPOConfig, cut: int) -> None:
    """Groups are divided at `cut`; with 0, a rank has none of them and still takes part."""
    whole, metrics = _estimator(config, config.kl_coef, STEP)(STEP, _alone)
    ranks, found = Ranks(), dict[int, Any]()

    def compute(rank: int, groups: ScoredGroups) -> None:
        found[rank] = _estimator(config, config.kl_coef, groups)(groups, ranks.add(rank))

    threads = [
        threading.Thread(target=compute, args=(rank, part)) for rank, part in enumerate((STEP[:cut], STEP[cut:]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, told in found.values():
        assert told == pytest.approx(metrics, rel=1e-12)
    for alone, divided in zip(whole, found[0][0] + found[1][0], strict=True):
        for expected, fields in zip(alone, divided, strict=True):
            assert expected.keys() == fields.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(fields[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_step_of_equal_rewards_has_no_advantages() -> None:
    """Whitening must not blow up rounding errors: exactly 0."""
    groups = [[(0.1, item) for _, item in group] for group in STEP]
    for advantage in ("reinforce_pp", "reinforce_pp_baseline", "leave_one_out"):
        config = GRPOConfig.model_validate({"name": "grpo", "advantage": advantage} | SIZES)
        found, _ = _estimator(config, 0.0, groups)(groups, _alone)
        assert not any(fields["advantages"].any() for group in found for fields in group)


def test_responses_that_the_loss_leaves_out_do_not_move_the_others() -> None:
    """Whitening is over what is counted: a long truncated response must not make a bad one look good."""
    config = GRPOConfig.model_validate({"name": "grpo", "advantage": "reinforce_pp"} | SIZES)
    kept, left_out = STEP[0], STEP[1]
    counted = [[True] * len(kept), [False] * len(left_out)]
    both = Estimator(config=config, kl_coef=0.0, counted=counted)
    found, _ = both([kept, [(-50.0, item) for _, item in left_out]], _alone)
    alone, _ = _estimator(config, 0.0, [kept])([kept], _alone)
    for expected, fields in zip(alone[0], found[0], strict=True):
        np.testing.assert_allclose(fields["advantages"], expected["advantages"])


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("advantage", ["group", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline", "ppo"])
def test_responses_left_out_are_as_if_they_had_not_been_sampled(advantage: str, kl_coef: float) -> None:
    """In baselines, in whitening, and in what is said of the critic; their own advantages are 0."""
    counted = [[True, False, True], [True, True, False], [True] * 3, [False, True, True], [True, True, True]]
    kl = {"kl_in": "reward", "kl_coef": kl_coef} if kl_coef else {}
    config: Any = (
        PPOConfig.model_validate({"name": "ppo"} | kl | SIZES)
        if advantage == "ppo"
        else GRPOConfig.model_validate({"name": "grpo", "advantage": advantage} | kl | SIZES)
    )
    found, said = Estimator(config=config, kl_coef=kl_coef, counted=counted)(STEP, _alone)
    rest = [list(itertools.compress(group, flags)) for group, flags in zip(STEP, counted, strict=True)]
    expected, told = _estimator(config, kl_coef, rest)(rest, _alone)
    for group, flags, others in zip(found, counted, expected, strict=True):
        left = iter(others)
        for fields, kept in zip(group, flags, strict=True):
            if kept:
                np.testing.assert_allclose(fields["advantages"], next(left)["advantages"], rtol=1e-6, atol=1e-7)
            else:
                assert not fields["advantages"].any()
    for name in (name for name in said if name.startswith("critic/")):
        assert said[name] == pytest.approx(told[name])


def _estimator(config: Any, coef: float, groups: ScoredGroups) -> Estimator:
    """One that counts every response."""
    return Estimator(config=config, kl_coef=coef, counted=[[True] * len(group) for group in groups])


def test_the_mean_advantage_of_a_response_is_over_its_tokens() -> None:
    """Of those asked for that this rank has."""
    fields: Any = {(0, 1): {"advantages": np.array([0.0, 0.5, 1.5], np.float32)}, (2, 0): {"advantages": np.ones(3)}}
    worker = object.__new__(Worker)
    assert Worker.mean_advantages(worker, {(0, 1): 2, (7, 0): 3}, fields) == {(0, 1): 1.0}


def test_a_critic_explains_nothing_of_returns_that_do_not_differ() -> None:
    """One token alone is divided by one, and its KL is told beside it."""
    fields = {
        name: np.array([9.0, 0.5], dtype=np.float32) for name in ("rollout_logprobs", "reference_logprobs", "values")
    }
    item = Experience(token_ids=np.array([1, 2]), action_mask=np.array([False, True]), fields=fields)
    groups = [[(2.0, item)]]
    _, metrics = _estimator(PPOConfig(name="ppo", **SIZES), 0.3, groups)(groups, _alone)
    assert metrics == {
        "reward/kl_per_response": 0.0,
        "policy/kl": 0.0,
        "reward/kl_coef": 0.3,
        "critic/returns_mean": 2.0,
        "critic/values_mean": 0.5,
        "critic/explained_variance": 0.0,
    }
