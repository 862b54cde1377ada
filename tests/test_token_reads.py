"""What tokens.jsonl tells of the policy: kept by the ranks that learn from an episode, without another pass over it."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from actors.group import GroupError
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.division.deals import Parts
from algorithms.division.work import samples_of
from algorithms.loop import Clock
from algorithms.rl.grpo import GRPO
from algorithms.rl.ppo import PPO
from algorithms.rl.sample_report import SampleReport, token_columns
from tests import test_rl_steps, test_trainer, test_two_turns
from tests.episodes import episode
from tests.fake_ranks import FakeRanks
from tests.test_sample_report import texts
from tests.test_two_turns import DIVISIONS, EPISODES, SIZES


@pytest.mark.parametrize("shares", [False, True])
def test_a_rank_tells_the_first_pass_over_what_it_was_asked_to_note(shares: bool) -> None:
    """Also where responses share a prompt; what it has not learned from it does not tell, and tells nothing twice."""
    worker = test_trainer.faked(value=-0.5, shares=shares)
    worker.note([(4, 1), (9, 0), (7, 7)])
    plans = [[[(4, 0, 0.5), (4, 1, -0.5)]], [[], [(4, 1, 1.0), (9, 0, 2.0)]]]
    totals = Totals(tokens=5, sequences=2, trained_tokens=5)

    def learning(*given: Any) -> Any:
        """Each pass makes all tokens half as likely."""
        worker.engine.value -= math.log(2)
        return test_trainer.share_of(*given)

    worker.update(plans, test_trainer.HELD, [totals] * 2, learning, 1.0, *test_trainer.GROUPS)
    assert len(worker.engine.batches) == 3, "no pass of its own"
    told = worker.tell_noted()
    assert told.keys() == {(4, 1), (9, 0)}
    for place, logprob, tokens in (((4, 1), -0.5, [0, 0, 5]), ((9, 0), -0.5 - 2 * math.log(2), [0, 7, 8])):
        assert told[place]["entropies"].tolist() == tokens
        assert told[place]["policy_logprobs"].tolist() == pytest.approx([logprob * bool(token) for token in tokens])
        assert all(values.dtype == np.float32 for values in told[place].values())
    assert worker.tell_noted() == {}
    assert worker.update(plans, test_trainer.HELD, [totals] * 2, learning, 1.0, *test_trainer.GROUPS)
    assert worker.tell_noted() == {}


def _job(name: str, division: str, **changes: Any) -> Any:
    settings = test_two_turns._settings(DIVISIONS[division]) | changes
    if name == "grpo":
        return GRPO(config=GRPOConfig(name="grpo", samples_per_update=5, **SIZES), **settings)
    settings["roster"]["critic"] = FakeRanks(len(settings["roster"]["policy"]), test_two_turns.critic_reads)
    return PPO(config=PPOConfig(name="ppo", samples_per_update=5, steps=1, **SIZES), **settings)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize("division", ["one rank", "each episode alone", "own prompts", "eight ranks"])
def test_rows_have_the_ratio_and_the_entropy_of_the_policy(
    monkeypatch: pytest.MonkeyPatch, name: str, division: str
) -> None:
    """Of every token that it sampled, over all turns; of another number of episodes than there are ranks."""
    monkeypatch.setattr("algorithms.rl.responses.ray.get", lambda reference, timeout: reference.result(timeout))
    loop = _job(name, division, sample_report=SampleReport(samples=3, groups=2, tokens=5, texts=texts))
    groups = loop.shape(test_two_turns.scored())
    _, advantages = loop.learn(groups, Clock(loop.reporter))
    told = loop.sample_report.rows(groups, advantages, pytest.fail, loop.token_reads).tokens
    assert len(told) == 5
    for row in told:
        tokens = test_two_turns._tokens(row["group"], row["sample"])
        own = np.array(row["sampled"])
        assert own.sum() == len(tokens) and len(own) == sum(
            len(turn.sampled_token_ids) + len(turn.given_token_ids)
            for turn in EPISODES[row["group"]][row["sample"]].turns
        ) - len(EPISODES[row["group"]][row["sample"]].prompt_token_ids)
        for column, wanted in (
            ("ratio", lambda token: math.exp(token.policy - token.rollout)),
            ("entropy", lambda token: token.entropy),
            ("logprobs", lambda token: token.rollout),
            ("versions", lambda token: token.version),
        ):
            values = np.array(row[column], dtype=object)
            assert values[own].tolist() == pytest.approx([wanted(token) for token in tokens], abs=6e-5, rel=1e-5)
            assert set(values[~own]) <= {None}
    noting = [rank for rank, method, _, _ in loop.policy.calls if method == "note"]
    asked = [rank for rank, method, _, _ in loop.policy.calls if method == "tell_noted"]
    assert sorted(noting) == sorted(asked) and len(set(noting)) == len(noting), "only ranks that have some are asked"


def test_each_response_is_noted_by_the_rank_that_learns_from_it_first() -> None:
    """In another epoch, it may be another rank's."""
    report = SampleReport(samples=3, groups=3, tokens=9, texts=texts)
    loop = _job("grpo", "two ranks", sample_report=report)
    loop.config = GRPOConfig(name="grpo", samples_per_update=5, epochs_per_step=2, **SIZES)
    groups = loop.shape(test_two_turns.scored())
    loop.learn(groups, Clock(loop.reporter))
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, method, arguments, _ in loop.policy.calls:
        if method == "update":
            for number, plan in enumerate(arguments[0]):
                for place in ((key, index) for samples in plan for key, index, _ in samples):
                    first[place] = min(first.get(place, (99, 99)), (number, rank))
    noted = [
        (place, rank) for rank, method, arguments, _ in loop.policy.calls if method == "note" for place in arguments[0]
    ]
    assert sorted(noted) == sorted((place, first[place][1]) for place in report.choose(groups).tokens)


def test_what_is_learned_again_does_not_take_the_place_of_the_steps_own() -> None:
    loop = _job("grpo", "one rank", sample_report=SampleReport(tokens=1, texts=texts))
    groups = loop.shape(test_two_turns.scored())
    loop.learn(groups, Clock(loop.reporter))
    [own] = loop.token_reads
    loop.learned = SimpleNamespace(after=lambda since: [SimpleNamespace(step=1, version=0, groups=groups)])
    assert loop.learn_again(0) == 1
    assert loop.token_reads == [own]


def test_a_rank_that_is_lost_while_steps_are_learned_again_leaves_the_loop_at_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the loop would count from there, and sample for steps that it has made."""
    loop = _job("grpo", "one rank", sample_report=SampleReport(tokens=1, texts=texts))
    loop.step, loop.version = 12, 11
    before = [SimpleNamespace(step=step, version=step - 1, groups=[]) for step in (11, 12)]
    loop.learned = SimpleNamespace(after=lambda since: before)

    def lost(*_: object) -> None:
        raise GroupError("critic[0].update: the process died")

    monkeypatch.setattr(loop, "learn", lost)
    with pytest.raises(GroupError):
        loop.learn_again(10)
    assert (loop.step, loop.version) == (12, 11)


def test_a_step_that_learns_nothing_does_not_tell_what_the_last_one_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = test_rl_steps.Loop(), list[dict[str, Any]]()
    made.arguments["sample_report"] = SampleReport(samples=0, groups=1, tokens=1, texts=texts)
    made.arguments["reporter"].tokens = lambda step, rows: told.extend(rows)
    read = {(0, 0): {"policy_logprobs": np.full(4, -0.5), "entropies": np.ones(4)}}
    responses = [episode([1, 2], [3, 4], [-0.5, -1.5], text="") for _ in range(2)]
    answers = SimpleNamespace(get=lambda reference, timeout: read if reference == "tell_noted" else responses)
    monkeypatch.setattr("algorithms.rl.responses.ray", answers)
    loop = made.grpo()
    groups = [test_rl_steps.group(1.0, 0.0)]
    samples = samples_of(groups, [np.array([0.5, -0.5])])
    test_rl_steps.finish(loop, groups, loop.submit_updates(loop._plan(samples), loop.policy_loss(), groups, Parts())())
    assert made.policy.asked == ["note", "update", "tell_noted", "wait for update"]
    test_rl_steps.finish(loop, groups, {})
    first, second = told
    assert first["ratio"] == [1.0, round(math.e, 4)] and first["entropy"] == [1.0, 1.0]
    assert second == {name: values for name, values in first.items() if name not in ("ratio", "entropy")}


def test_a_rank_that_is_lost_takes_the_ratio_along_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: Any, timeout: float) -> Any:
        if reference == "tell_noted":
            raise RayActorError
        return [episode([1], [2])] * 2

    monkeypatch.setattr("algorithms.rl.responses.ray", SimpleNamespace(get=get))
    groups = [test_rl_steps.group(1.0, 0.0)]
    report = SampleReport(texts=texts)
    [row] = report.rows(groups, {}, pytest.fail, ["tell_noted"]).tokens  # type: ignore[list-item]
    assert row["pieces"] == ["<2>"] and "ratio" not in row


@pytest.mark.parametrize("sampled", [-math.inf, -800.0])
def test_a_token_that_the_sampler_could_not_draw_has_no_finite_ratio(sampled: float) -> None:
    read = {"policy_logprobs": np.full(2, -0.5, np.float32), "entropies": np.ones(2, np.float32)}
    assert token_columns(episode([1], [2], [sampled]), texts, read)["ratio"] == [math.inf]


def test_no_rank_is_asked_where_no_tokens_are_told() -> None:
    loop = _job("grpo", "two ranks")
    loop.learn(loop.shape(test_two_turns.scored()), Clock(loop.reporter))
    methods = {method for _, method, _, _ in loop.policy.calls}
    assert methods.isdisjoint({TrainedWorker.note.__name__, TrainedWorker.tell_noted.__name__})
    assert loop.token_reads == []


def test_the_screen_shows_the_best_to_worst_alone_and_the_file_gets_whole_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, told = test_rl_steps.Loop(), list[tuple[list[Any], list[Any]]]()
    made.arguments["sample_report"] = SampleReport(samples=1, groups=1)
    made.arguments["reporter"].samples = lambda step, rows, shown: told.append(
        ([row["sample"] for row in rows], [row["sample"] for row in shown])
    )
    answers = SimpleNamespace(get=lambda reference, timeout: [episode([1], [2])] * 2)
    monkeypatch.setattr("algorithms.rl.responses.ray", answers)
    loop = made.grpo()
    for _ in range(2):
        test_rl_steps.finish(loop, [test_rl_steps.group(1.0, 0.0)], {})
    assert told == [([1, 0], [1]), ([1, 0], [])], "the first step is shown"
