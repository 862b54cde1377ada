"""What a step reports of its updates and samples, against values written out by hand; no Ray."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.episodes import Episode, EpisodeStatus, Prompt, Turn, VersionSpan
from actors.rollout.types import RolloutInfo
from algorithms.config_rl import GRPOConfig
from algorithms.rewards.scores import Score, failed_score
from algorithms.rl.metrics import (
    discard_metrics,
    reward_metrics,
    rollout_metrics,
    update_metrics,
)
from algorithms.rollouts.discards import Discards
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup

UPDATES = [
    {"loss": 1.0, "grad_norm": 4.0, "learning_rate": 0.5, "policy/kl": 3.0, "critic/error": 8.0, "mismatch/kl": 7.0},
    {"loss": 2.0, "grad_norm": 6.0, "learning_rate": 0.25, "policy/kl": 5.0, "critic/error": 2.0, "mismatch/kl": 9.0},
    {"loss": 6.0, "grad_norm": 2.0, "learning_rate": 0.0, "policy/kl": 100.0, "critic/error": 50.0, "mismatch/kl": 1.0},
]


def group(
    number: int, *rewards: float, row: dict[str, Any] | None = None, of_set: str = "", **info: Any
) -> ScoredGroup:
    prompt = Prompt(index=number, token_ids=[1], text=f"ask {number}", row=row or {}, of_set=of_set)
    statuses: list[EpisodeStatus] = ["ok", "truncated"]
    infos = [
        RolloutInfo(
            tokens=1 + 10 * number + index,
            prompt_tokens=1,
            sampled_tokens=10 * number + index,
            status=statuses[index % 2],
            oldest_version=info.get("version", 3) + index,
        )
        for index in range(len(rewards))
    ]
    scores = [Score(reward=reward, parts={"math": reward, "length": 2.0 * reward}, status="ok") for reward in rewards]
    return ScoredGroup(
        prompt=prompt, rollouts=[f"{number}:{i}" for i in range(len(rewards))], infos=infos, scores=scores
    )


def test_metrics_of_updates_are_means_over_those_that_trained() -> None:
    """The mismatch is the first update's alone; what the last one, without tokens, says of the policy is left out."""
    always = {"loss/policy": 3.0, "grad_norm": 4.0, "learning_rate": 0.25}
    assert update_metrics(UPDATES, [5, 7, 0], "policy") == always | {"policy/kl": 4.0, "mismatch/kl": 7.0}
    assert update_metrics(UPDATES, [0, 7, 0], "policy") == always | {"policy/kl": 5.0}
    assert update_metrics(UPDATES, [0, 0, 0], "policy") == always
    assert update_metrics(UPDATES[:1], [5], "policy") == {
        "loss/policy": 1.0, "grad_norm": 4.0, "learning_rate": 0.5, "policy/kl": 3.0, "mismatch/kl": 7.0,
    }  # fmt: skip


def test_the_mismatch_is_a_mean_over_tokens_of_the_trained_version() -> None:
    """Shares were divided by all 8 tokens: with 2 fresh ones means are four times as large, without one unknown."""
    for fresh, told in ((8.0, {"mismatch/kl": 7.0}), (2.0, {"mismatch/kl": 28.0}), (0.0, {})):
        first = {**UPDATES[0], "mismatch/tokens": fresh}
        found = update_metrics([first, UPDATES[1]], [8, 7], "policy")
        assert {name: value for name, value in found.items() if name.startswith("mismatch/")} == told
        assert first["mismatch/tokens"] == fresh, "what the ranks told stays as it was"


def test_metrics_of_a_critic_have_its_name() -> None:
    assert update_metrics(UPDATES[:2], [5, 7], "critic") == {
        "loss/critic": 1.5,
        "critic/grad_norm": 5.0,
        "critic/learning_rate": 0.375,
        "critic/error": 5.0,
        "mismatch/kl": 7.0,
    }


def test_each_update_has_its_count() -> None:
    with pytest.raises(ValueError, match="shorter"):
        update_metrics(UPDATES, [5, 7], "policy")


def test_rewards_are_told_whole_by_source_and_by_set() -> None:
    groups = [group(0, 1.0, 3.0, of_set="a"), group(1, 2.0, 2.0), group(2, 0.0, 4.0, of_set="a")]
    told = reward_metrics(groups, "eval/reward")
    assert told == pytest.approx(
        {
            "eval/reward/mean": 2.0,
            "eval/reward/std": np.std([1, 3, 2, 2, 0, 4]),
            "eval/reward/zero_variance_fraction": 1 / 3,
            "eval/reward/math": 2.0,
            "eval/reward/length": 4.0,
            "eval/reward/a/mean": 2.0,
        }
    )
    assert set(reward_metrics([group(0, 1.0)], "x")) == {"x/mean", "x/std", "x/math", "x/length"}
    alone = group(0, 1.0)
    alone.scores[0].parts.pop("length")
    assert set(reward_metrics([alone], "x")) == {"x/mean", "x/std"}, "the only source is the reward"


def test_what_was_held_and_carried_over_to_other_weights() -> None:
    """Held ones are told of where responses can be, also of a step without one; tokens of other weights than a
    response's last ones wherever there can be some."""
    config = GRPOConfig(name="grpo", max_staleness=1)
    found = group(1, 1.0, 3.0)
    found = replace(found, infos=[replace(found.infos[0], carried_tokens=3), found.infos[1]])
    assert [info.sampled_tokens for info in found.infos] == [10, 11]
    told = discard_metrics(config, Discards(held=0), [found])
    assert (told["rollout/held"], told["staleness/carried_fraction"]) == (0.0, 3 / 21)
    assert discard_metrics(config, Discards(held=5), [found])["rollout/held"] == 5.0
    assert "rollout/held" not in discard_metrics(config, Discards(), [found])
    assert discard_metrics(GRPOConfig(name="grpo"), Discards(), [found]) == {}
    assert RolloutInfo.of(_of_versions(3, 3, 4, 4, 4)).carried_tokens == 2
    assert RolloutInfo.of(_of_versions(3, 3)).carried_tokens == RolloutInfo.of(_of_versions()).carried_tokens == 0


def _of_versions(*versions: int) -> Episode:
    """An episode with a token of each."""
    spans = [VersionSpan(version=each, start=at, end=at + 1) for at, each in enumerate(versions)]
    turn = Turn(
        given_token_ids=np.zeros(2, np.int32), sampled_token_ids=np.zeros(len(versions), np.int32),
        rollout_logprobs=np.zeros(len(versions), np.float32), versions=spans, finish_reason="stop",
    )  # fmt: skip
    return Episode(turns=[turn], status="ok", text="")


def test_lengths_statuses_and_ages_of_a_step() -> None:
    groups = [group(1, 1.0, 3.0, version=2), group(2, -2.0, 2.0, 0.5, version=5)]
    failures = Failures(max_failed=1)
    failures.not_finished(3, 100)
    failures.not_scored([failed_score("no reward", "prompt", "completion")], 100)
    told = rollout_metrics(groups, 7, failures)
    rest = {name: value for name, value in told.items() if not name.startswith("reward/")}
    assert rest == pytest.approx(
        {
            "tokens/generated": 10 + 11 + 20 + 21 + 22,
            "rollout/response_tokens_mean": 84 / 5,
            "rollout/response_tokens_max": 22,
            "rollout/truncated_fraction": 2 / 5,
            "rollout/failed": 4.0,
            "staleness/mean": (5 + 4 + 2 + 1 + 0) / 5,
            "staleness/max": 5.0,
        }
    )
    assert (told["reward/min"], told["reward/max"]) == (-2.0, 3.0)
    assert told["reward/failed"] == 1.0, "of the four, one was generated but not scored"
