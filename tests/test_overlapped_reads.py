"""Reads of finished groups while others are generated: when they begin, that they are right, and what becomes of them.

Rollouts are real, on simulated engines with a clock of their own; ranks are real workers on threads, which read by a
formula (`tests.fake_ranks`). So a read has a time: that of the engines, which stands still until it is done.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent import futures
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.episodes import Episode, Prompt
from actors.group import GroupError
from actors.rollout.simulated import Table
from actors.rollout.types import Sampling
from actors.train.policy import PolicyWorker
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.division.deals import Taker
from algorithms.loop import Clock as Verbs
from algorithms.rewards.scores import Score
from algorithms.rl import read_passes
from algorithms.rl.grpo import GRPO
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.ppo import PPO
from algorithms.rl.read_passes import ReadPass
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.ready_reads import NoReads
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.tail import Tail
from tests.fake_ranks import FakeRanks, done, split_fake
from tests.simulated_engines import Clock, SimulatedEngines
from tests.test_deals import ALL as EPISODES
from tests.test_deals import GROUPS

PROMPTS, SAMPLES = 6, 2
LENGTHS = (400, 400, *(8, 9, 30, 12, 33, 14, 20, 15, 60, 10))
"""Of the samples of one step: those of the first prompt take longest."""
LONGEST_S = 4.0
READS = {"logprobs", "reference_logprobs", "values"}
ALL = frozenset(("reference_logprobs", "old_logprobs", "values"))
SIZES: dict[str, Any] = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "kl_coef": 0.1}
CORRECTED: dict[str, Any] = {"importance_correction": {}, "samples_per_update": 4}
JOBS: dict[str, Any] = {
    "ppo": PPOConfig(name="ppo", steps=9, **CORRECTED, **SIZES),
    "ppo, critic alone": PPOConfig(
        name="ppo", steps=9, critic_warmup_steps=5, kl_in="loss", kl_estimator="k3", **CORRECTED, **SIZES
    ),
    "grpo": GRPOConfig(name="grpo", **CORRECTED, **SIZES),
    "grpo, KL in the reward": GRPOConfig(name="grpo", kl_in="reward", **SIZES),
}


class EpisodeEngines(SimulatedEngines):
    """They give references, as real ones do, and their time stands still while somebody reads, or before they have
    anything to do."""

    def wait(self, others: Sequence[Any], timeout_s: float) -> list[Any]:
        if others:
            futures.wait(others, 5, futures.FIRST_COMPLETED)
        idle = not any(host.open for host in self.hosts)
        return super().wait(others, 0.0 if others or idle else timeout_s)

    def collect(self, engine: int, requests: list[int]) -> list[Any]:
        super().collect(engine, requests)
        return [done(self.rollouts[request]) for request in requests]


class TimedRanks(FakeRanks):
    """Notes at what time of the engines it is told to do what; reads once `gate` is set."""

    nodes = ()

    def __init__(self, clock: Clock, ranks: int, name: str) -> None:
        super().__init__(ranks, self.formula)
        self.clock, self.name, self.shift = clock, name, len(name)
        self.told: list[tuple[float, int, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = ""

    def formula(self, token: Any, position: Any) -> Any:
        assert self.gate.wait(5)
        if self.fails:
            raise RuntimeError(self.fails)
        return -1 - ((7 + self.shift) * token + 3 * position) % 16 / 16

    def answer(self, rank: int, ref: Any, what: str) -> Any:
        try:
            return ref.result(0)
        except RuntimeError as error:
            raise GroupError(f"{self.name}[{rank}].{what}: {error}") from error

    def submit(self, rank: int, method: Any, *arguments: Any, num_returns: int = 1) -> Any:
        self.told.append((self.clock.now, rank, method.__name__))
        return super().submit(rank, method, *arguments, num_returns=num_returns)

    def times(self) -> list[float]:
        """When they were told to read."""
        return [when for when, _, method in self.told if method in READS]

    def read(self) -> list[tuple[str, Any]]:
        """(method, token ids) of each episode that was read, in any order."""
        found = []
        for _, method, arguments, _ in self.calls:
            if method in READS:
                plan, held = arguments[1], arguments[2]
                lists = [each for each in arguments if isinstance(each, list) and each and isinstance(each[0], Episode)]
                known = {
                    (key, index): episode
                    for (key, indices), own in zip(held, lists, strict=True)
                    for index, episode in zip(indices, own, strict=True)
                }
                found += [(method, known[place].token_ids.tobytes()) for batch in plan for place in batch]
        return found


class Stage:
    """A loop over simulated engines, whose policy, reference and critic are ranks of their own."""

    def __init__(
        self, config: Any, fields: frozenset[str], *, ranks: int = 1, engines: int = 1, tail: Tail | None = None
    ) -> None:
        self.clock = Clock()
        self.engines = EpisodeEngines([Table(lengths=LENGTHS, token_s=0.01)] * engines, self.clock)
        names = ["policy", "reference", "critic"] if isinstance(config, PPOConfig) else ["policy", "reference"]
        self.ranks = {name: TimedRanks(self.clock, ranks, name) for name in names}
        roster: Any = self.ranks
        self.reads = OverlappedReads(roster, split_fake, fields, beside_updates=config.max_staleness > 0)
        sampling = Sampling(samples=SAMPLES, temperature=1.0, max_tokens=500)
        self.rollouts = Rollouts(
            self.engines, None, (Prompt(index=n, token_ids=[n + 3, 7], text="", row={}) for n in range(999)), sampling,
            Limits(silence_s=3600.0), groups_per_step=PROMPTS, max_staleness=config.max_staleness, reads=self.reads,
            tail=tail, clock=self.clock,
        )  # fmt: skip
        self.engines.held = self._held
        shaper = RewardShaper(normalize=False, clip=None, overlong=None, missing_eos_penalty=0, max_response_tokens=999)
        make: Any = PPO if isinstance(config, PPOConfig) else GRPO
        self.loop = make(
            config=config, roster=roster, reference="reference", read_reference=PolicyWorker.reference_logprobs,
            models=[], rollouts=self.rollouts, split=split_fake, reads=self.reads, shaper=shaper, batches=None,
            evaluation=[], publish=None, checkpoint=None, sampling=sampling, seed=1, total_steps=9,
            reporter=SimpleNamespace(phase=lambda _: None, progress=lambda *_: None, note=lambda _: None),
            micro_batch_tokens=dict.fromkeys(("policy", "critic", "reference"), 256),
        )  # fmt: skip

    def _held(self) -> bool:
        """Time passes when somebody waits for what is not there."""
        wanted = self.rollouts._wanted
        return not self.rollouts._closed and (wanted is None or wanted.lane.can_give(wanted.groups, wanted.version))

    def step(self) -> tuple[list[ScoredGroup], dict[str, float]]:
        """The groups of a step, in their order, and its metrics."""
        groups = self.loop.sample(PROMPTS)
        return groups, self.learn(groups)

    def learn(self, groups: list[ScoredGroup]) -> dict[str, float]:
        """Update on a step's groups; returns metrics."""
        rewards = np.random.default_rng(self.loop.step).normal(size=(PROMPTS, SAMPLES))
        for group, own in zip(groups, rewards, strict=True):
            group.scores[:] = [Score(reward=float(reward), parts={}, status="ok") for reward in own]
        metrics, _ = self.loop.learn(self.loop.shape(groups), Verbs(self.loop.reporter))
        self.loop.step += 1
        return metrics


def _readers(config: Any) -> dict[str, set[str]]:
    """Group -> what it reads."""
    if isinstance(config, PPOConfig) and config.critic_warmup_steps:
        return {"critic": {"values"}}
    found = {"reference": {"reference_logprobs"}} | ({"policy": {"logprobs"}} if config.reads_old_logprobs else {})
    return found | ({"critic": {"values"}} if isinstance(config, PPOConfig) else {})


def _untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "time/" not in name}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", JOBS)
def test_groups_are_read_while_others_are_generated_once_and_with_the_same_result(name: str, ranks: int) -> None:
    """Against reads after the rollout: the same groups in the same order, the same losses. Each group that reads gets
    each response once, and most before the longest one has ended, where without overlap it gets none so early."""
    found, plain = Stage(JOBS[name], ALL, ranks=ranks), Stage(JOBS[name], frozenset(), ranks=ranks)
    readers = _readers(JOBS[name])
    for step in range(3):
        seen = {each: len(each.told) for stage in (found, plain) for each in stage.ranks.values()}
        (groups, metrics), (expected, wanted) = found.step(), plain.step()
        assert [each.prompt.index for each in groups] == list(range(step * PROMPTS, (step + 1) * PROMPTS))
        assert [each.prompt.index for each in expected] == list(range(step * PROMPTS, (step + 1) * PROMPTS))
        assert np.isfinite(list(metrics.values())).all()
        assert _untimed(metrics) == pytest.approx(_untimed(wanted), rel=1e-6, abs=1e-6)
        for group in readers:
            early, late = (
                [when - (step + 1) * LONGEST_S for when, _, method in each.told[seen[each] :] if method in READS]
                for each in (found.ranks[group], plain.ranks[group])
            )
            assert min(early) < -3 and max(late) == min(late) == pytest.approx(0, abs=1e-9)
            for each in (found.ranks[group], plain.ranks[group]):
                read = each.read()
                assert {method for method, _ in read} == readers[group]
                assert len(read) == PROMPTS * SAMPLES * (step + 1)
    for each in found.ranks.values():
        assert not any(kept for worker in each._workers for kept in worker.kept.values()), "all of it is handed out"
    assert [group for group in found.ranks if not found.ranks[group].times()] == [
        group for group in found.ranks if group not in readers
    ]
    found.rollouts.close()
    plain.rollouts.close()


def test_beside_updates_only_the_reference_is_read_and_what_is_early_is_kept_for_its_step() -> None:
    """With n = 2, groups of later steps are read, too; old logprobs are not, before their step has begun."""
    config = GRPOConfig(name="grpo", max_staleness=2, **CORRECTED, **SIZES)
    stage = Stage(config, frozenset(["reference_logprobs"]), ranks=2, engines=3)
    policy, reference = stage.ranks["policy"], stage.ranks["reference"]
    kept = []
    for version in range(6):
        before = len(policy.told)
        groups = stage.loop.sample(PROMPTS)
        assert len(policy.told) == before, "it learns, or has just learned"
        stage.learn(groups)
        kept.append(sum(map(len, (worker.kept["reference_logprobs"] for worker in reference._workers))))
        stage.engines.go_on(0.5)
        stage.engines.use(version + 1)
        stage.loop.version = version + 1
        stage.rollouts.published(version + 1)
    assert max(kept) > 0, "of groups for the next step"
    stage.rollouts.close()
    read, trained = Counter(np.frombuffer(token_ids, np.int64)[0] for _, token_ids in reference.read()), 0
    assert set(read.values()) == {SAMPLES}, "each response once"
    for _, method, arguments, _ in policy.calls:
        for part in arguments if method == "update" else ():
            if isinstance(part, dict) and any("reference_logprobs" in fields for fields in part.values()):
                trained += len(part)
    assert trained == 6 * PROMPTS * SAMPLES


PASS = ReadPass(
    field="reference_logprobs",
    group="reference",
    method=PolicyWorker.reference_logprobs,
    micro_batch_tokens=4096,
    options=(1.0,),
)
FIELDS = frozenset(["reference_logprobs"])


def _alone(ranks: int = 2, **settings: Any) -> tuple[TimedRanks, OverlappedReads]:
    made: Any = TimedRanks(Clock(), ranks, "reference")
    return made, OverlappedReads({"reference": made}, split_fake, FIELDS, **settings)


def _all_taken(groups: Sequence[ScoredGroup]) -> list[Taker]:
    places = [(number, index) for number, group in enumerate(groups) for index in range(len(group.infos))]
    return [Taker.of("update", FIELDS, [places])]


def _found(parts: Any, takers: list[Taker]) -> dict[Any, Any]:
    return {place: fields for ref in parts.of(takers[0], 0) for place, fields in ref.result(5).items()}


def _settled(reads: OverlappedReads) -> None:
    futures.wait(reads.refs(), 5)  # type: ignore[arg-type]


def test_ranks_get_in_one_call_all_that_came_while_they_read() -> None:
    """Within the budget of a micro-batch, and not before they are done with what they had."""
    ranks, reads = _alone()
    ranks.gate.clear()
    with reads.overlapping([PASS]):
        for group in GROUPS[:9]:
            reads.submit(group, certain=False)
            reads.send()
        assert [rank for _, rank, _ in ranks.told] == [0, 1], "the first group alone"
        assert reads.busy and len(reads.refs()) == 2
        ranks.gate.set()
        _settled(reads)
        reads.send()
        assert [rank for _, rank, _ in ranks.told] == [0, 1, 0, 1], "eight at a time"
        _settled(reads)
        reads.send()
        assert len(ranks.told) == 4 and not reads.busy and reads.refs() == []
    for _, _, (_, plan, *_), _ in ranks.calls[2:]:
        assert len(plan) > 1
        for batch in plan:
            tokens = sum(GROUPS[number % 9].infos[index].tokens for number, index in batch)
            assert tokens <= PASS.micro_batch_tokens


def test_what_is_read_early_late_and_in_between_is_the_same() -> None:
    """Of a step some groups are read, some are being read, and some wait: each is read once, and all of it is there."""
    (_, whole), (ranks, reads) = _alone(), _alone(3)
    takers = _all_taken(GROUPS)
    expected = _found(whole.read(PASS, GROUPS, takers)(), takers)
    assert expected.keys() == EPISODES.keys()
    with reads.overlapping([PASS]):
        for group in reversed(GROUPS[:5]):
            reads.submit(group, certain=False)
        reads.send()
        _settled(reads)
        ranks.gate.clear()
        for group in GROUPS[5:9]:
            reads.submit(group, certain=False)
            reads.send()
        pending = reads.read(PASS, GROUPS, takers)
        assert not reads.busy or reads.refs()
    ranks.gate.set()
    found = _found(pending(), takers)
    assert found.keys() == expected.keys()
    for place, fields in expected.items():
        np.testing.assert_allclose(found[place]["reference_logprobs"], fields["reference_logprobs"], atol=1e-6)
        assert np.abs(fields["reference_logprobs"]).max() > 1
    assert len(ranks.read()) == len(EPISODES)
    assert not any(kept for worker in ranks._workers for kept in worker.kept.values())


def test_on_policy_nothing_is_sent_or_kept_beyond_a_step() -> None:
    """Then models learn, and sync: what their ranks do together is in one order, and what they have read is of other
    weights."""
    ranks, reads = _alone()
    reads.submit(GROUPS[0], certain=False)
    reads.send()
    assert ranks.told == [], "before the first step"
    with reads.overlapping([PASS]):
        reads.submit(GROUPS[0], certain=False)
        reads.send()
        _settled(reads)
        reads.submit(GROUPS[1], certain=False)
    reads.send()
    reads.submit(GROUPS[2], certain=False)
    assert len(ranks.told) == 2 and not reads.busy and reads.refs() == []
    with reads.overlapping([PASS]):
        assert not reads.busy, "what waited is no longer waited for"
    takers = _all_taken(GROUPS[:1])
    assert len(_found(reads.read(PASS, GROUPS[:1], takers)(), takers)) == len(GROUPS[0].infos)
    assert [method for _, _, method in ranks.told] == ["reference_logprobs"] * 4, "read again, not handed out"


def test_beside_updates_ranks_keep_what_a_later_step_asks_for_and_nothing_else() -> None:
    """A group that is dropped is forgotten, wherever it is; others are handed out in their step."""
    (ranks, reads), (_, whole) = _alone(beside_updates=True), _alone()
    with reads.overlapping([PASS]):
        for group in GROUPS[:4]:
            reads.submit(group, certain=False)
        reads.send()
    _settled(reads)
    reads.send()
    reads.submit(GROUPS[4], certain=False)
    assert reads.busy, "at any time"
    reads.forget(GROUPS[4])
    reads.forget(GROUPS[0])
    assert not reads.busy
    for number, left in ((1, {2, 3}), (2, {3}), (3, set())):
        with reads.overlapping([PASS]):
            pass
        takers = _all_taken(GROUPS[number : number + 1])
        found, expected = (
            _found(each.read(PASS, GROUPS[number : number + 1], takers)(), takers) for each in (reads, whole)
        )
        assert found.keys() == expected.keys() and len(found) == len(GROUPS[number].infos)
        for place, fields in expected.items():
            np.testing.assert_allclose(found[place]["reference_logprobs"], fields["reference_logprobs"], atol=1e-6)
        assert {key for worker in ranks._workers for key, _ in worker.kept["reference_logprobs"]} == left
    reads.submit(GROUPS[5], certain=False)
    with reads.overlapping([PASS]):
        pass
    reads.read(PASS, GROUPS[5:6], _all_taken(GROUPS[5:6]))()
    for _ in range(2):
        reads.send()
    assert not reads.busy, "what its step has read is not read again"
    assert len(ranks.read()) == sum(len(group.infos) for group in [*GROUPS[:4], GROUPS[5]])


def test_postponed_groups_and_those_of_an_evaluation_are_nobodys_work() -> None:
    """With tail batching a step starts more than it takes; what it does not take is not kept, nor waited for."""
    stage = Stage(JOBS["grpo"], ALL, ranks=2, tail=Tail(0.5, lambda: None, None))
    for _ in range(5):
        told = len(stage.ranks["reference"].told)
        held_out = [Prompt(index=-1 - number, token_ids=[number], text="", row={}) for number in range(4)]
        sampling = Sampling(samples=1, temperature=1.0, max_tokens=50)
        assert len(stage.rollouts.evaluate(held_out, sampling, seed=None)[0]) == 4
        assert len(stage.ranks["reference"].told) == told
        groups, metrics = stage.step()
        assert len(groups) == PROMPTS and np.isfinite(list(metrics.values())).all()
        for ranks in stage.ranks.values():
            assert not any(kept for worker in ranks._workers for kept in worker.kept.values())
    assert stage.rollouts.report()[1].postponed
    stage.rollouts.close()


class Unhurried(NoReads):
    """Reads go on after the last group has ended."""

    def __init__(self) -> None:
        self.sends = 0

    @property
    def busy(self) -> bool:  # type: ignore[override]
        return self.sends < 9

    def send(self) -> None:
        self.sends += 1


def test_what_is_ready_is_read_also_when_nothing_is_generated_any_more() -> None:
    """As beside updates, where engines have all that may start."""
    reads, engines = Unhurried(), EpisodeEngines([Table(lengths=(5,), token_s=0.01)], Clock())
    drawn = (Prompt(index=n, token_ids=[n], text="", row={}) for n in range(2))
    sampling, limits = Sampling(samples=1, temperature=1.0, max_tokens=9), Limits(silence_s=3600.0)
    rollouts = Rollouts(
        engines, None, drawn, sampling, limits, groups_per_step=2, groups_in_run=2, reads=reads, clock=engines.clock
    )
    assert len(rollouts.take(2, 0, seed=0)) == 2
    deadline = time.monotonic() + 5
    while reads.busy and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not reads.busy
    rollouts.close()


def test_a_rank_that_fails_ends_the_wait_for_groups() -> None:
    """With the line that a read after the rollout would end with."""
    stage = Stage(JOBS["grpo"], ALL, ranks=2)
    stage.ranks["reference"].fails = "out of memory"
    with pytest.raises(GroupError, match=r"^reference\[[01]\]\.reference_logprobs: out of memory$"):
        stage.loop.sample(PROMPTS)
    assert stage.clock.now < LONGEST_S
    stage.rollouts.close()


def _mended(stage: Stage, lost: str, met: list[str]) -> None:
    """Let the first loss be mended: `lost` has new ranks, which have kept nothing."""

    def mend(error: GroupError, learn_again: object) -> bool:
        met.append(str(error))
        stage.ranks[lost] = TimedRanks(stage.clock, 2, lost)
        return len(met) == 1

    stage.loop = replace(stage.loop, mender=SimpleNamespace(mend=mend))


@pytest.mark.parametrize(("name", "lost"), [("grpo", "reference"), ("grpo", "policy"), ("ppo", "critic")])
def test_ranks_that_are_lost_while_they_read_beside_rollouts_are_mended_in_their_step(name: str, lost: str) -> None:
    """Once; and its numbers are those of a run that has lost nothing."""
    found, plain = Stage(JOBS[name], ALL, ranks=2), Stage(JOBS[name], frozenset(), ranks=2)
    met: list[str] = []
    _mended(found, lost, met)
    found.ranks[lost].fails = "it died"
    for _ in range(2):
        (groups, metrics), (expected, wanted) = found.step(), plain.step()
        assert [each.prompt.index for each in groups] == [each.prompt.index for each in expected]
        assert _untimed(metrics) == pytest.approx(_untimed(wanted), rel=1e-6, abs=1e-6)
        assert len(met) == 1 and met[0].endswith(": it died")
    found.rollouts.close()
    plain.rollouts.close()


def test_what_lost_ranks_have_kept_for_later_steps_is_read_again() -> None:
    """Also where nothing is learned again, as only they were lost."""
    config = GRPOConfig(name="grpo", max_staleness=2, **CORRECTED, **SIZES)
    stage = Stage(config, frozenset(["reference_logprobs"]), ranks=2, engines=3)
    met: list[str] = []
    _mended(stage, "reference", met)

    def lose() -> None:
        if not met:
            raise GroupError("reference[0].reference_logprobs: it died")

    for version in range(4):
        groups = stage.loop.sample(PROMPTS)
        if version == 2:
            assert stage.reads._readers["reference_logprobs"].kept, "what would be handed out"
            stage.loop.survive(lose)
        metrics = stage.learn(groups)
        assert np.isfinite(list(metrics.values())).all()
        stage.engines.go_on(0.5)
        stage.engines.use(version + 1)
        stage.loop.version = version + 1
        stage.rollouts.published(version + 1)
    assert len(met) == 1
    stage.rollouts.close()


def test_a_rank_that_fails_after_the_rollout_is_told_by_the_loop() -> None:
    ranks, reads = _alone()
    ranks.gate.clear()
    with reads.overlapping([PASS]):
        reads.submit(GROUPS[0], certain=False)
        reads.send()
    pending = reads.read(PASS, GROUPS[:1], _all_taken(GROUPS[:1]))
    ranks.fails = "out of memory"
    ranks.gate.set()
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        pending()


def test_ranks_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(read_passes, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ranks, reads = _alone()
    ranks.gate.clear()
    with reads.overlapping([PASS]):
        reads.submit(GROUPS[0], certain=False)
        reads.send()
        clock.now += ranks.timeout_s
        reads.send()
        clock.now += 0.1
        line = r"^reference\.reference_logprobs: no answer from rank\(s\) \[0, 1\] within 60 s$"
        with pytest.raises(GroupError, match=line):
            reads.send()
    ranks.gate.set()
