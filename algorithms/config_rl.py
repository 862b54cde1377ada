"""Settings of reinforcement learning: what PPO and the GRPO family share, and what each has of its own."""

import math
from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from actors.config import Config, refuse_unused
from actors.config_numbers import (
    Batch,
    Epochs,
    Factor,
    PositiveFactor,
    PositiveThreshold,
    Rows,
    Steps,
    StepsOrNone,
    Threshold,
    Tokens,
)
from algorithms.config_stop import StopWhen
from algorithms.rl.baselines import BASELINES, WITHOUT_CRITIC, Baseline, BaselineName
from algorithms.rl.formula import check_choice
from algorithms.rl.surrogates import RATIO_BOUNDS, SURROGATES, Surrogate, SurrogateName


class ImportanceCorrection(Config):
    """Weights against differences between sampler's and trainer's logprobs: see `rl.losses.importance_weights`.

    With several updates a step this is decoupled PPO (arXiv 2505.24298): see `rl.policy_loss`.
    """

    level: Literal["token", "sequence"] = "token"
    """One weight per token, or the product over a response."""
    mode: Literal["truncate", "mask"] = "truncate"
    """What happens above `cap`: the weight is cut to it, or the token (response) is left out of the loss."""
    cap: PositiveFactor = 2.0
    """Largest weight pi_trainer / pi_sampler."""


class OverlongPenalty(Config):
    """DAPO's soft penalty (arXiv 2503.14476): 0 until `buffer` tokens before the limit, then falling to -`penalty`."""

    buffer: Tokens
    """Tokens before rollout.max_response_tokens over which the penalty grows."""
    penalty: PositiveFactor = 1.0
    """Penalty at the limit."""


_DEFAULT_STEPS = 100


class RLConfig(Config):
    """What PPO and the GRPO family share."""

    steps: StepsOrNone | None = None
    """Rollout-and-update rounds (default: 100, or as many as `epochs` take); 0 only evaluates."""
    epochs: Epochs | None = None
    """Instead of `steps`, passes over the prompts of data.train: epochs x prompts / prompts_per_step steps, rounded up.
    Prompts that replace failed groups, or those that dynamic_sampling drops, come on top and are not counted."""
    prompts_per_step: Batch = 16
    """Prompts sampled in a step."""
    samples_per_prompt: Batch = 8
    """Responses to each prompt."""
    samples_per_update: Batch | None = None
    """Samples in one optimizer update (default: all samples of the step, one update)."""
    epochs_per_step: Epochs = 1
    """Passes over a step's samples."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The importance ratio is clipped from below at 1 - clip_low."""
    clip_high: Factor = 0.2
    """The importance ratio is clipped from above at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1, le=10**6)
    """Bound on ratio x |advantage| where the advantage is negative (arXiv 1912.09729); none by default."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens of the update; over sequences of their token means; or the sum over tokens, divided by
    sequences x `aggregation_constant`."""
    aggregation_constant: Tokens | None = None
    """Tokens that stand for a sequence's length in aggregation constant (default: rollout.max_response_tokens)."""
    kl_coef: Factor = 0.0
    """Weight of the KL penalty to the reference; 0 starts no reference group."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the penalty goes: a term of the loss, or subtracted from the rewards."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimate of KL(policy || reference), by http://joschu.net/blog/kl-approx.html."""
    kl_importance_ratio: bool = False
    """With kl_in loss, multiply the penalty of each token by its importance ratio pi / pi_old: the KL and its gradient
    are then unbiased, also where the policy has moved since it sampled (with k1 or k3)."""
    kl_target: PositiveFactor | None = None
    """KL per response that an adaptive kl_coef aims at (arXiv 1909.08593), with kl_in reward; fixed without it."""
    kl_horizon: Rows = 10_000
    """Samples over which the adaptive kl_coef reacts."""
    entropy_coef: Factor = 0.0
    """Weight of the entropy bonus in the loss."""
    mask_truncated: bool = False
    """Leave responses that were cut at the length limit out of the loss, and with it out of everything that the others
    are compared with: baselines, whitening, the mean of reward.normalize, and whether a group teaches anything."""
    missing_eos_penalty: Factor = 0.0
    """Subtracted from the reward of a response that was cut at the length limit."""
    overlong: OverlongPenalty | None = None
    """Penalty for responses that come close to the length limit."""
    importance_correction: ImportanceCorrection | Literal["auto"] | None = "auto"
    """Correct for the difference between trainer and sampler: weights of the sampler's tokens, and clips around the
    policy at the start of the step; auto: none with max_staleness 0, else the defaults below; null: none."""
    max_staleness: int = Field(default=0, ge=0, le=8)
    """Versions by which any token of a response may lag behind the policy that trains on it. 0 is exactly on-policy:
    generation and training take turns. With n, responses are generated up to n steps ahead, beside training, and go on
    under new weights while these arrive (docs/async.md)."""
    overlap_reads: Literal["auto"] | bool = "auto"
    """Whether reference logprobs, old logprobs and values of groups that have ended are computed while others are still
    generated, instead of after them; with max_staleness above 0, only logprobs of a reference group that stays as it
    is. auto: where that takes no GPU and no core from the engines (docs/async.md)."""
    eval_every: Steps | None = None
    """Steps between evaluations on data.eval (also before the first and after the last step)."""
    eval_samples_per_prompt: Batch = 1
    """Responses to each evaluation prompt."""
    eval_temperature: Factor | None = None
    """Sampling temperature of evaluation (default: rollout.temperature; 0 is greedy); its other settings are those of
    rollout, such as top_p and penalties."""
    eval_pass_reward: Threshold = 1.0
    """Reward from which a response of an evaluation is solved: in eval/pass@k and eval/majority, which there are with
    eval_samples_per_prompt above 1, and in eval_samples.jsonl."""
    stop_when: StopWhen | None = None
    """End training early, once an evaluation metric is good enough."""
    best_by: str | None = None
    """Evaluation metric, for example eval/reward/mean, whose best checkpoint is kept and exported (default: the last
    one is); the highest value is the best. That of the evaluation before the first step, which has no checkpoint, does
    not count."""

    def total_steps(self, prompts: int | None) -> int | None:
        """Steps of the run over this many training prompts; None where only their number, which is unknown, tells."""
        if self.epochs is None:
            return _DEFAULT_STEPS if self.steps is None else self.steps
        return None if prompts is None else math.ceil(self.epochs * prompts / self.prompts_per_step)

    @property
    def needs_reference(self) -> bool:
        """Whether the policy is compared with a frozen reference."""
        return self.kl_coef > 0

    @property
    def guides(self) -> dict[str, str]:
        """Field -> directory of the other models that training reads; reward models are a section of their own."""
        return {}

    @property
    def samples_per_step(self) -> int:
        """Samples of one step: prompts_per_step x samples_per_prompt."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step, over all its epochs."""
        return self.epochs_per_step * (self.samples_per_step // (self.samples_per_update or self.samples_per_step))

    @property
    def correction(self) -> ImportanceCorrection | None:
        """`importance_correction`, with auto decided by max_staleness; None: no weights."""
        if self.importance_correction != "auto":
            return self.importance_correction
        return ImportanceCorrection() if self.max_staleness else None

    @property
    def reads_old_logprobs(self) -> bool:
        """Whether a pass before the updates reads logprobs of the policy: the only update of a step has its own."""
        return self.correction is not None and self.updates_per_step > 1

    @property
    def overlaps_gradients(self) -> bool:
        """Whether the policy trains on groups that have ended while others are generated."""
        return False

    @property
    @abstractmethod
    def baseline(self) -> Baseline:
        """How scores become advantages."""

    @property
    @abstractmethod
    def surrogate(self) -> Surrogate:
        """The term of the loss that the advantages are in."""

    @model_validator(mode="after")
    def _one_length(self) -> "RLConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps must be left out, or null, with epochs, which say how many there are, got {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _arithmetic(self) -> "RLConfig":
        # A smaller last update would take as large a step as the others, for fewer samples.
        if self.samples_per_update and self.samples_per_step % self.samples_per_update:
            raise ValueError(
                f"samples_per_update must divide prompts_per_step x samples_per_prompt = {self.samples_per_step}, "
                f"got {self.samples_per_update}"
            )
        # Not falsy: 0 is a temperature, and None means that of rollout.
        if self.eval_temperature == 0 and self.eval_samples_per_prompt > 1:
            raise ValueError(
                f"eval_samples_per_prompt must be 1 with eval_temperature 0, which gives the same response every time, "
                f"got {self.eval_samples_per_prompt}"
            )
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "RLConfig":
        if self.aggregation != "constant":
            refuse_unused(self, "aggregation_constant", why=f"with aggregation {self.aggregation}")
        if not (self.kl_in == "reward" and self.kl_coef):
            refuse_unused(self, "kl_target", why="unless kl_in is reward and kl_coef above 0")
        # A step changes the coefficient by up to 0.2 x samples / horizon: from 5 horizons on, it could reach 0.
        if self.kl_target and self.samples_per_step >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon must be above a fifth of the {self.samples_per_step} samples of a step, "
                f"got {self.kl_horizon}"
            )
        self._check_kl_in_loss()
        if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"dual_clip must be above 1 + clip_high = {1 + self.clip_high:g}, got {self.dual_clip:g}")
        if not self.kl_coef:  # no reference is started, so nothing of it is read
            refuse_unused(self, "kl_in", "kl_estimator", "kl_importance_ratio", why="with kl_coef 0")
        elif self.kl_in == "reward":
            refuse_unused(self, "kl_importance_ratio", why="with kl_in reward")
        if not self.kl_target:
            refuse_unused(self, "kl_horizon", why="without kl_target")
        if self.mask_truncated:
            why = "with mask_truncated, which leaves the responses that it punishes out of loss and baselines"
            refuse_unused(self, "missing_eos_penalty", why=why)
        if self.correction and self.updates_per_step == 1:
            auto = self.importance_correction == "auto"
            brought, unless = f"max_staleness {self.max_staleness}", " unless importance_correction is null"
            why = f"with {brought if auto else 'importance_correction'} and one update a step, where the importance "
            why += f"ratio is 1{unless * auto}"
            refuse_unused(self, *(name for name in RATIO_BOUNDS if name in type(self).model_fields), why=why)
        return self

    def _check_kl_in_loss(self) -> None:
        if not (self.kl_coef and self.kl_in == "loss"):
            return
        if self.kl_estimator == "k1" and not self.kl_importance_ratio:
            raise ValueError(
                "kl_estimator must be k2 or k3 with kl_in loss, where the gradient of k1 has mean 0 without "
                "kl_importance_ratio, got k1"
            )
        if self.kl_estimator == "k2" and self.kl_importance_ratio:
            raise ValueError("kl_estimator must be k1 or k3 with kl_importance_ratio, as k2 is biased with it, got k2")

    @model_validator(mode="after")
    def _evaluations_take_place(self) -> "RLConfig":
        if not self.eval_every:
            unread = ("eval_samples_per_prompt", "eval_temperature", "eval_pass_reward")
            refuse_unused(self, *unread, why="without eval_every")
            if self.steps == 0:
                raise ValueError("steps must be above 0 without eval_every, as 0 only evaluates, got 0")
        return self


def pass_sizes(samples: int) -> list[int]:
    """The k of eval/pass@k for so many samples of a prompt: powers of two below their number, and this number."""
    return sorted({1 << power for power in range(samples.bit_length())} | {samples})


class PPOConfig(RLConfig):
    """Proximal Policy Optimization (arXiv 1707.06347) with a critic, as in arXiv 2203.02155."""

    name: Literal["ppo"]
    """Algorithm."""
    prompts_per_step: Batch = 128
    """Prompts sampled in a step."""
    samples_per_prompt: Batch = 1
    """Responses to each prompt."""
    kl_coef: Factor = 0.01
    """Weight of the KL penalty to the reference; 0 starts no reference group."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where the penalty goes: a term of the loss, or subtracted from the rewards."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimate of KL(policy || reference), by http://joschu.net/blog/kl-approx.html."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """Lambda of generalized advantage estimation (arXiv 1506.02438): 1 least biased, 0 least noisy."""
    whiten_advantages: bool = True
    """Give the advantages of a step's tokens mean 0 and variance 1, over all ranks."""
    value_clip: PositiveThreshold | None = 0.5
    """Largest change of a value, from that before the update, that the value loss rewards; none: no clip."""
    critic_warmup_steps: StepsOrNone = 0
    """First steps in which only the critic learns."""

    @property
    def baseline(self) -> Baseline:
        return BASELINES["gae"]

    @property
    def surrogate(self) -> Surrogate:
        return SURROGATES["clip"]

    def warmup_problem(self, prompts: int | None) -> str | None:
        """What is wrong with critic_warmup_steps, for this many training prompts; None where nothing is known to be."""
        total = self.total_steps(prompts)
        if total is None or not 0 < total <= self.critic_warmup_steps:  # 0 steps only evaluate
            return None
        steps = "steps" if self.epochs is None else f"the steps of epochs {self.epochs}"
        return (
            f"critic_warmup_steps must be below {steps} ({total}), or the policy never learns, "
            f"got {self.critic_warmup_steps}"
        )

    @model_validator(mode="after")
    def _the_policy_learns(self) -> "PPOConfig":
        if problem := self.warmup_problem(None):
            raise ValueError(problem)
        return self


class GRPOConfig(RLConfig):
    """Group Relative Policy Optimization (arXiv 2402.03300) and its family, all without a critic."""

    name: Literal["grpo"]
    """Algorithm."""
    advantage: BaselineName = "group"
    """Baseline: the group's mean (GRPO); the mean of the others in the group (RLOO, arXiv 2402.14740); none, with
    whitening over the step (REINFORCE++, arXiv 2501.03262); the group's mean, with whitening over the step."""
    normalize_std: bool = True
    """With advantage group, divide centred rewards by their standard deviation within the group."""
    loss: SurrogateName = "clip"
    """Surrogate: clipped token ratios (PPO); clipped sequence ratios (GSPO, arXiv 2507.18071); clipped and detached
    ratios as weights (CISPO, arXiv 2506.13585); a soft gate instead of a clip (SAPO, arXiv 2511.20347)."""
    cispo_max_ratio: PositiveFactor | None = None
    """Largest importance ratio in loss cispo, which needs it."""
    sapo_temperatures: tuple[PositiveFactor, PositiveFactor] = (1.0, 1.05)
    """Steepness of sapo's gate for positive and for negative advantages."""
    dynamic_sampling: bool = False
    """Replace groups of equal scores, which teach nothing, by those of further prompts (DAPO, arXiv 2503.14476). Scores
    are rewards after normalisation, clip and penalties for length, of the responses that the loss counts; a KL penalty
    in the reward, by which all responses differ, comes later."""
    dynamic_sampling_rounds: Epochs = 10
    """So many times prompts_per_step prompts may be sampled for a step. One that has fewer groups then trains on what
    there is, saying so; without any, the run ends."""

    overlap_gradients: bool = False
    """Whether gradients of groups that have ended are computed while others are still generated, and the update of the
    step is made of their sum: on-policy all the same. Needs one update a step and advantages that are a group's own.
    Sums are added in the order in which groups end, so that runs are no longer equal bit for bit (docs/async.md)."""

    @property
    def overlaps_gradients(self) -> bool:
        return self.overlap_gradients

    @property
    def baseline(self) -> Baseline:
        return BASELINES[self.advantage]

    @property
    def surrogate(self) -> Surrogate:
        return SURROGATES[self.loss]

    @model_validator(mode="after")
    def _groups(self) -> "GRPOConfig":
        # reinforce_pp compares nothing within a group: it is right with one sample.
        if self.samples_per_prompt < 2 and self.baseline.compare:
            raise ValueError(
                f"samples_per_prompt must be at least 2 for grpo with advantage {self.advantage}, which compares the "
                f"samples of a group, got {self.samples_per_prompt}"
            )
        if self.dynamic_sampling and self.samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt must be at least 2 with dynamic_sampling, which compares the samples of a group, "
                f"got {self.samples_per_prompt}"
            )
        if not self.dynamic_sampling:
            refuse_unused(self, "dynamic_sampling_rounds", why="without dynamic_sampling")
        check_choice(self, "advantage", WITHOUT_CRITIC)
        return self

    @model_validator(mode="after")
    def _losses(self) -> "GRPOConfig":
        check_choice(self, "loss", SURROGATES)
        # A sum over tokens would count its one ratio as often as a sequence has tokens.
        if self.surrogate.by_sequence and self.aggregation != "sequence":
            raise ValueError(
                f"aggregation must be sequence with loss {self.loss}, whose ratio is one of a sequence, "
                f"got {self.aggregation}"
            )
        return self
