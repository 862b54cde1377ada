"""Which of a step's metrics a person sees, the most important first, each as `name value`."""

from collections.abc import Mapping

Metrics = Mapping[str, float]

SHOWN = (  # label, metric and format
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
_SMALL = 0.001  # three decimals would show 0.000


def step_figures(metrics: Metrics) -> list[str]:
    """Of a training step; none of an evaluation before the first step."""
    losses = [f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("loss/")]
    shown = [f"{label} {metrics[name]:{form}}" for label, name, form in SHOWN if name in metrics]
    if "reward/mean" in metrics:
        return shown  # the loss of a reinforcement step says nothing; that of an imitation step is the headline
    return losses[:1] + shown if losses else []


def held_out_figures(metrics: Metrics) -> list[str]:
    """Of an evaluation."""
    found = {name: value for name, value in metrics.items() if name.startswith("eval/") and _tells(name, value)}
    if len(found) > MANY:
        found = {name: value for name, value in found.items() if _end(name) in HEADLINES} or found
    return [f"{name} {_number(found[name])}" for name in sorted(found, key=lambda name: (_end(name) != "mean", name))]


def _tells(name: str, value: float) -> bool:
    # That nothing failed goes without saying.
    return _end(name) != "std" and (bool(value) or _end(name) != "failed")


def _end(name: str) -> str:
    return name.rpartition("/")[2]


def _number(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < _SMALL else f"{value:.3f}"
