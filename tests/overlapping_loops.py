"""Loops of GRPO on simulated engines, with and without gradients of finished groups while others are generated.

Their policy is a formula with two weights, which learn: what a step gets wrong is in all metrics of the later ones.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from actors.episodes import Episode, Prompt
from actors.models.packed import PackedBatch
from actors.rollout.simulated import Table
from actors.rollout.types import Sampling
from actors.train.policy import PolicyWorker
from algorithms.config_rl import GRPOConfig
from algorithms.loop import Clock as Verbs
from algorithms.rewards.scores import Score
from algorithms.rl.grpo import GRPO
from algorithms.rl.judging import Teaching
from algorithms.rl.overlapped_gradients import OverlappedGradients
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.tail import Tail
from tests.fake_ranks import FakeEngine, FakeRank, split_fake
from tests.simulated_engines import Clock
from tests.test_overlapped_reads import EpisodeEngines, TimedRanks

PROMPTS, SAMPLES = 5, 3
LENGTHS = (400, 200, 100, *(8, 9, 30), *(12, 33, 14), *(399, 20, 15), *(60, 10, 90))
"""Of the samples of one step: two prompts have one that takes long."""
LONGEST_S = 4.0
SIZES: dict[str, Any] = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "overlap_gradients": True}
KL: dict[str, Any] = {"kl_coef": 0.2, "kl_in": "loss"}
Rewards = Callable[[int], Sequence[float]]
"""Prompt -> rewards of its responses."""


def different(prompt: int) -> Sequence[float]:
    """Three rewards; all the same for some prompts, which have no advantage then."""
    rewards = np.random.default_rng(prompt).normal(size=SAMPLES)
    return [0.5] * SAMPLES if prompt % 4 == 2 else rewards.tolist()


class InOrder(Tail):
    """Postponed prompts start in their order, not by how long they were when they were ended: a simulated engine hears
    of that in its next round, up to a twentieth of a second later or not."""

    def note(self, prompt: Prompt, infos: Any) -> None:
        pass


class LearningEngine(FakeEngine):
    """Two weights are added to the formula; a step goes down the gradient of all ranks."""

    def __init__(self, rank: FakeRank, formula: Any) -> None:
        super().__init__(formula)
        self.rank, self.steps, self.skipped = rank, 0, 0
        self.weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def forward(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        read, entropies = super().evaluate(batch, temperature, chunk)
        weighed = self.weights[0] * (batch.token_ids % 5) / 8 + self.weights[1] * (batch.position_ids % 7) / 8
        return torch.where(batch.action_mask, read + weighed, 0), entropies + torch.where(batch.action_mask, weighed, 0)

    def evaluate(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return self.forward(batch, temperature, chunk)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, divisor: float = 1.0) -> float:
        assert self.weights.grad is not None
        gradient = torch.from_numpy(self.rank.sum_over_ranks(self.weights.grad.numpy())) / divisor
        with torch.no_grad():
            self.weights -= 0.1 * gradient
        self.weights.grad, self.steps = None, self.steps + 1
        return gradient.norm().item()

    def skip(self) -> float:
        assert self.weights.grad is None
        self.skipped += 1
        return 0.0


class LearningRanks(TimedRanks):
    """They learn, and say what they were given to learn from; a gate may be closed for `accumulate` alone."""

    def __init__(self, clock: Clock, ranks: int, name: str) -> None:
        super().__init__(clock, ranks, name)
        for worker in self._workers:
            worker.engine = LearningEngine(worker, self.formula)

    @property
    def engines(self) -> list[LearningEngine]:
        return [worker.engine for worker in self._workers]

    def gather(self, refs: Sequence[Any], what: str, ranks: Sequence[int] | None = None, **_: Any) -> list[Any]:
        for ref in refs:
            ref.exception(60)
        return [self.answer(rank, ref, what) for rank, ref in zip(ranks or count(), refs, strict=ranks is not None)]

    def trained(self) -> Iterator[tuple[str, float, int, int]]:
        """(method, when it was told to, prompt, length) of each response that was trained on."""
        for rank in range(len(self)):
            told = [(when, method) for when, whose, method in self.told if whose == rank]
            calls = [(method, arguments) for whose, method, arguments, _ in self.calls if whose == rank]
            for (when, method), (called, arguments) in zip(told, calls, strict=True):
                assert method == called, "ranks do things in order"
                if method in ("accumulate", "finish_update", "update"):
                    plans = arguments[0] if method == "update" else [arguments[0]]
                    known = dict(_given(arguments[1], arguments))
                    for key, index, _ in (each for plan in plans for batch in plan for each in batch):
                        episode = known[key, index]
                        yield method, when, int(episode.token_ids[0]) - 3, len(episode.token_ids)


def _given(held: Any, arguments: Sequence[Any]) -> Iterator[tuple[tuple[int, int], Episode]]:
    lists = [each for each in arguments if isinstance(each, list) and each and isinstance(each[0], Episode)]
    for (key, indices), own in zip(held, lists, strict=True):
        for index, episode in zip(indices, own, strict=True):
            yield (key, index), episode


class Loop:
    """A loop over simulated engines, with or without gradients that overlap."""

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        overlap: bool,
        ranks: int = 1,
        lengths: Sequence[int] = LENGTHS,
        rewards: Rewards = different,
        tail: float | None = None,
    ) -> None:
        asked: dict[str, Any] = SIZES | {"kl_coef": 0.0} | settings
        self.config = GRPOConfig(name="grpo", **asked)
        self.clock, self.rewards = Clock(), rewards
        self.ready: list[tuple[int, float]] = []
        """Prompts whose groups were ready, and when."""
        self.sim = EpisodeEngines([Table(lengths=lengths, token_s=0.01)], self.clock)
        self.policy = LearningRanks(self.clock, ranks, "policy")
        roster: Any = {"policy": self.policy, "reference": TimedRanks(self.clock, ranks, "reference")}
        self.gradients = OverlappedGradients() if overlap else None
        split: Any = split_fake
        reads = OverlappedReads(roster, split)
        self.shaper = RewardShaper(
            normalize=False, clip=None, overlong=None, missing_eos_penalty=0, max_response_tokens=999
        )
        sampling = Sampling(samples=SAMPLES, temperature=1.0, max_tokens=400)
        self.rollouts = Rollouts(
            self.sim, None, (Prompt(index=n, token_ids=[n + 3, 7], text="", row={}) for n in count()), sampling,
            Limits(silence_s=3600.0), groups_per_step=PROMPTS, judge=self._judge, reads=self.gradients or reads,
            tail=None if tail is None else InOrder(tail, lambda: None, None), clock=self.clock,
        )  # fmt: skip
        self.sim.held = self._held
        make: Any = GRPO
        self.loop = make(
            config=self.config, roster=roster, reference="reference" if self.config.kl_coef else None,
            read_reference=PolicyWorker.reference_logprobs, models=[], rollouts=self.rollouts, split=split,
            reads=reads, gradients=self.gradients, shaper=self.shaper, batches=None, evaluation=[], publish=None,
            checkpoint=None, sampling=sampling, seed=1, total_steps=9,
            reporter=SimpleNamespace(phase=lambda _: None, progress=lambda *_: None, note=lambda _: None),
            micro_batch_tokens=dict.fromkeys(("policy", "reference"), 256),
        )  # fmt: skip

    def _judge(self, group: ScoredGroup) -> ScoredGroup | None:
        """Gives scores, too: there is no pool."""
        rewards = self.rewards(group.prompt.index)
        group.scores[:] = [Score(reward=float(each), parts={}, status="ok") for each in rewards]
        teaching = Teaching(shaper=self.shaper, mask_truncated=self.config.mask_truncated)
        if self.config.dynamic_sampling and not teaching(group):
            return None
        self.ready.append((group.prompt.index, self.clock.now))
        return teaching(group) if self.config.dynamic_sampling else group

    def _held(self) -> bool:
        """Time passes when somebody waits for what is not there."""
        wanted = self.rollouts._wanted
        return not self.rollouts._closed and (wanted is None or wanted.lane.can_give(wanted.groups, wanted.version))

    def step(self) -> tuple[list[int], dict[str, float]]:
        """The prompts of a step, in its order, and its metrics."""
        groups = self.loop.sample(PROMPTS)
        return [each.prompt.index for each in groups], self.learn(groups)

    def learn(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Update on a step's groups; returns metrics."""
        metrics, _ = self.loop.learn(self.loop.shape(groups), Verbs(self.loop.reporter))
        self.loop.step += 1
        return metrics

    def close(self) -> None:
        self.rollouts.close()
