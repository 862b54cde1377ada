"""All kinds of jobs: a new one is an entry here, beside its settings in `algorithms.config.AlgorithmConfig`."""

from launch.config import RunConfig
from launch.kinds.embedding import EmbeddingKind
from launch.kinds.kind import JobKind
from launch.kinds.offline import DPOKind, RewardModelKind, SFTKind
from launch.kinds.reranker import RerankerKind
from launch.kinds.rl import GRPOKind, PPOKind

KINDS: dict[str, type[JobKind]] = {
    "sft": SFTKind,
    "reward": RewardModelKind,
    "dpo": DPOKind,
    "ppo": PPOKind,
    "grpo": GRPOKind,
    "embedding": EmbeddingKind,
    "reranker": RerankerKind,
}
"""`algorithm.name` -> its kind."""


def job_kind(config: RunConfig) -> JobKind:
    """The kind of job that a configuration describes; it answers for this configuration."""
    return KINDS[config.algorithm.name](config)
