"""Which jobs read a setting; of others it is refused unless it equals its default (`refuse_unused`).

`tests/test_settings.py` compares this table with what is refused.
"""

from algorithms.rl.baselines import WITHOUT_CRITIC
from algorithms.rl.surrogates import SURROGATES
from launch.settings.tree import by_path, jobs

_SAMPLING = ("ppo", "grpo")
_GENERATIVE = ("sft", "reward", "dpo", *_SAMPLING)
READ_BY = {
    "reward": _SAMPLING,
    "rollout": _SAMPLING,
    "critic": ("ppo",),
    "reference": ("dpo", *_SAMPLING),
    "data.corpus": ("embedding", "reranker"),
    "data.max_length": ("sft", "reward", "dpo"),
    "data.system_prompt": _GENERATIVE,
    "data.overlong": _GENERATIVE,
    "data.truncation_side": _GENERATIVE,
    "data.eval_fraction": _GENERATIVE,
    "data.weights": _GENERATIVE,
    "policy.logprob_chunk_tokens": _GENERATIVE,
    "model.quantize": _GENERATIVE,
    "model.lora.dropout": ("sft", "reward", "dpo", "embedding", "reranker"),
    "cluster.kubernetes.rollout_node_selector": _SAMPLING,
    "cluster.kubernetes.autoscaling": _SAMPLING,
}
"""Setting, or section with all that is below it -> the jobs that read it; what is not here, all read."""


def readers(path: str) -> tuple[str, ...]:
    """Names of the jobs that read the setting of this dotted name (`launch.settings.tree`), in their usual order."""
    own = by_path()[path]
    if path.startswith("algorithm."):
        return tuple(job for job in jobs() if any(job in item.jobs for item in own))
    while path and path not in READ_BY:
        path = path.rpartition(".")[0]
    return READ_BY[path] if path else tuple(jobs())


def readers_text(path: str) -> str:
    """The same in words."""
    found = readers(path)
    return "all jobs" if len(found) == len(jobs()) else ", ".join(found)


def read_with(path: str) -> str:
    """Choices of grpo with which it reads the setting of this dotted name: `loss clip or gspo`; empty if with all."""
    name = path.removeprefix("algorithm.")
    for field, table in (("advantage", WITHOUT_CRITIC), ("loss", SURROGATES)):
        if reading := [choice for choice, entry in table.items() if name in entry.reads]:
            return f"{field} {' or '.join(reading)}"
    return ""
