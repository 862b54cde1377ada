"""What the loops of PPO and the GRPO family share: the stages between prompts and updates, evaluation and reports.

    prompts -> rollout (vLLM), functions -> reward models -> shaped scores -> reference, values -> advantages -> update

A stage that computes per token leaves its results with the ranks, as references to TokenFields; the driver sees
lengths, scores and metrics.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from actors.batch import Prompt
from actors.group import ActorGroup
from actors.rollout.types import Sampling
from actors.train.policy import PolicyWorker
from actors.train.worker import LossFunction, Worker
from algorithms.batches import Batches
from algorithms.config_rl import RLConfig
from algorithms.loop import Best, Checkpointer, Clock, Metrics, Reporter, good_enough, tokens_per_second
from algorithms.rewards.models import RewardModelGroup, score_with_models
from algorithms.rl.estimators import Estimator
from algorithms.rl.evaluation import response_rows, solving_metrics
from algorithms.rl.experience import (
    Sample,
    count_micro_batches,
    deal_groups,
    divide,
    samples_of,
    split_updates,
    totals_of,
)
from algorithms.rl.metrics import (
    Advantages,
    best_to_worst,
    reward_metrics,
    rollout_metrics,
    sample_rows,
    update_metrics,
)
from algorithms.rl.policy_loss import policy_loss
from algorithms.rl.shaper import RewardShaper
from algorithms.rl.shaping import AdaptiveKL
from algorithms.rollouts.sampler import Sampler, ScoredGroup, ShapedGroup

_EVALUATION_SEED = 1_000_003
Fields = list[Any]
"""References to TokenFields, one per rank that computed them."""
Pending = Callable[[], Fields]
"""Waits for groups that read, and gives what they have found."""


def _nothing() -> Fields:
    return []


@dataclass(kw_only=True)
class RL:
    """The stages, and what a loop holds between steps."""

    config: RLConfig
    roster: Mapping[str, ActorGroup[Any]]
    """The run's groups by name, looked up at every use."""
    reference: str | None
    """Name of the group that gives reference logprobs."""
    read_reference: Callable[..., Any] | None
    """Its method that does."""
    models: list[RewardModelGroup]
    sampler: Sampler
    shaper: RewardShaper
    prompts: list[Prompt]
    batches: Batches
    evaluation: list[Prompt]
    publish: Callable[[int], Metrics]
    """Send the weights as this version."""
    checkpoint: Checkpointer
    """Save after this step, if it is one to save after; the last argument says that it is the last."""
    reporter: Reporter
    sampling: Sampling
    micro_batch_tokens: dict[str, int]
    """Token budget of each group."""
    seed: int
    total_steps: int
    step: int = 0
    """Steps done."""
    version: int = 0
    """Of the weights that the engines have: how often others than the first were published."""
    moved: bool = False
    """Whether the policy has learned since it was published."""
    samples_per_step: int = 8
    eval_samples: int | None = 64
    """Completions that an evaluation reports, or all of them."""
    last_evaluation: Metrics = field(default_factory=dict)
    sync_reference: Callable[[int], None] | None = None
    """Lets the reference follow the policy after this step, when it is time."""

    def __post_init__(self) -> None:
        self.kl = AdaptiveKL(self.config.kl_coef, self.config.kl_target, self.config.kl_horizon)
        self.best = Best(self.config.best_by)

    @property
    def policy(self) -> ActorGroup[PolicyWorker]:
        """The group that learns the policy."""
        return self.roster["policy"]

    @property
    def done(self) -> bool:
        """Whether all steps are done, or the last evaluation was good enough to stop."""
        return self.step >= self.total_steps or good_enough(self.config.stop_when, self.last_evaluation)

    @property
    def policy_learns(self) -> bool:
        """Whether this step updates the policy: not while only a critic does."""
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loop."""
        return {
            "step": self.step,
            "version": self.version,
            "batches": self.batches.state_dict(),
            "last_evaluation": self.last_evaluation,
            "rewards": self.shaper.state_dict(),
            "kl": self.kl.state_dict(),
            "best": self.best.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step = state["step"]
        self.version = state.get("version", self.step)  # older checkpoints: after every step
        self.batches.load_state_dict(state["batches"])
        self.last_evaluation = state["last_evaluation"]
        self.shaper.load_state_dict(state["rewards"])
        self.kl.load_state_dict(state["kl"])
        self.best.load_state_dict(state.get("best") or {})

    def begin(self, title: str, clock: Clock) -> None:
        """Give the engines their first weights, and evaluate before the first step."""
        self.reporter.start(title, self.total_steps, self.step)
        with clock("sync"):
            self.publish(self.version)
        if self.step == 0:
            self.evaluate(clock)
        clock.lap()

    def sample(self, wanted: int, attempt: int = 0) -> list[ScoredGroup]:
        """Responses to the next prompts, scored by functions and endpoints; `attempt` numbers the parts of a step."""
        prompts = (self.prompts[self.batches.next(1)[0]] for _ in count())
        seed = (self.seed + 7919 * (self.step + 1) + 104_729 * attempt) % 2**31
        return self._collect(prompts, wanted, self.sampling, seed, self.config.samples_per_step, goes_on=attempt > 0)

    def score(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """Add what the reward models say."""
        return score_with_models(groups, self.models, self.roster)

    def shape(self, groups: Sequence[ScoredGroup]) -> list[ShapedGroup]:
        """Scored groups with the scores that decide whether they teach something, and that train."""
        return self.shaper.shape(groups, self._counted(groups))

    def _collect(
        self,
        prompts: Iterator[Prompt],
        wanted: int,
        sampling: Sampling,
        seed: int,
        step_samples: int,
        *,
        goes_on: bool = False,
    ) -> list[ScoredGroup]:

        def told(done: int) -> None:
            self.reporter.progress(done * sampling.samples, wanted * sampling.samples, "responses")

        groups = self.sampler.collect(
            prompts, wanted, sampling, seed, step_samples=step_samples, goes_on=goes_on, told=told
        )
        for error in self.sampler.errors:
            self.reporter.note(f"not scored: {error}")
        return groups

    def read_frozen(self, groups: Sequence[ScoredGroup]) -> Pending:
        """Reference logprobs, where the algorithm has a reference."""
        if self.reference is None:
            return _nothing
        assert self.read_reference is not None
        group, temperature = self.roster[self.reference], self.sampling.temperature
        return self.read(group, self.read_reference, groups, "reference", temperature)

    def read_old(self, groups: Sequence[ScoredGroup]) -> Pending:
        """Logprobs of the policy as it is now, where later updates of the step compare with them."""
        if self.config.importance_correction is None or self.config.updates_per_step == 1:
            return _nothing
        return self.read(self.policy, PolicyWorker.logprobs, groups, "policy", self.sampling.temperature)

    def read(
        self,
        group: ActorGroup[Any],
        method: Callable[..., Any],
        groups: Sequence[ScoredGroup],
        budget: str,
        *options: Any,
    ) -> Pending:
        """Let the ranks of a group begin to read all rollouts; each keeps what it finds.

        Returns what waits for them, so that other groups can read at the same time.
        """
        everything = samples_of(groups, [np.zeros(len(each.infos)) for each in groups])
        work = divide(groups, [everything], len(group), self.micro_batch_tokens[budget])
        calls = []
        for rank, share in enumerate(work):
            plan = [[(number, index) for number, index, _ in batch] for batch in share.plans[0]]
            calls.append(group.submit(rank, method, plan, share.keys, *options, *share.groups, num_returns=2))

        def finish() -> Fields:
            group.gather([told for told, _ in calls], method.__name__)
            return [fields for _, fields in calls]

        return finish

    def estimate(
        self, group: ActorGroup[Any], groups: Sequence[ScoredGroup], scores: list[np.ndarray], fields: Fields
    ) -> tuple[Metrics, Fields]:
        """Advantages token by token, computed by the ranks of `group`."""
        kl_coef = self.kl.coef if self.config.kl_in == "reward" else 0.0
        calls, whole = [], self._counted(groups)
        for rank, numbers in enumerate(deal_groups(groups, len(group))):
            own = {number: scores[number].tolist() for number in numbers}
            rollouts = [groups[number].rollouts for number in numbers]
            counted = [whole[number].tolist() for number in numbers]
            estimator = Estimator(config=self.config, kl_coef=kl_coef, counted=counted)
            arguments = (own, numbers, estimator, *rollouts, *fields)
            calls.append(group.submit(rank, Worker.advantages, *arguments, num_returns=2))
        metrics = group.gather([told for told, _ in calls], "advantages")[0]
        if "reward/kl_per_response" in metrics and self.policy_learns:
            self.kl.update(metrics["reward/kl_per_response"], sum(len(each.infos) for each in groups))
        return metrics, [found for _, found in calls]

    def mean_advantages(self, group: ActorGroup[Any], groups: Sequence[ScoredGroup], found: Fields) -> Advantages:
        """Of the responses that samples.jsonl keeps, where `estimate` has given each token its own advantage."""
        kept = best_to_worst(groups, self.samples_per_step)
        tokens = {(number, index): groups[number].infos[index].response_tokens for number, index in kept}
        told = group.scatter(Worker.mean_advantages, [(tokens, fields) for fields in found])
        return {place: mean for rank in told for place, mean in rank.items()}

    def updates(self, samples: list[Sample]) -> list[list[Sample]]:
        """The samples of each update of the step, epoch by epoch."""
        per_update = self.config.samples_per_update or self.config.samples_per_step
        return [
            update
            for epoch in range(self.config.epochs_per_step)
            for update in split_updates(samples, per_update, self.seed + self.step + 15_485_863 * epoch)
        ]

    def counted(self, update: list[Sample]) -> list[Sample]:
        """Samples that the loss is a mean of."""
        return [sample for sample in update if not self._left_out(sample.truncated)]

    def _counted(self, groups: Sequence[ScoredGroup]) -> list[np.ndarray]:
        """Whether the loss counts each response of each group, bool [N]."""
        return [np.array([not self._left_out(info.status == "truncated") for info in each.infos]) for each in groups]

    def _left_out(self, truncated: bool) -> bool:
        return self.config.mask_truncated and truncated

    def policy_loss(self) -> LossFunction:
        """The loss of this step."""
        config = self.config
        constant = config.aggregation_constant or self.sampling.max_tokens
        coef = self.kl.coef if config.kl_in == "loss" else 0.0
        return partial(policy_loss, config=config, kl_coef=coef, constant=constant)

    def submit_updates(
        self,
        group: ActorGroup[Any],
        name: str,
        loss: LossFunction,
        groups: Sequence[ScoredGroup],
        updates: list[list[Sample]],
        trained: list[list[Sample]],
        fields: Fields,
    ) -> Callable[[], Metrics]:
        """Start a group's optimizer updates; returns what waits for them and gives their metrics.

        `updates` are the samples that losses are means of, `trained` those of them that are computed.
        """
        totals = [totals_of(update, kept) for update, kept in zip(updates, trained, strict=True)]
        work = divide(groups, trained, len(group), self.micro_batch_tokens[name])
        if group is self.policy:
            self.moved = any(trained)
        method: Any = PolicyWorker.update
        calls = [
            group.submit(
                rank,
                method,
                share.plans,
                share.keys,
                totals,
                loss,
                self.sampling.temperature,
                *share.groups,
                *fields,
            )
            for rank, share in enumerate(work)
        ]

        def finish() -> Metrics:
            per_update = group.gather(calls, "update")[0]
            metrics = update_metrics(per_update, [each.trained_tokens for each in totals], name)
            micro_batches, empty = count_micro_batches(work)
            # A shared prompt counts once, as in the layers; that attention copies it, and pads, is not counted.
            tokens = sum(update["tokens/trained"] for update in per_update)
            return metrics | {
                "tokens/trained": tokens,
                "tokens/micro_batches": float(micro_batches),
                "tokens/padding_fraction": empty / max(1, empty + tokens),
            }

        return finish

    def evaluate(self, clock: Clock) -> Metrics:
        """Held-out reward before the first step, every `eval_every` steps and after the last."""
        config = self.config
        due = config.eval_every and (self.step % config.eval_every == 0 or self.step == self.total_steps)
        if not due:
            return {}
        temperature = self.sampling.temperature if config.eval_temperature is None else config.eval_temperature
        sampling = Sampling(
            samples=config.eval_samples_per_prompt, temperature=temperature, max_tokens=self.sampling.max_tokens
        )
        with clock("evaluate"):
            prompts = iter(self.evaluation)
            count = len(self.evaluation)
            groups = self.score(self._collect(prompts, count, sampling, _EVALUATION_SEED, count * sampling.samples))
            self.last_evaluation = self._judge(groups)
        if self.step == 0:
            self.reporter.step(0, self.last_evaluation | clock.lap())
        return self.last_evaluation

    def _judge(self, groups: list[ScoredGroup]) -> Metrics:
        """Metrics of an evaluation, whose completions are reported."""
        # A prompt whose responses cannot be scored is left out, not replaced: the held-out set stays what it is.
        metrics = {"eval/failed": float(self.sampler.failed)}
        if not groups:
            return metrics
        several = self.config.eval_samples_per_prompt > 1
        shown = groups if several else groups[: self.eval_samples]
        rows = response_rows(shown, self.config.eval_pass_reward, self.reporter.note)
        self.reporter.evaluation(self.step, [row for group in rows for row in group][: self.eval_samples])
        return reward_metrics(groups, "eval/reward") | (solving_metrics(rows) if several and rows else {}) | metrics

    def _publish_moved(self) -> Metrics:
        """Send the engines what the policy has learned: nothing where only the critic does, or nobody."""
        found: Metrics = {}
        if self.moved:
            self.version += 1
            found = self.publish(self.version)
            self.moved = False
        return found | {"weights/version": float(self.version)}

    def finish_step(
        self, groups: Sequence[ShapedGroup], metrics: Metrics, clock: Clock, advantages: Advantages
    ) -> None:
        """Publish the new weights, if there are any, evaluate, checkpoint and report."""
        self.step += 1
        metrics |= rollout_metrics(groups, self.version, self.sampler.failed) | self.shaper.metrics(groups)
        with clock("sync"):
            metrics |= self._publish_moved()
            if self.sync_reference:
                self.sync_reference(self.step)
        evaluation = self.evaluate(clock)
        metrics |= evaluation
        best = self.best.improved_by(evaluation)
        with clock("checkpoint"):
            self.checkpoint.save(self.step, self.state(), self.done, best)
        metrics |= clock.lap()
        metrics["tokens_per_second"] = tokens_per_second(metrics["tokens/generated"], metrics)
        shown = self.step == 1 or any(name.startswith("eval/") for name in metrics)
        try:
            self.reporter.step(self.step, metrics)
            rows = sample_rows(groups, advantages, self.samples_per_step, self.reporter.note)
            self.reporter.samples(self.step, rows, shown)
        finally:
            self.checkpoint.keep()
        self.checkpoint.end_if_asked()
