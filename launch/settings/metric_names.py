"""Names of the evaluation metrics that a job writes, so that a wrong one is found before training, not after hours."""

from algorithms.config_encoder import EmbeddingConfig
from algorithms.config_rl import pass_sizes
from launch.config import RunConfig

_EVERY_STEP = (
    *("grad_norm", "learning_rate", "tokens/trained", "tokens/padding_fraction", "tokens_per_second"),
    *(f"time/{name}" for name in ("step", "update", "evaluate", "checkpoint", "sync", "lost", "effective", "elapsed")),
)
_OFFLINE_STEP = ("policy/router_aux_loss", "time/data", "time/prepare", "time/update_rank")
SFT_STEP = ("loss/nll", "policy/entropy")
REWARD_STEP = ("loss/reward_model", *(f"reward_model/{name}" for name in ("accuracy", "margin", "chosen", "rejected")))
DPO_STEP = (
    *("loss/dpo", *(f"rewards/{name}" for name in ("accuracy", "margin", "chosen", "rejected"))),
    *(f"logprobs/{name}" for name in ("chosen", "rejected", "chosen_per_token")),
)
ENCODER_STEP = ("texts/at_limit_fraction", "micro_batches")
RL_STEP = (
    *(f"reward/{name}" for name in ("mean", "std", "min", "max", "failed", "turns", "zero_variance_fraction")),
    *("reward/shaped_mean", "reward/kl_per_response", "reward/kl_coef", "loss/policy"),
    *(f"policy/{name}" for name in ("entropy", "kl", "clip_fraction", "ratio_mean", "sampler_kl", "token_staleness")),
    *(f"policy/importance_{name}" for name in ("weight_mean", "weight_p01", "weight_p50", "weight_p99")),
    *("policy/importance_truncated_fraction", "policy/router_aux_loss"),
    *("mismatch/kl", "mismatch/logprob_abs_mean"),
    *(f"rollout/{name}" for name in ("response_tokens_mean", "response_tokens_max", "truncated_fraction", "failed")),
    *(f"rollout/{name}" for name in ("engines", "held", "postponed", "turns_mean", "dynamic_sampling_kept")),
    *(f"tokens/{name}" for name in ("generated", "given", "micro_batches")),
    *(f"staleness/{name}" for name in ("mean", "max", "carried_fraction", "dropped", "aborted", "left_out")),
    *(f"bubble/engine_{name}_fraction" for name in ("idle", "underfilled", "paused")),
    *(f"bubble/{name}" for name in ("trainer_wait_seconds", "early_update_seconds", "early_update_fraction")),
    *(f"bubble/{name}" for name in ("sync_tokens_lost", "tokens_discarded", "engines_unheard")),
    *(f"weights/{name}" for name in ("version", "sync_seconds", "canary_difference", "merge_error")),
    *(f"time/{name}" for name in ("rollout", "score", "reference", "values", "advantages")),
)
CRITIC_STEP = (
    *("loss/critic", "critic/grad_norm", "critic/learning_rate"),
    *(f"critic/{name}" for name in ("explained_variance", "values_mean", "returns_mean", "clip_fraction")),
)
"""Metrics of training steps, by job; which of them are there depends on the settings."""
SFT = ("loss", "sequence_probability")
REWARD = ("loss", "accuracy", "margin", "score_mean", "score_std", "calibration_error")
KTO = ("loss", "rewards/chosen", "rewards/rejected", "logprobs/chosen")
DPO = (*KTO, "rewards/margin", "rewards/accuracy", "logprobs/rejected", "logprobs/chosen_per_token")
RL = ("reward/mean", "reward/std", "failed")
UNORDERED = (
    *("eval/reward/std", "eval/failed", "eval/reward/zero_variance_fraction", "eval/score_mean", "eval/score_std"),
    *("eval/rewards/rejected", "eval/logprobs/rejected"),
)
"""Metrics of which a higher value is not a better one."""
RETRIEVAL = ("ndcg@10", "mrr@10", "map@100", "recall@1", "recall@5", "recall@10", "recall@100")
RERANKING = ("map", "mrr@10", "ndcg@10")


def require_metric(known: list[str], field: str, name: str, apart: tuple[str, ...] = ()) -> None:
    """Raise ValueError, which names `field`, if none of the `known` metrics has this name, or it is one of `apart`.

    Where none is known, every name is taken: the loop says after its first evaluation what there is.
    """
    known = [metric for metric in known if metric not in apart]
    if not known or name in known:
        return
    from launch.settings.names import nearest_name  # which only a mistake needs

    near = nearest_name(name, known) or nearest_name(f"eval/{name}", known)
    raise ValueError(f"{field} must be one of {', '.join(known)}{near}, got {name[:80]}")


def of_responses(config: RunConfig, samples: int) -> list[str]:
    """Metrics of sampled responses, `samples` of them to each prompt."""
    return [*RL, *_of_samples(samples), *_of_sources(config), *_of_sets(config)]


def of_steps(own: tuple[str, ...]) -> list[str]:
    """Metrics that training on given rows writes, with those of one job; none where these are not known."""
    return [*own, *_EVERY_STEP, *_OFFLINE_STEP] if own else []


def of_rl_steps(config: RunConfig, own: tuple[str, ...] = ()) -> list[str]:
    """Metrics that reinforcement learning writes of its steps, with those of one job."""
    train = config.data.train
    sets = [f"reward/{name}/mean" for name in train] if isinstance(train, dict) and len(train) > 1 else []
    return [*RL_STEP, *own, *_of_sources(config), *sets, *_EVERY_STEP]


def of_embeddings(algorithm: EmbeddingConfig) -> list[str]:
    """Metrics of one evaluation set of an embedding model."""
    sizes = dict.fromkeys(size for task in (algorithm, *algorithm.by_name.values()) for size in task.matryoshka)
    # Sets with graded passages are ordered by the model; which sets these are, only their rows tell.
    ordered = [f"rerank_{first}{name}" for first in ("", "base_") for name in RERANKING]
    cut = [f"dim{size}/{name}" for size in sizes for name in (RETRIEVAL[0], "spearman")]
    return [*RETRIEVAL, *ordered, "spearman", *cut]


def _of_samples(count: int) -> list[str]:
    """Metrics of several responses to each evaluation prompt."""
    if count < 2:
        return []
    return ["reward/zero_variance_fraction", "majority", *(f"pass@{size}" for size in pass_sizes(count))]


def _of_sources(config: RunConfig) -> list[str]:
    """The rewards of each source, where there are several."""
    if config.reward.sources < 2:  # of a single one, reward/mean says it
        return []
    from algorithms.rewards.scores import sources_labels

    return [f"reward/{label}" for labels in sources_labels(config.reward) for label in labels]


def _of_sets(config: RunConfig) -> list[str]:
    """Mean rewards of each set, where held-out rows are parts of several."""
    train = config.data.train
    several = isinstance(train, dict) and len(train) > 1 and config.data.eval_fraction is not None
    return [f"reward/{name}/mean" for name in train] if several else []
