"""Which of a step's metrics a person sees, the most important first, each as `name value`."""

from collections.abc import Mapping

Metrics = Mapping[str, float]

SHOWN = (
    ("reward", "reward/mean", ".3f"),
    ("accuracy", "reward_model/accuracy", ".3f"),
    ("accuracy", "rewards/accuracy", ".3f"),
    ("accuracy", "embedding/accuracy", ".3f"),
    ("accuracy", "reranker/accuracy", ".3f"),
    ("KL", "policy/kl", ".3g"),
    ("explained", "critic/explained_variance", ".2f"),
    ("grad norm", "grad_norm", ".3g"),
    ("entropy", "policy/entropy", ".3f"),
    ("tokens/s", "tokens_per_second", ",.0f"),
    ("s/step", "time/step", ".2f"),
)
MANY, HEADLINES = 4, ("ndcg@10", "recall@1", "base_ndcg@10", "spearman")
"""Of more evaluation metrics than `MANY`, only these are shown, if any of them is there."""
_SMALL = 0.001


def step_figures(metrics: Metrics) -> list[str]:
    """Of a training step."""
    shown = [f"{label} {metrics[name]:{form}}" for label, name, form in SHOWN if name in metrics]
    if "reward/mean" not in metrics:
        # The loss of a reinforcement step says nothing; that of an imitation step is the headline.
        losses = [f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("loss/")]
        shown = losses[:1] + shown
    return shown


def held_out_figures(metrics: Metrics) -> list[str]:
    """Of an evaluation."""
    found = sorted((name, value) for name, value in metrics.items() if name.startswith("eval/"))
    if len(found) > MANY:
        found = [item for item in found if item[0].rpartition("/")[2] in HEADLINES] or found
    return [
        f"{name} {value:.3f}" if abs(value) >= _SMALL or not value else f"{name} {value:.2g}" for name, value in found
    ]
