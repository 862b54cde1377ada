"""Steps of PPO and GRPO around groups that are not there: what goes to the engines, and when."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.episodes import Prompt
from actors.group import GroupError
from actors.rollout.types import RolloutInfo, Sampling
from algorithms.batches import Batches
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.division.deals import Parts
from algorithms.division.work import samples_of
from algorithms.loop import Clock, good_enough
from algorithms.rewards.scores import Score
from algorithms.rl.evaluation import response_rows
from algorithms.rl.grpo import GRPO
from algorithms.rl.overlapped_gradients import OverlappedGradients
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.ppo import PPO
from algorithms.rl.sample_report import SampleReport
from algorithms.rollouts.discards import Discards
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ShapedGroup
from tests.fake_engines import FakeEngines

UPDATE = {"loss": 1.0, "grad_norm": 2.0, "learning_rate": 0.1, "tokens/trained": 4.0}


class FakeGroup:
    """One rank, which answers every call at once; groups may share a list of what was asked and waited for."""

    def __init__(self, asked: list[str] | None = None) -> None:
        self.asked: list[str] = [] if asked is None else asked
        self.updates = 1

    def __len__(self) -> int:
        return 1

    def submit(self, rank: int, method: Any, *arguments: Any, num_returns: int = 1) -> Any:
        self.asked.append(method.__name__)
        return method.__name__ if num_returns == 1 else (method.__name__, *[None] * (num_returns - 1))

    def gather(self, calls: list[Any], what: str) -> list[Any]:
        self.asked.append(f"wait for {what}")
        return [{"update": [UPDATE] * self.updates, "advantages": ({}, {})}.get(what, {})]


def group(*rewards: float, version: int = 0) -> ShapedGroup:
    """Responses of two tokens."""
    infos = [
        RolloutInfo(tokens=4, prompt_tokens=2, sampled_tokens=2, status="ok", oldest_version=version) for _ in rewards
    ]
    return ShapedGroup(
        prompt=Prompt(index=0, token_ids=[1, 2], text="x", row={}),
        rollouts=None,
        infos=infos,
        scores=[Score(reward=reward, status="ok", parts={}) for reward in rewards],
        shaped=np.array(rewards),
        counted=np.ones(len(rewards), dtype=np.bool_),
    )


class Loop:
    """What PPO and GRPO are made of, and what they sent and reported."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.reported: list[dict[str, float]] = []
        self.policy, self.critic = FakeGroup(), FakeGroup()
        nothing = SimpleNamespace(
            metrics=lambda _: {}, temperature=1.0,
            report=lambda: (Failures(0), Discards()), published=lambda _: None,
            save=lambda *_: None, keep=lambda: None, note=lambda _: None,
            end_if_asked=lambda: None, engines=FakeEngines(engines=1), samples=lambda *_: None, tokens=lambda *_: None,
            step=lambda _, metrics, __: self.reported.append(metrics), phase=lambda *_: None, start=lambda *_: None,
        )  # fmt: skip
        roster: dict[str, Any] = {"policy": self.policy, "critic": self.critic}
        self.arguments: dict[str, Any] = {
            "roster": roster,
            "reads": OverlappedReads(roster, lambda _: []),
            "batches": Batches(1, seed=0, shuffle=False),
            "evaluation": [],
            "publish": self.publish,
            "sampling": Sampling(samples=2, temperature=1.0, max_tokens=4),
            "micro_batch_tokens": {"policy": 64, "critic": 64},
            "seed": 0,
            "total_steps": 9,
            "sample_report": SampleReport(samples=0, groups=0),
            "models": [],
            **dict.fromkeys(("reference", "read_reference", "split")),
            **dict.fromkeys(("rollouts", "shaper", "checkpoint", "reporter"), nothing),
        }

    def publish(self, version: int) -> dict[str, float]:
        self.published.append(version)
        return {"weights/sync_seconds": 0.1}

    def grpo(self, **algorithm: Any) -> GRPO:
        config = GRPOConfig.model_validate({"name": "grpo", "samples_per_prompt": 2, "prompts_per_step": 1} | algorithm)
        return GRPO(config=config, **self.arguments)

    def ppo(self, **algorithm: Any) -> PPO:
        config = PPOConfig.model_validate(
            {"name": "ppo", "samples_per_prompt": 2, "prompts_per_step": 1, "steps": 9} | algorithm
        )
        return PPO(config=config, **self.arguments)


def finish(loop: Any, groups: list[ShapedGroup], metrics: dict[str, float]) -> None:
    loop.finish_step(groups, metrics, Clock(loop.reporter), {})


@pytest.mark.parametrize("rewards", [(1.0, 0.0), (1.0, 1.0)])
def test_weights_are_published_when_something_was_learned(rewards: tuple[float, float]) -> None:
    """A step whose groups teach nothing leaves the policy, and so the engines' weights, as they are."""
    made = Loop()
    loop, taught = made.grpo(), rewards[0] != rewards[1]
    for step in range(2):
        groups = [group(*rewards, version=loop.version)]
        samples = samples_of(groups, [np.array(rewards) - np.mean(rewards)])
        finish(loop, groups, loop.submit_updates(loop._plan(samples), loop.policy_loss(), groups, Parts())())
        assert loop.step == step + 1
    assert made.published == ([1, 2] if taught else [])
    assert [metrics["weights/version"] for metrics in made.reported] == ([1, 2] if taught else [0, 0])
    assert [metrics["staleness/max"] for metrics in made.reported] == [0, 0]
    assert ["weights/sync_seconds" in metrics for metrics in made.reported] == [taught, taught]


def test_engines_are_asked_beside_the_checkpoint_and_their_account_is_reported() -> None:
    """Once a step, and once before the first one."""
    made, happened = Loop(), list[str]()

    class Counted(FakeEngines):
        def stats(self, within_s: float) -> Any:
            happened.append("asked")
            return lambda: happened.append("heard") or [None] * 2

    nothing = made.arguments["rollouts"]
    nothing.engines, nothing.save = Counted(), lambda *_: happened.append("checkpoint")
    loop: Any = made.grpo()
    loop.begin("GRPO", Clock(loop.reporter))
    for _ in range(2):
        clock = Clock(loop.reporter)
        with clock("rollout"), clock("score"):
            pass
        loop.finish_step([group(1.0, 0.0)], {}, clock, {})
    assert happened == ["asked", "heard", *["asked", "checkpoint", "heard"] * 2]
    for metrics in made.reported:
        assert metrics["bubble/engines_unheard"] == 2
        assert metrics["bubble/trainer_wait_seconds"] == metrics["time/rollout"] + metrics["time/score"] > 0


@pytest.mark.parametrize("early", [False, True])
def test_a_step_with_early_gradients_is_not_begun_anew(early: bool) -> None:
    """Ranks that live have added some of its groups to their sums already, and would add them once more."""
    made, asked, tries = Loop(), list[GroupError](), list[int]()
    made.arguments["rollouts"].mending = nullcontext
    made.arguments["gradients"] = OverlappedGradients() if early else None
    made.arguments["mender"] = SimpleNamespace(mend=lambda error, _: asked.append(error) or True)

    def learn() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise GroupError("reference[0].logprobs: the process died")
        return 7

    loop = made.grpo()
    if early:
        with pytest.raises(GroupError, match="the process died"):
            loop.survive(learn)
    else:
        assert loop.survive(learn) == 7
    assert (len(asked), len(tries)) == ((0, 1) if early else (1, 2))


def test_nothing_is_published_while_only_the_critic_learns() -> None:
    made = Loop()
    loop = made.ppo(critic_warmup_steps=2)
    for _ in range(4):
        groups = [group(1.0, 0.0, version=loop.version)]
        finish(loop, groups, loop.learn(groups, Clock(loop.reporter))[0])
    assert made.critic.asked.count("update") == 4 and made.policy.asked.count("update") == 2
    assert made.published == [1, 2]
    assert [metrics["weights/version"] for metrics in made.reported] == [0, 0, 1, 2]
    assert [metrics["staleness/max"] for metrics in made.reported] == [0] * 4


def test_a_resumed_loop_publishes_the_version_that_it_had() -> None:
    """An older checkpoint has none: there every step was published."""
    made = Loop()
    loop = made.ppo(critic_warmup_steps=2)
    loop.step, loop.version = 5, 3
    state = loop.save(Path())
    for saved, version in ((state, 3), ({name: state[name] for name in state if name != "version"}, 5)):
        resumed = made.ppo(critic_warmup_steps=2)
        resumed.load(Path(), saved)
        resumed.begin("PPO", Clock(resumed.reporter))
        assert (resumed.step, made.published.pop()) == (5, version)


class FakeRay:
    """Group 7's responses were on a node that is gone."""

    def get(self, reference: Any, timeout: float) -> Any:
        if reference == 7:
            raise ObjectLostError("7", None, "")
        return [SimpleNamespace(text=f"text {index}", status="ok") for index in range(2)]


def test_responses_that_cannot_be_read_are_left_out_of_reports_and_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a note, in training and in an evaluation; metrics that need no text are those of all groups."""
    monkeypatch.setattr("algorithms.rl.responses.ray", FakeRay())
    groups = [replace(group(1.0, 0.0), rollouts=reference) for reference in (5, 7)]
    notes: list[str] = []
    advantages = {(number, index): 0.5 for number in range(2) for index in range(2)}
    found = SampleReport(samples=4).rows(groups, advantages, notes.append)
    assert [row["completion"] for row in found.spread] == ["text 0", "text 1"]
    [rows] = response_rows(groups[::-1], 1.0, notes.append)
    assert [(row["group"], row["sample"]) for row in rows] == [(1, 0), (1, 1)]
    line = "the responses to data row 0 could not be read (ObjectLostError): they are in no samples file"
    assert notes == [line, line]
    made = Loop()
    loop: Any = made.grpo(eval_samples_per_prompt=2, eval_every=1)
    loop.reporter.note, loop.reporter.evaluation = notes.append, lambda *_: None
    found = loop._judge([groups[1]], Failures(0.0))
    assert {name: value for name, value in found.items() if not math.isnan(value)} == {
        "eval/reward/mean": 0.5, "eval/reward/std": 0.5, "eval/reward/zero_variance_fraction": 0.0, "eval/failed": 0.0
    }  # fmt: skip


def reference_logprobs() -> None:
    """The reference's method of that name."""


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_groups_read_at_the_same_time(name: str) -> None:
    """Reference, policy and critic have ranks of their own: none waits for what another one reads."""
    made, asked = Loop(), list[str]()
    made.policy.asked = made.critic.asked = asked
    made.policy.updates = made.critic.updates = 2
    options = {"samples_per_update": 1, "importance_correction": {}}
    loop: Any = made.ppo(**options) if name == "ppo" else made.grpo(**options)
    loop.roster["reference"] = FakeGroup(asked)
    loop.reference, loop.read_reference, loop.total_steps = "reference", reference_logprobs, 1
    loop.micro_batch_tokens["reference"] = 64
    groups = [group(1.0, 0.0)]
    loop.sample, loop.score, loop.shape = lambda *_: groups, lambda _: groups, lambda _: groups
    loop.train()
    first_wait = next(index for index, each in enumerate(asked) if each.startswith("wait"))
    reads = {"reference_logprobs", "logprobs"} | ({"values"} if name == "ppo" else set())
    assert set(asked[:first_wait]) == reads


def test_an_evaluation_whose_responses_cannot_be_read_is_no_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pass@k say nothing, which makes it neither the best one nor good enough, and ends nothing."""
    monkeypatch.setattr("algorithms.rl.responses.ray", FakeRay())
    made = Loop()
    made.arguments["reporter"].evaluation = lambda *_: None
    loop = made.grpo(eval_every=1, eval_samples_per_prompt=2, best_by="eval/pass@2", stop_when={
        "metric": "eval/majority", "at_least": 0.0})  # fmt: skip
    found = loop._judge([replace(group(1.0, 0.0), rollouts=7)], Failures(0.0))
    assert found["eval/reward/mean"] == 0.5
    assert all(math.isnan(found[name]) for name in ("eval/pass@1", "eval/pass@2", "eval/majority"))
    assert not loop.best.improved_by(found) and not good_enough(loop.config.stop_when, found)
    found = loop._judge([replace(group(1.0, 0.0), rollouts=5)], Failures(0.0))
    assert found["eval/pass@2"] == 1 and loop.best.improved_by(found) and good_enough(loop.config.stop_when, found)


def test_all_responses_of_a_report_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is gone does not cost a deadline for each of its groups."""
    now, waited = [100.0], list[float]()

    def late(reference: Any, timeout: float) -> Any:
        waited.append(timeout)
        now[0] += timeout
        raise GetTimeoutError

    monkeypatch.setattr("algorithms.rl.responses.ray", SimpleNamespace(get=late))
    monkeypatch.setattr("algorithms.rl.responses.time", SimpleNamespace(monotonic=lambda: now[0]))
    notes: list[str] = []
    assert response_rows([group(1.0, 0.0)] * 4, 1.0, notes.append) == []
    assert waited == [60, 1, 1, 1] and len(notes) == 4
