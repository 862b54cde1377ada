"""What a step of PPO or the GRPO family begins and ends with: scored episodes, and new weights, evaluation and reports.

    prompts -> rollout (vLLM), functions -> reward models -> shaped scores -> ... -> publish -> evaluate -> report

What comes in between is in `algorithms.rl.stages`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from ray import ObjectRef

from actors.episodes import Prompt, TokenFields
from actors.files.parts import Entry, SavedPart
from actors.group import ActorGroup, GroupError
from actors.rollout.types import Sampling
from actors.train.policy import PolicyWorker
from algorithms.config_rl import RLConfig
from algorithms.division.deals import Split
from algorithms.loop import Best, Checkpointer, Clock, Metrics, Reporter, good_enough, tokens_per_second
from algorithms.rl.bubbles import Bubbles
from algorithms.rl.evaluation import response_rows, solving_metrics
from algorithms.rl.judging import counted_of
from algorithms.rl.metrics import (
    ReportedAdvantages,
    discard_metrics,
    left_out_rows,
    reward_metrics,
    rollout_metrics,
)
from algorithms.rl.overlapped_gradients import OverlappedGradients
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.read_passes import ReadPass
from algorithms.rl.recovery import Learned, LearnedSteps, Mender
from algorithms.rl.reward_models import RewardModelGroup, Scorers
from algorithms.rl.sample_report import SampleReport
from algorithms.rl.shaper import RewardShaper
from algorithms.rl.shaping import AdaptiveKL
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup, ShapedGroup
from algorithms.rollouts.rollouts import Rollouts

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN = ("time/reference", "time/values", "time/advantages", "time/update")
"""What learning from a step again takes."""
_EVALUATION_SEED = 1_000_003  # the same for all steps and runs, so that they compare
_OF_ALIKE = (
    " (algorithm.dynamic_sampling_rounds x prompts_per_step were sampled): they are too easy or too hard for the model"
)


@dataclass(kw_only=True)
class Steps:
    """How a step begins and ends, and what a loop holds between steps."""

    config: RLConfig
    roster: Mapping[str, ActorGroup[Any]]
    """The run's groups by name, looked up at every use."""
    reference: str | None
    """Name of the group that gives reference logprobs."""
    read_reference: Callable[..., object] | None
    """Its method that does."""
    models: list[RewardModelGroup]
    rollouts: Rollouts
    split: Split
    """Splits groups of episodes that a deal divides."""
    reads: OverlappedReads
    """Who reads episodes, where that may be beside `rollouts`."""
    gradients: OverlappedGradients | None = None
    """Who trains on groups beside `rollouts`, if they do."""
    shaper: RewardShaper
    batches: SavedPart
    """Which prompts come next: `rollouts` draws from it."""
    evaluation: list[Prompt]
    publish: Callable[[int], Metrics]
    """Send the weights as this version."""
    checkpoint: Checkpointer
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
    sample_report: SampleReport = field(default_factory=SampleReport)
    """What of a step's responses is reported."""
    eval_samples: int | None = 64
    """Completions that an evaluation reports, or all of them."""
    keeps_cache: bool = False
    """Whether responses go on with keys and values that older weights have computed."""
    token_reads: list[ObjectRef[TokenFields]] = field(default_factory=list)
    """What the policy has read of responses of this step whose tokens are told."""
    last_evaluation: Metrics = field(default_factory=dict)
    sync_reference: Callable[[int], None] | None = None
    """Lets the reference follow the policy after this step, when it is time."""
    mender: Mender | None = None
    """Who brings groups back that have lost ranks, if anybody does."""
    learned: LearnedSteps = field(default_factory=LearnedSteps)
    """What can be learned again then."""

    def __post_init__(self) -> None:
        self.kl = AdaptiveKL(self.config.kl_coef, self.config.kl_target, self.config.kl_horizon)
        self.best = Best(self.config.best_by)
        if self.gradients:
            # Ranks that live have the early part of a sum that others have lost: the step cannot begin anew.
            self.mender = None
        if self.mender:
            self.rollouts.survive = self.survive

    @cached_property
    def bubbles(self) -> Bubbles:
        """What engines and trainer wait for."""
        return Bubbles(self.rollouts.engines)

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

    @property
    def parts(self) -> dict[str, SavedPart]:
        """What has state beside the groups, by its name in checkpoints; each keeps what it needs, and nobody else
        knows what."""
        # The shaper at once after the order, with which rollouts note what they have: it counts what is shaped beside.
        own: dict[str, SavedPart] = {"loop": self, "batches": self.batches, "shaper": self.shaper}
        return own | {"rollouts": self.rollouts, "kl": self.kl, "best": self.best}

    def save(self, directory: Path) -> Entry:
        """How far the loop is, and what the engines have."""
        return {"step": self.step, "version": self.version, "last_evaluation": self.last_evaluation}

    def load(self, directory: Path, entry: Entry) -> None:
        """Continue from `entry`."""
        self.step = entry["step"]
        self.version = entry.get("version", self.step)  # older checkpoints: after every step
        self.last_evaluation = entry["last_evaluation"]

    def begin(self, title: str, clock: Clock) -> None:
        """Give the engines their first weights, and evaluate before the first step."""
        self.reporter.start(title, self.total_steps, self.step)
        with clock("sync"):
            self.survive(self.publish, self.version)
        if self.step == 0:
            self.evaluate(clock)
        self.bubbles.begin()
        clock.lap()

    def survive(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """What `work` gives. Where ranks are lost in it, they are brought back, and it is done anew from its beginning,
        before which nothing of it may count."""
        while True:
            try:
                return work(*arguments, **options)
            except GroupError as error:
                if self.mender is None:
                    raise
                with self.rollouts.mending():
                    self.reads.forget_all()  # of ranks that are to be new, also where nothing is learned again
                    if not self.mender.mend(error, self.learn_again):
                        raise

    def learn_again(self, since: int) -> int | None:
        """Let the groups, which are as they were after step `since`, learn what has come after it; returns how many
        steps that was, None where they cannot, as not all samples are there."""
        steps = self.learned.after(since)
        if steps is None:
            return None
        self.reads.forget_all()  # of a try before
        now, clock = (self.step, self.version, self.moved, self.token_reads), Clock(self.reporter)
        try:
            for each in steps:
                self.step, self.version = each.step - 1, each.version
                self.learn(each.groups, clock)
                if self.sync_reference and each.followed:
                    self.sync_reference(each.step)
        finally:  # also where another rank is lost meanwhile: the next try begins where the loop is, not here
            self.step, self.version, self.moved, self.token_reads = now
        return len(steps)

    @abstractmethod
    def learn(self, groups: Sequence[ShapedGroup], clock: Clock) -> tuple[Metrics, ReportedAdvantages]:
        """Update the models; returns metrics, and the advantages that samples.jsonl tells."""

    def sample(self, wanted: int) -> list[ScoredGroup]:
        """Responses to the next prompts, scored by functions and endpoints."""
        # A prime (the 1,000th) keeps the seeds of steps and of runs apart.
        seed = (self.seed + 7919 * (self.step + 1)) % 2**31
        with self.beside_rollouts(wanted):
            groups = self.rollouts.take(wanted, self.version, seed=seed, told=self._told(wanted, self.sampling))
        self._note(self.rollouts.failures)
        if not groups:
            raise RuntimeError(f"no prompt had responses of different scores{_OF_ALIKE}")
        if len(groups) < wanted:
            self.reporter.note(f"trained on {len(groups)} of {wanted} prompts: the others did not differ{_OF_ALIKE}")
        return groups

    @abstractmethod
    def beside_rollouts(self, wanted: int) -> AbstractContextManager[None]:
        """While so many groups are sampled: what may be done with those that have ended."""

    @abstractmethod
    def passes(self) -> list[ReadPass]:
        """What is read of the episodes of this step, in the order in which it begins."""

    def score(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """Add what the reward models say."""
        return self.survive(Scorers(models=self.models, roster=self.roster, split=self.split).score, groups)

    def shape(self, groups: Sequence[ScoredGroup]) -> list[ShapedGroup]:
        """Scored groups with the scores that decide whether they teach something, and that train."""
        return self.shaper.shape(groups, self._counted(groups))

    def _counted(self, groups: Sequence[ScoredGroup]) -> list[np.ndarray]:
        """Whether the loss counts each response of each group, bool [N]."""
        return counted_of(groups, mask_truncated=self.config.mask_truncated)

    def _left_out(self, truncated: bool) -> bool:
        return self.config.mask_truncated and truncated

    def _told(self, wanted: int, sampling: Sampling) -> Callable[[int], None]:
        def told(ready: int) -> None:
            self.reporter.progress(ready * sampling.samples, wanted * sampling.samples, "responses")

        return told

    def _note(self, failures: Failures) -> None:
        for error in failures.errors:
            self.reporter.note(f"not scored: {error}")

    def evaluate(self, clock: Clock) -> Metrics:
        """Held-out reward before the first step, every `eval_every` steps and after the last."""
        config = self.config
        due = config.eval_every and (self.step % config.eval_every == 0 or self.step == self.total_steps)
        if not due:
            return {}
        # 0 is a temperature: greedy.
        temperature = self.sampling.temperature if config.eval_temperature is None else config.eval_temperature
        sampling = Sampling(
            samples=config.eval_samples_per_prompt, temperature=temperature, max_tokens=self.sampling.max_tokens
        )
        with clock("evaluate"):
            told = self._told(len(self.evaluation), sampling)
            # Beside training rollouts nothing is the same twice, and these would go on from what it leaves.
            seed = None if config.max_staleness else _EVALUATION_SEED
            groups, failures = self.rollouts.evaluate(self.evaluation, sampling, seed=seed, told=told)
            self._note(failures)
            self.last_evaluation = self._judge(self.score(groups), failures)
        if self.step == 0:
            self.reporter.step(0, self.last_evaluation | clock.lap())
        return self.last_evaluation

    def _judge(self, groups: list[ScoredGroup], failures: Failures) -> Metrics:
        """Metrics of an evaluation, whose completions are reported."""
        # A prompt whose responses cannot be scored is left out, not replaced: the held-out set stays what it is.
        metrics = {"eval/failed": float(failures.samples)}
        if not groups:
            return metrics
        several = (samples := self.config.eval_samples_per_prompt) > 1
        shown = groups if several else groups[: self.eval_samples]
        rows = response_rows(shown, self.config.eval_pass_reward, self.reporter.note)
        self.reporter.evaluation(self.step, [row for group in rows for row in group][: self.eval_samples])
        return reward_metrics(groups, "eval/reward") | (solving_metrics(rows, samples) if several else {}) | metrics

    def _publish_moved(self) -> Metrics:
        """Send the engines what the policy has learned: nothing where only the critic does, or nobody."""
        found: Metrics = {}
        if self.moved:
            found = self.survive(self.publish, self.version + 1)
            self.version += 1
            self.rollouts.published(self.version)
            self.moved = False
        return found | {"weights/version": float(self.version)}

    def finish_step(
        self, groups: Sequence[ShapedGroup], metrics: Metrics, clock: Clock, advantages: ReportedAdvantages
    ) -> None:
        """Publish the new weights, if there are any, evaluate, checkpoint and report."""
        self.step += 1
        if self.mender:
            self.learned.add(Learned(step=self.step, version=self.version, groups=groups))
        failures, discards = self.rollouts.report()
        # Before publishing: ages count from the weights that these responses were asked of.
        metrics |= rollout_metrics(groups, self.version, failures) | self.shaper.metrics(groups)
        metrics |= discard_metrics(self.config, discards, groups)
        with clock("sync"):
            metrics |= self._publish_moved()
            if self.sync_reference:
                self.survive(self.sync_reference, self.step)
                self.learned.followed(self.step)
        evaluation = self.evaluate(clock)
        metrics |= evaluation
        best = self.best.improved_by(evaluation)
        self.bubbles.ask()  # answered beside the checkpoint
        with clock("checkpoint"):
            self.survive(self.checkpoint.save, self.step, self.done, best)
        metrics |= clock.lap()
        metrics |= self.bubbles.metrics(metrics)
        metrics["tokens_per_second"] = tokens_per_second(metrics["tokens/generated"], metrics)
        # On the screen: what the untrained model says, and then as often as it is evaluated.
        shown = self.step == 1 or any(name.startswith("eval/") for name in metrics)
        try:
            self.reporter.step(self.step, metrics, left_out_rows(discards))
            reads, self.token_reads = self.token_reads, []  # the next step may have none
            rows = self.sample_report.rows(groups, advantages, self.reporter.note, reads)
            self.reporter.samples(self.step, rows.spread + rows.others, rows.spread if shown else [])
            self.reporter.tokens(self.step, rows.tokens)
        finally:
            self.checkpoint.keep()  # also when only the report has failed: the step is made
        if self.mender:
            # Where there is no room for more, the state of now is wanted.
            self.learned.drop(self.mender.note(self.step, math.inf if self.learned.is_full else _again(metrics)))
        self.checkpoint.end_if_asked()


def _again(metrics: Metrics) -> float:
    return sum(metrics.get(name, 0.0) for name in _AGAIN)
