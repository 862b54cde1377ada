"""Steps of PPO and GRPO on episodes of two turns with 30 tokens of a tool in between, against loops over their turns.

All stages from shaped scores to updates are real; ranks and models are those of `tests.fake_ranks`.
"""

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.episodes import Episode, Prompt, VersionSpan, experience
from actors.rollout.types import RolloutInfo, Sampling
from actors.train.frozen import ScoringWorker
from actors.train.policy import PolicyWorker
from actors.train.worker import pack_experiences
from algorithms.config_rl import GRPOConfig, OverlongPenalty, PPOConfig
from algorithms.division.work import samples_of
from algorithms.loop import Clock
from algorithms.rewards.scores import Score
from algorithms.rl.grpo import GRPO
from algorithms.rl.metrics import rollout_metrics
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.ppo import PPO
from algorithms.rl.sample_report import SampleReport
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup
from tests.episodes import episode, turn
from tests.fake_ranks import FakeRanks, done, split_fake

CPU = torch.device("cpu")
GIVEN, VERSION, LIMIT = 30, 4, 12
"""Tokens of the tool, the version that is trained, and the longest response."""
SIZES: dict[str, Any] = {"prompts_per_step": 5, "samples_per_prompt": 3}


def policy_reads(token: Any, position: Any) -> Any:
    return -1 - (7 * token + 3 * position) % 16 / 16


def reference_reads(token: Any, position: Any) -> Any:
    return -1 - (5 * token + 11 * position) % 16 / 16


def critic_reads(token: Any, position: Any) -> Any:
    return (3 * token + 5 * position) % 8 / 4 - 1


def _episode(generator: np.random.Generator, prompt: list[int], *, alone: bool) -> Episode:
    """The first turn is of an older version, half of the second one too; some turns have a reward."""

    def sampled() -> list[int]:
        return generator.integers(3, 60, size=generator.integers(2, 7)).tolist()

    def near(tokens: list[int], start: int) -> list[float]:
        """The sampler's logprobs: not far from the trainer's, so that some ratios are cut and others not."""
        return [policy_reads(t, start + i) + generator.choice([-0.25, 0, 0.0625, 0.5]) for i, t in enumerate(tokens)]

    first, second = sampled(), sampled()
    if alone:
        return episode(prompt, first, near(first, len(prompt)), version=VERSION)
    told, start = generator.integers(60, 90, size=GIVEN).tolist(), len(prompt) + len(first) + GIVEN
    spans = [
        VersionSpan(version=VERSION - 1, start=0, end=1),
        VersionSpan(version=VERSION, start=1, end=len(second)),
    ]
    turns = [
        turn(prompt, first, near(first, len(prompt)), version=VERSION - 1, reward=float(generator.integers(3)) / 2),
        turn(told, second, near(second, start), versions=spans, reward=None if len(second) % 2 else -0.25),
    ]
    return Episode(turns=turns, status="truncated" if len(first) == 6 else "ok", text="")


def _groups() -> list[list[Episode]]:
    generator = np.random.default_rng(5)
    found = []
    for number in range(5):
        prompt = generator.integers(3, 60, size=3 + number).tolist()
        found.append([_episode(generator, prompt, alone=(number, index) == (2, 1)) for index in range(3)])
    return found


EPISODES = _groups()
SCORES = [[float(value) for value in np.random.default_rng(number).integers(-4, 5, size=3) / 4] for number in range(5)]
SHAPER: dict[str, Any] = {
    "normalize": False,
    "clip": 0.75,
    "overlong": OverlongPenalty(buffer=4, penalty=0.5),
    "missing_eos_penalty": 0.125,
    "max_response_tokens": LIMIT,
}


def scored() -> list[ScoredGroup]:
    return [
        ScoredGroup(
            prompt=Prompt(index=number, token_ids=[1], text="", row={}),
            rollouts=done(episodes),
            infos=[RolloutInfo.of(each) for each in episodes],
            scores=[Score(reward=reward, parts={}, status="ok") for reward in scores],
        )
        for number, (episodes, scores) in enumerate(zip(EPISODES, SCORES, strict=True))
    ]


@dataclass
class Token:
    """A sampled one, and all that is known about it."""

    place: tuple[int, int]
    turn: int
    policy: float
    rollout: float
    reference: float
    value: float
    version: int
    entropy: float
    reward: float = 0.0
    advantage: float = 0.0
    returned: float = 0.0


def _tokens(number: int, index: int) -> list[Token]:
    """In order, by a walk through the turns."""
    found, position = [], 0
    for which, each in enumerate(EPISODES[number][index].turns):
        position += len(each.given_token_ids)
        for i, token in enumerate(each.sampled_token_ids.tolist()):
            [version] = [span.version for span in each.versions if span.start <= i < span.end]
            reads = [reads(token, position) for reads in (policy_reads, reference_reads, critic_reads)]
            policy, reference, value = reads
            rollout = float(each.rollout_logprobs[i])
            found.append(Token((number, index), which, policy, rollout, reference, value, version, token / 2))
            position += 1
    return found


def _score(number: int, index: int) -> float:
    """What is left of the reward of the whole episode: clipped, less penalties by what was sampled."""
    each = EPISODES[number][index]
    score = min(0.75, max(-0.75, SCORES[number][index]))
    sampled = sum(len(one.sampled_token_ids) for one in each.turns)
    score -= 0.5 * min(1.0, max(0, sampled - (LIMIT - 4)) / 4)
    return score - (0.125 if each.status == "truncated" else 0)


def _k1(token: Token) -> float:
    return token.rollout - token.reference


def _rewarded(kl_coef: float) -> list[list[Token]]:
    """The tokens of every episode with their rewards: the KL, those of turns, and the score at the end."""
    found = []
    for number in range(5):
        for index in range(3):
            tokens = _tokens(number, index)
            for each in tokens:
                each.reward = -kl_coef * _k1(each)
            for which, one in enumerate(EPISODES[number][index].turns):
                last = [each for each in tokens if each.turn == which][-1]
                last.reward += one.reward or 0
            tokens[-1].reward += _score(number, index)
            found.append(tokens)
    return found


def _flat(episodes: list[list[Token]]) -> list[Token]:
    return [token for tokens in episodes for token in tokens]


def _whiten(tokens: list[Token]) -> None:
    mean = sum(each.advantage for each in tokens) / len(tokens)
    variance = sum((each.advantage - mean) ** 2 for each in tokens) / (len(tokens) - 1)
    for each in tokens:
        each.advantage = (each.advantage - mean) / (variance + 1e-8) ** 0.5


def _gae(episodes: list[list[Token]], gamma: float, gae_lambda: float) -> None:
    for tokens in episodes:
        for t, each in enumerate(tokens):
            for s in range(t, len(tokens)):
                following = tokens[s + 1].value if s + 1 < len(tokens) else 0.0
                delta = tokens[s].reward + gamma * following - tokens[s].value
                each.advantage += (gamma * gae_lambda) ** (s - t) * delta
            each.returned = each.advantage + each.value


def _clipped(token: Token, low: float = 0.2, high: float = 0.2) -> tuple[float, bool]:
    ratio = math.exp(token.policy - token.rollout)
    cut = min(max(ratio, 1 - low), 1 + high) * token.advantage
    return -min(ratio * token.advantage, cut), cut < ratio * token.advantage


def _mean(values: Iterator[float] | list[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _said_of_the_policy(updates: list[list[Token]]) -> dict[str, float]:
    """Means over the updates of means over their tokens; the mismatch over the first one's that are not stale."""
    fresh = [token for token in updates[0] if token.version == VERSION]
    assert 0 < len(fresh) < len(updates[0]), "some are stale and some are not"
    behind = [token.policy - token.rollout for token in fresh]
    return {
        "loss/policy": _mean(_mean([_clipped(token)[0] for token in update]) for update in updates),
        "policy/clip_fraction": _mean(_mean([_clipped(token)[1] for token in update]) for update in updates),
        "policy/ratio_mean": _mean(
            _mean([math.exp(token.policy - token.rollout) for token in update]) for update in updates
        ),
        "policy/entropy": _mean(_mean([token.entropy for token in update]) for update in updates),
        "mismatch/logprob_abs_mean": _mean([abs(each) for each in behind]),
        "mismatch/kl": _mean([math.exp(each) - 1 - each for each in behind]),
    }


def _settings(division: dict[str, Any]) -> dict[str, Any]:
    """Of loops whose stages are called one by one."""
    ranks, budget, shared = division["ranks"], division["budget"], division.get("share_prompts", True)
    unused = ("rollouts", "batches", "publish", "checkpoint")
    roster: Any = {
        "policy": FakeRanks(ranks, policy_reads, share_prompts=shared),
        "reference": FakeRanks(ranks, reference_reads, share_prompts=shared),
    }
    return {
        "reporter": SimpleNamespace(phase=lambda _: None),
        "roster": roster,
        "reads": OverlappedReads(roster, split_fake),
        "reference": "reference",
        "read_reference": PolicyWorker.reference_logprobs,
        "models": [],
        "split": split_fake,
        "shaper": RewardShaper(**SHAPER),
        "evaluation": [],
        "sampling": Sampling(samples=3, temperature=1.0, max_tokens=LIMIT),
        "micro_batch_tokens": dict.fromkeys(("policy", "critic", "reference"), budget),
        "seed": 1,
        "total_steps": 1,
        "version": VERSION,
        **dict.fromkeys(unused),
    }


DIVISIONS = {
    "one rank": {"ranks": 1, "budget": 4096},
    "each episode alone": {"ranks": 1, "budget": 1},
    "own prompts": {"ranks": 1, "budget": 4096, "share_prompts": False},
    "two ranks": {"ranks": 2, "budget": 120},
    "eight ranks": {"ranks": 8, "budget": 120},
}


def _tokens_by_update(loop: Any, groups: list[Any], episodes: list[list[Token]]) -> list[list[Token]]:
    by_place = {tokens[0].place: tokens for tokens in episodes}
    samples = samples_of(groups, [np.zeros(3)] * 5)
    return [_flat([by_place[each.group, each.index] for each in update]) for update in loop.updates(samples)]


def _assert_fields(group: FakeRanks, name: str, episodes: list[list[Token]], wanted: Any) -> None:
    """What the ranks that learn were given: of each sampled token its own, of others 0."""
    known: dict[tuple[int, int], np.ndarray] = {}
    for _, method, arguments, _ in group.calls:
        parts = [each for each in arguments if isinstance(each, dict)] if method == "update" else []
        known |= {place: fields[name] for part in parts for place, fields in part.items() if name in fields}
    assert len(known) == 15
    for tokens in episodes:
        number, index = tokens[0].place
        values, left = known[number, index], iter(tokens)
        for each in EPISODES[number][index].turns:
            given, values = values[: len(each.given_token_ids)], values[len(each.given_token_ids) :]
            sampled, values = values[: len(each.sampled_token_ids)], values[len(each.sampled_token_ids) :]
            assert not given.any()
            np.testing.assert_allclose(sampled, [wanted(next(left)) for _ in sampled], rtol=1e-5, atol=1e-6)
        assert not len(values)


@pytest.mark.parametrize("division", DIVISIONS)
def test_a_step_of_ppo(division: str) -> None:
    """GAE, with the KL in the reward, over the sampled tokens: those of the tool take no time and cost nothing."""
    config = PPOConfig(name="ppo", gamma=0.9, gae_lambda=0.8, kl_coef=0.3, samples_per_update=5, **SIZES)
    settings = _settings(DIVISIONS[division])
    settings["roster"]["critic"] = FakeRanks(DIVISIONS[division]["ranks"], critic_reads)
    loop = PPO(config=config, **settings)
    groups = loop.shape(scored())
    metrics, means = loop.learn(groups, Clock(loop.reporter))
    episodes = _rewarded(0.3)
    _gae(episodes, 0.9, 0.8)
    returns, errors = ([f(token) for token in _flat(episodes)] for f in (_returned, _unexplained))
    updates = _tokens_by_update(loop, groups, episodes)
    squares = [[_unexplained(token) ** 2 / 2 for token in update] for update in updates]
    expected = {
        "loss/critic": _mean(map(_mean, squares)),
        "critic/clip_fraction": 0.0,
        "critic/returns_mean": _mean(returns),
        "critic/values_mean": _mean(token.value for token in _flat(episodes)),
        "critic/explained_variance": 1 - np.var(errors) / np.var(returns),
        "reward/kl_per_response": sum(map(_k1, _flat(episodes))) / 15,
        "policy/kl": _mean(map(_k1, _flat(episodes))),
        "reward/kl_coef": 0.3,
    }
    _whiten(_flat(episodes))
    expected |= _said_of_the_policy(updates)
    _assert_said(metrics, expected)
    _assert_fields(loop.policy, "advantages", episodes, lambda token: token.advantage)  # type: ignore[arg-type]
    _assert_fields(loop.critic, "returns", episodes, _returned)
    assert means == pytest.approx(
        {tokens[0].place: _mean(each.advantage for each in tokens) for tokens in episodes if tokens[0].place in means},
        rel=1e-5,
        abs=1e-6,
    )
    assert set(means) == set(loop.sample_report.choose(groups).written) and len(means) >= 8


def _returned(token: Token) -> float:
    return token.returned


def _unexplained(token: Token) -> float:
    return token.returned - token.value


def _assert_said(metrics: dict[str, float], expected: dict[str, float]) -> None:
    """All but what says how the updates were computed."""
    how = ("tokens/", "grad_norm", "learning_rate", "critic/grad_norm", "critic/learning_rate")
    assert {name: each for name, each in metrics.items() if not name.startswith(how)} == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )


def _return(tokens: list[Token]) -> float:
    """What the whole episode has earned, without a KL."""
    number, index = tokens[0].place
    return _score(number, index) + sum(each.reward or 0 for each in EPISODES[number][index].turns)


def _compared(episodes: list[list[Token]], kl_coef: float, *, advantage: str) -> None:
    """Baselines by definition; the same number for all tokens, or what is still to come."""
    for number in range(5):
        group = [tokens for tokens in episodes if tokens[0].place[0] == number]
        earned = [
            _return(tokens) - (kl_coef * sum(map(_k1, tokens)) if "reinforce" not in advantage else 0)
            for tokens in group
        ]
        mean = sum(earned) / 3
        deviation = (sum((each - mean) ** 2 for each in earned) / 2) ** 0.5
        for tokens, own in zip(group, earned, strict=True):
            for t, each in enumerate(tokens):
                to_come = sum(later.reward for later in tokens[t:])
                each.advantage = {
                    "group": (own - mean) / (deviation + 1e-4),
                    "leave_one_out": own - (sum(earned) - own) / 2,
                    "reinforce_pp": to_come,
                    "reinforce_pp_baseline": to_come - mean,
                }[advantage]
    if "reinforce" in advantage:
        _whiten(_flat(episodes))


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("advantage", ["group", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_step_of_grpo(advantage: Any, kl_in: Any, division: str) -> None:
    """Rewards of turns are in what is compared, and in reinforce_pp at the end of their turns."""
    kl: dict[str, Any] = {"kl_coef": 0.3, "kl_in": kl_in, "kl_estimator": "k1" if kl_in == "reward" else "k2"}
    config = GRPOConfig(name="grpo", advantage=advantage, samples_per_update=5, **kl, **SIZES)
    loop = GRPO(config=config, **_settings(DIVISIONS[division]))
    groups = loop.shape(scored())
    metrics, means = loop.learn(groups, Clock(loop.reporter))
    coef = 0.3 if kl_in == "reward" else 0.0
    episodes = _rewarded(coef)
    _compared(episodes, coef, advantage=advantage)
    updates = _tokens_by_update(loop, groups, episodes)
    expected = _said_of_the_policy(updates)
    if kl_in == "loss":
        squares = [[(token.policy - token.reference) ** 2 / 2 for token in update] for update in updates]
        expected["policy/kl"] = _mean(map(_mean, squares))
        expected["loss/policy"] += 0.3 * expected["policy/kl"]
    else:
        kls = list(map(_k1, _flat(episodes)))
        expected |= {"reward/kl_per_response": sum(kls) / 15, "policy/kl": _mean(kls), "reward/kl_coef": 0.3}
    _assert_said(metrics, expected)
    if loop._by_token:
        _assert_fields(loop.policy, "advantages", episodes, lambda token: token.advantage)  # type: ignore[arg-type]
    for tokens in episodes:
        if tokens[0].place in means:
            mean = _mean(each.advantage for each in tokens)
            assert means[tokens[0].place] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    written = loop.sample_report.choose(groups).written
    assert set(means) >= set(written) and len(means) == (len(written) if loop._by_token else 15)


def test_packed_turns_are_read_whole_and_share_the_prompt_of_the_first() -> None:
    """Every sampled token after all tokens before it, the tool's included; what the tool says is in no loss."""
    batches = [
        pack_experiences([experience(each) for each in EPISODES[0]], CPU, share_prompts=share) for share in (0, 1)
    ]
    prompt = len(EPISODES[0][0].prompt_token_ids)
    assert len(batches[0].token_ids) - len(batches[1].token_ids) == 2 * prompt
    for batch in batches:
        rows = batch.split(batch.token_ids), batch.split(batch.position_ids), batch.split(batch.action_mask)
        for each, tokens, positions, mask in zip(EPISODES[0], *rows, strict=True):
            assert tokens.tolist() == each.token_ids.tolist() and positions.tolist() == list(range(each.tokens))
            expected = [[False] * len(one.given_token_ids) + [True] * len(one.sampled_token_ids) for one in each.turns]
            assert mask.tolist() == list(chain(*expected))
        assert batch.action_counts.tolist() == [each.sampled_tokens for each in EPISODES[0]]


def test_versions_and_rewards_are_at_their_tokens() -> None:
    [one, other] = turn([1, 2], [3, 4], version=7, reward=0.5), turn([5], [6, 7, 8], version=9, reward=-1.0)
    both = Episode(turns=[one, other], status="ok", text="")
    found = experience(both, {"values": np.ones(8, np.float32)})
    assert found.token_ids.tolist() == list(range(1, 9)) and found.token_ids.dtype == np.int64
    assert found.action_mask.tolist() == [False, False, True, True, False, True, True, True]
    assert found.fields["versions"].tolist() == [-1, -1, 7, 7, -1, 9, 9, 9]
    assert found.turn_rewards == {3: 0.5, 7: -1.0}
    unknown = Episode(turns=[turn([1], [2, 3], versions=[])], status="failed", text="")
    assert unknown.versions.tolist() == [-1, -1, -1], "of no version that could be trained"
    assert set(found.fields) == {"rollout_logprobs", "versions", "values"}
    assert {values.dtype for values in found.fields.values()} == {np.dtype(np.float32)}
    assert RolloutInfo.of(both) == RolloutInfo(
        tokens=8, prompt_tokens=2, sampled_tokens=5, status="ok", oldest_version=7, turns=2, turn_rewards=(0.5, -1.0),
        carried_tokens=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="one logprob per sampled token, got 1 of 2"):
        turn([1], [2, 3], [-0.5])
    with pytest.raises(ValueError, match=r"without sampled tokens can have no reward, got 0\.5"):
        turn([1], [], reward=0.5)


def test_turns_travel_whole() -> None:
    """Every field, of its type, also where arrays are parts of others or hold nothing."""
    spans = [VersionSpan(version=7, start=0, end=1), VersionSpan(version=9, start=1, end=3)]
    sent = turn([1, 2], [3, 4, 5], [-0.1, -1e-8, -2.5], versions=spans, reward=0.1, finish_reason="length")
    part = replace(sent, given_token_ids=np.arange(9, dtype=np.int32)[::2])
    for one in (sent, part, turn([1], [])):
        got = pickle.loads(pickle.dumps(one, protocol=5))
        for name in (field.name for field in fields(one)):
            old, new = getattr(one, name), getattr(got, name)
            if isinstance(old, np.ndarray):
                assert new.dtype == old.dtype
                old, new = old.tolist(), new.tolist()
            assert new == old, name


def test_a_reward_model_reads_the_end_of_the_last_turn() -> None:
    """One token for each episode: the last one, wherever its turns begin and end."""
    worker: Any = object.__new__(ScoringWorker)
    worker.device, worker.shares_prompts = CPU, True
    worker.read = lambda batch: critic_reads(batch.token_ids, batch.position_ids).float()
    held = [(7, [0, 1, 2]), (9, [1])]
    found = worker.scores([[(7, 2), (9, 1)], [(7, 0)], []], held, EPISODES[0], [EPISODES[1][1]])
    for place, each in {(7, 2): EPISODES[0][2], (9, 1): EPISODES[1][1], (7, 0): EPISODES[0][0]}.items():
        last = each.turns[-1].sampled_token_ids[-1]
        assert found.pop(place) == critic_reads(int(last), each.tokens - 1)
    assert found == {}


def test_what_is_reported_counts_what_was_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = RewardShaper(**SHAPER).shape(scored(), [np.ones(3, np.bool_)] * 5)
    everyone = [each for of_prompt in EPISODES for each in of_prompt]
    told = rollout_metrics(groups, VERSION, Failures(0))
    sampled = sum(len(one.sampled_token_ids) for each in everyone for one in each.turns)
    assert told["tokens/generated"] == sampled
    assert told["rollout/response_tokens_mean"] == pytest.approx(sampled / 15)
    assert told["tokens/given"] == GIVEN * 14
    assert told["rollout/turns_mean"] == pytest.approx(29 / 15)
    assert told["reward/turns"] == pytest.approx(sum(one.reward or 0 for each in everyone for one in each.turns) / 15)
    assert told["staleness/max"] == 1
    monkeypatch.setattr("algorithms.rl.responses.ray.get", lambda group, timeout: group.result(timeout))
    report = SampleReport(samples=15, groups=0)
    rows = report.rows(groups, {(n, i): 0.5 for n in range(5) for i in range(3)}, pytest.fail).spread
    assert sorted(row.get("turns", 1) for row in rows) == [1, *[2] * 14]
    assert sum("turn_rewards" in row for row in rows) == 14
    alone = rollout_metrics([_one_turn()], VERSION, Failures(0))
    assert not alone.keys() & {"tokens/given", "rollout/turns_mean", "reward/turns"}


def _one_turn() -> ScoredGroup:
    info = RolloutInfo.of(EPISODES[2][1])
    return ScoredGroup(
        prompt=Prompt(index=0, token_ids=[1], text="", row={}),
        rollouts=None,
        infos=[info],
        scores=[Score(reward=1.0, parts={}, status="ok")],
    )


def test_shaped_scores_are_what_the_episodes_have_earned() -> None:
    """Penalties are for sampled tokens alone, and rewards of turns are not clipped."""
    shaped = RewardShaper(**SHAPER)(scored())
    for number, scores in enumerate(shaped):
        expected = [_return(_tokens(number, index)) for index in range(3)]
        assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    tight = RewardShaper(**SHAPER | {"clip": 0.001, "overlong": None, "missing_eos_penalty": 0.0})(scored())
    assert max(abs(score) for scores in tight for score in scores.tolist()) > 0.4
