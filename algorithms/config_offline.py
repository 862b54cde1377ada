"""Settings of the jobs that learn from given data: supervised fine-tuning, reward models, preference optimisation."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from actors.config import Config, Unused, refuse_unused
from actors.config_numbers import Batch, Epochs, Factor, PositiveFactor, Steps
from algorithms.config_stop import StopWhen


class OfflineConfig(Config):
    """What jobs that learn from given rows share."""

    name: str
    """Algorithm."""

    steps: Steps | None = None
    """Optimizer updates; give this or `epochs`."""
    epochs: Epochs | None = None
    """Passes over the data; give this or `steps`."""
    samples_per_update: Batch = 128
    """Rows in one optimizer update: sequences, or pairs of chosen and rejected."""
    eval_every: Steps = 50
    """Updates between evaluations (when data.eval is given)."""
    stop_when: StopWhen | None = None
    """End training early, once an evaluation metric is good enough."""
    best_by: str | None = None
    """Evaluation metric, for example eval/ndcg@10, whose best checkpoint is kept and exported (default: the last one
    is); the highest value is the best, of a loss or perplexity the lowest."""

    @model_validator(mode="after")
    def _one_length(self) -> "OfflineConfig":
        if (self.steps is None) == (self.epochs is None):
            got = "neither" if self.steps is None else "both (algorithm.epochs=null drops the epochs)"
            raise ValueError(f"steps must be given, or epochs, but not both, got {got}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the job compares with a frozen reference."""
        return False

    @property
    def guides(self) -> dict[str, str]:
        """Field -> directory of the other models that training reads."""
        return {}

    def updates(self, rows: int) -> int:
        """Optimizer updates of the run over data of `rows` rows: `steps`, or as many as `epochs` take.

        Updates go on across the border of two epochs, so only the last one visits rows beyond `epochs`.
        """
        return self.steps or math.ceil((self.epochs or 1) * rows / self.samples_per_update)


class SFTConfig(OfflineConfig):
    """Supervised fine-tuning: next-token cross-entropy on completions."""

    name: Literal["sft"]
    """Algorithm."""
    train_on: Literal["completions", "last", "all"] = "completions"
    """Tokens the loss counts: all assistant turns and completions, the last assistant turn alone, or every token."""


class RewardModelConfig(OfflineConfig):
    """Reward model from preference pairs: pairwise Bradley-Terry (arXiv 2203.02155)."""

    name: Literal["reward"]
    """Algorithm."""
    centering: Factor = 0.0
    """Weight of the squared sum of a pair's two scores, which keeps their mean near 0 (arXiv 2312.09244)."""


PreferenceLossName = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "exo",
    "nca",
    "bco",
    "sppo",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
    "simpo",
    "cpo",
    "orpo",
    "kto",
]
REFERENCE_FREE = ("simpo", "cpo", "orpo", "sft")
"""Losses that compare with no reference."""
LENGTH_AVERAGED = ("ipo", "sigmoid_norm", "simpo", "orpo")
"""Losses of logprobs averaged over tokens, whose beta is on another scale than that of summed ones."""
PER_SAMPLE_SMOOTHED = ("sigmoid", "cpo", "robust", "exo", "aot", "aot_unpaired")
"""Losses that read label_smoothing."""
READ_BY_ONE = {
    "simpo_gamma": "simpo",
    "cpo_alpha": "cpo",
    "discopop_tau": "discopop",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
}
"""Field -> the only loss that reads it."""


class PreferenceLoss(Config):
    """One loss and its weight in the sum."""

    name: PreferenceLossName
    """Which one; docs/algorithms.md has the formulas."""
    weight: PositiveFactor = 1.0
    """Factor in the sum of losses."""


class DPOConfig(OfflineConfig):
    """Direct Preference Optimization (arXiv 2305.18290) and its family, chosen by `loss`."""

    name: Literal["dpo"]
    """Algorithm."""
    loss: list[PreferenceLoss] = [PreferenceLoss(name="sigmoid")]
    """A name, or a list of {name, weight} whose weighted sum is minimised."""
    beta: PositiveFactor = 0.1
    """Strength of the tie to the reference: the implicit reward is beta x log-ratio (simpo: factor of mean
    logprobs; orpo: weight of its odds-ratio term)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of pairs whose labels are swapped: with sigmoid this is cDPO; robust and exo need it above 0."""
    simpo_gamma: Factor = 0.5
    """Target margin of simpo, in units of its reward beta x mean logprob."""
    cpo_alpha: Factor = 1.0
    """Weight of the chosen response's negative log-likelihood in cpo."""
    discopop_tau: PositiveFactor = 0.05
    """Temperature of discopop's modulation."""
    desirable_weight: PositiveFactor = 1.0
    """Weight of desirable rows in kto."""
    undesirable_weight: PositiveFactor = 1.0
    """Weight of undesirable rows in kto."""
    reference: Literal["live", "precomputed"] = "live"
    """Reference logprobs: computed with every batch, or once before training and kept on disk by content."""

    @field_validator("loss", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        items = value if isinstance(value, list) else [value]
        return [{"name": item} if isinstance(item, str) else item for item in items]

    @property
    def losses(self) -> list[str]:
        """Names of the losses."""
        return [item.name for item in self.loss]

    @property
    def needs_reference(self) -> bool:
        """Whether any loss compares with the reference."""
        return any(name not in REFERENCE_FREE for name in self.losses)

    @property
    def unpaired(self) -> bool:
        """Whether rows are single labelled responses (kto) instead of pairs."""
        return "kto" in self.losses

    @model_validator(mode="after")
    def _losses_fit(self) -> "DPOConfig":
        names = self.losses
        if not names:
            raise ValueError("loss must name at least one loss, got []")
        if len(set(names)) < len(names):
            raise ValueError(f"loss must name each loss once, got {', '.join(names)}")
        if "kto" in names and len(names) > 1:
            raise ValueError(f"loss kto reads single responses, not pairs, so it must be alone, got {', '.join(names)}")
        # At 0 robust is sigmoid under another name, and exo takes the logarithm of 0.
        for name in ("robust", "exo"):
            if name in names and not self.label_smoothing:
                raise ValueError(f"label_smoothing must be above 0 for {name}, got 0")
        # In a weighted sum, one loss that reads it is enough.
        if self.label_smoothing and not set(names) & set(PER_SAMPLE_SMOOTHED):
            verb = "does" if len(names) == 1 else "do"
            rule = f"label_smoothing must be 0 for {', '.join(names)}, which {verb} not read it"
            raise Unused(f"{rule}, got {self.label_smoothing:g}", "label_smoothing", 0.0)
        if not self.needs_reference and self.reference == "precomputed":
            verb = "has" if len(names) == 1 else "have"
            rule = f"reference must be left out for {', '.join(names)}, which {verb} none"
            raise Unused(f"{rule}, got precomputed", "reference", "live")
        if self.unpaired and self.reference == "precomputed":
            raise ValueError(
                "reference must be live for kto, which also reads responses to other prompts, got precomputed"
            )
        if self.unpaired and self.samples_per_update < 2:
            raise ValueError(
                f"samples_per_update must be at least 2 for kto, which mixes the rows of an update, "
                f"got {self.samples_per_update}"
            )
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "DPOConfig":
        for name, loss in READ_BY_ONE.items():
            if loss not in self.losses:
                refuse_unused(self, name, why=f"without loss {loss}, the only one that reads it")
        if self.losses == ["sft"]:  # in a sum, another loss reads it
            refuse_unused(self, "beta", why="for sft alone, which does not read it")
        if self.unpaired:
            why = "for kto, which has desirable_weight and undesirable_weight"
            # kto is always alone, and its loss reads no weight.
            refuse_unused(self.loss[0], "weight", why=why, section="loss.0.")
        return self


def averaged_beta_warning(config: DPOConfig) -> str | None:
    """A warning if beta is that of summed logprobs (about 0.01 to 0.5) where a loss multiplies averaged ones by it.

    So do simpo (2 to 10 in the authors' runs, arXiv 2405.14734) and sigmoid_norm (5 in arXiv 2411.15124). Of the other
    losses of averaged logprobs, ipo squares the distance to a margin of 1 / (2 beta) and orpo's beta is the weight of
    its odds-ratio term: there small values are usual.
    """
    names = [name for name in config.losses if name in ("simpo", "sigmoid_norm")]
    if not names or config.beta >= 1:
        return None
    return (
        f"algorithm.beta: {config.beta:g} is on the scale of summed logprobs, but {' and '.join(names)} "
        f"multiplies averaged ones; usual values are 2 to 10"
    )
